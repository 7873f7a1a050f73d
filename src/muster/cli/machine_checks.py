"""The checks of ``muster doctor``: each measures one part of this machine now and gives a verdict with its
mend."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from muster.spec import machine

_GB: Final = 1e9
_SHM_WANTED_BYTES: Final = 128 * 2**20  # the object store of the embedded engine
_FILES_WANTED: Final = 4096
_LARGEST_WORLD_PROBED: Final = 64
_UNIX_PATH_BYTES: Final = 107
# what the embedded engine puts below the temporary folder: its own folder, Ray's session, Ray's longest
# socket name
_RAY_SOCKET: Final = "muster-0123456789/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_FSYNC_BYTES: Final = 1 << 20
_STATUS_UNSYNCHRONISED: Final = 0x40


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Arguments:
        name: the part of the machine.
        verdict: ``ok``, ``warn`` (works, not as well as it might) or ``fail`` (must be mended).
        found: the measurement, in words.
        mend: what to do; empty when the verdict is ok.
        measured: the numbers behind it, with units in their names.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(runs: Path) -> Iterator[Finding]:
    """All findings, the slow ones last.

    Arguments:
        runs: the folder of run folders, which need not exist yet.
    """
    checks: list[Callable[[], Finding]] = [
        _cores,
        _memory,
        _shared_memory,
        _open_files,
        _loopback,
        _ports,
        _clock,
        lambda: _disk(runs),
        _temporary_folder,
        _versions,
        _environment,
        _gpu,
        _roofline,
    ]
    for check in checks:
        yield check()


def _cores() -> Finding:
    usable, present, quota = machine.cores(), os.cpu_count() or 1, machine.cpu_quota()
    limits = [] if usable == present else [f"{present} in the machine"]
    limits += [] if quota is None else [f"a quota of {quota:g}"]
    found = f"{usable} usable" + (f" ({', '.join(limits)})" if limits else "")
    measured = {"usable": usable, "present": present, "quota": quota}
    if usable == 1:
        return Finding(
            "cores", "warn", found, "ranks will take turns on one core; allow this process more", measured
        )
    return Finding("cores", "ok", found, measured=measured)


def _memory() -> Finding:
    total, available = machine.memory_bytes(), machine.memory_available_bytes()
    found = f"{available / _GB:.1f} GB available of {total / _GB:.1f} GB"
    measured = {"total_bytes": total, "available_bytes": available}
    if available < 1 * _GB:
        return Finding(
            "memory",
            "fail",
            found,
            "free memory or raise this process's limit; 2 GB carry 2 small ranks",
            measured,
        )
    if available < 2 * _GB:
        return Finding("memory", "warn", found, "enough for one small rank; 2 GB carry two", measured)
    return Finding("memory", "ok", found, measured=measured)


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(
            "/dev/shm",
            "fail",
            "missing or not writable",
            "mount a tmpfs there: mount -t tmpfs tmpfs /dev/shm",
        )
    usage = shutil.disk_usage(path)
    found = f"{usage.free / _GB:.2f} GB free of {usage.total / _GB:.2f} GB"
    measured = {"total_bytes": usage.total, "free_bytes": usage.free}
    if usage.free < _SHM_WANTED_BYTES:
        mend = (
            "the object store falls back to the disk; in Docker: --shm-size=1g, else remount /dev/shm larger"
        )
        return Finding("/dev/shm", "warn", found, mend, measured)
    return Finding("/dev/shm", "ok", found, measured=measured)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = ["unlimited" if limit == resource.RLIM_INFINITY else str(limit) for limit in (soft, hard)]
    measured = {"soft": soft, "hard": hard}
    if soft != resource.RLIM_INFINITY and soft < _FILES_WANTED:
        verdict: Literal["warn", "fail"] = "fail" if soft < 256 else "warn"
        mend = f"ulimit -n {_FILES_WANTED}" + (
            "" if hard >= _FILES_WANTED or hard < 0 else " (the hard limit needs root)"
        )
        return Finding("open files", verdict, f"limit {words[0]} (hard {words[1]})", mend, measured)
    return Finding("open files", "ok", f"limit {words[0]}", measured=measured)


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname(), timeout=2)
            peer = server.accept()[0]
            with client, peer:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                trips_s = []
                for _ in range(100):
                    began = time.perf_counter()
                    client.sendall(b"x")
                    peer.sendall(peer.recv(1))
                    client.recv(1)
                    trips_s.append(time.perf_counter() - began)
    except OSError as error:
        mend = "bring the loopback interface up: ip link set lo up"
        return Finding("loopback", "fail", f"127.0.0.1 does not answer ({error.strerror or error})", mend)
    trip_s = statistics.median(trips_s)
    return Finding("loopback", "ok", f"round trip {trip_s * 1e6:.0f} µs", measured={"round_trip_s": trip_s})


def _ports() -> Finding:
    """Binds as many ports at once as a large gang on one machine would."""
    servers: list[socket.socket] = []
    reason = ""
    try:
        for _ in range(_LARGEST_WORLD_PROBED):
            servers.append(socket.create_server(("127.0.0.1", 0)))
    except OSError as error:
        reason = error.strerror or str(error)
    finally:
        for server in servers:
            server.close()
    measured = {"bound": len(servers)}
    if reason:
        mend = "widen net.ipv4.ip_local_port_range or raise the limit of open files"
        return Finding(
            "ports", "fail", f"only {len(servers)} could be bound at once ({reason})", mend, measured
        )
    return Finding("ports", "ok", f"{len(servers)} bound at once on 127.0.0.1", measured=measured)


def _clock() -> Finding:
    steps_s: list[float] = []
    while len(steps_s) < 1000:
        began = time.perf_counter()
        while (now := time.perf_counter()) == began:
            pass
        steps_s.append(now - began)
    resolution_s = min(steps_s)
    measured: dict[str, Any] = {"resolution_s": resolution_s}
    found = f"resolves {resolution_s * 1e9:.0f} ns"
    if resolution_s > 1e-4:
        return Finding("clock", "fail", found, "choose a finer clock source (tsc or kvm-clock)", measured)
    synchronised, error_s = _time_discipline()
    measured |= {"synchronised": synchronised, "largest_error_s": error_s}
    if synchronised is None:
        return Finding("clock", "warn", f"{found}; whether it is synchronised cannot be seen", _NTP, measured)
    if not synchronised:
        return Finding("clock", "warn", f"{found}; not synchronised", _NTP, measured)
    return Finding("clock", "ok", f"{found}; synchronised within {error_s:.3g} s", measured=measured)


_NTP: Final = "of no matter on one machine; on a cluster run chrony or another NTP client"


def _time_discipline() -> tuple[bool | None, float | None]:
    """Whether the kernel's wall clock is synchronised, and its largest error in seconds, by adjtimex(2).

    The fields of ``struct timex`` on 64-bit Linux: modes at 0, offset 8, freq 16, maxerror 24 (µs), esterror
    32, status 40.
    """
    if ctypes.sizeof(ctypes.c_long) != 8:
        return None, None
    fields = (ctypes.c_long * 64)()  # modes = 0: only read
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(fields)) < 0:
        return None, None
    synchronised = not fields[5] & _STATUS_UNSYNCHRONISED
    return synchronised, fields[3] / 1e6 if synchronised else None


def _disk(runs: Path) -> Finding:
    """Free space where run folders will be, the time to bring 1 MiB to the disk, and whether locks work
    there."""
    folder = runs.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    name = "runs folder"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            times_s = []
            for _ in range(5):
                file.write(os.urandom(_FSYNC_BYTES))
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                times_s.append(time.perf_counter() - began)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            mend = "use a file system with flock; two processes could work on one run"
            return Finding(name, "fail", f"{folder} has no file locks ({error.strerror})", mend)
        return Finding(
            name, "fail", f"{folder} cannot be written ({error.strerror})", "choose another where.runs"
        )
    free, fsync_s = shutil.disk_usage(folder).free, statistics.median(times_s)
    found = f"{free / _GB:.1f} GB free, {fsync_s * 1e3:.1f} ms to bring 1 MiB to the disk ({folder})"
    measured = {"folder": str(folder), "free_bytes": free, "fsync_s": fsync_s}
    if free < 0.2 * _GB:
        return Finding(name, "fail", found, "free space, or choose another where.runs", measured)
    if free < 2 * _GB:
        return Finding(name, "warn", found, "a large model's checkpoints may not fit; free space", measured)
    if fsync_s > 0.25:
        return Finding(
            name, "warn", found, "checkpoints will be slow; choose a faster disk for where.runs", measured
        )
    return Finding(name, "ok", found, measured=measured)


def _temporary_folder() -> Finding:
    """Binds a socket under a name as long as Ray's longest; the kernel's limit is 107 bytes."""
    folder = tempfile.gettempdir()
    length = len(os.fsencode(os.path.join(folder, _RAY_SOCKET)))
    found = f"{folder}: the longest socket name of Ray has {length} of at most {_UNIX_PATH_BYTES} bytes"
    measured = {"folder": folder, "socket_path_bytes": length}
    if length > _UNIX_PATH_BYTES:
        return Finding(
            "temporary folder", "fail", found, "set TMPDIR to a shorter path, such as /tmp", measured
        )
    try:
        with tempfile.TemporaryDirectory(dir=folder) as below, socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.join(below, "s"))
    except OSError as error:
        found = f"{folder} cannot hold a socket ({error.strerror or error})"
        return Finding(
            "temporary folder", "fail", found, "set TMPDIR to a local folder, such as /tmp", measured
        )
    return Finding("temporary folder", "ok", found, measured=measured)


def _versions() -> Finding:
    """The versions of Ray and torch against what Muster's own metadata asks for."""
    found, wrong = {}, []
    for package in ("ray", "torch"):
        wanted = _least_version(package)
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            wrong.append(f"'{package}>={wanted}'")
            found[package] = "not installed"
            continue
        if _numbers(found[package]) < _numbers(wanted):
            wrong.append(f"'{package}>={wanted}'")
    text = ", ".join(f"{package} {version}" for package, version in found.items())
    if wrong:
        return Finding("versions", "fail", text, f"pip install {' '.join(wrong)}", dict(found))
    return Finding("versions", "ok", text, measured=dict(found))


def _least_version(package: str) -> str:
    """The lower bound in Muster's own requirements, such as ``ray<3,>=2.60``."""
    for requirement in metadata.requires("muster") or []:
        if match := re.match(rf"{package}\b[^;]*>=\s*([0-9.]+)", requirement):
            return match[1]
    return "0"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts[:3] if part.isdigit())


def _environment() -> Finding:
    """Variables that steer Ray or a collective library behind Muster's back."""
    steering = sorted(
        name
        for name in os.environ
        if name.startswith(("RAY_", "GLOO_", "NCCL_", "TORCH_NCCL_")) and os.environ[name]
    )
    ignored = [name for name in steering if name.startswith("RAY_")]
    kept = [name for name in steering if not name.startswith("RAY_")]
    measured = {"variables": steering}
    if ignored:
        found = f"{', '.join(ignored)} set"
        mend = (
            "engine: embedded ignores them; engine: cluster joins where.address, and its Ray obeys the others"
        )
        return Finding("environment", "warn", ", ".join([found, *kept]), mend, measured)
    return Finding(
        "environment", "ok", f"{', '.join(kept)} set" if kept else "no variable steers Ray", measured=measured
    )


def _gpu() -> Finding:
    present = machine.nvidia_gpus()
    if present == 0:
        return Finding("GPU", "ok", "none; ranks train on the CPU", measured={"present": 0})
    try:
        import torch
    except ImportError as error:
        return Finding(
            "GPU", "fail", f"{present} present, torch cannot be imported ({error})", "reinstall torch"
        )
    measured: dict[str, Any] = {"present": present, "torch_cuda": torch.version.cuda}
    if torch.version.cuda is None:
        mend = "install a CUDA build of torch to use them"
        return Finding(
            "GPU",
            "warn",
            f"{present} present, torch {torch.__version__} is built without CUDA",
            mend,
            measured,
        )
    if not torch.cuda.is_available():
        mend = "the driver may be older than the CUDA of torch; compare nvidia-smi"
        return Finding("GPU", "fail", f"{present} present, but CUDA does not start", mend, measured)
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return Finding(
            "GPU", "fail", f"{present} present, torch has no NCCL", "install a torch with NCCL", measured
        )
    side = torch.rand(1024, 1024, device="cuda")
    if not torch.isfinite(side @ side).all().item():
        return Finding(
            "GPU",
            "fail",
            "a matrix product on the GPU is not finite",
            "test the GPU (nvidia-smi -q)",
            measured,
        )
    version = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
    measured |= {"usable": torch.cuda.device_count(), "nccl": version, "names": names}
    found = (
        f"{torch.cuda.device_count()} usable ({', '.join(names)}), CUDA {torch.version.cuda}, NCCL {version}"
    )
    return Finding("GPU", "ok", found, measured=measured)


def _roofline() -> Finding:
    """What one process with a thread for each core reaches: from the cache, or measured now in a second or two."""
    try:
        import torch
    except ImportError as error:
        return Finding("roofline", "warn", f"torch cannot be imported ({error})", "reinstall torch")
    from muster.pillars.compute import machine_peaks

    before = torch.get_num_threads()
    torch.set_num_threads(machine.cores())
    try:
        measured = machine_peaks(("fp32", "bf16", "fp64"), seconds=0.1)
    finally:
        torch.set_num_threads(before)
    peaks = {name: measured.peaks(name).flops_per_s for name in ("fp32", "bf16", "fp64")}
    bandwidth = measured.peaks("fp32").bytes_per_s
    rates = ", ".join(f"{name} {rate / _GB:.0f}" for name, rate in peaks.items())
    return Finding(
        "roofline",
        "ok",
        f"{rates} GFLOP/s, memory {bandwidth / _GB:.1f} GB/s with {machine.cores()} threads ({measured.measured_utc})",
        measured={
            **{f"{name}_flops_per_s": rate for name, rate in peaks.items()},
            "bytes_per_s": bandwidth,
            "operator_s": measured.operator_s,
            "threads": machine.cores(),
            "measured_utc": measured.measured_utc,
        },
    )
