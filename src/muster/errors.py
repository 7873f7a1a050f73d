"""Every exception that Muster raises on purpose, and the exit code of each.

::

    MusterError                      exit code 1
    ├── RefusedInput                 2   bad input, refused before any worker starts
    │   ├── JobError                     a job file, a --set value or an environment value is wrong
    │   ├── DataError                    a data set is missing, unreadable or does not fit the job
    │   ├── RunNotFound                  no such run folder
    │   ├── RunLocked                    another live process works on this run
    │   ├── MissingExtra                 an optional dependency is not installed
    │   ├── TaskRefused                  a task of a flow is declared or called wrongly
    │   ├── Undigestible                 an argument of a task has no content to compare
    │   ├── NotStorable                  a result of a task cannot be pickled
    │   └── UnsupportedPlatform          this operating system is not supported
    ├── EngineLost                   4   the engine (Ray, a forkserver) died or could not start
    ├── RankFailed                   1   a rank raised, died or hung, and no restart was left
    ├── CheckpointCorrupt            5   no checkpoint of the run is intact
    ├── TaskTimeout                  1   a task of a flow took longer than it may
    ├── WorkerLost                   1   a task of a flow lost its worker too often
    ├── BlobDamaged                  1   a stored result is missing or damaged
    ├── CannotStore                  1   the disk does not take what is written
    ├── Stopped                    130   stopped by Ctrl-C after saving a checkpoint
    └── Preempted                   75   stopped by SIGTERM after saving a checkpoint
"""

from __future__ import annotations


class MusterError(Exception):
    """Base of all errors raised on purpose; its text is one message for a person."""

    exit_code = 1


class RefusedInput(MusterError):
    """Bad input: says what, where and what would be right; nothing has been started."""

    exit_code = 2


class JobError(RefusedInput):
    """A job is wrong.

    Arguments:
        found: what is wrong, in a few words.
        mend: what would be right.
        key: the key path, such as ``how.ranks``.
        source: the file, ``--set`` or the environment variable's name the value came from.
        line: one-based line in ``source``, where it has lines.
    """

    def __init__(
        self, found: str, *, mend: str, key: str = "", source: str = "job", line: int | None = None
    ) -> None:
        self.found, self.mend, self.key, self.source, self.line = found, mend, key, source, line
        where = source if line is None else f"{source}:{line}"
        super().__init__(f"{where}: {key + ': ' if key else ''}{found}; {mend}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_job_error, (self.found, self.mend, self.key, self.source, self.line)


def _rebuild_job_error(found: str, mend: str, key: str, source: str, line: int | None) -> JobError:
    return JobError(found, mend=mend, key=key, source=source, line=line)


class DataError(RefusedInput):
    """A data set is missing, unreadable or does not fit the job; names the file."""


class RunNotFound(RefusedInput):
    """No run folder of that path or name."""


class RunLocked(RefusedInput):
    """Another live process works on this run; names its process id and host."""


class MissingExtra(RefusedInput):
    """An optional dependency is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(f"{purpose} needs {package}; install it with: pip install 'muster[{extra}]'")

    def __reduce__(self) -> tuple[object, ...]:
        return MissingExtra, (self.package, self.extra, self.purpose)


class TaskRefused(RefusedInput):
    """A task of a flow is declared or called wrongly; says which parameter and what would be right."""


class Undigestible(RefusedInput):
    """A value has a part whose content cannot be told.

    Arguments:
        path: to that part, as ``params['lock']``.
        found: what is there, and why it cannot be digested.
    """

    def __init__(self, path: str, found: str) -> None:
        self.path, self.found = path, found
        super().__init__(
            f"{path} has no content that could be compared: it is {found}; pass what it is made from"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Undigestible, (self.path, self.found)


class NotStorable(RefusedInput):
    """A result that cannot be pickled."""


class UnsupportedPlatform(RefusedInput):
    """This operating system is not supported."""


class EngineLost(MusterError):
    """The engine died or could not start."""

    exit_code = 4


class RankFailed(MusterError):
    """A rank raised, died or hung and no restart was left; carries that rank's own traceback."""

    def __init__(self, message: str, *, rank: int | None = None, traceback: str = "") -> None:
        self.rank, self.traceback = rank, traceback
        super().__init__(message)


class CheckpointCorrupt(MusterError):
    """No checkpoint of the run is intact."""

    exit_code = 5


class WorkerLost(MusterError):
    """A worker of a flow died again and again under the same task, or took with it what cannot be had elsewhere."""


class TaskTimeout(MusterError):
    """One attempt of a flow's task took longer than its ``timeout_s``."""


class BlobDamaged(MusterError):
    """What was stored is missing or not what it was; what made it must make it again.

    Arguments:
        name: of the blob.
        found: what is wrong with it.
    """

    def __init__(self, name: str, found: str) -> None:
        self.name, self.found = name, found
        super().__init__(f"the stored result {name[:12]} {found}; its task has to run again")

    def __reduce__(self) -> tuple[object, ...]:
        return BlobDamaged, (self.name, self.found)


class CannotStore(MusterError):
    """The disk does not take what is written: it is full, over a quota, read-only or broken."""


class Stopped(MusterError):
    """Stopped by Ctrl-C after saving a checkpoint."""

    exit_code = 130


class Preempted(MusterError):
    """Stopped by SIGTERM after saving a checkpoint."""

    exit_code = 75
