"""What this machine is, as a run records it: hardware, versions, git revision."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from muster.spec.machine import cores, memory_bytes, nvidia_gpus

__all__ = ["cores", "cpu_name", "environment", "nvidia_gpus"]


def environment(job_path: str = "") -> dict[str, Any]:
    """Versions, hardware, command line and the git revision around ``job_path``."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": _gpus(),
        "versions": _versions("muster", "torch", "ray", "numpy", "pillow", "pydantic"),
        "git": _git(Path(job_path).absolute().parent if job_path else Path.cwd()),
    }


def cpu_name() -> str:
    """The processor as it calls itself."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU of this machine."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git(folder: Path) -> str:
    if shutil.which("git") is None or not folder.is_dir():
        return ""
    describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(describe, capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip()
