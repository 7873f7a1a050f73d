"""Super-resolution and classification: their networks, their data, their measures of quality, and the use of a trained model.

May import `muster.training`, `muster.engine`, `muster.spec` and `muster.errors`; no other application. What
users import is in `muster.vision`. This package imports nothing by itself, so that a job file can be
checked without torch.
"""
