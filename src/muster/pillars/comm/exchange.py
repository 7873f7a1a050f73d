"""The exchange of gradients: a communication hook for DistributedDataParallel that compressors can live in.

Every rank has one communication thread and a process group of its own. Buckets go to the thread in the order in which
DistributedDataParallel hands them out, which is the same on all ranks, and the thread finishes one before it begins the
next. A compressor may therefore use several blocking collectives: they can meet only their own on the other ranks.
torch's own PowerSGD hook chains its collectives by callbacks instead, so those of different buckets start in whatever
order earlier ones end; Gloo matches collectives by the order in which they were started, and ranks that started them in
different orders wait for each other forever (torch 2.13, two ranks, six buckets: in the first step that it compresses).
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from muster.errors import MusterError
from muster.pillars.comm.compress.compressor import Compressor, Part, parts_of
from muster.pillars.comm.compress.registry import load_compressor
from muster.pillars.comm.compress.uncompressed import Uncompressed
from muster.pillars.comm.compress.wire import Wire
from muster.pillars.comm.exchange_state import Carried


@dataclass(frozen=True)
class Choice:
    """A compressor by name, with the options of its constructor."""

    name: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)


Chooser = Callable[[int, Sequence[Part]], Choice]
"""Which compressor a bucket gets, from its index and its tensors; must be the same on all ranks."""


@dataclass
class _Job:
    """A bucket on its way: from the hook to the thread."""

    index: int
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    buffer: torch.Tensor
    future: torch.futures.Future[torch.Tensor]
    ready: Any  # a CUDA event, or None
    failed: str = ""


class Exchange:
    """Averages gradients over ranks, compressed, behind the backward pass.

    ::

        exchange = Exchange(model.named_parameters(), "topk")
        replica.register_comm_hook(None, exchange.hook)     # or clock.hook(exchange.hook)
        ...
        exchange.close()

    Every rank, also one outside ``group``, must make it at the same point of its program: it makes a process group.

    Arguments:
        named_parameters: of the model inside DistributedDataParallel; state is kept under their names.
        compression: a compressor's name, a `Choice`, or a function from bucket index and tensors to a `Choice`.
        group: whose ranks exchange; None for all. Its backend is used for the exchange's own group.
        seed: of what compressors draw; the same on all ranks.
        timeout: of a collective; torch's default if None.
        wire: makes the collectives from the exchange's group; another one may reduce hierarchically.

    Raises:
        RefusedInput: no compressor of that name.

    Attributes:
        wire: the collectives; its ``sent_bytes`` counts what this rank has sent.
        failure: what went wrong in the thread, or None.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str | Choice | Chooser = "none",
        *,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        timeout: timedelta | None = None,
        wire: Callable[[dist.ProcessGroup], Wire] = Wire,
    ) -> None:
        self._names = {id(parameter): name for name, parameter in named_parameters}
        self._seed = seed
        self.choose(compression)
        own = dist.new_group(
            dist.get_process_group_ranks(group) if group is not None else None,
            backend=dist.get_backend(group),
            timeout=timeout,
        )
        assert own is not None
        dist.barrier(group=own)  # whoever closes at once does not cut off a rank that is still connecting
        self._group = own
        self.wire = wire(own)
        self.failure: RuntimeError | None = None
        self._compressors: dict[tuple[str, ...], Compressor] = {}
        self._choices: dict[tuple[str, ...], Choice] = {}
        self._carried = Carried()
        self._plain = False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._pending = 0
        self._counting = threading.Lock()
        # The thread must not keep an exchange alive that its owner has forgotten.
        self._thread = threading.Thread(
            target=_serve, args=(weakref.ref(self), self._jobs), name="muster-exchange", daemon=True
        )
        self._thread.start()
        self._stop = weakref.finalize(self, self._jobs.put, None)

    # ---- the backward pass ------------------------------------------------------------------------------------------

    def hook(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """The hook to register with DistributedDataParallel; returns at once.

        Raises:
            MusterError: the exchange has failed before, or is closed. A failure in the thread itself fails the future,
            and so
                the backward pass, with a text that names bucket and rank.
        """
        if self.failure is not None:
            raise self.failure
        if not self._stop.alive:
            raise MusterError(
                "the exchange of gradients is closed; attach a new one before the next backward pass"
            )
        parameters, buffer = bucket.parameters(), bucket.buffer()
        cuda = buffer.device.type == "cuda"
        job = _Job(
            index=bucket.index(),
            names=tuple(self._name(parameter) for parameter in parameters),
            shapes=tuple(parameter.shape for parameter in parameters),
            buffer=buffer,
            future=torch.futures.Future(devices=[buffer.device] if cuda else None),
            ready=torch.cuda.current_stream(buffer.device).record_event() if cuda else None,
        )

        def landed(done: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            if job.failed:
                raise RuntimeError(job.failed)
            return done.value()

        result = job.future.then(landed)
        with self._counting:
            self._pending += 1
            self._idle.clear()
        self._jobs.put(job)
        return result

    def _name(self, parameter: torch.Tensor) -> str:
        try:
            return self._names[id(parameter)]
        except KeyError:
            raise MusterError(
                f"the exchange does not know a parameter of shape {list(parameter.shape)} in its bucket; "
                "make it from the named_parameters() of the very model that DistributedDataParallel wraps"
            ) from None

    @contextlib.contextmanager
    def uncompressed(self) -> Iterator[None]:
        """Within it, buckets are averaged as they are and no compressor's state changes.

        For backward passes whose gradients are thrown away (a warm-up). All ranks must do the same.
        """
        self.wait()
        self._plain = True
        try:
            yield
        finally:
            self.wait()
            self._plain = False

    def wait(self) -> None:
        """Blocks until no bucket is on its way."""
        self._idle.wait()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _land(self, job: _Job) -> None:
        """Averages one bucket, on the communication thread."""
        try:
            if self.failure is not None:
                job.failed = str(self.failure)
            else:
                self._average(job)
        except Exception as error:
            self.failure = RuntimeError(
                f"exchange of gradients: bucket {job.index} ({job.names[0]} and {len(job.names) - 1} more) failed "
                f"on rank {self.wire.rank}: {type(error).__name__}: {error}"
            )
            self.failure.__cause__ = error
            job.failed = str(self.failure)
            self._leave_group()  # else the other ranks would wait for this one until their timeout
        finally:
            with self._counting:
                self._pending -= 1
                if not self._pending:
                    self._idle.set()
            job.future.set_result(job.buffer)

    def _average(self, job: _Job) -> None:
        if self._plain:
            compressor: Compressor = Uncompressed(
                parts_of(job.shapes), job.buffer.dtype, job.buffer.device, seed=0
            )
        else:
            compressor = self._compressors.get(job.names) or self._build(job)
            self._carried.flush(compressor.parts, job.buffer)
        compressor.average(job.buffer, self.wire)

    def _build(self, job: _Job) -> Compressor:
        """Makes a bucket's compressor, and takes over the state of those that its parameters had before."""
        if job.buffer.layout != torch.strided:
            raise ValueError("sparse gradients cannot be exchanged; use a dense embedding (sparse=False)")
        parts = parts_of(job.shapes, job.names)
        choice = self._choose(job.index, parts)
        self._agree(job.names, choice)
        stale = [key for key in self._compressors if not set(key).isdisjoint(job.names)]
        for key in stale:
            self._carried.take(key, self._choices.pop(key).name, self._compressors.pop(key))
        compressor = load_compressor(choice.name)(
            parts, job.buffer.dtype, job.buffer.device, seed=self._seed, **choice.options
        )
        self._carried.give(job.names, choice.name, compressor)
        self._compressors[job.names], self._choices[job.names] = compressor, choice
        return compressor

    def _agree(self, names: tuple[str, ...], choice: Choice) -> None:
        """Ranks that would compress one bucket differently would wait for each other forever: better an error."""
        told = f"{names} {choice.name} {sorted(choice.options.items())}"
        digest = hashlib.blake2b(told.encode(), digest_size=8).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        if dist.get_backend(self._group) == "nccl":
            mine = mine.to(torch.device("cuda", torch.cuda.current_device()))
        all_of_them = self.wire.all_gather(mine).cpu()
        if (all_of_them != all_of_them[0]).any():
            raise ValueError(f"ranks disagree about a bucket: here it is to be compressed with {choice.name}")

    def _leave_group(self) -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # torn down already
            dist.destroy_process_group(self._group)
        self.wire.group = self._group = None  # type: ignore[assignment]  # its connections close with the last reference

    # ---- state ------------------------------------------------------------------------------------------------------

    def choose(self, compression: str | Choice | Chooser) -> None:
        """Sets what compresses the buckets that come up from now on; those that exist keep theirs until `rechoose`."""
        if isinstance(compression, str):
            compression = Choice(compression)
        if isinstance(compression, Choice):
            load_compressor(compression.name)
            fixed = compression
            self._choose: Chooser = lambda index, parts: fixed
        else:
            self._choose = compression

    def rechoose(self, compression: str | Choice | Chooser) -> None:
        """Compresses all buckets anew from the next backward pass on; between the passes, on all ranks alike.

        Error feedback goes over to the new compressor; where that keeps none, it is added to the next gradient.
        """
        self.wait()
        self.choose(compression)
        for key in list(self._compressors):
            self._carried.take(key, self._choices.pop(key).name, self._compressors.pop(key))

    @property
    def compressors(self) -> dict[tuple[str, ...], Compressor]:
        """The live compressors by the names of their bucket's parameters."""
        return dict(self._compressors)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same bits; copies, of this rank. Call it between backward passes.

        Returns:
            ``world_size`` and ``rank``; ``parameters``: by name the ``compressor`` and its tensors (``residual``: 1-D,
            in the order of the parameter's elements in memory); ``buckets``: what means something for one bucket only.
            Another bucket layout can take up the first part, another world size what `exchange_state.reshard` makes of
            it.
        """
        self.wait()
        every = self._carried.copy()
        for key, compressor in self._compressors.items():
            every.take(key, self._choices[key].name, compressor)
        return {"world_size": self.wire.world_size, "rank": self.wire.rank} | every.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state; between backward passes, on all ranks.

        Raises:
            RefusedInput: it is another world size's, or another rank's, or has a parameter that the model has not.
        """
        self.wait()
        self._compressors.clear()
        self._choices.clear()
        self._carried = Carried.from_state_dict(
            state, self.wire.rank, self.wire.world_size, set(self._names.values())
        )

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the thread and leaves the process group; after the last backward pass, on all ranks. May be called twice."""
        if self._stop.alive:
            self._stop()
            self._thread.join()
            if self.failure is None:
                self._leave_group()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# DistributedDataParallel compares annotations as objects, and here they are strings.
Exchange.hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def _serve(exchange: weakref.ref[Exchange], jobs: queue.SimpleQueue[_Job | None]) -> None:
    streams: dict[torch.device, Any] = {}
    while (job := jobs.get()) is not None:
        alive = exchange()
        if alive is None:
            return
        if job.ready is None:
            alive._land(job)
        else:
            device = job.buffer.device
            torch.cuda.set_device(device)
            stream = streams.setdefault(device, torch.cuda.Stream(device))
            stream.wait_event(job.ready)
            with torch.cuda.stream(
                stream
            ):  # completing the future in it makes whoever waits wait for the stream
                alive._land(job)
        del alive, job
