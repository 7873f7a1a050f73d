"""Progress of a run on the terminal, read from its run folder like everything else."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from muster.engine.run_folder import RunFolder


@contextmanager
def follow(run: RunFolder) -> Iterator[None]:
    """Shows step, loss, speed and what happens to ``run`` while the context lasts; plain lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    ended = threading.Event()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=False,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(run.state()["name"], total=run.state()["steps"], note="starting")
        watcher = threading.Thread(target=_watch, args=(run, progress, task, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _watch(run: RunFolder, progress: Any, task: Any, ended: threading.Event) -> None:
    steps = _Tail(run, "steps", "rank-00000")
    metrics = _Tail(run, "metrics", "pool")
    events = [_Tail(run, "events", who) for who in ("supervisor", "rank-00000", "pool")]
    final = False
    while True:
        for row in steps.new_rows():
            progress.update(task, completed=row["step"], note=f"loss {row['loss']:.4g}")
        _follow_pool(run, metrics, progress, task)
        for tail in events:
            for row in tail.new_rows():
                line, style = _sentence(row["kind"], json.loads(row["detail"]))
                if line:
                    progress.console.print(line, style=style, highlight=False, markup=False)
        if final:
            return
        final = ended.wait(0.5)


def _follow_pool(run: RunFolder, metrics: _Tail, progress: Any, task: Any) -> None:
    """Merges and the last measured quality of a pool, whose number of merges follows from its data."""
    state = run.state()
    if state.get("shape") != "pool":
        return
    progress.update(task, completed=state["step"], total=state["steps"] or None)
    means = {row["name"]: row["value"] for row in metrics.new_rows() if not row["item"]}
    for name, value in list(means.items())[:1]:
        progress.update(task, note=f"{name} {value:.4g}")


def _sentence(kind: str, detail: dict[str, Any]) -> tuple[str, str]:
    """What a person should know of an event while it happens, and its style; empty for the others."""
    if kind == "ranks_started":
        ranks = "1 rank" if detail["world_size"] == 1 else f"{detail['world_size']} ranks"
        return f"{ranks} started on {', '.join(detail['hosts'])}", ""
    if kind == "pool_started":
        workers = "1 worker" if detail["workers"] == 1 else f"{detail['workers']} workers"
        again = ", going on from the ledger" if detail["resumed"] else ""
        lease = "" if detail["lease"] is None else f", leases of {detail['lease']} samples"
        return f"{workers}, {detail['rule']}{lease}{again}", ""
    if kind == "resumed":
        return f"resumed at step {detail['step']}", ""
    warnings = {
        "rank_failed": "rank {rank} {what}",
        "rank_lost": "rank {rank} {what}",
        "rank_hung": "rank {rank} {what}",
        "engine_lost": "{what}",
        "restart": "restart {number} of {of}",
        "checkpoint_failed": "the checkpoint of step {step} failed, the one before is kept: {why}",
        "checkpoint_refused": "{what}; falling back to the checkpoint before it",
        "worker_lost": "{worker} was lost: {what}",
        "refused": "an update of {worker} was refused: {what}",
        "short": "{what}",
        "unable": "{what}",
        "shrunk": "going on with {world_size} of {wanted} ranks",
    }
    return (warnings[kind].format(**detail), "yellow") if kind in warnings else ("", "")


class _Tail:
    """The rows that have come since the last look at one writer's file."""

    def __init__(self, run: RunFolder, table: str, who: str) -> None:
        self._path = run.tables / table / f"{who}.jsonl"
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def new_rows(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)
