"""``how`` for the shape *gang*: ranks in lockstep, synchronous data-parallel training."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from muster.spec.section import Section, refuse
from muster.spec.shape import How
from muster.spec.values import Duration, Interval, Size
from muster.spec.wording import shown


class Optimizer(Section):
    """The update rule, with PyTorch's defaults."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimizer of torch.optim."""

    lr: float = Field(default=1e-3, gt=0)
    """The learning rate before warm-up and halving."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of gradient and squared gradient; for adam and adamw."""

    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (adam, sgd) or decoupled decay (adamw)."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum; for sgd."""

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise refuse(
                f"found {list(self.betas)}", mend="expected two numbers from 0 to below 1", key="betas"
            )
        if self.name == "sgd" and self.betas != (0.9, 0.999):
            raise refuse("sgd has no betas", mend="remove the key, or set name: adam", key="betas")
        if self.name != "sgd" and self.momentum:
            raise refuse(
                f"{self.name} has no momentum", mend="set betas instead, or name: sgd", key="momentum"
            )
        return self


class Schedule(Section):
    """How the learning rate changes over the steps."""

    kind: Literal["constant", "halve"] = "constant"
    """``halve`` multiplies the learning rate by one half every `every` steps, as EDSR and RCAN were
    trained."""

    every: int | None = Field(default=None, ge=1)
    """Steps between two halvings; by default a quarter of the run's steps."""

    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""

    @model_validator(mode="after")
    def _every_belongs_to_halving(self) -> Schedule:
        if self.kind == "constant" and self.every is not None:
            raise refuse(
                "a constant schedule halves nothing", mend="set kind: halve or remove the key", key="every"
            )
        return self


class Communication(Section):
    """How gradients travel between the ranks."""

    compression: Literal["none", "bf16", "fp16", "int8", "powersgd", "topk", "oktopk", "auto"] = "none"
    """What makes gradients smaller on the way. All but bf16 are lossy; int8, powersgd, topk and oktopk keep what they have
    not sent for the next step. ``auto`` takes for each bucket what is predicted to be quickest, if that wins a trial:
    fp32 or bf16, any with `lossy`."""

    lossy: bool = False
    """Consent to lossy compression by ``auto``; naming a lossy method is consent."""

    buckets: Literal["default", "auto"] | float = "default"
    """Which gradients travel together: those that PyTorch's limits put together (1 and 25 MiB), ``auto`` for a layout
    planned from measured times, or a size limit in MiB."""

    rank: int | None = Field(default=None, ge=1, le=1024, validate_default=True)
    """Rank of the approximation; for powersgd, by default 4."""

    density: float | None = Field(default=None, gt=0, le=1, validate_default=True)
    """Share of the gradients that is sent; for topk and oktopk, by default 0.01."""

    @field_validator("buckets", mode="wrap")
    @classmethod
    def _say_what_buckets_may_be(cls, buckets: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        with contextlib.suppress(ValidationError):  # of a union, whose message names its first member only
            found = inner(buckets)
            if isinstance(found, str) or 0 < found <= 1024:
                return found
        raise refuse(
            f"found {shown(buckets)}", mend="expected default, auto, or a number of MiB above 0 to 1024"
        )

    @field_validator("rank", mode="after")
    @classmethod
    def _fill_in_rank(cls, rank: int | None, info: ValidationInfo) -> int | None:
        return 4 if rank is None and info.data.get("compression") == "powersgd" else rank

    @field_validator("density", mode="after")
    @classmethod
    def _fill_in_density(cls, density: float | None, info: ValidationInfo) -> float | None:
        return 0.01 if density is None and info.data.get("compression") in ("topk", "oktopk") else density

    @model_validator(mode="after")
    def _options_belong_to_the_method(self) -> Communication:
        if self.rank is not None and self.compression != "powersgd":
            raise refuse(
                f"{self.compression} has no rank",
                mend="remove the key, or set compression: powersgd",
                key="rank",
            )
        if self.density is not None and self.compression not in ("topk", "oktopk"):
            raise refuse(
                f"{self.compression} has no density",
                mend="remove the key, or set compression: topk or oktopk",
                key="density",
            )
        if self.lossy and self.compression in ("none", "bf16"):
            raise refuse(
                f"{self.compression} is not lossy",
                mend="remove the key, or set compression: auto",
                key="lossy",
            )
        return self


class Input(Section):
    """How samples reach the ranks. Order and random draws, and so the trained weights, are the same with any of it."""

    loader: Literal["auto", "plain", "look-ahead"] = "auto"
    """``plain`` is PyTorch's DataLoader. ``look-ahead`` reads the store ahead of use, keeps in the ranks' memory and on
    their disks what fits, and shares it among them. ``auto`` looks ahead where the application's data lie in a store
    (`muster.io.StoredSamples`)."""

    memory: Size | None = None
    """What each rank may keep in memory, such as ``8GiB``; for look-ahead, by default its share of half of what its
    machine has left."""

    disk: Size | None = None
    """What each rank may keep on its machine's disk besides; for look-ahead, by default nothing."""

    folder: str | None = Field(default=None, min_length=1)
    """Where on disk, such as ``/scratch``; by default the folder for temporary files."""

    cache: Literal["auto", "stored", "decoded", "none"] = "auto"
    """What is kept: ``stored`` bytes, or ``decoded`` samples; ``auto`` keeps decoded ones where that saves time, all of
    them fit and decoding draws no random numbers."""

    @field_validator("folder")
    @classmethod
    def _folder_from_anywhere(cls, folder: str | None) -> str | None:
        return None if folder is None else str(Path(folder).expanduser().absolute())

    @model_validator(mode="after")
    def _options_belong_to_looking_ahead(self) -> Input:
        if self.loader == "plain":
            for key in ("memory", "disk", "folder"):
                if getattr(self, key) is not None:
                    raise refuse(
                        "the plain loader keeps nothing",
                        mend="remove the key, or set loader: look-ahead",
                        key=key,
                    )
        if self.folder is not None and self.disk is None:
            raise refuse(
                "a folder without an amount",
                mend="set disk too, such as disk: 100GB, or remove the key",
                key="folder",
            )
        return self


class GangHow(How):
    """Ranks in lockstep: each computes the gradient of its share of the batch, all apply the mean."""

    shape: Literal["gang"] = "gang"
    """The shape of parallel work."""

    ranks: int = Field(default=2, ge=1, le=4096, examples=[2])
    """Processes that train together."""

    steps: int = Field(ge=1, lt=2**53, examples=[600])
    """Updates of the weights."""

    batch: int = Field(ge=1, lt=2**31, examples=[16])
    """Samples per step over all ranks together."""

    micro_batch: int | None = Field(default=None, ge=1)
    """The most samples that a rank processes at once; gradients of more are accumulated. By default its whole
    share."""

    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(default="fp32", examples=["fp32"])
    """Arithmetic of the forward and backward pass; bf16 and fp16 keep fp32 weights, fp16 scales the loss and skips
    steps that overflow, fp64 is for verification."""

    channels_last: bool = False
    """Whether images lie in memory with the channel as the fastest dimension, which many convolution kernels read
    faster."""

    compile: Literal["off", "on", "auto"] = "off"
    """``torch.compile`` on the model; ``auto`` measures it at the start and keeps it only where it is faster. Compiling
    counts as no sign of life: hang_timeout must be longer."""

    activation_checkpointing: bool = False
    """Whether the model's blocks (children of nn.Sequential or nn.ModuleList) compute their activations again in the
    backward pass instead of keeping them: less memory, up to a third more compute, equal gradients."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, such as 0.999; its weights are evaluated and exported
    instead of the last ones. By default none is kept."""

    optimizer: Optimizer = Optimizer()
    """The update rule."""

    schedule: Schedule = Field(default=Schedule(), validate_default=True)
    """The learning rate over the steps."""

    input: Input = Input()
    """The way of samples to the ranks."""

    communication: Communication = Communication()
    """The exchange of gradients."""

    checkpoint_every: Interval = Field(default=Interval(every=Duration(30_000)), examples=["30s"])
    """Time or steps between two checkpoints, such as ``30s``, ``5m`` or ``200 steps``; the most that a kill
    can lose."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; the best one is kept besides."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between two evaluations; by default only before the first and after the last step."""

    max_restarts: int = Field(default=3, ge=0)
    """Restarts from the last checkpoint after a rank or the engine is lost, before the run counts as
    failed."""

    hang_timeout: Duration = Duration(300_000)
    """A rank without a sign of life for so long counts as hung."""

    loader_workers: int = Field(default=0, ge=0, le=256)
    """Processes per rank that prepare samples; 0 prepares them in the rank itself."""

    trace_every: int = Field(default=100, ge=1)
    """One step in so many is sampled for the timeline of the report."""

    @field_validator("schedule", mode="after")
    @classmethod
    def _fill_in_halvings(cls, schedule: Schedule, info: ValidationInfo) -> Schedule:
        steps = info.data.get("steps")
        if steps is not None and schedule.kind == "halve" and schedule.every is None:
            # four plateaus (1, 1/2, 1/4, 1/8 of the rate), close to RCAN's 1000 epochs halved every 200
            return schedule.model_copy(update={"every": math.ceil(steps / 4)})
        return schedule

    @model_validator(mode="after")
    def _shares_are_possible(self) -> GangHow:
        if self.batch < self.ranks:
            raise refuse(
                f"a batch of {self.batch} leaves some of {self.ranks} ranks without a sample",
                mend=f"set how.batch to at least {self.ranks}, or fewer how.ranks",
                key="batch",
            )
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise refuse(
                f"found {self.micro_batch}, more than the whole batch of {self.batch}",
                mend=f"expected at most {self.batch}",
                key="micro_batch",
            )
        if self.schedule.warmup >= self.steps:
            raise refuse(
                f"a warm-up of {self.schedule.warmup} steps does not end within the run's {self.steps}",
                mend=f"expected less than {self.steps}",
                key="schedule.warmup",
            )
        return self

    @model_validator(mode="after")
    def _compression_suits_the_precision(self) -> GangHow:
        method = self.communication.compression
        if self.precision == "fp64" and method in ("bf16", "fp16", "int8", "auto"):
            raise refuse(
                f"{method} sends gradients of fp64 with at most 11 bits of precision"
                if method != "auto"
                else "auto has nothing to choose from in fp64",
                mend="set compression: none, or precision: fp32",
                key="communication.compression",
            )
        return self
