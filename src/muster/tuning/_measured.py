"""What the counted steps of a trial say: throughput, and where the time of a step went.

Times of a step leave out its ``stall`` (checkpoints, evaluation), which is no part of training a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from muster.engine.run_folder import RunFolder
from muster.errors import MusterError
from muster.spec import load_job
from muster.tuning._exposure import Columns
from muster.tuning._trial import LAST_STEPS, warm_up_steps

PILLARS: Final = ("io", "compute", "comm", "idle")


@dataclass(frozen=True)
class StepTimes:
    """Where the counted steps' time went; a step's pillars sum to its duration.

    Arguments:
        ranks: how many.
        steps: counted.
        samples_per_s: of all ranks together.
        step_s: mean duration.
        pillars: seconds per step and pillar, mean over ranks and steps.
        comm_hidden: seconds per step of communication behind computation, part of ``compute``; mean alike.
        critical: as ``pillars``, of the rank alone that the others waited for in each step, the one with the
            least idle time: what these are reduced by shortens the step.
        slowest: how large a part of the steps one and the same rank was that one, 0 to 1, and which.
    """

    ranks: int
    steps: int
    samples_per_s: float
    step_s: float
    pillars: dict[str, float]
    comm_hidden: float
    critical: dict[str, float]
    slowest: tuple[float, int]

    @property
    def shares(self) -> dict[str, float]:
        """``pillars`` as shares of the step, 0 to 1."""
        return _shares(self.pillars)

    @property
    def critical_shares(self) -> dict[str, float]:
        """``critical`` as shares, 0 to 1."""
        return _shares(self.critical)


def counted(run: RunFolder, warm_up: int | None = None) -> tuple[Columns, Columns]:
    """Columns of `steps` and `collectives` of the steps of a trial that count.

    Arguments:
        run: the trial.
        warm_up: steps at its beginning that do not; None: as `trial_job` chooses them.

    Raises:
        MusterError: the run has too few steps on record.
    """
    job = load_job(run.path / "job.yaml", environ={})
    first = warm_up_steps(job.how.loader_workers) if warm_up is None else warm_up
    last = job.how.steps - LAST_STEPS
    tables = []
    for name in ("steps", "collectives"):
        table = run.table(name)
        step = table.column("step").to_numpy()
        tables.append(_columns(table.filter(pa.array((first < step) & (step <= last)))))
    if tables[0]["step"].size == 0:
        raise MusterError(f"{run.path} has no step on record to measure; `muster run` runs a job to its end")
    return tables[0], tables[1]


def _columns(table: pa.Table) -> Columns:
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_floating(column.type):
            found[name] = column.to_numpy().astype(np.float64)
        elif pa.types.is_integer(column.type):
            found[name] = column.fill_null(0).to_numpy()
        else:
            found[name] = np.array(column.fill_null("").to_pylist(), dtype=object)
    return found


def step_times(steps: Columns) -> StepTimes:
    """Computes them from columns of `steps`, [rows] each."""
    stall = np.nan_to_num(steps["stall"])
    wall, idle = steps["wall"] - stall, steps["idle"] - stall
    seconds = {"io": steps["io"], "compute": steps["compute"], "comm": steps["comm"], "idle": idle}
    ranks = np.unique(steps["rank"])
    numbers = np.unique(steps["step"])
    duration = max(float(wall[steps["rank"] == rank].sum()) for rank in ranks)
    critical = _rows_waited_for(steps["step"], idle)
    who, how_often = np.unique(steps["rank"][critical], return_counts=True)
    return StepTimes(
        ranks=ranks.size,
        steps=numbers.size,
        samples_per_s=float(steps["samples"].sum()) / duration,
        step_s=duration / numbers.size,
        pillars={name: float(values.mean()) for name, values in seconds.items()},
        comm_hidden=float(np.nan_to_num(steps["comm_hidden"]).mean()),
        critical={name: float(values[critical].mean()) for name, values in seconds.items()},
        slowest=(float(how_often.max() / how_often.sum()), int(who[how_often.argmax()])),
    )


def _rows_waited_for(step: Any, idle: Any) -> Any:
    """For each step the row with the least idle time."""
    order = np.lexsort((idle, step))
    _, first = np.unique(step[order], return_index=True)
    return order[first]


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {name: value / total if total > 0 else 0.0 for name, value in seconds.items()}
