"""The whole job: *what*, *how* and *where*, and what must hold between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from muster.spec.gang_how import GangHow
from muster.spec.pool_how import PoolHow
from muster.spec.section import Section, refuse
from muster.spec.shape import How
from muster.spec.what import What
from muster.spec.where import Where

#: All shapes of parallel work, told apart by their ``shape``; a new one joins this union and the table below. Whoever reads a
#: job's ``how`` knows which shape it has asked for, and a type checker need not ask again.
if TYPE_CHECKING:
    AnyHow: TypeAlias = Any
else:
    AnyHow = GangHow | PoolHow
SHAPES: Final[dict[str, type[How]]] = {"gang": GangHow, "pool": PoolHow}

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Job(Section):
    """What to run, how to spread it and where.

    ``what`` and ``how`` are held as the application's and the shape's own classes. Made from Python, pass
    instances of those; from plain data, use `muster.spec.parse_job`, which finds the classes by name.
    """

    name: str = Field(pattern=NAME_PATTERN, examples=["my-job"])
    """A name for the run folder, of at most 64 letters, digits, dots, dashes and underscores that starts with
    a letter or digit; by default the job file's name."""

    what: SerializeAsAny[What]
    """The application and its data."""

    how: SerializeAsAny[AnyHow]
    """The shape of parallelism and the recipe."""

    where: Where = Field(default=Where(), validate_default=True)
    """The machines."""

    @field_validator("what", "how", mode="before")
    @classmethod
    def _is_typed(cls, section: Any) -> Any:
        if not isinstance(section, Section):
            raise refuse("plain data has no type here", mend="use muster.spec.parse_job for plain data")
        return section

    @field_validator("where", mode="after")
    @classmethod
    def _bound_ranks(cls, where: Where, info: ValidationInfo) -> Where:
        how = info.data.get("how")
        if how is None:  # refused already
            return where
        if isinstance(how, PoolHow):
            _suits_a_pool(where, how)
            return where
        if where.min_ranks is not None and where.min_ranks > how.ranks:
            raise refuse(
                f"found {where.min_ranks}, more than how.ranks ({how.ranks})",
                mend=f"expected at most {how.ranks}",
                key="min_ranks",
            )
        if where.max_ranks is not None and where.max_ranks < how.ranks:
            raise refuse(
                f"found {where.max_ranks}, less than how.ranks ({how.ranks})",
                mend=f"expected at least {how.ranks}",
                key="max_ranks",
            )
        if where.max_ranks is not None and where.max_ranks > how.batch:
            raise refuse(
                f"{where.max_ranks} ranks cannot share a batch of {how.batch}",
                mend=f"expected at most {how.batch}, or a larger how.batch",
                key="max_ranks",
            )
        bounds = {"min_ranks": where.min_ranks or how.ranks, "max_ranks": where.max_ranks or how.ranks}
        return where.model_copy(update=bounds)


def _suits_a_pool(where: Where, how: PoolHow) -> None:
    for key in ("min_ranks", "max_ranks"):
        if getattr(where, key) is not None:
            raise refuse(
                "a pool has workers, which come and go, and no ranks",
                mend="remove the key; how.workers says how many",
                key=key,
            )
    if where.device == "cuda":
        raise refuse("the workers of a pool train on the CPU", mend="set device: cpu or auto", key="device")
    if where.engine == "cluster":
        raise refuse(
            "found 'cluster'",
            mend="expected embedded or local: the workers of a pool share a machine",
            key="engine",
        )
    if where.engine == "local" and how.workers > 1:
        raise refuse(
            f"a pool without an engine has one worker, in the process that you start, and how.workers is {how.workers}",
            mend="set how.workers to 1, or engine: embedded",
            key="engine",
        )
    if where.engine == "local" and how.chaos.takes_workers_away:
        raise refuse(
            "the only worker is the process that you start, which chaos can neither kill nor replace",
            mend="set engine: embedded, or remove kill_every, availability and extra from how.chaos",
            key="engine",
        )
