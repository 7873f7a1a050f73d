"""What a pool's folder says about the pool, while it works and afterwards."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from muster.engine.pool.ledger import Ledger
from muster.errors import DataError

_NAMED: Final = 10  # units that are set aside, and last entries of the log


def pool_status(folder: Path) -> dict[str, Any]:
    """The state of a pool as JSON values.

    Arguments:
        folder: of the pool; its coordinator may be at work.

    Returns:
        ``about``: what it is; ``units``: counts; ``aside``: the first of those that were given up; ``workers``: what each
        has done, with its process id and host; ``leases``: those under way, with their age and the time left, in seconds;
        ``evidence``: how many entries of each kind, and the last ones.

    Raises:
        DataError: the folder is no pool's, or its log has been altered.
    """
    path = folder / "ledger.sqlite"
    if not path.is_file():
        raise DataError(f"{folder} is not the folder of a pool: it has no ledger.sqlite")
    now = time.time()
    with Ledger(path) as ledger:
        evidence = ledger.evidence()
        known = ledger.noted_below("worker/")
        return {
            "folder": str(folder),
            "about": ledger.noted("about", {}),
            "units": ledger.counts(),
            "aside": [unit.number for unit in ledger.set_aside()[:_NAMED]],
            "rounds_opened": len(ledger.noted("opened", [])),
            "workers": [
                dataclasses.asdict(each)
                | ({} if ledger.noted("arrival") == "each" else {"staleness": None})  # rounds have none
                | known.get(f"worker/{each.worker}", {})
                for each in ledger.workers()
            ],
            "leases": [
                {
                    "unit": lease.unit.number,
                    "worker": lease.worker,
                    "attempt": lease.attempt,
                    "base_version": lease.base_version,
                    "age_s": now - lease.granted,
                    "left_s": lease.deadline - now,
                }
                for lease in ledger.active()
            ],
            "evidence": {
                "counts": dict(Counter(entry.kind for entry in evidence)),
                "last": [dataclasses.asdict(entry) for entry in evidence[-_NAMED:]],
            },
        }
