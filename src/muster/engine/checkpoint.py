"""Checkpoints of a gang: torch.distributed.checkpoint, written in the background, committed atomically.

All ranks write into a hidden folder; rank 0 then adds a manifest with a checksum of every file, brings all of it to the
disk and renames the folder. A folder without its name or with a wrong checksum is not a checkpoint: loading falls back to
the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from muster.engine.gang import RankContext
from muster.errors import CheckpointCorrupt

MANIFEST: Final = "manifest.json"
_CHUNK_BYTES: Final = 1 << 20
_FULL_BYTES: Final = 1 << 20  # a disk with less is full


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Arguments:
        path: its folder.
        step: steps done when it was taken.
        world_size: ranks that wrote it.
        quality: the measured quality at that step, where one was measured (more is better).
    """

    path: Path
    step: int
    world_size: int
    quality: float | None

    def flaw(self) -> str | None:
        """What is wrong with its files, naming the file, or None if every byte is as it was written."""
        manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{path} is missing"
            if _checksum(path) != expected:
                return f"{path} is corrupt (its checksum differs)"
        return None


def committed(folder: Path) -> list[Checkpoint]:
    """The committed checkpoints in ``folder``, newest first; their files are not checked."""
    found = []
    for path in folder.glob("step-*"):
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            found.append(Checkpoint(path, manifest["step"], manifest["world_size"], manifest["quality"]))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Checkpoint(path, int(path.name.partition("-")[2]), 0, None))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_intact(folder: Path, refuse: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose files are as they were written, or None if there is no checkpoint at all.

    Arguments:
        folder: the run's ``checkpoints``.
        refuse: told of each newer one that is not intact.

    Raises:
        CheckpointCorrupt: there are checkpoints and none is intact.
    """
    candidates = committed(folder)
    for candidate in candidates:
        try:
            flaw = candidate.flaw()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            flaw = f"{candidate.path / MANIFEST} is missing or unreadable"
        if flaw is None:
            return candidate
        refuse(flaw)
    if candidates:
        raise CheckpointCorrupt(
            f"none of the {len(candidates)} checkpoints in {folder} is intact; start the job anew"
        )
    return None


class CheckpointStore:
    """Saves and loads the state of a gang; one per rank, used by all ranks alike.

    Arguments:
        context: the rank.
        folder: the run's ``checkpoints``, on a file system that all ranks share.
        keep: how many of the newest to keep; the best by quality is kept beside them.
    """

    def __init__(self, context: RankContext, folder: Path, keep: int) -> None:
        self._context, self._folder, self._keep = context, folder, keep
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[None] | None = None
        if context.rank == 0:
            for leftover in folder.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Loads ``checkpoint`` into ``state`` in place; all ranks must call it together.

        Arguments:
            checkpoint: as `newest` gave it.
            state: nested dictionary of tensors and plain values, as `save` got it. Entries of one rank alone must be left
                out where the world size differs from the checkpoint's.
        """
        dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint.path), process_group=self._group)

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, the same on all ranks, or None."""
        choice: list[Any] = [None]
        if self._context.rank == 0:
            try:
                choice[0] = newest_intact(self._folder, self._refused)
            except CheckpointCorrupt as error:
                choice[0] = error
        dist.broadcast_object_list(choice, src=0, group=self._context.control)
        if isinstance(choice[0], Exception):
            raise choice[0]
        return choice[0]

    def save(self, step: int, state: dict[str, Any], quality: float | None = None) -> None:
        """Begins to save ``state``; returns once it has been copied, the writing goes on behind the training.

        All ranks must call it at the same step. A save that is still under way is waited for first.
        """
        self.wait()
        draft = self._folder / f".step-{step:08d}"
        draft.mkdir(parents=True, exist_ok=True)
        began = self._context.clock.now()
        response = dcp.async_save(
            state,
            storage_writer=dcp.FileSystemWriter(draft, sync_files=True),
            process_group=self._group,
        )
        assert isinstance(response, Future)
        if self._context.rank == 0:
            done: Future[None] = Future()
            self._pending = done
            response.add_done_callback(
                lambda written: self._commit(written, done, draft, step, quality, began)
            )
        else:
            self._pending = response

    def wait(self) -> None:
        """Waits until the save under way is committed or has failed; a failure is an event, not an error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.exception()

    # ---- rank 0, behind the training --------------------------------------------------------------------------------

    def _commit(
        self,
        written: Future[None],
        done: Future[None],
        draft: Path,
        step: int,
        quality: float | None,
        began: float,
    ) -> None:
        try:
            written.result()
            size = _seal(draft, step, self._context.world_size, quality)
            final = self._folder / f"step-{step:08d}"
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _sync_folder(self._folder)
            self._prune()
            self._event("checkpoint", step=step, bytes=size, seconds=self._context.clock.now() - began)
        except BaseException as error:  # torch raises CheckpointException, a BaseException
            reason = _why(error, shutil.disk_usage(self._folder).free)
            shutil.rmtree(draft, ignore_errors=True)
            self._event("checkpoint_failed", step=step, why=reason)
            print(
                f"warning: the checkpoint of step {step} could not be written, the one before is kept: {reason}",
                flush=True,
            )
        finally:
            done.set_result(None)

    def _prune(self) -> None:
        saved = committed(self._folder)
        rated = [checkpoint for checkpoint in saved if checkpoint.quality is not None]
        best = max(rated, key=lambda checkpoint: checkpoint.quality or 0.0, default=None)
        for checkpoint in saved[self._keep :]:
            if checkpoint != best:
                # First the name: a half-deleted folder must not look like a checkpoint.
                doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.old")
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _refused(self, flaw: str) -> None:
        self._event("checkpoint_refused", what=flaw)
        print(f"warning: {flaw}; falling back to the checkpoint before it", flush=True)

    def _event(self, kind: str, **detail: Any) -> None:
        if self._context.events is not None:
            self._context.events(kind, **detail)


def _why(error: BaseException, free: int) -> str:
    """Why a write failed: the system's word for it where one is in the text, else its end.

    torch's writer may only say that its position in the file is not what it expected; then a full disk speaks for itself.
    """
    text = str(error)
    found = re.search(r"\[Errno \d+\][^\n]*", text)
    reason = found[0] if found else " ".join(text.split())[-300:]
    if free < _FULL_BYTES and "No space left" not in reason:
        reason = f"No space left on the disk ({free} bytes are free): {reason}"
    return reason


def _seal(draft: Path, step: int, world_size: int, quality: float | None) -> int:
    """Adds the manifest, brings all to the disk; returns the size in bytes."""
    files = sorted(path for path in draft.iterdir() if path.is_file())
    manifest = {
        "step": step,
        "world_size": world_size,
        "quality": quality,
        "files": {path.name: _checksum(path) for path in files},
    }
    with (draft / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(draft)
    return sum(path.stat().st_size for path in files)


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
