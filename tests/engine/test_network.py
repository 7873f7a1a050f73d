"""On one machine a run needs no network and touches none: neither its sockets nor its listeners leave loopback."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from engine import namespaces, runs
from engine.namespaces import Namespace

pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(bool(reason := namespaces.why_not("strace", "ss")), reason=reason or "possible"),
]

WHAT = "app: tests.network, seed: 3"
HOW = "ranks: 2, steps: 10, batch: 12, checkpoint_every: 5 steps"

# Where a call of `strace -e trace=%network` says it is going: IPv4, IPv6, and what else has an address.
_IPV4 = re.compile(r'sa_family=AF_INET,.*?inet_addr\("([^"]+)"\)')
_IPV6 = re.compile(r'sa_family=AF_INET6,.*?inet_pton\(AF_INET6, "([^"]+)"')
_FAMILY = re.compile(r"sa_family=(\w+)")


@pytest.fixture
def wired() -> Iterator[Namespace]:
    """A machine with a real interface, an address and a way out."""
    with namespaces.joined() as (machine, _):
        yield machine


def beyond_loopback(trace: Iterable[str]) -> list[str]:
    """The lines of a system-call trace that name an address other than this machine's own loopback."""
    found = []
    for line in trace:
        families = set(_FAMILY.findall(line)) - {"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"}
        addresses = _IPV4.findall(line) + _IPV6.findall(line)
        if any(not is_loopback(address) for address in addresses) or (families and not addresses):
            found.append(line.strip())
    return found


def is_loopback(address: str) -> bool:
    """Whether ``address`` is in 127.0.0.0/8, as it stands or mapped into IPv6, or ::1."""
    parsed = ipaddress.ip_address(address.partition("%")[0].strip("[]") if address != "*" else "0.0.0.0")
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def listeners_beyond_loopback(listing: str) -> set[str]:
    """The lines of ``ss -ltunH`` whose local address is not loopback."""
    return {line for line in listing.splitlines() if not is_loopback(line.split()[4].rpartition(":")[0])}


def test_the_trace_is_read_rightly() -> None:
    """Lines as strace writes them, those of a call that another thread's interrupted included."""
    inside = [
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.1.1")}, 16) = 0',
        '7 bind(3, {sa_family=AF_INET6, sin6_port=htons(0), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::1", '
        "&sin6_addr), sin6_scope_id=0}, 28) = 0",
        "7 connect(3, {sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "
        '"::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28 <unfinished ...>',
        '7 connect(4, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT (No such file or directory)',
        "7 <... connect resumed>) = 0",
        '7 sendmsg(7, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="x", iov_len=1}]}, 0) = 1',
    ]
    outside = [
        '7 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("169.254.169.254")}, 16) = 0',
        '7 bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16 <unfinished ...>',
        '7 bind(3, {sa_family=AF_INET6, sin6_port=htons(0), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::", '
        "&sin6_addr), sin6_scope_id=0}, 28) = 0",
        '7 sendto(3, "..", 40, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("8.8.8.8")}, 16) = 40',
        "7 bind(3, {sa_family=AF_PACKET, sll_protocol=htons(0x3)}, 20) = 0",
    ]
    assert beyond_loopback(inside + outside) == outside
    listing = (
        "tcp LISTEN 0 4096 127.0.0.1:6379 0.0.0.0:*\n"
        "tcp LISTEN 0 4096 [::ffff:127.0.0.1]:38 *:*\n"
        "tcp LISTEN 0 4096 *:8265 *:*\n"
        "udp UNCONN 0 0 0.0.0.0%eth0:68 0.0.0.0:*\n"
    )
    assert len(listeners_beyond_loopback(listing)) == 2


def test_a_job_runs_to_its_end_where_there_is_no_network(tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    with namespaces.empty() as nowhere:
        assert [line.split()[1] for line in nowhere.output("ip", "-brief", "link").splitlines()] == [
            "UNKNOWN"
        ]
        done = subprocess.run(
            nowhere.within("muster", "run", str(job)), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    run = runs.newest(job)
    assert run.status() == "done"
    assert run.table("steps").num_rows == 20


def test_without_even_loopback_it_is_refused_in_one_sentence(tmp_path: Path) -> None:
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    with namespaces.empty(loopback=False) as nowhere:
        began = time.monotonic()
        done = subprocess.run(
            nowhere.within("muster", "run", str(job)), capture_output=True, text=True, check=False
        )
        took_s = time.monotonic() - began
        doctor = subprocess.run(
            nowhere.within("muster", "doctor", "--json"), capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert "127.0.0.1" in done.stderr
    assert "ip link set lo up" in done.stderr
    assert "Traceback" not in done.stderr
    assert took_s < 150  # Ray alone would wait for minutes
    runs.wait_until_gone(runs.newest(job))
    checks = {check["name"]: check["verdict"] for check in json.loads(doctor.stdout)["checks"]}
    assert (doctor.returncode, checks["loopback"]) == (1, "fail")


def test_no_system_call_and_no_listener_goes_beyond_loopback(wired: Namespace, tmp_path: Path) -> None:
    """Under a host name that only DNS could know, so that whoever looked it up would be seen."""
    job = runs.write_job(tmp_path, WHAT, HOW, "engine: embedded")
    trace = tmp_path / "trace"
    script = 'hostname muster.invalid; exec "$@"'
    command = ["unshare", "--uts", "sh", "-c", script, "sh", "strace", "-f", "-qq", "--seccomp-bpf"]
    command += ["-e", "trace=connect,sendto,sendmsg,sendmmsg,bind", "-e", "signal=none", "-o", str(trace)]
    process = subprocess.Popen(
        wired.within(*command, "muster", "run", str(job)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    heard: set[str] = set()
    outside: set[str] = set()
    while process.poll() is None:
        listing = wired.output("ss", "-ltunH")
        heard |= set(listing.splitlines())
        outside |= listeners_beyond_loopback(listing)
        time.sleep(0.2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert runs.newest(job).status() == "done"
    calls = trace.read_text(errors="replace").splitlines()
    assert outside == set()
    assert beyond_loopback(calls) == []
    assert len(heard) >= 5  # the engine's daemons do listen, where they may
    assert sum("connect(" in line and "127.0.0.1" in line for line in calls) >= 20
