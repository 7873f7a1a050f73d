"""Numbers for people: durations, bytes, quantities."""

from __future__ import annotations

import math


def duration(seconds: float | None) -> str:
    """Three significant figures with a fitting unit: `18.4 ms`, `41.2 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    size = abs(seconds)
    if size == 0:
        return "0 s"
    if size < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if size < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if size < 99.95:
        return f"{seconds:.3g} s"
    whole = round(size)
    sign = "−" if seconds < 0 else ""
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    minutes = round(size / 60)
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def data_size(size: float | None) -> str:
    """Bytes with a decimal prefix: `4.2 MB`."""
    if size is None or not math.isfinite(size):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def quantity(value: float | None, figures: int = 4) -> str:
    """A number with that many significant figures, without an exponent where it is readable so."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return str(value).replace("-", "−")
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.{figures - 1}e}".replace("-", "−")
    decimals = max(0, figures - 1 - math.floor(math.log10(abs(value or 1.0))))
    return f"{value:.{decimals}f}".replace("-", "−")


def difference(value: float | None, figures: int = 3) -> str:
    """A signed number."""
    if value is None:
        return "–"
    return quantity(value, figures) if value < 0 else f"+{quantity(value, figures)}"


def factor(value: float | None) -> str:
    """By what factor something would be faster: `1.23 ×`."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f} ×"


def percent(share: float | None) -> str:
    """A share of 0 to 1 as per cent."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"
