"""Everything that a run starts is found again and ended, by the run or by its warden."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from muster.engine.processes import MARK_VARIABLE, Warded, marked_processes, reap

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


def marked(mark: str, command: list[str] = SLEEP) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=os.environ | {MARK_VARIABLE: mark})


def wait_for_end(process: subprocess.Popen[bytes], wait_s: float = 120.0) -> int:
    return process.wait(timeout=wait_s)


def test_a_mark_in_the_environment_is_found_and_another_is_not() -> None:
    ours, theirs = marked("test-ours"), marked("test-theirs")
    try:
        assert marked_processes("test-ours") == {ours.pid}
        assert reap("test-ours") == 1
        assert wait_for_end(ours) == -signal.SIGKILL
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


def test_a_process_that_hides_its_environment_is_found_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "muster-test-hidden"
    folder.mkdir()
    code = f"import time; file = open({str(folder / 'log')!r}, 'w'); time.sleep(300)"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (folder / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reap("test-hidden") == 1
    assert wait_for_end(process) == -signal.SIGKILL


def test_children_that_dropped_the_mark_are_found_by_their_parent() -> None:
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], env={}); time.sleep(300)"
    )
    parent = marked("test-parent", [sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(marked_processes("test-parent")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reap("test-parent") == 2
    wait_for_end(parent)


def test_leaving_the_context_ends_what_is_left_and_removes_the_folder() -> None:
    with Warded("test-left") as warded:
        process = marked("test-left")
        assert warded.folder.is_dir()
        assert oct(warded.folder.stat().st_mode & 0o777) == "0o700"
    assert wait_for_end(process) == -signal.SIGKILL
    assert not warded.folder.exists()


def test_the_warden_reaps_when_its_supervisor_is_killed() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "from muster.engine.processes import Warded\n"
        "with Warded('test-warden') as warded:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'],"
        " env=os.environ | warded.mark_environment, start_new_session=True)\n"
        "    print(child.pid, warded.folder, flush=True)\n"
        "    time.sleep(300)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child, folder = supervisor.stdout.readline().split()
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 120
    while (Path(f"/proc/{child}").exists() or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    assert not Path(folder).exists()


def test_a_killed_warden_is_replaced() -> None:
    with Warded("test-replaced") as warded:
        first = warded._warden
        assert first is not None
        first.kill()
        first.wait()
        warded.watch_the_warden()
        assert warded._warden is not None
        assert warded._warden.pid != first.pid
        assert warded._warden.poll() is None
