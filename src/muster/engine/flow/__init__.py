"""Flow: Python functions marked as tasks, joined by the data that they pass.

May import `muster.spec` and `muster.errors` only. What users import is `muster.flow`.
"""
