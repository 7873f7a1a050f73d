"""The arithmetic of a training step: which dtype holds the weights, which one computes, and whether gradients are scaled.

``bf16`` and ``fp16`` are mixed precision (Micikevicius et al. 2018, arXiv:1710.03740): weights and optimizer state stay
fp32, matrix products and convolutions run in 16 bits under `torch.autocast`. fp16 has 5 bits of exponent only, so its loss is
scaled by a `torch.amp.GradScaler`, which skips the update of a step whose gradients overflow and halves the scale.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import torch

from muster.errors import JobError

#: For each precision: dtype of weights and inputs, dtype of matrix products and convolutions.
_DTYPES: Final[dict[str, tuple[torch.dtype, torch.dtype]]] = {
    "fp64": (torch.float64, torch.float64),
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


@dataclass(frozen=True)
class Precision:
    """One of ``fp64``, ``fp32``, ``bf16`` and ``fp16``.

    Arguments:
        name: as in ``how.precision``.

    Raises:
        KeyError: another name.
    """

    name: str

    def __post_init__(self) -> None:
        _ = _DTYPES[self.name]

    @property
    def weights(self) -> torch.dtype:
        """Of parameters, optimizer state, gradients and inputs."""
        return _DTYPES[self.name][0]

    @property
    def products(self) -> torch.dtype:
        """Of matrix products and convolutions."""
        return _DTYPES[self.name][1]

    @property
    def mixed(self) -> bool:
        return self.weights != self.products

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context of the forward pass; does nothing unless this precision is mixed."""
        return torch.autocast(device.type, self.products if self.mixed else None, enabled=self.mixed)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The scaler of the loss: transparent (it does nothing and has no state) but for fp16.

        All ranks decide alike whether to skip a step: an infinity of one of them is in the reduced gradient of all.
        """
        return torch.amp.GradScaler(device.type, enabled=self.products is torch.float16)

    def check(self, device: torch.device) -> None:
        """Refuses a device whose kernels lack this precision, by one tiny forward and backward pass.

        Raises:
            JobError: names ``how.precision``.
        """
        if not self.mixed:
            return
        with torch.random.fork_rng(devices=[]):  # the model's first weights must not depend on the precision
            layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Flatten(), torch.nn.Linear(4, 1))
        layers.to(device)
        try:
            with self.autocast(device):
                loss = layers(torch.ones(2, 1, 4, 4, device=device)).float().sum()
            loss.backward()
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise JobError(
                f"{self.name} is not supported on {device.type} by torch {torch.__version__} ({reason})",
                mend="set bf16 or fp32",
                key="how.precision",
            ) from error
