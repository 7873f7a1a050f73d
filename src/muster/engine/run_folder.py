"""The run folder: creation, status, lock, and reading back. Layout: docs/run-folder.md."""

from __future__ import annotations

import builtins
import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from muster.engine import records
from muster.errors import RunLocked, RunNotFound

FORMAT: Final = 1


class RunFolder:
    """One run's folder; cheap to make, holds no open file.

    Arguments:
        path: an existing run folder.

    Raises:
        RunNotFound: ``path`` is not a run folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not (self.path / "run.json").is_file():
            raise RunNotFound(f"{path} is not a run folder: it has no run.json; `muster ls` lists the runs")

    @classmethod
    def create(
        cls, root: Path, name: str, *, app: str, steps: int, job_yaml: str, environment: dict[str, Any]
    ) -> RunFolder:
        """Makes ``root/<name>-<utc>-<short id>`` with the resolved job; complete once `run.json` is there."""
        created = datetime.datetime.now(datetime.UTC)
        run_id = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{created:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        path = root.absolute() / run_id
        path.mkdir(parents=True)
        for folder in ("tables", "logs", "checkpoints"):
            (path / folder).mkdir()
        (path / "job.yaml").write_text(job_yaml, encoding="utf-8")
        _write_json(path / "environment.json", environment)
        state = {
            "format": FORMAT,
            "id": run_id,
            "name": name,
            "app": app,
            "created_utc": f"{created:%Y-%m-%dT%H:%M:%SZ}",
            "epoch_unix_s": time.time(),
            "status": "running",
            "message": "",
            "restarts": 0,
            "attempt": 0,
            "world_size": 0,
            "steps": steps,
            "step": 0,
        }
        _write_json(path / "run.json", state)
        return cls(path)

    @classmethod
    def find(cls, name: str, root: Path) -> RunFolder:
        """The run that a person means: a path, a run's name or id below ``root``, or ``last``.

        Raises:
            RunNotFound: nothing matches, or the name matches nothing uniquely.
        """
        if (Path(name) / "run.json").is_file():
            return cls(name)
        runs = cls.list(root)
        if name == "last":
            if not runs:
                raise RunNotFound(f"no run in {root}/; start one with `muster run JOB`")
            return runs[-1]
        matches = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
        if not matches:
            raise RunNotFound(f"no run named {name!r} in {root}/; `muster ls` lists the runs")
        return matches[-1]

    @classmethod
    def list(cls, root: Path) -> builtins.list[RunFolder]:
        """All runs below ``root``, oldest first; a folder whose ``run.json`` is damaged is left out."""
        dated = []
        for path in root.glob("*/run.json"):
            run = cls(path.parent)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                dated.append((float(run.state()["epoch_unix_s"]), run.id, run))
        return [run for _, _, run in sorted(dated, key=lambda entry: entry[:2])]

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def state(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    def update(self, **fields: Any) -> None:
        """Changes fields of `run.json` atomically; only the holder of the lock may."""
        _write_json(self.path / "run.json", self.state() | fields)

    def status(self) -> str:
        """`running`, `done`, `failed`, `stopped`, `preempted`, or `crashed` (says running, nobody holds the lock)."""
        status = self.state()["status"]
        return "crashed" if status == "running" and not self.locked() else status

    def environment(self) -> dict[str, Any]:
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    def table(self, name: str) -> pa.Table:
        """All rows of a table of docs/run-folder.md, while the run is going too."""
        return records.read_table(self.tables, name)

    def events(self) -> builtins.list[dict[str, Any]]:
        """The rows of `events` in order of time, ``detail`` decoded."""
        rows = self.table("events").to_pylist()
        for row in rows:
            row["detail"] = json.loads(row["detail"] or "{}")
        return sorted(rows, key=lambda row: row["time"])

    def now(self) -> float:
        """Seconds on the run-wide clock, by this host's wall clock."""
        return time.time() - self.state()["epoch_unix_s"]

    def locked(self) -> bool:
        """Whether a live process holds the run's lock."""
        path = self.path / "lock"
        if not path.exists():
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def lock(self) -> RunLock:
        """Takes the run's lock for this process; the lock of a dead process is free by itself.

        Raises:
            RunLocked: another live process holds it.
        """
        return RunLock(self.path)


class RunLock:
    """An exclusive `flock` on a run folder, released when the process dies, whatever kills it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RunLocked(f"{folder.name} is being worked on by {holder}; stop that one first") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class EventLog:
    """Writes rows of `events` for one writer."""

    def __init__(self, run: RunFolder, who: str, attempt: int) -> None:
        self._run, self._who, self._attempt = run, who, attempt
        self._writer = records.TableWriter(run.tables, "events", who)
        self._epoch = run.state()["epoch_unix_s"]

    def __call__(self, kind: str, **detail: Any) -> None:
        self._writer.append(
            attempt=self._attempt,
            time=time.time() - self._epoch,
            kind=kind,
            who=self._who,
            detail=json.dumps(detail),
        )
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a small JSON file so that a reader or a kill sees the old one or the new one, never a part."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
