"""Local SGD: against arithmetic by hand, against synchronous SGD, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muster import comm
from muster.errors import RefusedInput

LR = 0.1


class _Point(torch.nn.Module):
    """Parameters with the loss |x - c|^2 / 2, whose gradient is x - c."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.full((3,), start, dtype=torch.float64))

    def forward(self, centre: torch.Tensor) -> torch.Tensor:
        return (self.x - centre).square().sum() / 2


def _centre(rank: int) -> torch.Tensor:
    return torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * (rank + 1)


def _walk(context, every: int, warm_up: int, steps: int):
    model = _Point(start=float(context.rank))  # ranks begin apart: rank 0's start counts
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    averaging = comm.local_sgd(model, optimizer, every=every, warm_up=warm_up)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(_centre(context.rank)).backward()
        optimizer.step()
        path.append(model.x.detach().numpy().copy())
    state = averaging.state_dict()
    averaging.finish()
    return path, state, model.x.detach().numpy().copy()


@pytest.mark.parametrize(("every", "warm_up"), [(1, 0), (3, 0), (4, 2)])
def test_paths_are_those_of_arithmetic_by_hand(local_engine, every: int, warm_up: int) -> None:
    ranks, steps = 3, 11
    results = local_engine.run(lambda context: _walk(context, every, warm_up, steps), ranks=ranks)
    x = np.zeros((ranks, 3))
    centres = np.stack([_centre(rank).numpy() for rank in range(ranks)])
    averaged = 0
    for step in range(1, steps + 1):
        x = x - LR * (x - centres)
        if step <= warm_up or (step - warm_up) % every == 0:
            x[:] = x.mean(axis=0)
            averaged += 1
        for rank in range(ranks):
            np.testing.assert_allclose(results[rank][0][step - 1], x[rank], rtol=1e-12)
    for _, state, final in results:
        assert state == {"step": steps, "averaged": averaged}
        np.testing.assert_allclose(final, x.mean(axis=0), rtol=1e-12)
    assert len({final.tobytes() for _, _, final in results}) == 1


def _resumed(context):
    def fresh(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        return optimizer, comm.local_sgd(model, optimizer, every=3)

    def go(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(_centre(context.rank)).backward()
            optimizer.step()

    model = _Point(0.0)
    optimizer, averaging = fresh(model)
    go(model, optimizer, 4)
    saved, own = averaging.state_dict(), model.x.detach().clone()
    go(model, optimizer, 5)
    other = _Point(0.0)
    optimizer, averaging = fresh(other)
    with torch.no_grad():
        other.x.copy_(own)  # each rank its own checkpoint
    averaging.load_state_dict(saved)
    go(other, optimizer, 5)
    return model.x.detach().numpy().tobytes(), other.x.detach().numpy().tobytes()


def test_a_resumed_period_goes_on_where_it_was(local_engine) -> None:
    for undisturbed, resumed in local_engine.run(_resumed, ranks=2):
        assert undisturbed == resumed


def test_nonsense_is_refused_with_a_sentence(local_engine) -> None:
    model = _Point(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with pytest.raises(RefusedInput, match="period of 1 or more"):
        comm.local_sgd(model, optimizer, every=0)

    def wrapped(context) -> str:
        replica = torch.nn.parallel.DistributedDataParallel(_Point(0.0))
        try:
            comm.local_sgd(replica, torch.optim.SGD(replica.parameters(), lr=LR), every=2)
        except RefusedInput as refusal:
            return str(refusal)
        return ""

    assert "give the model inside it" in local_engine.run(wrapped, ranks=1)[0]
