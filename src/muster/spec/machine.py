"""What this machine lets this process use: cores, memory and GPUs; standard library only.

A container or a batch system limits a process through its CPU affinity and its control group (cgroup v1 or
v2), which `os.cpu_count` and the physical memory know nothing of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_UNLIMITED_V1: Final = 2**60


def cores() -> int:
    """Cores that this process may use: at least 1; affinity and the quotas of control groups count."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota() -> float | None:
    """The tightest CPU quota of this process's control groups, in cores; None without one."""
    quotas = []
    for folder in _groups("cpu"):
        if (text := _read(folder / "cpu.max")) is not None:
            most, _, period = text.partition(" ")
            if most != "max":
                quotas.append(int(most) / int(period))
        elif (text := _read(folder / "cpu.cfs_quota_us")) is not None and int(text) > 0:
            quotas.append(int(text) / int(_read(folder / "cpu.cfs_period_us") or 100_000))
    return min(quotas, default=None)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, cut by the limits of its control groups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _groups("memory"):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if text is not None and text != "max" and int(text) < _UNLIMITED_V1:
            limits.append(int(text))
    return min(limits)


def memory_available_bytes() -> int:
    """Memory that is free or can be freed: the machine's, cut by what is left in its control groups."""
    available = [memory_bytes()]
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            available.append(int(line.split()[1]) * 1024)
    for folder in _groups("memory"):
        most, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if most is not None and most != "max" and used is not None:
            cache = next(
                (
                    int(row.split()[1])
                    for row in (_read(folder / "memory.stat") or "").splitlines()
                    if row.startswith("file ")
                ),
                0,
            )
            available.append(int(most) - int(used) + cache)
    return max(0, min(available))


def nvidia_gpus() -> int:
    """NVIDIA GPUs that the driver shows to this process, less those that ``CUDA_VISIBLE_DEVICES`` hides."""
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(devices)
    return min(len(devices), len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and its parents, as far as they can be seen."""
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (controller if controllers else "")
        folder = root / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder in (root, folder.parent):
                break
            folder = folder.parent


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
