"""Whether a coordinator survives whatever is handed in: 100,000 seeded deliveries, nine in ten of them wrong.

    python benchmarks/fuzzed_updates.py [--deliveries N] [--seed N] [--quick]

Each delivery takes a lease and hands something in: an update with NaN, of a wrong shape or dtype, lacking or naming an array,
claiming 10^9 samples or no steps, cut, padded, with bytes flipped, of a size that no model has, the same once more, another
one by a token that was used before or never given, or an honest one. It is counted how each ended; an exception that is
not a refusal is a crash.

Must hold, and is checked: no crash; each refusal, and each token used again, is in the evidence log by its worker's name;
the model is, to the last bit, the one that the accepted updates alone give; the process grows by less than 64 MiB, and the
store by no more than the accepted updates. There is no bar for time. A full disk is filled in tests/engine/pool.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import muster.merge
from muster.engine.pool.blobs import Manifest, pieces
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.ledger import NotActive
from muster.engine.pool.rules import Rules
from muster.engine.pool.seat import Handing, Offer
from muster.engine.pool.updates import RefusedUpdate, flattened, pack, parted, unpack

MODEL = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5), "seen": np.array(0)}
SAMPLES = 10
GROWTH_BYTES = 64 << 20
HONEST = 0.1
FAULTS = (
    "nan", "shape", "dtype", "lacking", "surplus", "samples", "steps", "loss", "truncated", "padded", "flipped",
    "oversized", "not brought", "wrong name", "repeated", "replayed", "unknown token",
)  # fmt: skip


@dataclass(frozen=True)
class Units:
    """One round of as many units as there are deliveries."""

    width: int
    count: int = 1

    def units(self, number: int) -> Sequence[tuple[dict[str, Any], int]]:
        return [({"place": place}, SAMPLES) for place in range(self.width)]


@dataclass
class Tally:
    """What became of the deliveries.

    Arguments:
        by_kind: of (fault or "honest", "refused", "ended", "accepted" or "crashed: ...").
        refusals: that the coordinator raised with a lease in hand, which the evidence log must hold.
        expected: the model that the accepted updates give.
        growth_bytes: of the process's memory, at its end over its state after the first hundredth.
        evidence, late: entries of the log of updates refused, and of tokens used again.
        again: tokens that were used again; the log has each once.
        unnamed: entries without the worker who sent it.
        store_bytes: that the blobs take in the end.
        model: that the coordinator came to.
        accepted: how many the coordinator counts.
    """

    by_kind: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: int = 0
    expected: dict[str, Any] = field(default_factory=dict)
    growth_bytes: int = 0
    evidence: int = 0
    late: int = 0
    again: int = 0
    unnamed: int = 0
    store_bytes: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    accepted: int = 0


def fuzzed(folder: Path, deliveries: int, seed: int) -> Tally:
    """Hands in so many updates, one after the other, to a coordinator in ``folder``."""
    draws, tally, process = random.Random(seed), Tally(), psutil.Process()
    rule = muster.merge.get("vc-asgd", alpha=0.9)
    used: list[tuple[str, Handing]] = []
    again: set[str] = set()
    model, state = dict(MODEL), rule.begin(MODEL)
    before = 0
    with Coordinator(
        folder,
        model=MODEL,
        fold=rule,
        rounds=Units(deliveries),
        rules=Rules(attempts=1 << 30, silence_s=1e9, patience=1e9),
        durable=False,
    ) as pool:
        for number in range(deliveries):
            if number == deliveries // 100:
                before = process.memory_info().rss
            fault = "honest" if draws.random() < HONEST else draws.choice(FAULTS)
            offer = pool.lease(f"worker {number % 7}")
            assert isinstance(offer, Offer)
            if fault in ("repeated", "replayed") and not used:
                fault = "honest"
            arrays = _trained(draws)
            merges = pool.version.number
            try:
                token, result = _delivery(pool, offer, arrays, fault, draws, used)
                pool.hand_in(token, result)
            except RefusedUpdate:
                outcome = "refused"
                tally.refusals += 1
            except NotActive:
                outcome = "ended"
                if fault == "replayed":
                    again.add(token)
            except Exception as error:
                outcome = f"crashed: {type(error).__name__}: {error}"[:100]
            else:
                outcome = "accepted"
            tally.by_kind[fault, outcome] += 1
            if pool.version.number > merges:
                if fault == "flipped":
                    arrays = _flipped_arrays(pool, result)
                update = muster.merge.Update(arrays, MODEL, samples=result.samples)
                model, state = rule.merge(model, [update], state)
                used = [*used[-50:], (token, result)]
            if outcome == "ended" or fault == "repeated":
                pool.give_back(offer.token, "next delivery")
        tally.growth_bytes = process.memory_info().rss - before
        tally.model, tally.expected, tally.accepted = dict(pool.version.model), model, pool.accepted
        entries = pool._ledger.evidence()
        tally.evidence = sum(entry.kind == "refused" for entry in entries)
        tally.again = len(again)
        tally.late = sum(entry.kind == "late" for entry in entries)
        tally.unnamed = sum(not entry.worker for entry in entries)
    tally.store_bytes = sum(path.stat().st_size for path in (folder / "blobs").rglob("*") if path.is_file())
    return tally


def _trained(draws: random.Random) -> dict[str, Any]:
    generator = np.random.default_rng(draws.getrandbits(32))
    return {
        "w": generator.standard_normal((3, 4)).astype(np.float32),
        "b": generator.standard_normal(5),
        "seen": np.array(draws.randrange(100)),
    }


def _flipped_arrays(pool: Coordinator, result: Handing) -> dict[str, Any]:
    """What an update with a flipped byte really held, where that is a model all the same."""
    content = pool._blobs.get_whole(result.update)
    return parted(unpack(content), "weights")[""]


def _delivery(
    pool: Coordinator,
    offer: Offer,
    arrays: dict[str, Any],
    fault: str,
    draws: random.Random,
    used: list[tuple[str, Handing]],
) -> tuple[str, Handing]:
    """The token and the result of a delivery with some fault; its bytes have been brought."""
    if fault == "nan":
        arrays = arrays | {"b": np.array([1, draws.choice([np.nan, np.inf, -np.inf]), 0, 0, 0])}
    elif fault == "shape":
        arrays = arrays | {"w": np.zeros(draws.choice([(4, 3), (3, 5), (12,), ()]), np.float32)}
    elif fault == "dtype":
        arrays = arrays | {
            "w": arrays["w"].astype(draws.choice([np.float64, np.float16, np.int32, np.bool_]))
        }
    elif fault == "lacking":
        gone = draws.choice(sorted(arrays))
        arrays = {name: array for name, array in arrays.items() if name != gone}
    elif fault == "surplus":
        arrays = arrays | {"x" * draws.randint(1, 20): np.zeros(2)}
    content = pack(flattened(weights={"": arrays}))
    if fault == "truncated":
        content = content[: draws.randrange(len(content))]
    elif fault == "padded":
        content += draws.randbytes(draws.randint(1, 64))
    elif fault == "flipped":
        at = draws.randrange(len(content))
        content = content[:at] + bytes([content[at] ^ (1 << draws.randrange(8))]) + content[at + 1 :]
    elif fault == "oversized":
        content = bytes(draws.choice([10_000, 1 << 20]))
    manifest = Manifest.of(content)
    result = Handing(manifest, SAMPLES)
    if fault == "samples":
        result = replace(result, samples=draws.choice([10**9, SAMPLES + 1, -1, 0, 2**70]))
    elif fault == "steps":
        result = replace(result, steps=draws.choice([0, -3]))
    elif fault == "loss":
        result = replace(result, loss=draws.choice([float("nan"), float("inf")]))
    if fault == "repeated":
        return draws.choice(used)
    if fault == "replayed":
        return draws.choice(used)[0], result
    if fault == "unknown token":
        return draws.randbytes(16).hex(), result
    if fault == "not brought":
        content = b""
    names = list(manifest.chunks)
    if fault == "wrong name":
        content = content[:-1] + bytes([content[-1] ^ 1])
    if content:
        for name, piece in zip(names, pieces(content), strict=True):
            pool.put(offer.token, name, bytes(piece))
    return offer.token, result


def faults_of(tally: Tally) -> list[str]:
    """What does not hold, in words; empty where all does."""
    found = [
        f"{kind}: {outcome}, {count} times"
        for (kind, outcome), count in tally.by_kind.items()
        if outcome.startswith("crashed")
    ]
    for (kind, outcome), count in tally.by_kind.items():
        if outcome == "accepted" and kind not in ("honest", "flipped", "repeated"):
            found.append(f"{kind}: accepted, {count} times")
        if outcome != "accepted" and kind == "honest":
            found.append(f"honest: {outcome}, {count} times")
    if tally.evidence != tally.refusals:
        found.append(f"{tally.refusals} refusals, but {tally.evidence} in the evidence log")
    if tally.late != tally.again:
        found.append(f"{tally.again} tokens used again, but {tally.late} in the evidence log")
    if tally.unnamed:
        found.append(f"{tally.unnamed} entries of the log name nobody")
    for name, array in tally.expected.items():
        if not np.array_equal(array, tally.model[name]):
            found.append(f"the model's {name!r} is not what the accepted updates give")
    if tally.growth_bytes > GROWTH_BYTES:
        found.append(f"memory grew by {tally.growth_bytes:,} bytes")
    most = 2048 * (tally.accepted + 100)
    if tally.store_bytes > most:
        found.append(f"the store holds {tally.store_bytes:,} bytes; {most:,} would do")
    return found


def main() -> int:
    """Delivers, prints, judges."""
    from printed_results import Verdicts, print_heading, print_table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deliveries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    arguments = parser.parse_args()
    deliveries = 1000 if arguments.quick else arguments.deliveries
    print_heading("Fuzzed updates", deliveries=deliveries, seed=arguments.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        tally = fuzzed(Path(name), deliveries, arguments.seed)
    outcomes = sorted({outcome for _, outcome in tally.by_kind})
    rows = [
        [kind, *(str(tally.by_kind[kind, outcome]) for outcome in outcomes)] for kind in ("honest", *FAULTS)
    ]
    print_table("Deliveries", ["", *outcomes], rows)
    print(
        f"{tally.refusals:,} refused, {tally.evidence:,} in the evidence log; memory grew by "
        f"{tally.growth_bytes / 2**20:.1f} MiB; the store holds {tally.store_bytes / 2**20:.1f} MiB for "
        f"{tally.accepted:,} accepted; {time.monotonic() - began:.0f} s"
    )
    verdicts, faults = Verdicts(), faults_of(tally)
    verdicts.judge(
        "nothing but the accepted updates has any effect", not faults, "; ".join(faults) or "so it is"
    )
    return verdicts.exit_code()


if __name__ == "__main__":
    sys.exit(main())
