"""Traces of preemptible machines: how many could be had, tick by tick.

The format is that of SkyPilot's published traces (github.com/skypilot-org/spot-traces); docs/fleet.md describes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from muster.errors import DataError, RefusedInput
from muster.fleet.availability import Availability

_MOST_INSTANCES: Final = 1_000_000
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Trace:
    """What was observed.

    Arguments:
        name: of its file.
        gap_s: from tick to tick.
        instances: at each tick.
        prices_per_hour: of one instance at each tick; None if it was not observed.
    """

    name: str
    gap_s: float
    instances: tuple[int, ...]
    prices_per_hour: tuple[float, ...] | None = None

    def availability(self, *, notice_s: float = 0.0) -> Availability:
        """What was observed at a tick is taken to hold until the next one."""
        changes = [(tick * self.gap_s, count) for tick, count in enumerate(self.instances)]
        return Availability.of(changes, len(self.instances) * self.gap_s, notice_s=notice_s)

    def price_per_hour(self) -> float | None:
        """What an instance cost on average, over the time that instances were there; None if no price was observed."""
        if self.prices_per_hour is None:
            return None
        weights = self.instances if any(self.instances) else [1] * len(self.instances)
        paid = math.fsum(n * price for n, price in zip(weights, self.prices_per_hour, strict=True))
        return paid / sum(weights)


def read_trace(path: str | Path) -> Trace:
    """A trace from its file.

    Raises:
        DataError: it cannot be read, or is no trace; says what is wrong and where.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"spot trace {path}: larger than {_MOST_BYTES >> 20} MiB; is it the right file?")
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"spot trace {path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"spot trace {path}: not JSON ({str(error)[:100]})") from None
    try:
        return _trace(path.name, told)
    except RefusedInput as error:
        raise DataError(f"spot trace {path}: {error}") from None


def _trace(name: str, told: Any) -> Trace:
    if not isinstance(told, dict):
        raise RefusedInput("expected an object with metadata and data")
    metadata = told.get("metadata")
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    gap_s = _number(gap)
    if not gap_s:
        raise RefusedInput(f"metadata.gap_seconds: found {_short(gap)}; expected seconds, above 0")
    data = told.get("data")
    if not isinstance(data, list) or not data:
        raise RefusedInput(f"data: found {_short(data)}; expected a list of numbers of instances")
    for tick, count in enumerate(data):
        if type(count) is not int or not 0 <= count <= _MOST_INSTANCES:
            raise RefusedInput(
                f"data, tick {tick}: found {_short(count)}; expected a whole number, 0 to {_MOST_INSTANCES:,}"
            )
    return Trace(name, gap_s, tuple(data), _prices(told.get("prices"), len(data)))


def _prices(told: Any, ticks: int) -> tuple[float, ...] | None:
    if told is None:
        return None
    if not isinstance(told, list) or len(told) != ticks:
        found = f"{len(told)} of them" if isinstance(told, list) else _short(told)
        raise RefusedInput(f"prices: found {found}; expected one for each of the {ticks} ticks")
    for tick, price in enumerate(told):
        if _number(price) is None:
            raise RefusedInput(f"prices, tick {tick}: found {_short(price)}; expected 0 or more per hour")
    return tuple(float(price) for price in told)


def _number(value: Any, most: float = 1e9) -> float | None:
    """A number from 0 to a largest one; None for anything else."""
    if type(value) not in (int, float) or not 0 <= value <= most:
        return None
    return float(value)


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"{value!r:.40}"
