"""The coordinator: what is merged is what was accepted, once, in order; whoever dies, lags, lies or comes late."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import muster.merge
from muster.engine.pool.blobs import Manifest, pieces
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import replayed
from muster.engine.pool.ledger import Ledger, NotActive
from muster.engine.pool.pace import Pace
from muster.engine.pool.rules import BelowQuorum, Rules
from muster.engine.pool.seat import Handing, Offer, Over, Pause
from muster.engine.pool.updates import RefusedUpdate, flattened, pack, parted, unpack
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.errors import DataError, MusterError, RefusedInput

MODEL = {"w": np.zeros(3), "steps": np.array(0)}


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Each:
    """So many units of so many samples in each of so many rounds."""

    count: int = 1
    width: int = 4
    samples: int = 10
    parts: bool = False

    def units(self, number: int) -> Sequence[tuple[dict[str, Any], int]]:
        begin = {"begin": 0} if self.parts else {}
        return [({"round": number, "place": place, **begin}, self.samples) for place in range(self.width)]


def opened(folder: Path, rule: str = "fedavg", rounds: Each | None = None, **options: Any) -> Coordinator:
    extra = options.pop("of_rule", {})
    return Coordinator(
        folder, model=MODEL, fold=muster.merge.get(rule, **extra), rounds=rounds or Each(), **options
    )


def offered(pool: Coordinator, worker: str = "a") -> Offer:
    offer = pool.lease(worker)
    assert isinstance(offer, Offer)
    return offer


def handed(pool: Coordinator, offer: Offer, value: float = 1.0, **changes: Any) -> int:
    content = pack(flattened(weights={"": {"w": np.full(3, value), "steps": np.array(1)}}))
    return pool.hand_in(offer.token, replace(brought(pool, offer, content), **changes))


def brought(pool: Coordinator, offer: Offer, content: bytes) -> Handing:
    manifest = Manifest.of(content)
    for name, piece in zip(manifest.chunks, pieces(content), strict=True):
        pool.put(offer.token, name, bytes(piece))
    return Handing(manifest, offer.unit.samples)


def add(amount: float) -> Callable[[Task], Outcome]:
    """Work that adds to the weights what its place says."""

    def work(task: Task) -> Outcome:
        change = amount * (1 + task.work["place"] + 10 * task.work["round"])
        return Outcome({"w": task.model["w"] + change, "steps": task.model["steps"] + 1}, task.samples)

    return work


# ---- the algebra of what comes out ----------------------------------------------------------------------------------


def test_rounds_are_merged_in_the_order_of_units_whatever_order_they_come_in(tmp_path: Path) -> None:
    orders = [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)]
    models = []
    for number, order in enumerate(orders):
        with opened(tmp_path / str(number), rounds=Each(count=2, samples=7)) as pool:
            for round_ in range(2):
                offers = [offered(pool, f"w{place}") for place in range(4)]
                assert isinstance(pool.lease("idle"), Pause)
                for place in order:
                    assert pool.version.number == round_
                    handed(pool, offers[place], value=0.1 * (place + 1) + round_ / 3, samples=place + 1)
            models.append(pool.wait(0).model["w"])
            assert isinstance(pool.lease("a"), Over)
    weights = np.array([1, 2, 3, 4]) / 10
    np.testing.assert_allclose(models[0], weights @ (0.1 * np.arange(1, 5) + 1 / 3), rtol=1e-14)
    for model in models[1:]:
        np.testing.assert_array_equal(model, models[0])


def test_updates_that_arrive_one_by_one_give_the_closed_form(tmp_path: Path) -> None:
    alpha, values = 0.7, [3.0, -1.0, 0.25, 8.0, 5.5]
    rounds = Each(width=5)
    with opened(tmp_path, "vc-asgd", rounds, of_rule={"alpha": alpha}) as pool:
        offers = [offered(pool, f"w{place}") for place in range(5)]  # all begin from the first model
        for offer, value in zip(offers, values, strict=True):
            handed(pool, offer, value)
        model = pool.wait(0).model
        assert pool.version.number == 5
    expected = sum((1 - alpha) * alpha ** (5 - 1 - place) * value for place, value in enumerate(values))
    np.testing.assert_allclose(model["w"], expected, atol=1e-12)
    assert model["steps"] == 1  # a counter: the largest, not a mean


def test_an_update_is_judged_by_the_model_it_began_from(tmp_path: Path) -> None:
    """Downpour adds what training has changed: a stale update adds its change, not its weights."""
    with opened(tmp_path, "downpour", Each(width=3)) as pool:
        early = offered(pool, "a")
        handed(pool, offered(pool, "b"), 5.0)
        late = offered(pool, "c")
        assert (early.base_version, late.base_version) == (0, 1)
        handed(pool, late, 6.0)  # one more than it was handed
        handed(pool, early, 2.0)  # two more
        np.testing.assert_allclose(pool.wait(0).model["w"], 5 + 1 + 2)


# ---- leases ---------------------------------------------------------------------------------------------------------


def test_a_silent_worker_loses_its_lease_and_a_late_result_is_refused_and_named(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, now=clock, rules=Rules(silence_s=10)) as pool:
        gone, slow = offered(pool, "gone"), offered(pool, "slow")
        clock.now += 8
        pool.beat(slow.token, 3)
        clock.now += 8
        again = offered(pool, "other")
        assert (again.unit.number, again.attempt) == (gone.unit.number, 2)
        with pytest.raises(NotActive, match="unit 0 to gone has ended: expired"):
            handed(pool, gone)
        handed(pool, slow)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert [entry.kind for entry in ledger.evidence()] == ["late"]
        assert [each.worker for each in ledger.accepted()] == ["slow"]


def test_who_gives_signs_of_life_for_ever_and_never_ends_loses_the_lease_as_well(tmp_path: Path) -> None:
    clock = Clock()
    pace = Pace(first_s=30.0)
    with opened(tmp_path, now=clock, pace=pace, rules=Rules(silence_s=10, patience=2)) as pool:
        stuck = offered(pool, "stuck")
        for _ in range(14):
            clock.now += 5
            with contextlib.suppress(NotActive):
                pool.beat(stuck.token, 0)
            pool.lease("other")
        assert clock.now == 170
        with pytest.raises(NotActive, match="expired"):
            pool.beat(stuck.token, 0)


def test_a_lagging_unit_is_given_to_another_worker_too_and_the_first_result_counts(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, rounds=Each(width=4), now=clock, rules=Rules(silence_s=100)) as pool:
        lagging = offered(pool, "slow")
        for _ in range(3):
            offer = offered(pool, "fast")
            clock.now += 2
            handed(pool, offer)
        assert isinstance(pool.lease("fast"), Offer)  # six seconds where two are usual
        assert isinstance(pool.lease("third"), Pause)  # one copy is enough
        copy = pool._ledger.active()[-1]
        assert copy.unit == lagging.unit
        handed(pool, lagging, 9.0)
        with pytest.raises(NotActive, match="the result of slow was first"):
            pool.beat(copy.token, 1)
        assert pool.wait(0).number == 1


def test_a_lease_of_the_usual_length_is_not_copied(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, rounds=Each(width=2), now=clock) as pool:
        first, second = offered(pool, "a"), offered(pool, "b")
        clock.now += 2
        handed(pool, first)
        clock.now += 0.5
        assert isinstance(pool.lease("a"), Pause)
        handed(pool, second)


def test_a_unit_that_always_fails_ends_a_round_below_its_quorum_by_name(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(count=2, width=3), rules=Rules(attempts=2)) as pool:
        for _ in range(2):
            pool.give_back(offered(pool, "a").token, "boom", failed=True)
        for _ in range(2):
            handed(pool, offered(pool, "a"))
        with pytest.raises(
            BelowQuorum,
            match=r"round 0: 1 of 3 units were set aside after 2 attempts each: 0; the quorum is 100%",
        ):
            pool.wait(0)
        assert isinstance(pool.lease("a"), Over)


def test_a_round_above_its_quorum_goes_on_and_says_who_was_missing(tmp_path: Path) -> None:
    events: list[tuple[str, str, str]] = []
    with opened(
        tmp_path,
        rounds=Each(count=1, width=3),
        rules=Rules(attempts=1, quorum=0.6),
        told=lambda *event: events.append(event),
    ) as pool:
        pool.give_back(offered(pool, "a").token, "boom", failed=True)
        handed(pool, offered(pool, "a"), 1.0)
        handed(pool, offered(pool, "a"), 2.0)
        np.testing.assert_allclose(pool.wait(0).model["w"], 1.5)
    assert ("short", "", "round 0: 1 of 3 units were set aside after 1 attempts each: 0") in events


def test_a_lease_given_back_costs_no_attempt(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=1), rules=Rules(attempts=1)) as pool:
        for _ in range(5):
            offer = offered(pool)
            assert offer.attempt == 1
            pool.give_back(offer.token, "the machine goes")
        handed(pool, offered(pool))
        assert pool.wait(0).number == 1


def test_what_a_partial_result_leaves_is_leased_again_and_no_sample_twice(tmp_path: Path) -> None:
    with opened(tmp_path, "vc-asgd", Each(width=2, samples=10, parts=True)) as pool:
        done: list[range] = []
        for samples in (4, 10, 5, 1):
            offer = offered(pool)
            begin = offer.unit.work["begin"]
            samples = min(samples, offer.unit.samples)
            done.append(
                range(
                    100 * offer.unit.work["place"] + begin, 100 * offer.unit.work["place"] + begin + samples
                )
            )
            handed(pool, offer, samples=samples)
        assert pool.wait(0).number == 4
    counted = sorted(itertools.chain(*done))
    assert counted == [*range(10), *range(100, 110)]


def test_a_partial_result_of_a_party_is_all_there_is(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=2)) as pool:
        handed(pool, offered(pool), 1.0, samples=1)
        handed(pool, offered(pool), 4.0, samples=2)
        np.testing.assert_allclose(pool.wait(0).model["w"], 3.0)


# ---- what is not as it should be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "changes", "why"),
    [
        ({"w": np.array([1.0, np.nan, 2.0]), "steps": np.array(1)}, {}, "has 1 values that are not finite"),
        ({"w": np.ones(4), "steps": np.array(1)}, {}, r"has shape \[4\]; expected \[3\]"),
        ({"w": np.ones(3, np.float32), "steps": np.array(1)}, {}, "is float32; expected float64"),
        ({"w": np.ones(3)}, {}, "lacks the array"),
        ({"w": np.ones(3), "steps": np.array(1)}, {"samples": 10**9}, "claims 1000000000 samples"),
        ({"w": np.ones(3), "steps": np.array(1)}, {"samples": 0}, "claims 0 samples"),
        ({"w": np.ones(3), "steps": np.array(1)}, {"samples": True}, "claims True samples"),
        ({"w": np.ones(3), "steps": np.array(1)}, {"steps": 0}, "claims 0 steps"),
        ({"w": np.ones(3), "steps": np.array(1)}, {"loss": float("inf")}, "claims a loss of inf"),
    ],
)
def test_a_wrong_update_is_refused_named_and_changes_nothing(
    tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    with opened(tmp_path, rounds=Each(width=1)) as pool:
        offer = offered(pool, "liar")
        result = brought(pool, offer, pack(flattened(weights={"": arrays})))
        with pytest.raises(RefusedUpdate, match=why):
            pool.hand_in(offer.token, replace(result, **changes))
        assert pool.version.number == 0
        entry = pool._ledger.evidence()[0]
        assert (entry.kind, entry.worker) == ("refused", "liar")
        handed(pool, offered(pool, "honest"), 2.0)
        np.testing.assert_allclose(pool.wait(0).model["w"], 2.0)


def test_an_update_that_is_cut_short_or_too_large_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=1)) as pool:
        content = pack(flattened(weights={"": {"w": np.ones(3), "steps": np.array(1)}}))
        offer = offered(pool, "a")
        with pytest.raises(RefusedUpdate, match="not a safetensors file"):
            pool.hand_in(offer.token, brought(pool, offer, content[:-8]))
        offer = offered(pool, "a")
        with pytest.raises(RefusedUpdate, match="is not whole"):
            pool.hand_in(offer.token, Handing(Manifest.of(content), 10))
        offer = offered(pool, "a")
        with pytest.raises(RefusedUpdate, match="this model's have at most"):
            pool.hand_in(offer.token, Handing(Manifest.of(bytes(1 << 20)), 10))
        offer = offered(pool, "a")
        heaps = [bytes([number]) * (1 << 20) for number in range(100)]
        with pytest.raises(RefusedUpdate, match="are allowed"):
            deque((pool.put(offer.token, Manifest.of(heap).chunks[0], heap) for heap in heaps), maxlen=0)
        left = sum(path.stat().st_size for path in (tmp_path / "blobs").rglob("*") if path.is_file())
        assert left < 10_000  # what was brought for nothing is gone
        offer = offered(pool, "a")
        with pytest.raises(RefusedUpdate, match="that came as"):
            pool.put(offer.token, Manifest.of(b"this").chunks[0], b"that")


def test_a_token_counts_once_and_its_own_repetition_is_answered_alike(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=2)) as pool:
        offer = offered(pool)
        assert handed(pool, offer, 1.0) == 1
        content = pack(flattened(weights={"": {"w": np.full(3, 1.0), "steps": np.array(1)}}))
        assert pool.hand_in(offer.token, Handing(Manifest.of(content), 10)) == 1  # the answer was lost
        other = pack(flattened(weights={"": {"w": np.full(3, 2.0), "steps": np.array(1)}}))
        with pytest.raises(NotActive, match="has ended: accepted"):
            pool.hand_in(offer.token, Handing(Manifest.of(other), 10))
        handed(pool, offered(pool), 3.0)
        np.testing.assert_allclose(pool.wait(0).model["w"], 2.0)


def test_the_evidence_cannot_be_altered_unnoticed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        for number in range(4):
            ledger.testify("refused", "liar", f"lie {number}", now=float(number))
        assert [entry.detail for entry in ledger.evidence()] == [f"lie {number}" for number in range(4)]
    connection = sqlite3.connect(tmp_path / "ledger")
    connection.execute("UPDATE evidence SET worker = 'somebody' WHERE number = 2")
    connection.commit()
    connection.close()
    with (
        Ledger(tmp_path / "ledger") as ledger,
        pytest.raises(DataError, match="altered at or before its entry 2"),
    ):
        ledger.evidence()


def test_equal_updates_share_their_bytes_and_one_refused_takes_none_away(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=2)) as pool:
        first, second = offered(pool, "a"), offered(pool, "b")
        content = pack(flattened(weights={"": {"w": np.full(3, 7.0), "steps": np.array(1)}}))
        for offer in (first, second):
            brought(pool, offer, content)
        pool.hand_in(second.token, Handing(Manifest.of(content), 10))
        with pytest.raises(RefusedUpdate):
            pool.hand_in(first.token, Handing(Manifest.of(content), 11))
        handed(pool, offered(pool, "a"), 7.0)
        np.testing.assert_allclose(pool.wait(0).model["w"], 7.0)
    np.testing.assert_array_equal(replayed(tmp_path, muster.merge.get("fedavg")).model["w"], 7.0)


def test_a_rule_that_cannot_merge_ends_the_pool_with_its_sentence(tmp_path: Path) -> None:
    with opened(tmp_path, "krum", Each(width=4), of_rule={"f": 1}) as pool:
        for place in range(4):
            handed(pool, offered(pool, f"w{place}"))
        with pytest.raises(RefusedInput, match="krum"):
            pool.wait(0)


def test_a_rule_that_raises_whatever_ends_the_pool_and_not_its_workers(tmp_path: Path) -> None:
    class Broken(muster.merge.MergeRule):
        name = "broken"

        def _merge(self, model: Any, updates: Any, state: Any) -> Any:
            return model["nothing of the kind"], state

    with Coordinator(tmp_path, model=MODEL, fold=Broken(), rounds=Each(width=2)) as pool:
        assert "KeyError" in Worker(pool, "a", add(1.0)).run()
        with pytest.raises(MusterError, match="failed: KeyError: 'nothing of the kind'"):
            pool.wait(0)


@pytest.mark.parametrize("brings_first", ["a", "b"])
def test_the_end_of_one_lease_takes_nothing_from_another_with_the_same_bytes(
    tmp_path: Path, brings_first: str
) -> None:
    with opened(tmp_path, rounds=Each(width=2)) as pool:
        offers = {name: offered(pool, name) for name in "ab"}
        content = pack(flattened(weights={"": {"w": np.full(3, 7.0), "steps": np.array(1)}}))
        result = brought(pool, offers[brings_first], content)
        pool.give_back(offers["a"].token, "goes")
        if brings_first == "a":  # its bytes went with it
            with pytest.raises(RefusedUpdate, match="is not whole"):
                pool.hand_in(offers["b"].token, result)
            return
        pool.hand_in(offers["b"].token, result)
        handed(pool, offered(pool, "c"), 7.0)
        pool.wait(0)
    np.testing.assert_array_equal(replayed(tmp_path, muster.merge.get("fedavg")).model["w"], 7.0)


def test_a_full_disk_makes_workers_wait_and_nothing_is_lost(small_disk: Path) -> None:
    model = {"w": np.zeros(20_000)}

    def work(task: Task) -> Outcome:
        return Outcome(
            {"w": task.model["w"] + np.random.default_rng(task.unit).normal(size=20_000)}, task.samples
        )

    told: list[str] = []
    folder, ballast = small_disk / "pool", small_disk / "ballast"
    with Coordinator(
        folder,
        model=model,
        fold=muster.merge.get("fedavg"),
        rounds=Each(count=3, width=3),
        rules=Rules(silence_s=60),
        told=lambda kind, who, detail: told.append(kind),
    ) as pool:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        thread = threading.Thread(target=Worker(pool, "a", work).run)
        thread.start()
        until = time.monotonic() + 30
        while "unable" not in told and time.monotonic() < until:
            time.sleep(0.05)
        assert pool.version.number == 0
        ballast.unlink()
        final = pool.wait(60)
        thread.join()
        assert pool._ledger.evidence() == []
    expected = np.zeros(20_000)
    for round_ in range(3):
        expected += np.mean(
            [np.random.default_rng(3 * round_ + place).normal(size=20_000) for place in range(3)], axis=0
        )
    np.testing.assert_allclose(final.model["w"], expected, atol=1e-12)
    assert "unable" in told


# ---- restarts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["vc-asgd", "downpour", "fedbuff", "fedavg", "fedadam", "fedasync"])
def test_a_coordinator_that_is_opened_again_goes_on_to_the_same_bits(tmp_path: Path, rule: str) -> None:
    rounds = Each(count=5, width=4)
    with opened(tmp_path / "straight", rule, rounds) as pool:
        Worker(pool, "a", add(0.3)).run()
        straight = pool.wait(0)
    folder = tmp_path / "broken"
    for leases in itertools.count(1):
        pool = opened(folder, rule, rounds)
        if pool.over:
            break
        for _ in range(leases % 4 + 1):
            offer = pool.lease("a")
            if not isinstance(offer, Offer):
                break
            task = Task(offer, unpack(b"".join(map(pool.chunk, offer.model.chunks))), {}, threading.Event())
            outcome = add(0.3)(task)
            content = pack(flattened(weights={"": outcome.weights}))
            pool.hand_in(offer.token, brought(pool, offer, content))
        pool._ledger.close()  # as a kill leaves it: no snapshot, no farewell
    assert pool.version.number == straight.number
    for name, array in straight.model.items():
        np.testing.assert_array_equal(pool.version.model[name], array)
        np.testing.assert_array_equal(replayed(folder, muster.merge.get(rule)).model[name], array)
    pool.close()


def test_leases_outlive_the_coordinator_and_snapshots_keep_what_they_began_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muster.engine.pool.progress._SNAPSHOT_EVERY", 2)
    rounds = Each(width=9)
    pool = opened(tmp_path, "downpour", rounds)
    held = offered(pool, "slow")
    for value in range(5):
        handed(pool, offered(pool, "fast"), float(value + 1))
    before = pool.version
    later = offered(pool, "later")
    pool._ledger.close()
    with opened(tmp_path, "downpour", rounds) as pool:
        assert pool.version.number == before.number
        np.testing.assert_array_equal(pool.version.model["w"], before.model["w"])
        fetched = parted(unpack(b"".join(map(pool.chunk, held.model.chunks))), "weights")[""]
        np.testing.assert_array_equal(fetched["w"], 0.0)
        handed(pool, held, 0.5)
        np.testing.assert_allclose(pool.version.model["w"], before.model["w"] + 0.5)
        handed(pool, later, 0.0)
        np.testing.assert_allclose(pool.version.model["w"], 0.5)
        Worker(pool, "a", add(0.1)).run()
        final = pool.wait(0)
    np.testing.assert_array_equal(
        replayed(tmp_path, muster.merge.get("downpour")).model["w"], final.model["w"]
    )


def test_another_first_model_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(DataError, match="began with another model"):
        Coordinator(tmp_path, model={"w": np.ones(3)}, fold=muster.merge.get("fedavg"), rounds=Each())


def test_a_damaged_update_is_named(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=1)) as pool:
        handed(pool, offered(pool), 1.0)
        chunk = Manifest.from_json(pool._ledger.accepted()[0].detail["update"], most_bytes=1 << 20).chunks[0]
    path = tmp_path / "blobs" / chunk[:2] / chunk[2:]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is damaged"):
        replayed(tmp_path, muster.merge.get("fedavg"))
    path.unlink()
    with pytest.raises(DataError, match="of the accepted update 1 a chunk is missing"):
        replayed(tmp_path, muster.merge.get("fedavg"))
    with pytest.raises(DataError, match="not the folder of a pool"):
        replayed(tmp_path / "blobs", muster.merge.get("fedavg"))


KILLED = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_coordinator import Each, add, opened
from muster.engine.pool.worker import Worker
pool = opened(Path(sys.argv[1]), sys.argv[3], Each(count=30, width=4, samples=1))
print("ready", flush=True)
threads = [threading.Thread(target=Worker(pool, f"w{n}", add(0.1)).run) for n in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
pool.close()
print("done", flush=True)
"""


@pytest.mark.kill
@pytest.mark.parametrize("rule", ["fedavg", "vc-asgd"])
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path, rule: str) -> None:
    """In rounds the model is the undisturbed one to the bit; where updates merge as they come, the one of the ledger."""
    with opened(tmp_path / "straight", rule, Each(count=30, width=4, samples=1)) as pool:
        Worker(pool, "a", add(0.1)).run()
        straight = pool.wait(0)
    folder, draws, kills = tmp_path / "killed", random.Random(3), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, folder, Path(__file__).parent, rule],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0.005, 0.15))
        if kills < 4:
            process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        if rest == "done\n":
            break
        kills += 1
    assert kills >= 3
    with opened(folder, rule, Each(count=30, width=4, samples=1)) as pool:
        final = pool.wait(0)
        assert [each.number for each in pool._ledger.accepted()] == list(range(1, 121))
        assert sorted(each.unit for each in pool._ledger.accepted()) == list(range(120))
    again = replayed(folder, muster.merge.get(rule))
    for name in MODEL:
        np.testing.assert_array_equal(again.model[name], final.model[name])
        if rule == "fedavg":
            np.testing.assert_array_equal(final.model[name], straight.model[name])
