"""Pools: a coordinator leases work to workers that may be slow, may die and may lie.

`ledger` is the coordinator's memory: work units, leases and accepted results, durable at every moment.
"""
