"""Nothing is left of a loader whose process is killed: no process, no shared memory, no file, no socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DistributedSampler

from muster.io import LookAheadLoader
from pillars.io.counted_store import CountedStore


def names(pids: set[int]) -> set[str]:
    """What these processes may have left in shared memory."""
    return {name for name in os.listdir("/dev/shm") if any(str(pid) in name for pid in pids)}


def ended(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("moment", [0.0, 0.3], ids=["at once", "later"])
def test_sigkill_leaves_nothing(tmp_path: Path, moment: float) -> None:
    store = CountedStore.made(tmp_path / "s", 60, 1000, 1001)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_loader.py")), str(store.folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)},
        text=True,
    )
    try:
        assert process.stdout is not None
        workers = json.loads(process.stdout.readline())
        assert len(workers) == 2
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert set(workers) <= {each.pid for each in family}
        time.sleep(moment)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert ended(family, 120)
    assert not names({each.pid for each in family})
    assert list(temporary.iterdir()) == []
    assert list((store.folder / "cache").iterdir()) == []


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    store = CountedStore.made(tmp_path / "s", 20, 100, 101)
    loader = LookAheadLoader(store, 4, seed=1, workers=2)
    iter(loader)
    workers = [psutil.Process(pid) for pid in loader._session.worker_processes]  # type: ignore[union-attr]
    loader.close()
    assert ended(workers, 60)
    assert not names({os.getpid(), *(each.pid for each in workers)})


@pytest.mark.parametrize("batches", [1, 17])
def test_a_killed_run_goes_on_with_the_same_batches(tmp_path: Path, batches: int) -> None:
    """The state was written by the process that was killed; the batches that it had in hand are not lost."""
    store = CountedStore.made(tmp_path / "s", 60, 1000, 1001)
    script = f"""
import json, sys, time
from pathlib import Path
from muster.io import LookAheadLoader
from pillars.io.counted_store import CountedStore
loader = LookAheadLoader(CountedStore(Path(sys.argv[1])), 4, seed=1, epochs=3, workers=1, seed_each_sample=True)
number = 0
while True:
    for batch in loader:
        number += 1
        if number == {batches}:
            print(json.dumps(loader.state_dict()), flush=True)
            time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(store.folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    try:
        assert process.stdout is not None
        state = json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
    wanted = []
    for epoch in range(3):
        sampler = DistributedSampler(store, 1, 0, seed=1)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        wanted += list(sampler)
    with LookAheadLoader(store, 4, seed=1, epochs=3) as resumed:
        resumed.load_state_dict(state)
        left = [row for _ in range(resumed.epoch, 3) for batch in resumed for row in batch.tolist()]
    assert [row[0] for row in left] == wanted[batches * 4 :]
    assert all(row == store.expected(row[0]) for row in left)
