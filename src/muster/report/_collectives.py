"""What each bucket's collective cost: how long it was in flight, how long ranks waited for the last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muster.report._columns import Columns


@dataclass(frozen=True)
class BucketCost:
    """One bucket over all ranks and surviving steps.

    Arguments:
        kind: such as `all_reduce`.
        group: the process group.
        bucket: its index.
        bytes: of its last collective.
        count: collectives, each counted once for all ranks.
        in_flight_s: median of end - last_enter.
        wait_s: median of last_enter - enter, the wait for the last rank; zero on the rank that is the last.
        wait_p95_s: 95th percentile of the same.
        bytes_per_s: ``bytes`` / ``in_flight_s``, what nccl-tests call algorithm bandwidth; None where no time
            was measured.
    """

    kind: str
    group: str
    bucket: int
    bytes: int
    count: int
    in_flight_s: float
    wait_s: float
    wait_p95_s: float
    bytes_per_s: float | None


def bucket_costs(collectives: Columns) -> tuple[BucketCost, ...]:
    """Groups rows of `collectives` by kind, group and bucket.

    Arguments:
        collectives: columns of the table, [rows] each.
    """
    labels = list(zip(collectives["kind"], collectives["group"], collectives["bucket"].tolist(), strict=True))
    index = {label: place for place, label in enumerate(sorted(set(labels)))}
    position = np.array([index[label] for label in labels], dtype=np.int64)
    found = []
    for label, place in index.items():
        mine = position == place
        in_flight = _median(collectives["end"][mine] - collectives["last_enter"][mine])
        wait = collectives["last_enter"][mine] - collectives["enter"][mine]
        wait = wait[np.isfinite(wait)]
        size = int(collectives["bytes"][mine][-1])
        once = np.stack([collectives["attempt"][mine], collectives["step"][mine]])
        per_step = int((collectives["rank"][mine] == collectives["rank"][mine].min()).sum())
        found.append(
            BucketCost(
                kind=label[0],
                group=label[1],
                bucket=int(label[2]),
                bytes=size,
                count=max(np.unique(once, axis=1).shape[1], per_step),
                in_flight_s=in_flight,
                wait_s=_median(wait),
                wait_p95_s=float(np.percentile(wait, 95)) if wait.size else float("nan"),
                bytes_per_s=size / in_flight if in_flight > 0 else None,
            )
        )
    return tuple(found)


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")
