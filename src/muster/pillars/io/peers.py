"""The ranks of a job serve each other the samples that they keep.

Ranks of one machine hand each other the descriptors of their shelves, once, over a socket in the abstract namespace, and from
then on read each other's memory in place. Ranks of different machines ask for samples over TCP. Frames are those of
`multiprocessing.connection`: length-prefixed bytes, never pickled, on connections that both ends have proved to know the
job's token on (HMAC). A sample travels with its checksum and is compared on arrival.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import TypeVar

from muster.pillars.io.plan import StorageClass
from muster.pillars.io.raw_samples import Buffer
from muster.pillars.io.shelf import Shelf, ShelfFiles, ShelfReader, checksum

_REQUEST = struct.Struct("<BQI")  # what, sample, checksum
_REPLY = struct.Struct("<BI")  # whether it is there, checksum
_SHARE = struct.Struct("<BQQ")  # storage class, capacity, samples
_GET, _PUT, _MAP, _REFUSE = range(4)
_ABSENT, _THERE, _NEVER = range(3)

_Answer = TypeVar("_Answer")
_BROKEN = (OSError, EOFError, struct.error, AuthenticationError)


def this_machine() -> str:
    """Equal for processes that can reach each other's abstract sockets and map each other's memory."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    network, processes = os.stat("/proc/self/ns/net").st_ino, os.stat("/proc/self/ns/pid").st_ino
    return f"{boot}:{network}:{processes}"


@dataclass(frozen=True)
class PeerAddress:
    """Where a rank's samples are served.

    Arguments:
        machine: see `this_machine`.
        local: name of its abstract socket, without the leading zero byte.
        host, port: of its TCP socket; port 0 if it has none.
    """

    machine: str
    local: str
    host: str
    port: int


class PeerService:
    """Serves this rank's shelves to the other ranks.

    Arguments:
        shelves: of this rank.
        token: of the job.
        host: address to serve other machines at; None: this machine alone.
        send_timeout_s: a peer that does not take its bytes for this long is cut off.
    """

    def __init__(
        self, shelves: list[Shelf], token: bytes, host: str | None = None, send_timeout_s: float = 10.0
    ) -> None:
        self._shelves, self._token, self._timeout_s = shelves, token, send_timeout_s
        self.bytes_served = 0
        name = f"muster-io-{secrets.token_hex(8)}"
        self._listeners = [Listener("\0" + name, family="AF_UNIX", backlog=64)]
        port = 0
        if host is not None:
            self._listeners.append(Listener((host, 0), family="AF_INET", backlog=64))
            port = self._listeners[1].address[1]
        self.address = PeerAddress(this_machine(), name, host or "", port)
        self._open: set[Connection] = set()
        self._closed = False
        for listener in self._listeners:
            threading.Thread(
                target=self._accept, args=(listener,), daemon=True, name="muster-io-serve"
            ).start()

    def close(self) -> None:
        """Stops serving; connections are cut."""
        self._closed = True
        for listener in self._listeners:
            with contextlib.suppress(OSError):  # wakes the thread that waits in accept
                listener._listener._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                _shut(connection)

    def _accept(self, listener: Listener) -> None:
        while not self._closed:
            try:
                connection = listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.1)  # out of descriptors, say: others may give some back
                continue
            threading.Thread(
                target=self._serve, args=(connection,), daemon=True, name="muster-io-serve"
            ).start()

    def _serve(self, connection: Connection) -> None:
        self._open.add(connection)
        try:
            _limit_waits(connection, self._timeout_s)
            deliver_challenge(connection, self._token)
            answer_challenge(connection, self._token)
            _limit_waits(connection, self._timeout_s, receiving=False)
            while True:
                what, index, expected = _REQUEST.unpack(connection.recv_bytes(_REQUEST.size))
                if what == _GET:
                    self._give(connection, index)
                elif what == _PUT:
                    self._take(connection, index, expected)
                elif what == _REFUSE:
                    self._shelves[0].refuse(index)
                    connection.send_bytes(_REPLY.pack(_THERE, 0))
                else:
                    self._share(connection)
        except _BROKEN:
            return  # a peer that has gone, or a stranger: neither is this rank's business
        finally:
            self._open.discard(connection)
            connection.close()

    def _give(self, connection: Connection, index: int) -> None:
        for shelf in self._shelves:
            found = shelf.get(index, check=False)
            if found is not None:
                where = shelf.where(index)
                connection.send_bytes(_REPLY.pack(_THERE, where[2] if where else checksum(found)))
                connection.send_bytes(found)
                self.bytes_served += len(found)
                return
        never = self._shelves[0].refuses(index)
        connection.send_bytes(_REPLY.pack(_NEVER if never else _ABSENT, 0))

    def _take(self, connection: Connection, index: int, expected: int) -> None:
        stored = connection.recv_bytes()
        kept = checksum(stored) == expected and any(shelf.put(index, stored) for shelf in self._shelves)
        if not kept:
            self._shelves[0].refuse(index)
        connection.send_bytes(_REPLY.pack(_THERE if kept else _NEVER, 0))

    def _share(self, connection: Connection) -> None:
        connection.send_bytes(bytes([len(self._shelves)]))
        with socket.socket(fileno=os.dup(connection.fileno())) as raw:
            for shelf in self._shelves:
                files = shelf.files
                described = _SHARE.pack(int(files.storage), files.capacity, files.samples)
                socket.send_fds(raw, [described], [files.data, files.index])


class Peer:
    """Another rank, as seen from here.

    Arguments:
        address: where it serves.
        token: of the job.
        timeout_s: a request that takes longer than this is given up, and so is the peer.
        on_loss: called once with a sentence when the peer is given up.
        local: whether its memory is to be mapped; it must then be on this machine.
    """

    def __init__(
        self,
        address: PeerAddress,
        token: bytes,
        timeout_s: float,
        on_loss: Callable[[str], None],
        *,
        local: bool = True,
    ) -> None:
        self.address, self._token, self._timeout_s, self._on_loss = address, token, timeout_s, on_loss
        self.local = local and address.machine == this_machine()
        self.lost = False
        self.shelves: list[ShelfReader] = []
        self._connection: Connection | None = None
        self._refused: set[int] = set()
        self._lock = threading.Lock()

    def map_shelves(self) -> None:
        """Maps the shelves of a peer on this machine; does nothing for one on another."""
        if not self.local:
            return

        def share(connection: Connection) -> list[ShelfReader]:
            connection.send_bytes(_REQUEST.pack(_MAP, 0, 0))
            count = connection.recv_bytes(1)[0]
            shelves = []
            with socket.socket(fileno=os.dup(connection.fileno())) as raw:
                for _ in range(count):
                    described, descriptors, _, _ = socket.recv_fds(raw, _SHARE.size, 2)
                    storage, capacity, samples = _SHARE.unpack(described)
                    data, index = descriptors
                    files = ShelfFiles(StorageClass(storage), data, index, capacity, samples)
                    shelves.append(ShelfReader(files))
            return shelves

        self.shelves = self._ask(share) or []

    def mapped(self, index: int) -> memoryview | None:
        """A sample from a shelf that is mapped here, compared with its checksum; None if it is not there intact."""
        for shelf in self.shelves:
            found = shelf.get(index, check=True)
            if found is not None:
                return found
        return None

    def get(self, index: int) -> bytes | None:
        """A sample asked for over the connection; None if the peer has not got it or is lost."""

        def ask(connection: Connection) -> bytes | None:
            connection.send_bytes(_REQUEST.pack(_GET, index, 0))
            there, expected = _REPLY.unpack(connection.recv_bytes(_REPLY.size))
            if there == _NEVER:
                self._refused.add(index)
            if there != _THERE:
                return None
            found = connection.recv_bytes()
            return found if checksum(found) == expected else None

        return self._ask(ask)

    def put(self, index: int, stored: Buffer) -> bool:
        """Hands the peer a sample that it is to keep; False if it did not."""

        def ask(connection: Connection) -> bool:
            connection.send_bytes(_REQUEST.pack(_PUT, index, checksum(stored)))
            connection.send_bytes(stored)
            return bool(_REPLY.unpack(connection.recv_bytes(_REPLY.size))[0] == _THERE)

        return bool(self._ask(ask))

    def refuse(self, index: int) -> None:
        """Tells the peer that a sample that it was to keep will not come."""

        def ask(connection: Connection) -> None:
            connection.send_bytes(_REQUEST.pack(_REFUSE, index, 0))
            connection.recv_bytes(_REPLY.size)

        self._ask(ask)

    def refuses(self, index: int) -> bool:
        """Whether the peer is known not to keep a sample."""
        return index in self._refused or any(shelf.refuses(index) for shelf in self.shelves[:1])

    def alive(self) -> bool:
        """Whether the peer still serves; looks only at the connection, so it costs little."""
        if self.lost:
            return False
        if self._connection is None or not self._lock.acquire(blocking=False):
            return True
        try:
            ended = self._connection is not None and self._connection.poll(0)
        except (OSError, EOFError):
            ended = True
        finally:
            self._lock.release()
        if ended:  # between requests it has nothing to say but that it is gone
            self._give_up("its connection was closed")
        return not ended

    def close(self) -> None:
        """Cuts the connection; mapped shelves stay readable."""
        self.lost = True
        if self._connection is not None:
            self._connection.close()

    def _ask(self, ask: Callable[[Connection], _Answer]) -> _Answer | None:
        if self.lost:
            return None
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connected()
                return ask(self._connection)
            except _BROKEN as error:
                late = isinstance(error, (BlockingIOError, TimeoutError))
                reason = f"no answer in {self._timeout_s:g} s" if late else str(error) or type(error).__name__
                if self._connection is not None:
                    self._connection.close()  # an answer that came late would be taken for the next one
        self._give_up(reason)
        return None

    def _connected(self) -> Connection:
        if self.local:
            connection = Client("\0" + self.address.local, family="AF_UNIX")
        else:
            raw = socket.create_connection((self.address.host, self.address.port), timeout=self._timeout_s)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setblocking(True)
            connection = Connection(raw.detach())
        _limit_waits(connection, self._timeout_s)
        answer_challenge(connection, self._token)
        deliver_challenge(connection, self._token)
        return connection

    def _give_up(self, reason: str) -> None:
        if not self.lost:
            self.lost = True
            self._on_loss(reason)


def token_from(secret: str) -> bytes:
    """The key of all connections of a job, from a secret that its ranks share."""
    return hmac.digest(secret.encode(), b"muster.io peers", hashlib.sha256)


def _limit_waits(connection: Connection, seconds: float, receiving: bool = True) -> None:
    """Lets a read or write on the connection fail with `BlockingIOError` after a time; the kernel keeps it."""
    whole = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, whole)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, whole if receiving else struct.pack("ll", 0, 0))


def _shut(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.shutdown(socket.SHUT_RDWR)
