"""A store of files that is as slow and as faulty as asked: HTTP/1.1 over a folder, in a process of its own.

It serves the files below ``--root`` on loopback, with keep-alive, ``Range`` requests, entity tags and listings of
folders. All connections share one token bucket of ``--rate`` bytes per second and ``--burst`` bytes; each request waits
``--latency`` seconds first, those of several connections side by side, as in an object store. Bytes are what bodies
hold. Reads of files (GET, not HEAD and not listings) may meet a fault:

    fail    half of them are answered 503, of the others the connection is cut before a byte was sent
    stall   the answer stops in the middle for ``--stall-s`` seconds, then goes on
    short   half of the promised bytes are sent, then the connection is closed

Whether the n-th read of a range of a file meets a fault depends on ``--seed``, the range and n alone, not on the order
in which connections arrive; a read that is tried again is dealt anew.

On standard output it prints one line, ``{"port": ..., "url": ...}``. It ends when its standard input ends or its parent
does, so that a killed benchmark leaves no store behind: start it with a pipe for standard input, or in Python with
`started`.

    GET    /.muster/counts            what was asked for: reads, heads, listings, bytes and faults, in all and by path
    GET    /.muster/counts?ranges=1   the same, with how often each range of each path was read
    DELETE /.muster/counts            begins to count anew
    PUT    /.muster/settings          changes settings by name from now on (JSON)

    python benchmarks/slow_store.py --root DIR --rate 20e6 --latency 0.01 --fail 0.01 < /dev/tty
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from email.utils import formatdate
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass
class Settings:
    """What the store does to its readers.

    Arguments:
        rate: bytes per second of all connections together; 0 for as fast as it goes.
        latency: seconds before each answer.
        burst: bytes that may go at once after a pause.
        fail, stall, short: probability that a read meets that fault.
        stall_s: how long a stalled answer pauses, in seconds.
        keep_alive: 0: every answer is its connection's last.
        seed: of the faults.
    """

    rate: float = 0.0
    latency: float = 0.0
    burst: float = 262_144.0
    fail: float = 0.0
    stall: float = 0.0
    short: float = 0.0
    stall_s: float = 5.0
    keep_alive: float = 1.0
    seed: int = 0


class TokenBucket:
    """Who may send how many bytes when; first come, first served.

    Kept as the time at which the bucket would be full again (the virtual-scheduling form of the generic cell rate
    algorithm, ITU-T I.371), so that the mean rate is exact however coarsely the process wakes up.
    """

    def __init__(self) -> None:
        self._paid_until = 0.0

    async def take(self, count: int, settings: Settings) -> None:
        """Waits until ``count`` bytes may be sent."""
        if settings.rate <= 0:
            return
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - settings.burst / settings.rate) + count / settings.rate
        if self._paid_until > now:
            await asyncio.sleep(self._paid_until - now)


@dataclass
class Counts:
    """What was asked of one path."""

    reads: int = 0
    heads: int = 0
    listings: int = 0
    bytes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ranges: Counter[str] = field(default_factory=Counter)

    def as_json(self, *, ranges: bool) -> dict[str, Any]:
        """As the counts are told over HTTP."""
        told = {"reads": self.reads, "heads": self.heads, "listings": self.listings, "bytes": self.bytes}
        return told | {"faults": dict(self.faults)} | ({"ranges": dict(self.ranges)} if ranges else {})


class Store:
    """The folder as a web application."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings = root.resolve(), settings
        self.bucket = TokenBucket()
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self.tries: Counter[str] = Counter()

    def application(self) -> web.Application:
        """What a server runs."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/.muster/counts", self.tell_counts, allow_head=False),
                web.delete("/.muster/counts", self.forget_counts),
                web.put("/.muster/settings", self.change_settings),
                web.get("/{path:.*}", self.answer),
            ]
        )
        return application

    async def tell_counts(self, request: web.Request) -> web.Response:
        """GET /.muster/counts."""
        ranges = request.query.get("ranges", "0") not in ("", "0")
        paths = {path: counts.as_json(ranges=ranges) for path, counts in sorted(self.counts.items())}
        total: dict[str, Any] = {
            name: sum(getattr(counts, name) for counts in self.counts.values())
            for name in ("reads", "heads", "listings", "bytes")
        }
        total["requests"] = total["reads"] + total["heads"] + total["listings"]
        total["faults"] = dict(sum((counts.faults for counts in self.counts.values()), Counter()))
        return web.json_response(total | {"paths": paths})

    async def forget_counts(self, request: web.Request) -> web.Response:
        """DELETE /.muster/counts."""
        self.counts.clear()
        return web.Response(status=204)

    async def change_settings(self, request: web.Request) -> web.Response:
        """PUT /.muster/settings."""
        wanted = await request.json()
        unknown = set(wanted) - {each.name for each in fields(Settings)}
        if unknown:
            raise web.HTTPBadRequest(text=f"no setting {', '.join(sorted(unknown))}")
        for name, value in wanted.items():
            setattr(self.settings, name, value)
        return web.json_response(asdict(self.settings))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD of a file or a folder."""
        if self.settings.latency > 0:
            await asyncio.sleep(self.settings.latency)
        path = (self.root / request.match_info["path"]).resolve()
        if not path.is_relative_to(self.root) or not path.exists():
            raise web.HTTPNotFound
        name = path.relative_to(self.root).as_posix()
        counts = self.counts[name]
        if path.is_dir():
            counts.listings += 1
            return web.Response(text=_listing(path), content_type="text/html")
        return await self._file(request, path, counts, name)

    async def _file(self, request: web.Request, path: Path, counts: Counts, name: str) -> web.StreamResponse:
        status = path.stat()
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "Content-Type": "application/octet-stream",
        }
        if request.headers.get("If-Match", headers["ETag"]) not in (headers["ETag"], "*"):
            raise web.HTTPPreconditionFailed
        try:
            begin, end, _ = request.http_range.indices(status.st_size)
        except ValueError:
            begin = end = -1
        ranged = "Range" in request.headers
        if ranged and begin >= end:
            raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{status.st_size}"})
        if ranged:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
        headers["Content-Length"] = str(end - begin)
        response = web.StreamResponse(status=206 if ranged else 200, headers=headers)
        if not self.settings.keep_alive:
            response.force_close()
        if request.method == "HEAD":
            counts.heads += 1
            await response.prepare(request)
            return response

        asked = f"{begin}-{end}"
        counts.reads += 1
        counts.ranges[asked] += 1
        fault = self._fault(f"{name} {asked}")
        if fault is not None:
            counts.faults[fault] += 1
        if fault == "503":
            raise web.HTTPServiceUnavailable
        if fault == "cut":
            _transport(request).abort()
            return response
        await response.prepare(request)
        middle = begin + (end - begin) // 2
        with path.open("rb") as file:
            counts.bytes += await self._send(response, file.fileno(), begin, middle)
            if fault == "short":
                # Closing, unlike aborting, lets the reader have what was sent.
                _transport(request).close()
                return response
            if fault == "stall":
                await asyncio.sleep(self.settings.stall_s)
            counts.bytes += await self._send(response, file.fileno(), middle, end)
        return response

    async def _send(self, response: web.StreamResponse, descriptor: int, begin: int, end: int) -> int:
        """Sends the bytes from ``begin`` to ``end`` as the bucket lets them go; returns how many."""
        at = begin
        while at < end:
            # Portions of 10 ms let connections take turns; a portion above the burst would never be paid for in advance.
            portion = min(self.settings.rate / 100 or 1 << 18, self.settings.burst, 1 << 18)
            piece = os.pread(descriptor, min(max(int(portion), 1024), end - at), at)
            if not piece:
                break
            await self.bucket.take(len(piece), self.settings)
            await response.write(piece)
            at += len(piece)
        return at - begin

    def _fault(self, asked: str) -> str | None:
        """Which fault this read meets, if one."""
        settings = self.settings
        if settings.fail + settings.stall + settings.short <= 0:
            return None
        self.tries[asked] += 1
        drawn = random.Random(f"{settings.seed} {asked} {self.tries[asked]}").random()
        for kind, probability in (
            ("503", settings.fail / 2),
            ("cut", settings.fail / 2),
            ("stall", settings.stall),
            ("short", settings.short),
        ):
            if drawn < probability:
                return kind
            drawn -= probability
        return None


def _transport(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the reader is gone")
    return transport  # type: ignore[return-value] # a server's transports are of this kind


def _listing(folder: Path) -> str:
    """A folder as a page of links, as web servers show it."""
    rows = []
    for entry in sorted(folder.iterdir()):
        name = entry.name + ("/" if entry.is_dir() else "")
        rows.append(f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a>')
    return "<!DOCTYPE html><pre>\n" + "\n".join(rows) + "\n</pre>\n"


async def serve(store: Store, port: int) -> None:
    """Serves until standard input ends, the parent is gone or a signal asks to stop."""
    runner = web.AppRunner(store.application(), access_log=None, keepalive_timeout=3600, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=512)
    await site.start()
    loop, over, parent = asyncio.get_running_loop(), asyncio.Event(), os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)

    def until_input_ends() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=until_input_ends, daemon=True).start()
    port = runner.addresses[0][1]
    print(json.dumps({"port": port, "url": f"http://127.0.0.1:{port}"}), flush=True)
    while not over.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(over.wait(), timeout=0.5)
        except TimeoutError:
            continue
    await runner.cleanup()


@dataclass(frozen=True)
class Started:
    """A store under way in a process of its own.

    Arguments:
        url: without a slash at its end.
        process: the store's.
    """

    url: str
    process: subprocess.Popen[str]

    def counts(self, *, ranges: bool = False) -> dict[str, Any]:
        """What was asked of the store so far; see the module's text."""
        with urllib.request.urlopen(f"{self.url}/.muster/counts?ranges={int(ranges)}", timeout=30) as answer:
            return json.load(answer)

    def forget_counts(self) -> None:
        """Begins to count anew."""
        self._ask("DELETE", "counts", b"")

    def change(self, **settings: float) -> None:
        """Changes settings from the next request on."""
        self._ask("PUT", "settings", json.dumps(settings).encode())

    def _ask(self, method: str, what: str, body: bytes) -> None:
        request = urllib.request.Request(f"{self.url}/.muster/{what}", data=body, method=method)
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def started(root: Path, **settings: float) -> Iterator[Started]:
    """A store over ``root`` with these `Settings`, ended with the block.

    Raises:
        RuntimeError: the store does not start.
    """
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with subprocess.Popen(
        [sys.executable, __file__, "--root", str(root), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the store over {root} ended with code {process.wait()} before it served")
            yield Started(json.loads(line)["url"], process)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Reads the options and serves."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder to serve")
    parser.add_argument("--port", type=int, default=0, help="on loopback; 0 for any that is free")
    for each in fields(Settings):
        kind = int if each.name == "seed" else float
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help=" ")
    options = vars(parser.parse_args())
    root, port = options.pop("root"), options.pop("port")
    if not root.is_dir():
        parser.error(f"--root: no folder {root}")
    asyncio.run(serve(Store(root, Settings(**options)), port))


if __name__ == "__main__":
    main()
