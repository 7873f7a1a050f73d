"""``how`` for the shape *pool*: a coordinator leases work to workers that may be slow, vanish or lie."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from muster.spec.gang_how import Optimizer
from muster.spec.section import Section, refuse
from muster.spec.shape import How
from muster.spec.values import Duration
from muster.spec.wording import shown


class Local(Section):
    """What a worker does with the model of a lease."""

    batch: int = Field(default=32, ge=1, lt=2**31, examples=[32])
    """Samples of a step; where fewer are left, all of them."""

    epochs: int = Field(default=1, ge=1, lt=2**31)
    """Passes over the samples of the lease, or over a party's data."""

    steps: int | None = Field(default=None, ge=1, lt=2**31)
    """Steps instead of passes, the same number for every party; only with parties."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer of torch.optim, new for every lease; parties have sgd."""

    lr: float = Field(default=0.1, gt=0, examples=[0.1])
    """Its learning rate."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Its momentum; for sgd."""

    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (adam, sgd) or decoupled decay (adamw)."""

    @model_validator(mode="after")
    def _momentum_belongs_to_sgd(self) -> Local:
        if self.optimizer != "sgd" and self.momentum:
            raise refuse(
                f"{self.optimizer} has no momentum",
                mend="remove the key, or set optimizer: sgd",
                key="momentum",
            )
        return self

    @property
    def recipe(self) -> Optimizer:
        """The optimizer as gangs describe it."""
        return Optimizer(
            name=self.optimizer, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


class Updates(Section):
    """How updates travel to the coordinator."""

    compression: Literal["none", "int8", "topk"] = "none"
    """What makes updates smaller on the way: ``int8`` has a byte for each number, ``topk`` sends the largest changes alone.
    Both are lossy; what a worker or party has not sent it keeps for its next update."""

    density: float | None = Field(default=None, gt=0, le=1, validate_default=True)
    """Share of each array that is sent; for topk, by default 0.01."""

    @field_validator("density", mode="after")
    @classmethod
    def _fill_in_density(cls, density: float | None, info: ValidationInfo) -> float | None:
        return 0.01 if density is None and info.data.get("compression") == "topk" else density

    @model_validator(mode="after")
    def _density_belongs_to_topk(self) -> Updates:
        if self.density is not None and self.compression != "topk":
            raise refuse(
                f"{self.compression} has no density",
                mend="remove the key, or set compression: topk",
                key="density",
            )
        return self


class Trust(Section):
    """Whether workers are believed; docs/trust.md says what that is worth. Without this section everybody is."""

    share: float = Field(default=0.098, gt=0, le=1)
    """Share of the units of a known worker that others do again, to compare."""

    quorum: int = Field(default=2, ge=2, le=9)
    """Results that must agree."""

    probation: int = Field(default=2, ge=0)
    """A worker with fewer confirmed results is checked every time."""

    trusted: list[int] = Field(default=[])
    """Places of workers whose word decides, from 0 on; those who take a place over are trusted as well."""

    audit: bool = False
    """Whether trusted workers alone do the checks."""

    @model_validator(mode="after")
    def _audits_need_somebody(self) -> Trust:
        if self.audit and not self.trusted:
            raise refuse(
                "checks by trusted workers need some", mend="list their places in trusted", key="audit"
            )
        return self


class Parties(Section):
    """Parties that share nothing but models: the training data are dealt to them, and each trains on its own part."""

    count: int = Field(ge=1, le=100_000, examples=[10])
    """How many; workers train them in turn."""

    partition: Literal["even", "dirichlet", "by_class"] = "even"
    """``even`` shuffles and deals equal parts; ``dirichlet`` draws each party's share of every class; ``by_class`` gives each
    party a few stretches of the samples sorted by class."""

    alpha: float | None = Field(default=None, gt=0, validate_default=True)
    """Concentration of the Dirichlet distribution, the smaller the more uneven; by default 0.5."""

    stretches: int | None = Field(default=None, ge=1, le=1000)
    """Stretches of each party; for by_class, by default 2."""

    least: int = Field(default=1, ge=1)
    """Samples that each party has at least; for dirichlet, which is drawn again until they do."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the parties that takes part in a round, drawn anew for each."""

    @model_validator(mode="after")
    def _options_belong_to_the_partition(self) -> Parties:
        for key, partition in (("alpha", "dirichlet"), ("stretches", "by_class")):
            if getattr(self, key) is not None and self.partition != partition:
                raise refuse(
                    f"the partition {self.partition} has no {key}",
                    mend=f"remove the key, or set partition: {partition}",
                    key=key,
                )
        if self.least != 1 and self.partition != "dirichlet":
            raise refuse(
                f"the partition {self.partition} deals equal parts",
                mend="remove the key, or set partition: dirichlet",
                key="least",
            )
        return self


class PriceClass(Section):
    """The price of some of the workers."""

    name: str = Field(min_length=1, max_length=64)
    """What such a machine is called."""

    workers: int = Field(ge=1)
    """How many workers are of this class; classes take them in order, from worker 0 on."""

    per_hour: float = Field(ge=0)
    """What one costs in an hour."""

    on_demand: float = Field(ge=0)
    """What the same machine costs in an hour if it may not be taken away."""


class Price(Section):
    """What machines cost; used for nothing but the account of what a run has cost."""

    per_hour: float = Field(ge=0, examples=[0.03])
    """What a worker costs in an hour."""

    on_demand: float = Field(ge=0, examples=[0.1])
    """What the same machine costs in an hour if it may not be taken away."""

    coordinator: float = Field(default=0.0, ge=0)
    """What the coordinator's machine costs in an hour."""

    currency: str = Field(default="USD", min_length=1, max_length=8)
    """Of all prices."""

    classes: list[PriceClass] = Field(default=[])
    """Workers that cost something else, as a list of mappings with name, workers, per_hour and on_demand."""


GENERATED: Final = "generated"


class Available(Section):
    """Machines that come and go as observed ones did, or as a model says."""

    trace: str = Field(min_length=1, examples=["trace.json"])
    """A spot trace, as docs/fleet.md describes them, or ``generated``. Its largest number of instances is taken for
    `how.workers`, others in proportion; it begins with its first instance and, once it is over, again. A relative path starts
    at the working directory."""

    compress: float = Field(default=1.0, gt=0, le=1e9)
    """How many times faster than in the trace time runs: with 720, two hours take ten seconds."""

    notice: Duration | None = None
    """An instance that is taken away gets a preemption notice (SIGTERM) so long before, in the time of the trace; by
    default none."""

    interrupted_every: Duration | None = None
    """How long an instance stays on average; for ``generated``, in the time that compress makes faster."""

    absent: Duration | None = None
    """How long it is on average until another instance takes its place; for ``generated``."""

    @field_validator("trace")
    @classmethod
    def _from_anywhere(cls, trace: str) -> str:
        # A later `muster resume` may have another working directory.
        return trace if trace == GENERATED else str(Path(trace).expanduser().absolute())

    @model_validator(mode="after")
    def _options_belong_to_the_generator(self) -> Available:
        for key in ("interrupted_every", "absent"):
            if self.trace == GENERATED and getattr(self, key) is None:
                raise refuse("generated machines need it", mend="set a time, such as 1h", key=key)
            if self.trace != GENERATED and getattr(self, key) is not None:
                raise refuse(
                    "the trace says when instances go",
                    mend="remove the key, or set trace: generated",
                    key=key,
                )
        return self


class Chaos(Section):
    """What is done to the workers on purpose, to see what a job withstands: real kills of real processes."""

    kill_every: Duration | None = None
    """Each worker is killed after a time drawn from an exponential distribution of this mean, such as ``30s``; by default
    none is."""

    notice: Duration | None = None
    """A preemption notice (SIGTERM) comes so long before the kill; by default none does."""

    join: Duration | None = None
    """A new worker joins so long after one was lost; by default at once."""

    extra: int = Field(default=0, ge=0, le=1024)
    """Workers that join besides, later than the others."""

    extra_every: Duration = Duration(5_000)
    """The time between two of them."""

    availability: Available | None = None
    """Machines for the workers that come and go; by default all stay."""

    slow: list[float] = Field(default=[])
    """Factors by which the first workers are slower: ``[5, 100]`` makes worker 0 five times and worker 1 a hundred times
    slower."""

    corrupt: float = Field(default=0.0, ge=0, lt=1)
    """Share of the updates that is spoilt before it is handed in: numbers that are none, a wrong shape or type, or a false
    number of samples."""

    lying: list[int] = Field(default=[])
    """Places of workers that lie, from 0 on: what they hand in looks right and changes the model ten times as much, in the
    opposite direction. Lies of the same unit are alike, so that two such workers collude."""

    lies: float = Field(default=1.0, gt=0, le=1)
    """Share of their updates that are lies."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes the times of the kills, and which updates are spoilt or lies."""

    @field_validator("slow", mode="after")
    @classmethod
    def _slower_not_faster(cls, slow: list[float]) -> list[float]:
        for factor in slow:
            if not factor >= 1:
                raise refuse(f"found {factor:g}", mend="expected factors of 1 or more", key="")
        return slow

    @model_validator(mode="after")
    def _options_belong_to_kills(self) -> Chaos:
        if self.kill_every is None and self.notice is not None:
            raise refuse("nothing is killed", mend="remove the key, or set kill_every", key="notice")
        if self.availability is not None and self.extra:
            raise refuse(
                "all workers' machines are in availability", mend="remove one of the two", key="extra"
            )
        return self

    @property
    def takes_workers_away(self) -> bool:
        """Whether any worker may be killed, or join late."""
        return self.kill_every is not None or self.availability is not None or self.extra > 0


class PoolHow(How):
    """A coordinator that leases work to workers which may be slow, vanish or lie: volunteer and federated training."""

    shape: Literal["pool"] = "pool"
    """The shape of parallel work."""

    workers: int = Field(default=2, ge=1, le=1024, examples=[2])
    """Processes that train; one that is lost is replaced."""

    rule: str | dict[str, Any] = Field(default="vc-asgd", validate_default=True)
    """The merge rule: its name, or a mapping with its name and options, such as ``{name: krum, f: 2}``; docs/merge-rules.md
    lists them. By default vc-asgd, with parties fedavg."""

    epochs: int | None = Field(default=None, ge=1, lt=2**31, examples=[2])
    """Passes over the training data; for rules that merge each update as it arrives."""

    rounds: int | None = Field(default=None, ge=1, lt=2**31)
    """Rounds; for rules that merge the updates of a round together."""

    lease: int | Literal["auto"] = "auto"
    """Samples of a lease. ``auto``: with ``pace`` and a ``chaos`` that kills, what the renewal model takes to be cheapest on
    machines that vanish so often; else an eighth of a worker's share of the data, at least a batch. Not with parties."""

    round_leases: int | None = Field(default=None, ge=1, le=1_000_000)
    """Leases of a round; for rules of rounds without parties. By default as many as workers."""

    local: Local = Local()
    """The training of a lease."""

    parties: Parties | None = None
    """Parties with data of their own; by default the workers share all data, as volunteers do."""

    communication: Updates = Updates()
    """How updates travel to the coordinator."""

    trust: Trust | None = None
    """Whether workers are believed; by default all are."""

    quorum: float = Field(default=1.0, gt=0, le=1)
    """Share of a round's units that must be done; the run fails, and says so, if more were set aside."""

    attempts: int = Field(default=5, ge=1, le=1000)
    """Leases of a unit that may end without a result before the unit is set aside. A worker that gives a lease back uses none
    up."""

    silence: Duration = Duration(10_000)
    """A lease whose worker gives no sign of life for so long has expired."""

    copies: int = Field(default=1, ge=0, le=100)
    """Further workers that a lagging unit may be given to where nothing else is to do."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Merges between two evaluations; by default about one pass over the data, or one round."""

    pace: float | None = Field(default=None, gt=0)
    """Samples per second of a worker that is not slowed down: each waits until its time has come, as on machines of known
    speed; by default as fast as it goes."""

    max_restarts: int = Field(default=3, ge=0)
    """Restarts after the engine is lost, before the run counts as failed; workers and the coordinator are replaced without
    counting."""

    price: Price | None = None
    """What the machines cost."""

    chaos: Chaos = Chaos()
    """Disturbances on purpose."""

    @field_validator("lease", mode="wrap")
    @classmethod
    def _say_what_a_lease_may_be(cls, lease: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        with contextlib.suppress(ValidationError):  # of a union, whose message names its first member only
            found = inner(lease)
            if isinstance(found, str) or 1 <= found < 2**31:
                return found
        raise refuse(f"found {shown(lease)}", mend="expected auto, or a number of samples of at least 1")

    @field_validator("rule", mode="wrap")
    @classmethod
    def _say_what_a_rule_may_be(cls, rule: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        with contextlib.suppress(ValidationError):
            found = inner(rule)
            if found and (isinstance(found, str) or isinstance(found.get("name"), str)):
                return found
        raise refuse(
            f"found {shown(rule)}",
            mend="expected the name of a rule, or a mapping with name and its options, such as {name: krum, f: 2}",
        )

    @model_validator(mode="before")
    @classmethod
    def _parties_average(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("parties") is not None and given.get("rule") is None:
            return {**given, "rule": "fedavg"}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> PoolHow:
        if (self.epochs is None) == (self.rounds is None):
            raise refuse(
                "epochs and rounds are both given" if self.epochs else "neither epochs nor rounds is given",
                mend="set epochs for a rule that merges each update as it arrives, rounds for a rule of rounds",
                key="rounds" if self.epochs else "epochs",
            )
        if self.parties is not None:
            self._suits_parties()
        elif self.local.steps is not None:
            raise refuse(
                "without parties, a lease's samples say how many steps it has",
                mend="remove the key, or set epochs in its place",
                key="local.steps",
            )
        if self.round_leases is not None and self.rounds is None:
            raise refuse("there are no rounds", mend="remove the key", key="round_leases")
        if self.trust is not None:
            self._suits_checks(self.trust)
        return self

    def _suits_checks(self, trust: Trust) -> None:
        needed = 2 if trust.audit else trust.quorum + (not trust.trusted)
        if self.workers < needed:
            raise refuse(
                f"found {self.workers}",
                mend=f"expected at least {needed}: how.trust has workers check each other, and others settle their disputes",
                key="workers",
            )
        if strangers := [place for place in trust.trusted if not 0 <= place < self.workers]:
            raise refuse(
                f"no worker has place {strangers[0]}",
                mend=f"expected 0 to {self.workers - 1}",
                key="trust.trusted",
            )
        if self.parties is None and self.communication.compression != "none":
            raise refuse(
                "what a volunteer has left out of its updates makes its results its own, so that none can be compared",
                mend="remove how.communication, or how.trust",
                key="communication",
            )

    def _suits_parties(self) -> None:
        if self.epochs is not None:
            raise refuse("parties come in rounds", mend="set how.rounds in its place", key="epochs")
        for key, given in (("lease", self.lease != "auto"), ("round_leases", self.round_leases is not None)):
            if given:
                raise refuse("a party's lease is all of its data", mend="remove the key", key=key)
        if self.local.optimizer != "sgd":
            raise refuse(
                f"found {self.local.optimizer!r}",
                mend="expected sgd: what rules correct in a party's steps is stated for it",
                key="local.optimizer",
            )

    @property
    def rule_name(self) -> str:
        """The name of the merge rule."""
        return self.rule if isinstance(self.rule, str) else str(self.rule["name"])

    @property
    def rule_options(self) -> dict[str, Any]:
        """Its options; lists as tuples, which is what rules take."""
        if isinstance(self.rule, str):
            return {}
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(json.dumps(self.rule)).items()
            if name != "name"
        }
