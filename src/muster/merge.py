"""Merge rules from Python: how what workers hand in changes a model::

    rule = muster.merge.get("krum", f=2)
    model, state = rule.merge(model, updates, rule.begin(model))

Models are mappings from names to arrays. `muster.merge.rules()` lists all rules; the docstring of each has its formula and
source.
"""

from muster.training.merge.registry import get, rules
from muster.training.merge.rule import Handed, MergeRule, Trained, Update

__all__ = ["Handed", "MergeRule", "Trained", "Update", "get", "rules"]
