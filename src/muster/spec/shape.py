"""The part of ``how`` that every shape of parallel work has."""

from __future__ import annotations

from abc import ABC

from muster.spec.section import Section


class How(Section, ABC):
    """The shape of parallelism and the recipe; the same keys for every application of that shape.

    Each shape is one concrete subclass whose ``shape`` is a `Literal` with its own name, listed in
    `muster.spec.job.SHAPES`.
    """

    shape: str
    """The shape of parallel work."""
