"""Merge rules: how what workers hand in changes a model. Pure functions of arrays, for volunteers and federations alike.

Start with `rule.MergeRule`, the contract; `registry` finds rules by name.
"""
