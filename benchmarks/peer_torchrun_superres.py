"""The peer of `muster run`: the same training as a plain DistributedDataParallel script under torchrun.

    torchrun --standalone --nproc-per-node 2 benchmarks/peer_torchrun_superres.py JOB STEPS OUT

Rank 0 writes the wall time of every step (s) as a JSON list into OUT.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from plain_training import DDP_OPTIONS, PlainTraining
from torch.nn.parallel import DistributedDataParallel


def main(job: str, steps: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    training = PlainTraining(
        job,
        dist.get_rank(),
        dist.get_world_size(),
        lambda model: DistributedDataParallel(model, **DDP_OPTIONS),
    )
    begun = [time.perf_counter()]
    for _ in range(steps):
        training.step()
        begun.append(time.perf_counter())
    if dist.get_rank() == 0:
        out.write_text(json.dumps([end - start for start, end in itertools.pairwise(begun)]))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    # The measurement is written: an exit of the interpreter now and then aborts in Gloo's threads.
    os._exit(0)
