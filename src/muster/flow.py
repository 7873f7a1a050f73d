"""Workflows from plain Python: mark functions as tasks, and call them as ever.

::

    from muster.flow import INOUT, engine, task, wait_on

    @task
    def simulate(seed): ...

    @task(total=INOUT)
    def add(total, result): ...

    with engine("threads", workers=2):
        total = Total()
        for seed in range(100):
            add(total, simulate(seed))
        print(wait_on(total))

The calls return futures at once. Muster sees from the data they pass which can run at the same time.
"""

from muster.engine.flow.directions import (
    COMMUTATIVE,
    IN,
    IN_DELETE,
    INOUT,
    OUT,
    Collection,
    Directory,
    File,
)
from muster.engine.flow.future import Future
from muster.engine.flow.groups import Group, Speculation
from muster.engine.flow.policies import CANCEL_SUCCESSORS, FAIL, IGNORE, retry
from muster.engine.flow.program import (
    as_completed,
    barrier,
    cancel_wanted,
    engine,
    group,
    stop_when,
    wait_on,
)
from muster.engine.flow.task import task

__all__ = [
    "CANCEL_SUCCESSORS",
    "COMMUTATIVE",
    "FAIL",
    "IGNORE",
    "IN",
    "INOUT",
    "IN_DELETE",
    "OUT",
    "Collection",
    "Directory",
    "File",
    "Future",
    "Group",
    "Speculation",
    "as_completed",
    "barrier",
    "cancel_wanted",
    "engine",
    "group",
    "retry",
    "stop_when",
    "task",
    "wait_on",
]
