"""The slow store of the benchmarks: its rate, its faults, its counts and its end are what its options say."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp", reason="the slow store is served by aiohttp")
sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import slow_store

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b c.bin").write_bytes(b"small")
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Iterator[slow_store.Started]:
    with slow_store.started(folder) as started:
        yield started


def ask(
    store: slow_store.Started, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(store.url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def test_ranges_are_those_of_the_file(store: slow_store.Started) -> None:
    assert ask(store, "/a.bin")[2] == CONTENT
    status, headers, content = ask(store, "/a.bin", Range="bytes=1000-1999")
    assert (status, headers["Content-Range"]) == (206, f"bytes 1000-1999/{len(CONTENT)}")
    assert content == CONTENT[1000:2000]
    assert ask(store, "/a.bin", Range="bytes=-7")[2] == CONTENT[-7:]
    assert ask(store, "/a.bin", Range=f"bytes={len(CONTENT)}-")[0] == 416
    status, headers, content = ask(store, "/a.bin", "HEAD")
    assert (status, headers["Content-Length"], content) == (200, str(len(CONTENT)), b"")
    assert ask(store, "/missing.bin")[0] == 404
    assert ask(store, "/../../etc/passwd")[0] == 404


def test_a_file_that_changed_has_another_entity_tag(store: slow_store.Started, folder: Path) -> None:
    tag = ask(store, "/a.bin", "HEAD")[1]["ETag"]
    assert ask(store, "/a.bin", If_Match=tag)[0] == 200
    (folder / "a.bin").write_bytes(CONTENT)
    assert ask(store, "/a.bin", "HEAD")[1]["ETag"] != tag
    assert ask(store, "/a.bin", If_Match=tag)[0] == 412


def test_a_folder_is_a_page_of_links(store: slow_store.Started) -> None:
    assert 'href="a.bin"' in ask(store, "/")[2].decode()
    assert 'href="b%20c.bin"' in ask(store, "/below/")[2].decode()


def test_all_connections_share_one_rate(folder: Path) -> None:
    rate, burst = 2e6, 65_536
    with slow_store.started(folder, rate=rate, burst=burst) as store, ThreadPoolExecutor(4) as pool:
        begin = time.monotonic()
        for content in pool.map(lambda _: ask(store, "/a.bin", Range="bytes=0-499999")[2], range(4)):
            assert content == CONTENT[:500_000]
        took = time.monotonic() - begin
    # Four times 500,000 bytes less the burst, at 2,000,000 bytes per second; a busy machine may take longer.
    assert (2e6 - burst) / rate <= took < 30.0


def test_requests_of_several_connections_wait_out_their_latency_together(folder: Path) -> None:
    with slow_store.started(folder, latency=1.0) as store, ThreadPoolExecutor(8) as pool:
        begin = time.monotonic()
        list(pool.map(lambda _: ask(store, "/a.bin", Range="bytes=0-9"), range(8)))
        assert 1.0 <= time.monotonic() - begin < 8 * 1.0


def faults_met(folder: Path, order: list[int], **settings: float) -> dict[int, str]:
    """For each read, at an offset of its own, what came of it."""
    met = {}
    with slow_store.started(folder, stall_s=0.0, **settings) as store:
        for offset in order:
            try:
                status, _, content = ask(store, "/a.bin", Range=f"bytes={offset}-{offset + 99}")
                met[offset] = "served" if status == 206 and len(content) == 100 else str(status)
            except http.client.RemoteDisconnected:
                met[offset] = "cut"
            except http.client.IncompleteRead as error:
                met[offset] = "short" if error.partial == CONTENT[offset : offset + 50] else "wrong bytes"
        counted = store.counts()
        assert counted["reads"] == len(order)
        assert counted["faults"].get("short", 0) == list(met.values()).count("short")
        assert counted["bytes"] == sum({"served": 100, "short": 50}.get(each, 0) for each in met.values())
    return met


def test_faults_come_as_often_as_asked_and_not_by_the_order_of_arrival(folder: Path) -> None:
    met = faults_met(folder, list(range(200)), fail=0.3, short=0.15, seed=5)
    for kind in ("503", "cut", "short"):
        # Four standard deviations of a binomial distribution with n = 200 and p = 0.15.
        assert abs(list(met.values()).count(kind) - 30) < 4 * 5.05
    some = {offset: met[offset] for offset in range(60)}
    assert faults_met(folder, list(some)[::-1], fail=0.3, short=0.15, seed=5) == some
    assert faults_met(folder, list(some), fail=0.3, short=0.15, seed=6) != some


def test_a_stalled_answer_pauses_in_its_middle(folder: Path) -> None:
    with slow_store.started(folder, stall=1.0, stall_s=0.7) as store:
        with socket.create_connection(("127.0.0.1", urlsplit(store.url).port or 0), timeout=10) as connection:
            connection.sendall(b"GET /a.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=0-99\r\n\r\n")
            arrived: list[tuple[float, int]] = []
            received = b""
            while len(received.partition(b"\r\n\r\n")[2]) < 100:
                received += connection.recv(4096)
                arrived.append((time.monotonic(), len(received.partition(b"\r\n\r\n")[2])))
        assert received.endswith(CONTENT[:100])
        half = [when for when, length in arrived if length == 50]
        assert arrived[-1][0] - half[0] >= 0.6


def test_reads_are_counted_by_path_and_range(store: slow_store.Started) -> None:
    for _ in range(3):
        ask(store, "/a.bin", Range="bytes=10-19")
    ask(store, "/a.bin", "HEAD")
    ask(store, "/below/b%20c.bin")
    counted = store.counts(ranges=True)
    assert (counted["reads"], counted["heads"], counted["bytes"]) == (4, 1, 3 * 10 + 5)
    assert counted["paths"]["a.bin"]["ranges"] == {"10-20": 3}
    assert counted["paths"]["below/b c.bin"]["reads"] == 1
    store.forget_counts()
    assert store.counts()["requests"] == 0


def test_it_begins_to_fail_when_told_so(store: slow_store.Started) -> None:
    assert ask(store, "/a.bin")[0] == 200
    store.change(fail=1.0)
    with contextlib.suppress(http.client.RemoteDisconnected):
        assert ask(store, "/a.bin")[0] == 503


def test_it_ends_with_its_standard_input(folder: Path) -> None:
    with slow_store.started(folder) as store:
        pass
    assert store.process.returncode == 0


def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    program = (
        f"import sys, time, pathlib; sys.path.append({str(Path(slow_store.__file__).parent)!r})\n"
        "import slow_store\n"
        f"with slow_store.started(pathlib.Path({str(folder)!r})) as store:\n"
        "    print(store.url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port = urlsplit(parent.stdout.readline().strip()).port or 0
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # it is just ending
        time.sleep(0.1)
    pytest.fail("the store still serves")
