"""What was chosen by measuring how gradients travel: ``communication.json`` of the run folder.

docs/run-folder.md documents the file. It is on the disk before the first counted step, and every later start with the same
number of ranks takes the choice from it: what a run computes hangs on one measurement only, the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from muster.errors import DataError
from muster.pillars.comm.link import Link
from muster.pillars.comm.plan import Plan
from muster.pillars.comm.step_profile import StepProfile

FILE: Final = "communication.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class Candidate:
    """A way to exchange gradients that has been tried; seconds of a forward and backward pass.

    Arguments:
        name: such as ``planned buckets``.
        predicted_s: from ready times and link.
        measured_s: median, of the slowest rank; 0 where it was the only one.
    """

    name: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class Measured:
    """A choice and what it rests on.

    Arguments:
        plan: buckets and compressors.
        chosen: the name of the candidate that won.
        candidates: all that were tried.
        profile: when gradients are ready.
        link: what collectives cost.
    """

    plan: Plan
    chosen: str
    candidates: tuple[Candidate, ...]
    profile: StepProfile
    link: Link

    def winner(self) -> Candidate:
        """The candidate that won."""
        return next(one for one in self.candidates if one.name == self.chosen)


class CommunicationRecord:
    """The choices of a run, the last one for each number of ranks.

    Arguments:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / FILE

    def find(self, world_size: int, settings: Mapping[str, Any]) -> Plan | None:
        """What an earlier start has chosen for so many ranks under the same ``how.communication``; None if none has.

        Raises:
            DataError: the file is there and is not one of these.
        """
        for choice in self._choices():
            if (choice["world_size"], choice["settings"]) == (world_size, dict(settings)):
                return _plan(choice)
        return None

    def add(self, measured: Measured, *, world_size: int, settings: Mapping[str, Any], attempt: int) -> None:
        """Puts a choice on record, and on the disk before it returns; it replaces an earlier one for as many ranks."""
        sizes = dict(zip(measured.profile.names, measured.profile.bytes, strict=True))
        buckets, first = [], 0
        for stop, compressor, flight in zip(
            measured.plan.ends, measured.plan.compressors, measured.plan.flights, strict=True
        ):
            names = measured.plan.names[first:stop]
            predicted = {"ready_s": flight.ready, "start_s": flight.start, "end_s": flight.end}
            buckets.append(
                {
                    "compressor": compressor,
                    "bytes": sum(sizes[name] for name in names),
                    "predicted": predicted,
                    "parameters": list(names),
                }
            )
            first = stop
        choice = {
            "world_size": world_size,
            "settings": dict(settings),
            "attempt": attempt,
            "chosen": measured.chosen,
            "candidates": [asdict(one) for one in measured.candidates],
            "buckets": buckets,
            "profile": asdict(measured.profile),
            "link": asdict(measured.link),
        }
        others = [other for other in self._choices() if other["world_size"] != world_size]
        draft = self._path.with_name(f".{FILE}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, "choices": [*others, choice]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _choices(self) -> list[dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            for choice in content["choices"]:
                _plan(choice)
            return list(content["choices"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._path} cannot be read ({type(error).__name__}: {error}); put it back, or remove it to have the "
                "buckets chosen anew, which may change the last bits of the result"
            ) from None


def _plan(choice: Mapping[str, Any]) -> Plan:
    names: list[str] = []
    ends: list[int] = []
    for bucket in choice["buckets"]:
        names += bucket["parameters"]
        ends.append(len(names))
    compressors = tuple(bucket["compressor"] for bucket in choice["buckets"])
    if not names or not all(isinstance(name, str) for name in (*names, *compressors)):
        raise ValueError("a choice without buckets")
    return Plan(tuple(names), tuple(ends), compressors, ())
