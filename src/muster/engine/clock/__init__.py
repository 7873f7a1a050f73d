"""The pillar clock: cuts every second of a rank into I/O, compute, communication and idle. May import spec and records."""

from muster.engine.clock._partition import Bucket, Pillars, partition
from muster.engine.clock._pillar_clock import PillarClock, StepTimes

__all__ = ["Bucket", "PillarClock", "Pillars", "StepTimes", "partition"]
