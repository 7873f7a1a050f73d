"""How long to wait for a store or a peer, and a read that tries again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muster.errors import DataError


@dataclass(frozen=True)
class Patience:
    """How long to wait for whom.

    Arguments:
        retries: times that a failed request of the store is made again.
        backoff_s: before the first of them; each later one waits twice as long.
        stall_s: a request without an answer for this long is made again.
        peer_s: how long the training loop waits for a sample that a peer should have before the store is asked.
    """

    retries: int = 5
    backoff_s: float = 0.1
    stall_s: float = 30.0
    peer_s: float = 10.0

    def read(
        self,
        request: Callable[[], Any],
        index: int,
        *,
        on_retry: Callable[[], None] = lambda: None,
        pause: Callable[[float], Any] = time.sleep,
    ) -> Any:
        """What a request of the store gives, made again while it fails.

        Arguments:
            request: raises OSError where it fails.
            index: of the sample, for the error.
            on_retry: called before each further try.
            pause: waits so many seconds.

        Raises:
            DataError: it failed every time; names the sample.
        """
        for attempt in range(self.retries + 1):
            try:
                return request()
            except OSError as error:
                if attempt == self.retries:
                    raise unreadable(index, attempt + 1, error) from error
            on_retry()
            pause(self.backoff_s * 2**attempt)
        raise AssertionError("the last try returns or raises")


def unreadable(index: int, tries: int, error: OSError) -> DataError:
    """What to say of a sample that the store does not give."""
    return DataError(
        f"sample {index}: the store failed {tries} times, at last with: {error}; "
        "see whether the store is up and the sample is whole, then resume"
    )
