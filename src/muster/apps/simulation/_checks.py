"""What arrays and numbers must be; each refusal is one sentence with the place of the first wrong value."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from muster.errors import RefusedInput

Doubles = npt.NDArray[np.float64]


def as_doubles(values: npt.ArrayLike, name: str, *, ndim: int = 2) -> Doubles:
    """A contiguous float64 array of finite values; itself if it is one.

    Raises:
        RefusedInput: of other dimensions, empty, not numbers, or not finite.
    """
    try:
        found = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise RefusedInput(
            f"{name}: not an array of numbers; expected {ndim} dimensions of float64"
        ) from None
    if np.ndim(values) != ndim or found.size == 0:
        raise RefusedInput(
            f"{name}: found an array of shape {np.shape(values)}; expected {ndim} dimensions, none of them empty"
        )
    refuse_first(~np.isfinite(found), found, name, "finite values")
    return found


def refuse_first(wrong: npt.NDArray[np.bool_], values: Doubles, name: str, expected: str) -> None:
    """Names the first wrong value and its place, if there is one.

    Raises:
        RefusedInput: there is.
    """
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise RefusedInput(f"{name}: found {values[place]} at {list(place)}; expected {expected}")


def as_number(value: float, name: str, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """A finite number above one bound and not below another.

    Raises:
        RefusedInput: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found > above and found >= least):
        bound = (
            f" above {above:g}"
            if above > -math.inf
            else f" of {least:g} or more"
            if least > -math.inf
            else ""
        )
        raise RefusedInput(f"{name}: found {value!r}; expected a finite number{bound}")
    return found
