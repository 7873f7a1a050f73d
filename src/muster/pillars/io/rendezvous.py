"""How the ranks of a job find each other's caches: a few lines of JSON in the process group's store."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from typing import Any

from muster.errors import DataError
from muster.pillars.io.peers import PeerAddress, this_machine, token_from

_made = 0


@dataclass(frozen=True)
class Introduction:
    """What a rank tells the others.

    Arguments:
        samples, seed: of its loader; all must have the same.
        memory_bytes, disk_bytes: what it is to keep; None: a share of what its machine has left.
        available_bytes: what its machine has left.
        sample_bytes: size of its first sample as it is cached, in bytes, where no sizes are known beforehand.
        cache: what it would cache: ``stored``, ``decoded`` or ``none``.
        machine: see `muster.pillars.io.peers.this_machine`.
    """

    samples: int
    seed: int
    memory_bytes: int | None
    available_bytes: int
    disk_bytes: int
    sample_bytes: int
    cache: str
    machine: str


class Meeting:
    """The ranks of one loader; every rank makes its loaders in the same order.

    Arguments:
        rank, world_size: of the sampler.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        global _made
        self.rank, self.world_size = rank, world_size
        self._store: Any = None
        number, _made = _made, _made + 1
        if world_size == 1:
            return
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() == world_size:
            store = dist.distributed_c10d._get_default_store()
            self._store = dist.PrefixStore(f"muster.io/{number}", store)

    @property
    def together(self) -> bool:
        """Whether there are others to meet."""
        return self._store is not None

    def token(self) -> bytes:
        """The key of the job's connections: rank 0 makes it up."""
        if self._store is None:
            return token_from(secrets.token_hex(32))
        if self.rank == 0:
            self._store.set("secret", secrets.token_hex(32))
        return token_from(self._store.get("secret").decode())

    def introduce(self, own: Introduction) -> list[Introduction]:
        """Tells the others about this rank, and learns about them, in order of rank.

        Raises:
            DataError: they do not read the same data in the same order.
        """
        if self._store is None:
            return [own]
        known = [Introduction(**told) for told in self._exchange("introduction", asdict(own))]
        for rank, other in enumerate(known):
            if (other.samples, other.seed) != (known[0].samples, known[0].seed):
                raise DataError(
                    f"rank {rank} has {other.samples:,} samples and seed {other.seed}, rank 0 has "
                    f"{known[0].samples:,} and {known[0].seed}; give all ranks the same data set and seed"
                )
        return known

    def exchange_addresses(self, own: PeerAddress) -> list[PeerAddress]:
        """Tells where this rank serves, and learns where the others do."""
        return [PeerAddress(**told) for told in self._exchange("address", asdict(own))]

    def _exchange(self, what: str, own: dict[str, Any]) -> list[dict[str, Any]]:
        self._store.set(f"{what}/{self.rank}", json.dumps(own))
        return [json.loads(self._store.get(f"{what}/{rank}")) for rank in range(self.world_size)]


def serving_host(machines: list[str], wanted: str | None) -> str:
    """The address to serve other machines at; loopback when all ranks are on this one.

    Arguments:
        machines: of all ranks.
        wanted: an address that the user named.
    """
    if all(machine.partition(" ")[0] == this_machine() for machine in machines):
        return "127.0.0.1"
    if wanted is not None:
        return wanted
    # The address from which this machine would reach the group's first rank; no packet is sent.
    master = os.environ.get("MASTER_ADDR", "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master or socket.gethostname(), 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
