"""Lying workers: which results are checked, when they agree, and whom to believe. Pure functions of explicit state.

`audits` decides who is checked, `agreement` whether two results are the same up to rounding, `tolerance` how much
rounding there is, `survival` says what all this is worth and costs. `replication` puts them together as the
`muster.engine.pool.trust.Trust` of a coordinator; the merge rules know nothing of it.
"""
