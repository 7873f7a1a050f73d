"""A Ray cluster of two nodes on this machine, in a process of its own that does as it is told.

Ray reads its token and its addresses from the environment once in a process, so the cluster cannot live in the tests'.
Run as a script it is that process: a command a line on standard input, an answer a line (JSON) on standard output.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muster.engine.processes import Warded, marked_processes

LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class TwoNodes:
    """A cluster whose head stays and whose second node comes and goes; one core each.

    Arguments:
        process: runs this module as a script.
        log: what it prints beside its answers.
        environment: what a user of the cluster has in theirs: a HOME with the cluster's token.
        mark: everything of the cluster carries it.
    """

    def __init__(
        self, process: subprocess.Popen[str], log: Path, environment: dict[str, str], mark: str
    ) -> None:
        self._process, self._log, self.environment, self._mark = process, log, environment, mark
        self.address: str = self.tell("address")

    def tell(self, command: str) -> Any:
        """The answer to one of `address`, `remove`, `add` and `state`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"the cluster's process ended:\n{self._log.read_text()}")

    def ranks(self) -> list[int]:
        """Process ids of all ranks that live on the cluster."""
        found = []
        for pid in marked_processes(self._mark):
            try:
                if b"_RankActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except FileNotFoundError:
                continue
        return found


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Starts the cluster, with token authentication, and leaves nothing of it behind."""
    with Warded(secrets.token_hex(5)) as warded, tempfile.TemporaryDirectory() as home:
        token = Path(home) / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = plain | LOOPBACK_ONLY | {"HOME": home, "RAY_AUTH_MODE": "token"}
        log_path = Path(home) / "cluster.log"
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, __file__],
                env=environment | warded.mark_environment | {"RAY_TMPDIR": str(warded.folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                yield TwoNodes(process, log_path, environment, warded.mark)
            finally:
                process.kill()
                process.communicate()


def main() -> None:
    """Obeys until standard input ends."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    for line in sys.stdin:
        answer: Any = None
        if line == "address\n":
            answer = cluster.address
        elif line == "remove\n":
            cluster.remove_node(second, allow_graceful=False)
        elif line == "add\n":
            second = cluster.add_node(**node)
        elif line == "state\n":
            answer = _state(ray, cluster)
        print("answer " + json.dumps(answer), flush=True)


def _state(ray: Any, cluster: Any) -> dict[str, Any]:
    from ray._private.state import actors
    from ray.util import placement_group_table

    groups = placement_group_table().values()
    return {
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "free_cores": ray.available_resources().get("CPU", 0.0),
        "actors": [actor["State"] for actor in actors().values() if actor["State"] != "DEAD"],
        "groups": [group["state"] for group in groups if group["state"] != "REMOVED"],
        "head": sorted(
            info.process.pid
            for kind, infos in cluster.head_node.all_processes.items()
            if kind in ("gcs_server", "raylet")
            for info in infos
        ),
    }


if __name__ == "__main__":
    main()
