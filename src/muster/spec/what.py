"""``what``: the application and its data."""

from __future__ import annotations

from pydantic import Field

from muster.spec.section import Section


class What(Section):
    """The application and its data; an application subclasses this with its own keys."""

    app: str = Field(min_length=1, examples=["vision.superres"])
    """The application, by the name of its entry point."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes the initial weights, the order of the samples and every random choice of the run."""
