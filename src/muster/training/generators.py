"""The states of the global random generators as tensors, so that a checkpoint can hold them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seeds torch (all devices), NumPy's global generator and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states() -> dict[str, torch.Tensor]:
    """The states of torch's CPU (and current CUDA) generator, NumPy's global one and `random`."""
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, internal, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python": torch.tensor(internal, dtype=torch.int64),
        "python_gauss": torch.tensor(
            [version, float("nan") if next_gauss is None else next_gauss], dtype=torch.float64
        ),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, torch.Tensor]) -> None:
    """Puts back what `generator_states` gave."""
    torch.set_rng_state(states["torch"])
    position, has_gauss, gauss = states["numpy_position"].tolist()
    words = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), gauss))
    version, next_gauss = states["python_gauss"].tolist()
    random.setstate(
        (int(version), tuple(states["python"].tolist()), None if next_gauss != next_gauss else next_gauss)
    )
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Leaves the global generators as they were, whatever happens inside."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
