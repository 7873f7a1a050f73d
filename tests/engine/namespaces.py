"""Network namespaces: a network of one's own for a test, gone when the test ends. Needs root."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Namespace:
    """A network namespace of this machine.

    Arguments:
        name: as `ip netns` knows it.
        address: of its one interface beside loopback; empty if it has none.
    """

    name: str
    address: str = ""

    def within(self, *command: str) -> list[str]:
        """``command``, as it is run inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def output(self, *command: str) -> str:
        """What ``command`` prints when it is run inside."""
        return subprocess.run(self.within(*command), capture_output=True, text=True, check=True).stdout


def why_not(*tools: str) -> str:
    """Why this machine can make no namespaces, or lacks one of ``tools``; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", *tools) if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "this machine makes no network namespaces"


@contextmanager
def empty(*, loopback: bool = True) -> Iterator[Namespace]:
    """A namespace with a loopback interface, up or down, and nothing else."""
    name = f"muster-{secrets.token_hex(3)}"
    _ip("netns", "add", name)
    try:
        if loopback:
            _ip("-n", name, "link", "set", "lo", "up")
        yield Namespace(name)
    finally:
        _ip("netns", "delete", name)


@contextmanager
def joined() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a cable; the second one is the way out of the first."""
    with ExitStack() as stack:
        names = [stack.enter_context(empty()).name for _ in range(2)]
        _ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        ends = [Namespace(name, f"10.77.0.{number}") for number, name in enumerate(names, start=1)]
        for end in ends:
            _ip("-n", end.name, "address", "add", f"{end.address}/24", "dev", "eth0")
            _ip("-n", end.name, "link", "set", "eth0", "up")
        _ip("-n", names[0], "route", "add", "default", "via", ends[1].address)
        yield ends[0], ends[1]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
