"""Gangs: any function on N ranks in lockstep; see `muster.engine.gang`."""

from muster.engine.gang import Engine, RankContext, Yielded, engine, run

__all__ = ["Engine", "RankContext", "Yielded", "engine", "run"]
