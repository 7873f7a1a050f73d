"""Files and directories as data of a flow: each task has a path of its own, and the user's path shows whole versions only."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muster.engine.flow.file_trees import copy_tree, remove_tree
from muster.engine.flow.file_versions import FileVersion, FileVersions


@dataclass(frozen=True)
class FileUse:
    """How a call uses a file or directory.

    Arguments:
        path: the user's, absolute.
        as_path: whether the function is given a `Path`, as it was called with one, or text.
        reads, writes: what its direction says.
    """

    path: str
    as_path: bool
    reads: bool
    writes: bool


class Files:
    """The versions of a flow's files in a folder; made when the first one is named.

    Arguments:
        folder: for the versions; by default a temporary one, which is removed at the end.
    """

    def __init__(self, folder: Path | None) -> None:
        self._stack = contextlib.ExitStack()
        if folder is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="muster-files-")))
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._versions = self._stack.enter_context(FileVersions(folder))

    def adopt(self, path: str) -> FileVersion:
        """What is at a path now; see `FileVersions.adopt`."""
        return self._versions.adopt(path)

    def publish(self, version: FileVersion, path: str, order: int) -> None:
        """Puts a version at the user's path; see `FileVersions.publish`."""
        self._versions.publish(version, path, order=order)

    @contextlib.contextmanager
    def opened(self, uses: dict[int, FileUse], values: list[Any]) -> Iterator[None]:
        """Gives a call paths of its own for as long as it runs.

        Arguments:
            uses: by slot.
            values: of the slots; of a file its version. In these places are paths within the context, and what has been
                written as new versions after it, unless it is left by an exception.

        Raises:
            BlobDamaged: a version is not there any more.
            DataError: a file that was to be written was not.
            CannotStore: the disk is full.
        """
        paths: dict[int, Path] = {}
        try:
            for index, use in uses.items():
                paths[index] = self._path(use, values[index])
            for index, path in paths.items():
                values[index] = path if uses[index].as_path else str(path)
            yield
            for index, use in uses.items():
                if use.writes:
                    values[index] = self._versions.keep(paths.pop(index))
        finally:
            for path in paths.values():
                if path.parent.parent == self.folder / "scratch":
                    remove_tree(path.parent)

    def _path(self, use: FileUse, version: Any) -> Path:
        name = os.path.basename(use.path)
        if use.writes:
            return self._versions.scratch(version if use.reads else None, name=name)
        # By a link it has its own name; and its content, where it is the user's file, whose place a later version may take.
        link = self.folder / "scratch" / secrets.token_hex(8) / name
        link.parent.mkdir()
        while True:
            path = self._versions.path(version)
            copy_tree(path, link, link=True)
            if path == self._versions.path(version):
                return link
            remove_tree(link)  # it was just replaced; the first one is kept now

    def close(self) -> None:
        """Ends; versions in a folder of the user's stay."""
        self._stack.close()
