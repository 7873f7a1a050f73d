"""Measures what one process with its threads reaches on this machine: FLOP/s per precision, bytes/s, seconds per operator.

The peak is the best of a square matrix product (2n³ FLOP) and of a 3×3 convolution (2·9·C²·H·W FLOP per image, channels
last), since on some processors the convolution library beats the matrix library. The bandwidth is that of the copy and triad
of STREAM (McCalpin 1995; 2 and 3 arrays of traffic), on arrays of at least four times the last-level caches together. Best
of several repeats, since whatever else the machine does can only slow a kernel down.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from muster.pillars.compute import peak_cache
from muster.pillars.compute.roofline import Peaks
from muster.spec import machine

_DTYPES: Final = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
PRECISIONS: Final = tuple(_DTYPES)
_LARGEST_SIDE: Final = {"cpu": 2048, "cuda": 16384}
_LEAST_ARRAY_BYTES: Final = {"cpu": 2**26, "cuda": 2**28}
_CACHES_PER_ARRAY: Final = 4
#: A cached peak is taken anew if a short product now beats it by so much: the machine was busy when it was taken.
OUTDONE: Final = 1.1
_CHANNELS: Final = {"cpu": 64, "cuda": 256}
_PIXELS: Final = 48


@dataclass(frozen=True)
class Measured:
    """Peaks of one process, with what they are made of.

    Arguments:
        gemm_flops_per_s, convolution_flops_per_s: by precision; 0 where the device lacks a kernel.
        copy_bytes_per_s, triad_bytes_per_s: STREAM.
        operator_s: of an addition of single numbers.
        measured_utc: when, ISO 8601.
    """

    gemm_flops_per_s: dict[str, float]
    convolution_flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    triad_bytes_per_s: float
    operator_s: float
    measured_utc: str

    def peaks(self, precision: str) -> Peaks:
        """The roofline in one precision.

        Raises:
            KeyError: it was not measured in that precision.
        """
        best = max(self.gemm_flops_per_s[precision], self.convolution_flops_per_s[precision])
        bandwidth = max(self.copy_bytes_per_s, self.triad_bytes_per_s)
        return Peaks(best, bandwidth, self.operator_s, precision, self.measured_utc)

    def scaled(self, share: float) -> Measured:
        """The same for a process that gets only a share of its cores' time; best times do not show that."""
        return Measured(
            {name: value * share for name, value in self.gemm_flops_per_s.items()},
            {name: value * share for name, value in self.convolution_flops_per_s.items()},
            self.copy_bytes_per_s * share,
            self.triad_bytes_per_s * share,
            self.operator_s / share,
            self.measured_utc,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine_peaks(
    precisions: tuple[str, ...] = PRECISIONS,
    *,
    device: torch.device | None = None,
    seconds: float = 0.15,
    cached: bool = True,
) -> Measured:
    """This machine's peaks for one process with the threads that torch has now, from the cache or measured in a second or so.

    A cached value counts only for the same processor (or GPU), cores, threads and torch, for 30 days, if it is intact, and if
    a short product does not beat it by a tenth now, which shows that the machine was busy when it was taken.

    Arguments:
        precisions: which of ``fp64``, ``fp32``, ``bf16``, ``fp16``.
        device: the CPU if not given.
        seconds: for each kernel.
        cached: whether to ask the cache and to keep the result in it.
    """
    device = device or torch.device("cpu")
    if not cached:
        return measure(precisions, device, None, seconds)
    key = machine_key(device, 1, precisions)
    found = recall(key, precisions)
    if found is not None:
        now = short_product(precisions[0], device)
        found = found if now <= OUTDONE * found.peaks(precisions[0]).flops_per_s else None
    if found is None:
        found = measure(precisions, device, None, seconds)
        peak_cache.keep(key, found.as_dict())
    return found


def machine_key(device: torch.device, ranks: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    """What measurements must have in common to be interchangeable."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": machine.cores(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "precisions": list(precisions),
        "torch": torch.__version__,
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.machine()


def recall(key: dict[str, Any], precisions: tuple[str, ...]) -> Measured | None:
    """The cached measurement of this machine, or None where there is none that holds for these precisions."""
    content = peak_cache.recall(key)
    if content is None:
        return None
    try:
        found = Measured(**content)
        numbers = [found.copy_bytes_per_s, found.triad_bytes_per_s, found.operator_s]
        numbers += [found.peaks(precision).flops_per_s for precision in precisions]
        return found if all(0 < number < 1e18 for number in numbers) else None
    except (TypeError, KeyError, AttributeError):
        return None


def short_product(precision: str, device: torch.device) -> float:
    """FLOP/s of a matrix product now, measured in some 30 ms: what a cached peak must stand beside."""
    return _gemm(_DTYPES[precision], device, 0.03, lambda: None)


def measure(
    precisions: tuple[str, ...],
    device: torch.device,
    together: Callable[[], None] | None = None,
    seconds: float = 0.15,
    ranks: int = 1,
) -> Measured:
    """Measures now; arguments as `machine_peaks`.

    Arguments:
        together: called before each kernel, such as a barrier of the processes that measure at once and so share the memory's
            bandwidth.
        ranks: how many those are on this machine; their arrays together are beyond its caches.
    """
    start = together or (lambda: None)
    with torch.no_grad():
        gemm = {name: _gemm(_DTYPES[name], device, seconds, start) for name in precisions}
        convolution = {name: _convolution(_DTYPES[name], device, seconds, start) for name in precisions}
        copy, triad = _stream(device, seconds, start, ranks)
        operator_s = _operator(device, start)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Measured(gemm, convolution, copy, triad, operator_s, now)


def _gemm(dtype: torch.dtype, device: torch.device, seconds: float, start: Callable[[], None]) -> float:
    """FLOP/s of the product of two square matrices, as large as fit a few times into the time."""
    side, best = 128, 0.0
    start()
    while True:
        left, right = (_random((side, side), dtype, device) for _ in range(2))
        result = torch.empty(side, side, dtype=dtype, device=device)

        def multiply(left: Any = left, right: Any = right, result: Any = result) -> None:
            torch.mm(left, right, out=result)

        once = _best(multiply, device, 0.0)
        if once is None:
            return 0.0
        enough = once > seconds / 8 or side >= _LARGEST_SIDE[device.type]
        best = max(best, 2 * side**3 / (_best(multiply, device, seconds if enough else 0.0) or once))
        if enough:
            return best
        side *= 2


def _convolution(
    dtype: torch.dtype, device: torch.device, seconds: float, start: Callable[[], None]
) -> float:
    """FLOP/s of a 3×3 convolution of as many channels in as out; 8 images, a tenth of that where it is slow."""
    channels = _CHANNELS[device.type]
    weight = _random((channels, channels, 3, 3), dtype, device).contiguous(memory_format=torch.channels_last)
    best = 0.0
    start()
    for images in (1, 8):
        image = _random((images, channels, _PIXELS, _PIXELS), dtype, device)
        image = image.contiguous(memory_format=torch.channels_last)

        def convolve(image: Any = image) -> None:
            torch.nn.functional.conv2d(image, weight, padding=1)

        flops = 2 * 9 * channels**2 * _PIXELS**2 * images
        once = _best(convolve, device, 0.0 if images == 1 else seconds)
        if once is None:
            return 0.0
        best = max(best, flops / once)
        if once > seconds:
            return best
    return best


def _stream(
    device: torch.device, seconds: float, start: Callable[[], None], ranks: int
) -> tuple[float, float]:
    """Bytes/s of copy (b = a) and triad (a = b + s·c) in fp32."""
    size = _array_bytes(device, ranks)
    first, second, third = (torch.ones(size // 4, device=device) for _ in range(3))
    start()
    copying = _best(lambda: first.copy_(second), device, seconds) or 1.0
    start()
    adding = _best(lambda: torch.add(second, third, alpha=3.0, out=first), device, seconds) or 1.0
    return 2 * size / copying, 3 * size / adding


def _operator(device: torch.device, start: Callable[[], None], repeats: int = 500) -> float:
    """Seconds of an operator that has next to nothing to compute."""
    number = torch.ones((), device=device)

    def add() -> None:
        for _ in range(repeats):
            number.add_(1.0)

    start()
    return (_best(add, device, 0.005) or 0.0) / repeats


def _best(kernel: Callable[[], Any], device: torch.device, seconds: float) -> float | None:
    """The shortest time of a kernel, run at least twice and for so long; None where the device lacks it."""
    try:
        _timed(kernel, device)
        best, spent = float("inf"), 0.0
        while spent <= seconds:
            took = _timed(kernel, device)
            best, spent = min(best, took), spent + max(took, 1e-9)
        return best
    except (RuntimeError, NotImplementedError):
        return None


def _timed(kernel: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        kernel()
        return time.perf_counter() - began
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()  # type: ignore[no-untyped-call]
    kernel()
    after.record()  # type: ignore[no-untyped-call]
    after.synchronize()  # type: ignore[no-untyped-call]
    return max(before.elapsed_time(after) / 1e3, 1e-9)  # type: ignore[no-untyped-call]


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Values without the generator: a measurement must not move a training's random numbers."""
    count = 1
    for side in shape:
        count *= side
    return (torch.arange(count, device=device).remainder(97).sub(48) / 97).to(dtype).reshape(shape)


def _array_bytes(device: torch.device, ranks: int) -> int:
    """Size of a STREAM array; less than McCalpin's rule asks for only where memory is short."""
    if device.type == "cuda":
        wanted = _CACHES_PER_ARRAY * torch.cuda.get_device_properties(device).L2_cache_size
        return max(wanted, _LEAST_ARRAY_BYTES["cuda"])
    wanted = max(_CACHES_PER_ARRAY * last_level_cache_bytes(), _LEAST_ARRAY_BYTES["cpu"]) // ranks
    return min(wanted, max(machine.memory_available_bytes() // (16 * ranks), 2**24)) // 4 * 4


def last_level_cache_bytes() -> int:
    """The last-level caches of this machine together; 0 where the kernel does not tell."""
    found: dict[str, tuple[int, int]] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = f"{level}:{(index / 'shared_cpu_list').read_text().strip()}"
            found[shared] = (level, int(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1))
    last = max((level for level, _ in found.values()), default=0)
    return sum(size for level, size in found.values() if level == last)
