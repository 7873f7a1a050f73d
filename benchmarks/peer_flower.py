"""The parties of `simulated_parties.py` in Flower's simulation, run by the Python of an environment of its own.

    python peer_flower.py PARTIES.npz ROUNDS

`PARTIES.npz` holds ``inputs_N`` and ``labels_N`` of party N, ``held_inputs`` and ``held_labels``, and ``steps`` (batch,
learning rate). Prints one JSON object: seconds of each round after the first, seconds until the first round was done, and
the accuracy. Two clients train at a time, one core each, as Muster's two workers do.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from functools import cache
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from digits_network import make  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402
from torch import nn  # noqa: E402

FILE, ROUNDS = sys.argv[1], int(sys.argv[2])

client, server = ClientApp(), ServerApp()


@cache
def party(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A party's data; read once in each process."""
    with np.load(FILE) as held:
        return torch.from_numpy(held[f"inputs_{number}"]), torch.from_numpy(held[f"labels_{number}"])


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch."""
    torch.set_num_threads(1)
    with np.load(FILE) as held:
        batch, lr = int(held["steps"][0]), float(held["steps"][1])
    inputs, labels = party(int(context.node_config["partition-id"]))
    model = make()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for positions in torch.randperm(len(inputs)).split(batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[positions]), labels[positions]).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(inputs)}),
        }
    )
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; then says what they took."""
    stamps: list[float] = []

    def stamp(round_: int, arrays: ArrayRecord) -> MetricRecord:
        stamps.append(time.perf_counter())
        return MetricRecord({"round": round_})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid, initial_arrays=ArrayRecord(make().state_dict()), num_rounds=ROUNDS + 1, evaluate_fn=stamp
    )
    model = make()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    with np.load(FILE) as held, torch.no_grad():
        found = model(torch.from_numpy(held["held_inputs"])).argmax(1).numpy() == held["held_labels"]
    told: dict[str, Any] = {
        "rounds_s": np.diff(stamps[1:]).tolist(),
        "first_s": stamps[1] - STARTED,
        "accuracy": float(found.mean()),
    }
    print("RESULT " + json.dumps(told), flush=True)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    with np.load(FILE) as parties:
        count = sum(name.startswith("inputs_") for name in parties)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=count,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
