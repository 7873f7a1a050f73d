"""How many samples a lease has where the job leaves that to Muster."""

from __future__ import annotations

import math
from typing import Final

from muster.engine.pool.lease_length import best_length_s
from muster.spec import PoolHow
from muster.training.pool.machines import interruptions_per_s

#: What handing out a model and merging an update is taken to cost beside the work, s; the best length grows with its root.
_OVERHEAD_S: Final = 0.1
_LEASES_OF_A_WORKER: Final = 8  # of each pass, while nothing else is known


def lease_samples(how: PoolHow, samples: int) -> int:
    """Samples of a lease, in whole batches.

    Where the pace of workers and the rate of their interruptions are stated, the renewal model says how long a lease
    should be (`muster.engine.pool.lease_length.best_length_s`). Otherwise each worker gets eight of every pass: few enough
    that transfers do not count, many enough that one that is lost is no great loss.

    Arguments:
        how: of the job.
        samples: of the data.
    """
    if how.lease != "auto":
        return min(how.lease, samples)
    if how.pace is not None and (rate := interruptions_per_s(how)) > 0:
        length_s = best_length_s(_OVERHEAD_S, interruptions_per_s=rate)
        wanted = length_s * how.pace
    else:
        wanted = samples / (how.workers * _LEASES_OF_A_WORKER)
    batches = max(1, math.floor(wanted / how.local.batch))
    return min(batches * how.local.batch, samples)
