"""The peer of `muster run` at its start: the first step of the same training under Ray Train's TorchTrainer.

    python benchmarks/peer_ray_train.py JOB RANKS CORES OUT

Runs in an environment of its own (`peer_environment.py`). Rank 0 writes into OUT when its first step was done, in Unix
seconds. Ray starts as Muster starts its own: on loopback, without dashboard, usage statistics and log forwarding.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch


def first_step(config: dict[str, Any]) -> None:
    """What every worker runs."""
    import torch
    from plain_training import DDP_OPTIONS, PlainTraining

    torch.set_num_threads(1)
    context = ray.train.get_context()
    training = PlainTraining(
        config["job"],
        context.get_world_rank(),
        context.get_world_size(),
        lambda model: ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP_OPTIONS),
    )
    training.step()
    if context.get_world_rank() == 0:
        Path(config["out"]).write_text(str(time.time()))


def main(job: str, ranks: int, cores: int, out: str) -> None:
    ray.init(
        address="local",
        num_cpus=cores,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        configure_logging=False,
    )
    trainer = ray.train.torch.TorchTrainer(
        first_step,
        train_loop_config={"job": job, "out": out},
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=ranks, use_gpu=False),
        run_config=ray.train.RunConfig(storage_path=str(Path(out).parent / "ray-train")),
    )
    trainer.fit()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
