"""Jobs of the shape pool: volunteers that share all data, or parties that keep theirs; one pool, one ledger, the same rules.

May import what training may. `attempt` carries a run through one life of its engine.
"""
