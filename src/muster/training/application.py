"""The contract between Muster and an application; free of torch at import time.

An application is one class. The shapes of parallel work call its methods; it never learns how many ranks
there are. Third parties register theirs with an entry point of the group ``muster.applications``, exactly
as Muster's own are registered::

    [project.entry-points."muster.applications"]
    "digits" = "digits:Digits"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from muster.spec import What

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

__all__ = ["Application", "What"]


class Application(ABC):
    """What a user came for: the model, its data and its measure of quality.

    Only `build_model`, `training_data` and `loss` must be written. Methods are called in this order: `check`
    in the launching process; `prepare` once on each machine; the others on every rank.

    Arguments:
        what: the validated ``what`` section of the job.
    """

    #: The typed ``what`` section: a subclass of `muster.spec.What`.
    What: ClassVar[type[What]] = What

    #: The quality by which the best checkpoint is chosen (more is better), one of those that `evaluate` gives, or None.
    quality: ClassVar[str | None] = None

    def __init__(self, what: Any) -> None:
        self.what = what

    def check(self, samples_per_step: int) -> None:  # noqa: B027 - doing nothing is right for most
        """Refuse what no rank could do, before any worker starts; must be quick and must not need torch.

        Arguments:
            samples_per_step: the global batch.

        Raises:
            muster.errors.RefusedInput: says what is wrong, where, and what would be right.
        """

    def prepare(self) -> None:  # noqa: B027 - likewise
        """Do once-per-machine work before training, such as decoding a data set into a cache.

        Runs in one rank per machine while the others wait; must be idempotent and safe to kill.
        """

    @abstractmethod
    def build_model(self) -> torch.nn.Module:
        """A freshly initialised model on the CPU; torch's generator is seeded before the call."""

    @abstractmethod
    def training_data(self) -> Dataset[Any]:
        """A map-style data set of training samples, collated by torch's default rules.

        Randomness drawn from torch, NumPy's global generator or ``random`` inside ``__getitem__`` is
        a function of (seed, epoch, index) alone: the loop seeds all three before each sample.

        A data set may have ``labels``, a NumPy array of integers of shape ``(samples,)``: the class of every sample, without
        reading one. Shares of parties by class (`muster.federated.dirichlet`) are made from it.
        """

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The mean loss over the samples of ``batch`` (a collated batch on the model's device), a scalar."""

    def labels(self, data: Dataset[Any]) -> Sequence[int] | None:
        """The class of each training sample in their order, by which parties are dealt uneven data; None: there are none.

        By default what the data set has as ``labels`` or, as in torchvision, ``targets``.

        Arguments:
            data: what `training_data` has returned.
        """
        found: Sequence[int] | None = getattr(data, "labels", None)
        return getattr(data, "targets", None) if found is None else found

    def evaluation_data(self) -> Sequence[Any]:
        """The held-out items; the ranks share them out and count each exactly once.

        An item that has a ``name`` is called by it in the records, others by their index. One that has ``samples``, such
        as a batch of them, counts as that many in the mean.
        """
        return ()

    def evaluate(self, model: torch.nn.Module, item: Any) -> dict[str, float]:
        """Qualities of one held-out item, by name; the run records each item's and their mean."""
        return {}

    def metadata(self) -> dict[str, str]:
        """What a reader of ``model.safetensors`` needs to rebuild the model; stored in the file's header."""
        return {}

    def illustrate(self, model: torch.nn.Module, folder: Path) -> None:  # noqa: B027 - likewise
        """Draw pictures of the result into ``folder``; called on rank 0 at the end of the run.

        A picture strip is a line of ``folder/strips.jsonl``:
        ``{"title": str, "panels": [{"label": str, "caption": str, "file": "name.png"}, ...]}``.
        """
