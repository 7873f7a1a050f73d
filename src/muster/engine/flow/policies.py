"""What happens when a task fails: the engine's choices, and how often it tries again first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from muster.errors import TaskRefused

End = Literal["FAIL", "IGNORE", "CANCEL_SUCCESSORS"]


@dataclass(frozen=True)
class Policy:
    """What to do about a task that raised, ran out of time or lost its worker for good.

    Arguments:
        end: `FAIL` lets the whole flow fail: nothing else is started. `CANCEL_SUCCESSORS` cancels what needs its outputs, and
            what needs theirs, and so on; everything else goes on. `IGNORE` gives the outputs that the task declares as
            `defaults`, and leaves what it would have changed as it was.
        attempts: in all, 1 for no second one.
        backoff_s: before the second attempt, in seconds; twice as long before each one after it.
        on: the exceptions that are worth another attempt.
    """

    end: End
    attempts: int = 1
    backoff_s: float = 0.0
    on: tuple[type[BaseException], ...] = (Exception,)

    def wait_s(self, attempt: int, error: BaseException) -> float | None:
        """How long to wait before another attempt, None if there is none.

        Arguments:
            attempt: the one that failed, from 1.
            error: why.
        """
        if attempt >= self.attempts or not isinstance(error, self.on):
            return None
        return float(self.backoff_s * 2.0 ** (attempt - 1))


FAIL: Final = Policy("FAIL")
IGNORE: Final = Policy("IGNORE")
CANCEL_SUCCESSORS: Final = Policy("CANCEL_SUCCESSORS")


def retry(
    count: int = 2,
    *,
    backoff_s: float = 0.0,
    on: tuple[type[BaseException], ...] | type[BaseException] = (Exception,),
    then: Policy = FAIL,
) -> Policy:
    """Tries a task again that failed.

    Arguments:
        count: attempts after the first one.
        backoff_s: before the first of them, in seconds; doubled each time.
        on: exceptions that are worth it; any other ends the task at once.
        then: what happens when none is left: `FAIL`, `IGNORE` or `CANCEL_SUCCESSORS`.

    Raises:
        TaskRefused: a negative count or time, or `on` holds what is no exception.
    """
    kinds = on if isinstance(on, tuple) else (on,)
    if count < 0 or backoff_s < 0:
        raise TaskRefused(f"retry(count={count}, backoff_s={backoff_s}): neither may be negative")
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TaskRefused(f"retry(on={on!r}): should be an exception class or a tuple of them")
    return Policy(then.end, 1 + count, backoff_s, kinds)
