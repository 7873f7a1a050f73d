"""Jobs of the shape pool: volunteers that share all data, or parties that keep theirs; the same pool, rules and ledger for both.

May import what training may. `attempt` carries a run through one life of its engine.
"""
