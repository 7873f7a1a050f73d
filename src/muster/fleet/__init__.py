"""Machines that you have or might have: how many there are over time, what interrupts them, what they cost.

Descriptions only, pure functions of numbers and files; `muster.engine.pool` acts on them. May import engine, spec and errors.
"""

from muster.fleet.availability import Availability
from muster.fleet.interruptions import generated
from muster.fleet.prices import Bill, Price
from muster.fleet.spot import Trace, read_trace

__all__ = ["Availability", "Bill", "Price", "Trace", "generated", "read_trace"]
