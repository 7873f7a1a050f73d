"""Simulations: shallow water over real sea floors, the earthquakes that move it, and what an ensemble says about a coast.

May import `muster.training`, `muster.engine`, `muster.spec` and `muster.errors`; no other application. Numerics are pure
functions of arrays: `shallow_water.advance` takes a `State` and a `Grid` and returns a later `State`, with no engine running.
What users import is `muster.simulation`.
"""
