"""Flow: Python functions marked as tasks, joined by the data that they pass.

What users import is `muster.flow`. May import the rest of `muster.engine` (the ledger's blobs, Ray, run folders),
`muster.spec` and `muster.errors`.
"""
