"""One self-contained HTML page per run, from the run folder alone.

May import `muster.engine` and what lies below it; only `muster.cli` and the public top import it. `summary`
computes the figures of a run; `write_report` draws them. Both take a run in any state: going, crashed, or
without a single step.
"""

from muster.report._collectives import BucketCost
from muster.report._metrics import Metric
from muster.report._page import write_report
from muster.report._pillars import PILLARS, RankTime
from muster.report._restarts import AttemptCost, Elapsed
from muster.report._summary import Summary, summary

__all__ = [
    "PILLARS",
    "AttemptCost",
    "BucketCost",
    "Elapsed",
    "Metric",
    "RankTime",
    "Summary",
    "summary",
    "write_report",
]
