"""The timeline of the sampled steps in the Trace Event Format that Perfetto and chrome://tracing read."""

from __future__ import annotations

import json

from muster.engine.run_folder import RunFolder


def write_trace(run: RunFolder) -> None:
    """Writes ``trace.json``: a process per rank and attempt, a thread for the loop and one for communication."""
    events: list[dict[str, object]] = []
    named: set[tuple[int, int]] = set()
    threads = {"loop": 0, "comm": 1}
    for span in run.table("spans").to_pylist():
        pid, tid = span["attempt"] * 10_000 + span["rank"], threads.get(span["lane"], 2)
        if (pid, tid) not in named:
            named.add((pid, tid))
            process = f"rank {span['rank']}" + (f", attempt {span['attempt']}" if span["attempt"] else "")
            events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}})
            events.append(
                {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": span["lane"]}}
            )
        events.append(
            {
                "ph": "X",
                "name": span["name"],
                "cat": span["lane"],
                "pid": pid,
                "tid": tid,
                "ts": span["start"] * 1e6,
                "dur": (span["end"] - span["start"]) * 1e6,
                "args": {"step": span["step"]},
            }
        )
    draft = run.path / ".trace.json.tmp"
    draft.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
    draft.replace(run.path / "trace.json")
