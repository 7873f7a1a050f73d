"""Messages between a process and the workers that it has started."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_FRAME = struct.Struct("<QI")


class Channel:
    """Messages over a stream socket, with file descriptors beside them.

    Arguments:
        end: of a socket pair.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, message: Any, descriptors: list[int] | None = None) -> None:
        """Sends one message.

        Raises:
            OSError: the other end has gone.
        """
        body = pickle.dumps(message, protocol=5)
        head = _FRAME.pack(len(body), len(descriptors or []))
        sent = socket.send_fds(self.socket, [head], descriptors or [])
        self.socket.sendall(head[sent:])
        self.socket.sendall(body)

    def receive(self) -> tuple[Any, list[int]]:
        """Receives one message.

        Raises:
            EOFError, OSError: the other end has gone.
        """
        head, descriptors, _, _ = socket.recv_fds(self.socket, _FRAME.size, 128)
        head += self._exactly(_FRAME.size - len(head))
        length, _ = _FRAME.unpack(head)
        return pickle.loads(self._exactly(length)), descriptors

    def _exactly(self, length: int) -> bytearray:
        body = bytearray(length)
        view = memoryview(body)
        while view:
            count = self.socket.recv_into(view)
            if count == 0:
                raise EOFError
            view = view[count:]
        return body
