"""Error feedback: what a step does not send is added to the next gradient.

Seide et al., "1-bit stochastic gradient descent and its application to data-parallel distributed training of speech DNNs"
(Interspeech 2014); Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes" (ICML 2019).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from muster.pillars.comm.compress.compressor import Compressor, CompressorState, Part
from muster.pillars.comm.compress.wire import Wire


class FeedbackCompressor(Compressor):
    """A compressor that keeps what it has not sent.

    After every step ``residual + sent == gradient + previous residual``, where ``sent`` is this rank's contribution to
    what all ranks received; a subclass says how exactly. Gradients that are not finite are never kept, or one overflow
    (which a loss scaler expects and skips) would poison all steps to come: they are sent, and their residual is zero.

    Arguments:
        error_feedback: False forgets what was not sent; for comparison.

    Attributes:
        residual: ``[numel]`` in the bucket's dtype; between steps, what this rank has not sent.
        steps: how many have been done.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        error_feedback: bool = True,
    ) -> None:
        super().__init__(parts, dtype, device, seed=seed)
        self.error_feedback = error_feedback
        self.residual = torch.zeros(self.numel, dtype=dtype, device=device)
        self.steps = 0

    def _average(self, bucket: torch.Tensor, wire: Wire) -> None:
        self.residual.add_(bucket)
        self._send(bucket, wire)
        self.steps += 1
        if not self.error_feedback:
            self.residual.zero_()

    @abstractmethod
    def _send(self, bucket: torch.Tensor, wire: Wire) -> None:
        """Makes ``bucket`` the mean of what ranks send of their ``residual``, and takes that out of ``residual``."""

    def state(self) -> CompressorState:
        steps = torch.tensor(self.steps)
        parts = [{"residual": part.of(self.residual), "shared_steps": steps} for part in self.parts]
        return CompressorState(parts, {})

    def load_state(self, state: CompressorState) -> None:
        for part, tensors in zip(self.parts, state.parts, strict=True):
            if "residual" in tensors:
                part.of(self.residual).copy_(tensors["residual"])
        # Buckets that were done equally often stay so; a new parameter among old ones goes with them.
        self.steps = max((int(tensors.get("shared_steps", 0)) for tensors in state.parts), default=0)
