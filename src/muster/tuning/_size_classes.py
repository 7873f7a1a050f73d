"""The collectives of a run by size class: how many, how much, what they cost, how fast they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from muster.tuning._exposure import Columns, collective_costs

#: Upper ends of the classes (bytes, inclusive), each four times the one below; what is larger has a class of its own.
CLASS_ENDS: Final = tuple(4**power * 1024 for power in range(1, 9))  # 4 KiB to 64 MiB


@dataclass(frozen=True)
class SizeClass:
    """All collectives of one kind and group whose message is in one range of sizes.

    Arguments:
        kind, group: such as ``all_reduce`` and ``world``.
        low, high: more than ``low`` and up to ``high`` bytes; ``high`` is None in the last class.
        count: collectives, each counted once for all ranks.
        bytes: their messages, each counted once.
        exposed_s: time that ranks were blocked by them, mean over ranks.
        waited_s: time that ranks were blocked until the last rank entered, mean over ranks.
        hidden_s: time that they were carried out behind computation, mean over ranks.
        service_s: time that they were carried out, mean over ranks.
        bytes_per_s: ``bytes / service_s``, the algorithm bandwidth of nccl-tests; None where no time was measured.
        link_bytes_per_s: what the link gives such messages when nothing else happens, or None where it was not measured.
    """

    kind: str
    group: str
    low: int
    high: int | None
    count: int
    bytes: int
    exposed_s: float
    waited_s: float
    hidden_s: float
    service_s: float
    bytes_per_s: float | None
    link_bytes_per_s: float | None = None

    @property
    def label(self) -> str:
        """Its range of sizes, such as ``≤ 1 MiB``."""
        size, sign = (self.low, ">") if self.high is None else (self.high, "≤")
        return f"{sign} {size >> 20} MiB" if size >= 2**20 else f"{sign} {size >> 10} KiB"

    @property
    def achieved(self) -> float | None:
        """Share of the link's bandwidth, or None."""
        if self.bytes_per_s is None or not self.link_bytes_per_s:
            return None
        return self.bytes_per_s / self.link_bytes_per_s


def size_classes(
    steps: Columns, collectives: Columns, link_time_s: Callable[[int], float] | None = None
) -> tuple[SizeClass, ...]:
    """Sorts the collectives of some steps by kind, group and size of message.

    Arguments:
        steps: columns of `steps`, one row per (attempt, rank, step).
        collectives: columns of `collectives` of the same steps.
        link_time_s: seconds that the link takes for an all-reduce of so many bytes.

    Returns:
        The classes that occur, small messages first.
    """
    if collectives["end"].size == 0:
        return ()
    costs = collective_costs(steps, collectives)
    ranks = np.unique(collectives["rank"]).size
    place = np.searchsorted(np.array(CLASS_ENDS), collectives["bytes"])
    labels = list(zip(collectives["kind"], collectives["group"], place.tolist(), strict=True))
    found = []
    for label in sorted(set(labels), key=lambda each: (each[0], each[1], each[2])):
        kind, group, number = label
        mine = np.array([each == label for each in labels])
        size = collectives["bytes"][mine]
        service = float(costs.service[mine].sum()) / ranks
        total = round(float(size.sum()) / ranks)
        expected = None
        if link_time_s is not None and kind == "all_reduce":
            expected = sum(link_time_s(int(each)) for each in size) / ranks
        found.append(
            SizeClass(
                kind=str(kind),
                group=str(group),
                low=0 if number == 0 else CLASS_ENDS[number - 1],
                high=CLASS_ENDS[number] if number < len(CLASS_ENDS) else None,
                count=round(int(mine.sum()) / ranks),
                bytes=total,
                exposed_s=float(costs.exposed[mine].sum()) / ranks,
                waited_s=float(costs.waited[mine].sum()) / ranks,
                hidden_s=float(costs.hidden[mine].sum()) / ranks,
                service_s=service,
                bytes_per_s=total / service if service > 0 else None,
                link_bytes_per_s=total / expected if expected else None,
            )
        )
    return tuple(found)
