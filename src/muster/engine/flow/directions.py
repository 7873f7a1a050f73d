"""What a task does with each of its parameters: the word of the parameter's *direction*, and what kind of thing it is.

===========  =====================================================================================================
`IN`         reads (the default of every parameter)
`OUT`        makes a new one: a file or directory that need not exist, an object that is given only to be filled
`INOUT`      reads and changes: the next task that takes it gets the changed one
`IN_DELETE`  reads, and nobody will after it: the engine forgets it
`COMMUTATIVE`  changes, one task at a time, in whatever order they are ready
===========  =====================================================================================================

The words are those of COMPSs (Badia et al., "COMP Superscalar, an interoperable programming framework", SoftwareX 2015).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from muster.errors import TaskRefused

Kind = Literal["object", "file", "directory", "collection"]


@dataclass(frozen=True)
class Access:
    """How a task uses a parameter.

    Arguments:
        word: its direction's name.
        reads: whether it needs what is there.
        writes: whether there is a new version after it.
        shared: whether several tasks that use it so may be in any order.
        kind: what the parameter is; of a `collection` each element is a datum of its own.
    """

    word: str
    reads: bool
    writes: bool
    shared: bool = False
    kind: Kind = "object"

    def __repr__(self) -> str:
        return self.word if self.kind == "object" else f"{self.kind.capitalize()}({self.word})"


IN: Final = Access("IN", reads=True, writes=False)
OUT: Final = Access("OUT", reads=False, writes=True)
INOUT: Final = Access("INOUT", reads=True, writes=True)
IN_DELETE: Final = Access("IN_DELETE", reads=True, writes=False)
COMMUTATIVE: Final = Access("COMMUTATIVE", reads=True, writes=True, shared=True)


def File(access: Access = IN) -> Access:
    """The parameter is the path of a file. A task gets a path of its own to read or write; the user's is
    replaced, whole, once the task is done.
    """
    return _on_disk(access, "file")


def Directory(access: Access = IN) -> Access:
    """The parameter is the path of a directory; as `File`."""
    return _on_disk(access, "directory")


def _on_disk(access: Access, kind: Literal["file", "directory"]) -> Access:
    if access == IN_DELETE:
        raise TaskRefused(
            f"{kind.capitalize()}(IN_DELETE) does not exist; remove it yourself once the flow has ended"
        )
    return replace(access, kind=kind)


def Collection(access: Access = IN) -> Access:
    """The parameter is a list, tuple or dict (also nested), and the direction is that of each element."""
    if access.shared:
        raise TaskRefused(
            f"Collection({access.word}) does not exist; use IN, INOUT or IN_DELETE for collections"
        )
    return replace(access, kind="collection")
