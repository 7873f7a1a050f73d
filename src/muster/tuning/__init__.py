"""Measure a job, say what limits it, and prove what mends it: profile, scaling study, tuning.

May import `muster._run`, the public names of `muster.report`, and everything below those; only `muster.cli` imports
it. What is shown is computed from run folders alone; the exceptions, the speed of the loader and of the link, are
measured by a gang of its own and say so. Modules are imported when used: importing this package costs nothing.
"""
