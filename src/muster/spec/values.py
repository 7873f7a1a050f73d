"""Durations, sizes and intervals: small immutable values with one spelling each.

All three are written as strings in a job file (``30s``, ``4GB``, ``200 steps``); `str` of a value is its
canonical spelling, and parsing that gives an equal value.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Final, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from muster.spec.section import refuse

_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_MILLISECONDS: Final = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_BYTES: Final = {
    "TiB": 2**40, "TB": 10**12, "GiB": 2**30, "GB": 10**9,
    "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "kB": 10**3, "B": 1,
}  # fmt: skip
_LONGEST_MS: Final = 365 * 24 * 3_600_000


class _Spelled(ABC):
    """A value that pydantic reads from, and writes as, a string."""

    pattern: ClassVar[str]
    expected: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self:
        """Reads a spelling.

        Raises:
            ValueError: says what was expected.
        """

    @classmethod
    def _validate(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise refuse(f"found {_shown(value)}", mend=f"expected {cls.expected}")
        try:
            return cls.parse(value)
        except ValueError as error:
            raise refuse(f"found {_shown(value)}", mend=f"expected {error}") from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": cls.pattern}


def _shown(value: Any) -> str:
    return (
        "true"
        if value is True
        else "false"
        if value is False
        else "nothing"
        if value is None
        else repr(value)
    )


@dataclass(frozen=True)
class Duration(_Spelled):
    """A positive span of time, to the millisecond: ``500ms``, ``30s``, ``5m``, ``1.5h``.

    Arguments:
        milliseconds: its length.
    """

    milliseconds: int
    pattern: ClassVar[str] = rf"^{_NUMBER} ?(h|m|s|ms)$"
    expected: ClassVar[str] = "a duration with its unit (h, m, s or ms), such as 30s or 5m"

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a spelling.

        Raises:
            ValueError: says what was expected.
        """
        match = re.fullmatch(rf"({_NUMBER}) ?(h|m|s|ms)", text.strip())
        if match is None:
            raise ValueError(cls.expected)
        length = Decimal(match[1]) * _MILLISECONDS[match[2]]
        if length != int(length) or not 1 <= length <= _LONGEST_MS:
            raise ValueError("a duration of whole milliseconds, from 1ms to 8760h")
        return cls(int(length))

    def __str__(self) -> str:
        unit = next(unit for unit, length in _MILLISECONDS.items() if self.milliseconds % length == 0)
        return f"{self.milliseconds // _MILLISECONDS[unit]}{unit}"


@dataclass(frozen=True)
class Size(_Spelled):
    """An amount of memory: ``4GB`` (10⁹ bytes each), ``512MiB`` (2²⁰ bytes each).

    Arguments:
        bytes: the amount.
    """

    bytes: int
    pattern: ClassVar[str] = rf"^{_NUMBER} ?([TGM]i?B|KiB|kB|B)$"
    expected: ClassVar[str] = "a size with its unit (GB, GiB, MB, MiB, ...), such as 4GB"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a spelling.

        Raises:
            ValueError: says what was expected.
        """
        match = re.fullmatch(rf"({_NUMBER}) ?([TGM]i?B|KiB|kB|B)", text.strip())
        if match is None:
            raise ValueError(cls.expected)
        amount = Decimal(match[1]) * _BYTES[match[2]]
        if amount != int(amount) or not 1 <= amount < 2**63:
            raise ValueError("a size of whole bytes, from 1B to 8 million TB")
        return cls(int(amount))

    def __str__(self) -> str:
        unit = next(unit for unit, amount in _BYTES.items() if self.bytes % amount == 0)
        return f"{self.bytes // _BYTES[unit]}{unit}"


@dataclass(frozen=True)
class Interval(_Spelled):
    """How often something happens: every so much time, or every so many steps. Exactly one is set.

    Arguments:
        every: the time between two, or None.
        steps: the steps between two, or None.
    """

    every: Duration | None = None
    steps: int | None = None
    pattern: ClassVar[str] = rf"^({_NUMBER} ?(h|m|s|ms)|[1-9][0-9]{{0,14}} steps?)$"
    expected: ClassVar[str] = "a duration such as 30s or 5m, or a number of steps such as '200 steps'"

    @property
    def seconds(self) -> float | None:
        return None if self.every is None else self.every.seconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a spelling.

        Raises:
            ValueError: says what was expected.
        """
        if match := re.fullmatch(r"([1-9][0-9]{0,14}) steps?", text.strip()):
            return cls(steps=int(match[1]))
        if re.fullmatch(rf"{_NUMBER} ?(h|m|s|ms)", text.strip()):
            return cls(every=Duration.parse(text))
        raise ValueError(cls.expected)

    def __str__(self) -> str:
        return str(self.every) if self.every is not None else f"{self.steps} steps"
