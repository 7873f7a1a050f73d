"""Starts, joins and leaves Ray; nothing else in Muster calls `ray.init` or `ray.shutdown`.

The embedded engine listens on loopback only, has no dashboard, sends no usage statistics and probes no network: Ray asks
cloud metadata addresses for its whereabouts unless ``~/ray_bootstrap_config.yaml`` names a local provider, so
it is started under a private HOME holding that file, and every rank gets the user's HOME back. A cluster
is joined as it is, with the user's own token.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from muster.errors import EngineLost, RefusedInput

if TYPE_CHECKING:
    from types import ModuleType

OBJECT_STORE_BYTES: Final = 128 * 2**20
_TOKEN: Final = secrets.token_hex(
    32
)  # Ray reads it once in a process, so every embedded engine of this one shares it
_EMBEDDED: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else every listener is on all interfaces and 8.8.8.8 is asked for our address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": _TOKEN,
}


@dataclass(frozen=True)
class Session:
    """A started engine: the ``ray`` module, connected.

    Arguments:
        ray: the module.
        embedded: whether it is ours alone, on this machine.
        home: the user's HOME, for the ranks.
        daemons: process ids of the engine's daemons on this machine that no rank can do without.
    """

    ray: ModuleType
    embedded: bool
    home: str
    daemons: tuple[int, ...]

    def lost(self) -> str | None:
        """A sentence if one of the daemons has died, else None."""
        for pid in self.daemons:
            try:
                state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            except FileNotFoundError:
                state = b"X"
            if state in (b"Z", b"X"):
                return f"a daemon of the embedded engine (process {pid}) died"
        return None


@contextmanager
def embedded(cpus: int, folder: Path, mark: dict[str, str]) -> Iterator[Session]:
    """An engine of one's own on this machine, for as long as the context lasts.

    Arguments:
        cpus: logical cores to hand out to ranks.
        folder: a private folder with a short path.
        mark: environment variables that everything started will carry.

    Raises:
        EngineLost: Ray could not start.
        RefusedInput: this machine's loopback interface is down, or Ray runs in this process already.
    """
    _check_loopback()
    _check_alone()
    home = os.environ.get("HOME", "/")
    private = folder / "home"
    private.mkdir(parents=True, exist_ok=True)
    (private / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n", encoding="utf-8")
    with _environment(_EMBEDDED | {"HOME": str(private)} | mark):
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "r"),
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise EngineLost(
                f"Ray could not start on this machine: {error}; `muster doctor` looks for the cause"
            ) from error
    try:
        yield Session(ray, True, home, _daemons(ray))
    finally:
        ray.shutdown()


@contextmanager
def cluster(address: str, mark: dict[str, str]) -> Iterator[Session]:
    """Joins an existing Ray cluster as it is.

    Arguments:
        address: ``host:port`` of its head.
        mark: environment variables that the ranks will carry.

    Raises:
        EngineLost: no cluster answers there.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    try:
        ray.init(
            address=address, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": mark}
        )
    except Exception as error:
        raise EngineLost(f"no Ray cluster could be joined at {address}: {error}") from error
    try:
        yield Session(ray, False, os.environ.get("HOME", "/"), ())
    finally:
        ray.shutdown()


@contextmanager
def _environment(ours: dict[str, str]) -> Iterator[None]:
    """What the daemons inherit while they start: ``ours``, and nothing that is meant for a cluster (RAY_ADDRESS ...).

    Afterwards the process has its own environment again: what else it starts is not the engine's.
    """
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(ours)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_alone() -> None:
    """Refuses a second engine: a process has one connection to Ray.

    Raises:
        RefusedInput: there is one.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise RefusedInput(
            "this process has an engine already, and Ray allows one; use that one, or start the other in a process of its own"
        )


def _check_loopback() -> None:
    """Refuses a machine whose loopback is down: Ray would wait there for minutes, deaf to signals, and say nothing.

    Raises:
        RefusedInput: nothing can be reached at 127.0.0.1.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2.0).close()
    except OSError as error:
        raise RefusedInput(
            f"the loopback interface does not answer at 127.0.0.1 ({error.strerror or error}), and the ranks of one "
            "machine talk over it; bring it up: ip link set lo up"
        ) from error


def _daemons(ray: Any) -> tuple[int, ...]:
    """The gcs_server and the raylet of the embedded engine."""
    node = ray._private.worker._global_node
    return tuple(
        info.process.pid
        for kind, infos in node.all_processes.items()
        if kind in ("gcs_server", "raylet")
        for info in infos
    )
