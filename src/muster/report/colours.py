"""One colour per pillar, the same in every picture of a report and in both colour schemes.

Chosen so that the four stay at least 25 apart (CIE 1976 colour difference) in normal sight and in simulated
protanopia, deuteranopia and tritanopia (Machado, Oliveira and Fernandes, IEEE TVCG 2009);
tests/report/test_colours.py computes it.
"""

from __future__ import annotations

from typing import Final

PILLAR_COLOURS: Final = {"io": "#EDA820", "compute": "#3778C2", "comm": "#B23A6E", "idle": "#A9B0BA"}

#: Of time whose work was lost, and of what was killed; drawn with a pattern besides, for whoever sees no red.
LOST_COLOUR: Final = "#D9482B"

#: Of leases, by how they ended.
OUTCOME_COLOURS: Final = {
    "accepted": PILLAR_COLOURS["compute"],
    "confirmed": PILLAR_COLOURS["compute"],
    "returned": PILLAR_COLOURS["idle"],
    "revoked": "#6FA3DB",
    "expired": PILLAR_COLOURS["io"],
    "refused": PILLAR_COLOURS["comm"],
    "lied": PILLAR_COLOURS["comm"],
    "failed": LOST_COLOUR,
}

#: From the bottom up.
STACKED: Final = ("compute", "comm", "io", "idle")

PILLAR_LABELS: Final = {
    "io": "waiting for data",
    "compute": "compute",
    "comm": "communication",
    "idle": "idle",
}

#: Spans of the loop take the colour of their pillar; three shades keep the phases of compute apart.
_SPAN_COLOURS: Final = {
    "io": PILLAR_COLOURS["io"],
    "forward": "#6FA3DB",
    "backward": PILLAR_COLOURS["compute"],
    "optimizer": "#23527F",
    "wait": "#D58AAB",
    "checkpoint": PILLAR_COLOURS["idle"],
    "evaluate": "#7E8792",
}


def span_colour(lane: str, name: str) -> str:
    """The colour of a span of the timeline; anything in the communication lane has that of communication."""
    if lane == "comm":
        return PILLAR_COLOURS["comm"]
    return _SPAN_COLOURS.get(name.split(" ")[0], PILLAR_COLOURS["compute"])
