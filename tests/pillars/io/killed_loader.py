"""A training process for the tests that kill it: two ranks' worth of caches, workers, a disk cache, and no end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from muster.io import LookAheadLoader
from pillars.io.counted_store import CountedStore


def main() -> None:
    folder = Path(sys.argv[1])
    store = CountedStore(folder)
    loader = LookAheadLoader(
        store, 4, seed=1, epochs=1000, workers=2, memory_bytes=50_000, disk=(folder / "cache", 20_000)
    )
    first = iter(loader)
    next(first)
    print(json.dumps(loader._session.worker_processes), flush=True)  # type: ignore[union-attr]
    while True:
        for _ in loader:
            pass


main()  # not guarded: worker processes must not run a script again
