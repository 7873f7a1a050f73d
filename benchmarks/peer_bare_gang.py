"""The least that a gang of Ray actors costs: the first step of the same training as a bare function on `muster.gang.run`.

    python benchmarks/peer_bare_gang.py JOB RANKS OUT

Writes into OUT when rank 0's first step was done, in Unix seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from muster import gang


def main(job: str, ranks: int, out: str) -> None:
    def first_step(context: gang.RankContext) -> float:
        from plain_training import DDP_OPTIONS, PlainTraining
        from torch.nn.parallel import DistributedDataParallel

        training = PlainTraining(
            job, context.rank, context.world_size, lambda model: DistributedDataParallel(model, **DDP_OPTIONS)
        )
        training.step()
        return time.time()

    Path(out).write_text(str(gang.run(first_step, ranks=ranks, threads=1)[0]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
