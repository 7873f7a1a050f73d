"""Runs a command on a slow link: loopback of a network namespace of its own, behind a token bucket (`tc tbf`).

Both directions of loopback share the bucket's rate: two ranks that all-reduce n bytes put 2n on it. The namespace goes with
the command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


def why_not() -> str:
    """Why this machine cannot shape a link, or an empty text if it can."""
    if os.geteuid() != 0:
        return "a link is shaped by root only"
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    probe = ["unshare", "--net", "sh", "-c", _shape("1gbit") + "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"tc tbf does not work here: {done.stderr.strip()}"


def shaped(rate: str | None, command: Sequence[str]) -> list[str]:
    """``command`` as it is run with loopback limited to ``rate`` (as tc writes it), or not limited if None."""
    setup = _shape(rate) if rate else "ip link set lo up && "
    return ["unshare", "--net", "sh", "-c", setup + 'exec "$@"', "shaped", *command]


def _shape(rate: str) -> str:
    """A bucket that holds 2 ms of the rate, 64 KiB at least: less could not be refilled in time by the kernel's timer."""
    number, unit = float(rate.rstrip("mgbit")), rate.lstrip("0123456789.")
    bits = number * {"mbit": 1e6, "gbit": 1e9}[unit]
    burst = max(65536, int(bits / 8 * 2e-3))
    return (
        "ip link set lo up && ip link set lo mtu 16384 && "
        f"tc qdisc add dev lo root tbf rate {rate} burst {burst} latency 500ms && "
    )
