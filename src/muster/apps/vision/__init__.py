"""Super-resolution: EDSR, its data, its measures of quality, and enlarging pictures with a trained model.

May import `muster.training`, `muster.engine`, `muster.spec` and `muster.errors`; no other application. What
users import is in `muster.vision`. This package imports nothing by itself, so that a job file can be
checked without torch.
"""
