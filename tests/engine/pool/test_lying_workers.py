"""Lying workers and a real coordinator: lies are found, named, retracted, and what is left is what honest results give."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_coordinator import MODEL, Each, Offer, brought, handed, offered, opened

import muster.merge
from muster.engine.pool.coordinator import Coordinator
from muster.engine.pool.course import replayed
from muster.engine.pool.ledger import Ledger, NotActive, first_broken
from muster.engine.pool.seat import Over, Pause
from muster.engine.pool.trust import Wanted
from muster.engine.pool.updates import flattened, pack
from muster.engine.pool.worker import Outcome, Task, Worker
from muster.errors import DataError, MusterError
from muster.trust import Replication


class Checking(Replication):
    """Checks those units that a test names."""

    def __init__(self, units: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self.units = set(units)

    def wanted(self, unit: int, worker: str) -> Wanted:
        return Wanted(self._quorum) if unit in self.units else Wanted()


def honest(task: Task) -> Outcome:
    """A result that follows from the unit's work alone."""
    value = 1.0 + task.work["place"] + 100 * task.work["round"]
    return Outcome({"w": np.array([value, value / 3, -value]), "steps": np.array(1)}, task.samples)


def value_of(unit: Mapping[str, Any]) -> float:
    return 1.0 + unit["place"] + 100 * unit["round"]


def answered(pool: Coordinator, offer: Offer, lie: float = 0.0) -> int:
    """Hands in what `honest` gives, or a lie."""
    value = value_of(offer.unit.work)
    weights = {"w": np.array([value, value / 3, -value]) + lie, "steps": np.array(1)}
    return pool.hand_in(offer.token, brought(pool, offer, pack(flattened(weights={"": weights}))))


def folded(values: Sequence[float], alpha: float) -> np.ndarray:
    """VC-ASGD by hand, in the order given."""
    model = np.zeros(3)
    for value in values:
        model = alpha * model + (1 - alpha) * np.array([value, value / 3, -value])
    return model


def test_a_lie_is_found_and_what_its_worker_was_believed_is_done_again(tmp_path: Path) -> None:
    """Units 0 to 5; the liar's 0 and 2 were merged, its lie about the checked unit 4 is not, and takes them with it."""
    with opened(
        tmp_path, "vc-asgd", Each(width=6), of_rule={"alpha": 0.7}, durable=False, trust=Checking([4])
    ) as pool:
        for place, worker in enumerate(["liar", "a", "liar", "b"]):
            offer = offered(pool, worker)
            assert offer.unit.number == place
            answered(pool, offer, lie=50.0 if worker == "liar" else 0.0)
        first = offered(pool, "liar")
        assert answered(pool, first, lie=0.1) == 0  # to be compared first
        assert pool.version.number == 4
        other = offered(pool, "liar")  # never the same unit twice
        assert (other.unit.number, other.attempt) == (5, 1)
        second = offered(pool, "a")
        assert (second.unit.number, second.attempt, second.base_version) == (4, 1, 4)
        assert second.model == first.model
        assert answered(pool, second) == 0
        third = offered(pool, "b")
        assert third.unit.number == 4
        assert answered(pool, third) == 0  # that of a was first
        assert pool.accepted == 5
        assert isinstance(pool.lease("liar"), Over)
        with pytest.raises(NotActive, match="caught lying"):
            answered(pool, other)
        done = [value_of({"place": place, "round": 0}) for place in (1, 3, 4)]
        np.testing.assert_array_equal(pool.version.model["w"], folded(done, 0.7))
        assert pool.version.number == 6  # five merges, one retraction
        redone = []
        while isinstance(offer := pool.lease("a"), Offer):
            redone.append(offer.unit.work["place"])
            answered(pool, offer)
        assert redone == [5, 0, 2]
        values = [*done, *(value_of({"place": place, "round": 0}) for place in redone)]
        np.testing.assert_array_equal(pool.wait(0).model["w"], folded(values, 0.7))
        evidence = pool._ledger.evidence()
    assert [(entry.kind, entry.worker) for entry in evidence if entry.worker == "liar"] == [
        ("lie", "liar"),
        ("retracted", "liar"),
        ("late", "liar"),
    ]
    assert "unit 4: differs from 2 that agree" in evidence[1].detail
    assert "it sent " in evidence[1].detail
    assert "2 results that nobody had confirmed, of which 2 are done again: 1, 3" in evidence[2].detail
    again = replayed(tmp_path, muster.merge.get("vc-asgd", alpha=0.7))
    np.testing.assert_array_equal(again.model["w"], folded(values, 0.7))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_that_is_caught_while_it_asks_gets_nothing(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, "vc-asgd", Each(count=1, width=3), durable=False, trust=Checking([0])) as pool:
        answered(pool, offered(pool, "liar"), lie=50.0)
        answered(pool, offered(pool, "a"))
        deciding = offered(pool, "b")
        grant = pool._ledger.grant

        def granted(worker: str, **options: Any) -> Any:
            if moment == "before":
                answered(pool, deciding)
            lease = grant(worker, **options)
            if moment == "after":
                answered(pool, deciding)
            return lease

        monkeypatch.setattr(pool._ledger, "grant", granted)
        assert not isinstance(pool.lease("liar"), Offer)
        monkeypatch.undo()
        assert isinstance(pool.lease("liar"), Over)
        for place in (1, 2):
            offer = offered(pool, "a")
            assert offer.unit.work["place"] == place
            answered(pool, offer)
        pool.wait(0)


@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_in_an_open_round_retracted_units_keep_their_place_and_the_model_is_the_honest_one(
    tmp_path: Path, rule: str
) -> None:
    with opened(tmp_path / "honest", rule, Each(count=2, width=5)) as pool:
        Worker(pool, "a", honest).run()
        straight = pool.wait(0)
    with opened(tmp_path / "lied", rule, Each(count=2, width=5), durable=False, trust=Checking([4])) as pool:
        for worker in ["liar", "liar", "a", "a"]:
            answered(pool, offered(pool, worker), lie=9.0 if worker == "liar" else 0.0)
        answered(pool, offered(pool, "liar"), lie=9.0)
        for worker in "ab":
            answered(pool, offered(pool, worker))
        Worker(pool, "a", honest).run()
        final = pool.wait(0)
    for name in MODEL:
        np.testing.assert_array_equal(final.model[name], straight.model[name])
        np.testing.assert_array_equal(
            replayed(tmp_path / "lied", muster.merge.get(rule)).model[name], final.model[name]
        )


def test_lies_of_earlier_rounds_are_struck_out_and_the_others_keep_their_bases(tmp_path: Path) -> None:
    """FedAdam by hand: the honest results of the next round were made from the model that the lie was in."""
    rounds = Each(count=2, width=3)
    fold = muster.merge.get("fedadam")
    with opened(tmp_path, "fedadam", rounds, durable=False, trust=Checking([5])) as pool:
        for worker in ("liar", "a", "b"):
            answered(pool, offered(pool, worker), lie=9.0 if worker == "liar" else 0.0)
        wrong = pool.version
        for worker in ("a", "b"):
            answered(pool, offered(pool, worker))
        answered(pool, offered(pool, "liar"), lie=9.0)
        answered(pool, offered(pool, "a"))
        assert pool.version.number == 1
        np.testing.assert_array_equal(
            pool.version.model["w"], wrong.model["w"]
        )  # until the round is complete
        answered(pool, offered(pool, "b"))
        final = pool.wait(0)
    model: Any = MODEL
    state: Any = fold.begin(MODEL)
    for round_, places, base in ((0, (1, 2), MODEL), (1, (0, 1, 2), wrong.model)):
        updates = []
        for place in places:
            value = value_of({"place": place, "round": round_})
            weights = {"w": np.array([value, value / 3, -value]), "steps": np.array(1)}
            updates.append(muster.merge.Update(weights, base, samples=10))
        model, state = fold.merge(model, updates, state)
    np.testing.assert_array_equal(final.model["w"], model["w"])
    np.testing.assert_array_equal(replayed(tmp_path, fold).model["w"], model["w"])


@pytest.mark.parametrize("rule", ["vc-asgd", "downpour", "fedbuff", "fedavg", "fedadam"])
def test_a_coordinator_killed_after_any_step_goes_on_to_the_same_bits(tmp_path: Path, rule: str) -> None:
    """Opened anew, as a kill leaves it, before every single call."""

    def play(folder: Path, *, reopen: bool) -> np.ndarray:
        def make() -> Coordinator:
            return opened(folder, rule, Each(count=3, width=5), durable=False, trust=Checking([3, 6, 9, 13]))

        pool, idle, turn = make(), 0, 0
        while not pool.over and idle < 4:
            worker = ("liar", "a", "b", "c")[turn % 4]
            turn += 1
            offer = pool.lease(worker)
            if reopen:
                pool._ledger.close()
                pool = make()
            if not isinstance(offer, Offer):
                idle += 1
                continue
            idle = 0
            value = value_of(offer.unit.work)
            lies = worker == "liar" and offer.unit.number >= 4
            answered(pool, offer, lie=value if lies else 0.0)
            if reopen:
                pool._ledger.close()
                pool = make()
        found = pool.wait(0)
        assert pool._ledger.retractions()
        pool.close()
        np.testing.assert_array_equal(replayed(folder, muster.merge.get(rule)).model["w"], found.model["w"])
        return found.model["w"]

    straight = play(tmp_path / "straight", reopen=False)
    np.testing.assert_array_equal(play(tmp_path / "killed", reopen=True), straight)


def test_two_colluders_fail_below_the_quorum_and_pass_at_it(tmp_path: Path) -> None:
    """They tell the same lie. With three results wanted two honest ones outvote them; with two their word is enough."""
    for quorum in (2, 3):
        folder = tmp_path / str(quorum)
        with opened(folder, rounds=Each(width=1), durable=False, trust=Checking([0], quorum=quorum)) as pool:
            offers = {name: pool.lease(name) for name in ("liar 1", "liar 2", "a", "b", "c")}
            given = [name for name, offer in offers.items() if isinstance(offer, Offer)]
            assert len(given) == quorum
            for name in given:
                answered(pool, offers[name], lie=5.0 if "liar" in name else 0.0)  # type: ignore[arg-type]
            while isinstance(offer := next(filter(is_offer, map(pool.lease, "bca")), None), Offer):
                answered(pool, offer)
            final = pool.wait(0).model["w"][0]
            caught = {entry.worker for entry in pool._ledger.evidence() if entry.kind == "lie"}
        assert (final, caught) == ((6.0, set()) if quorum == 2 else (1.0, {"liar 1", "liar 2"}))


def is_offer(answer: Any) -> bool:
    return isinstance(answer, Offer)


def test_a_trusted_worker_settles_disputes_alone_and_is_not_outvoted(tmp_path: Path) -> None:
    trust = Checking([0], quorum=2, trusted=["lab"])
    with opened(tmp_path, rounds=Each(width=1), durable=False, trust=trust) as pool:
        answered(pool, offered(pool, "a"))
        answered(pool, offered(pool, "liar"), lie=5.0)
        assert isinstance(pool.lease("another"), Pause)
        assert answered(pool, offered(pool, "lab")) == 1
        assert pool.wait(0).model["w"][0] == 1.0
        assert isinstance(pool.lease("liar"), Over)
        assert [entry.kind for entry in pool._ledger.evidence()] == ["disputed", "lie"]


def test_work_that_cannot_be_compared_ends_the_pool_with_a_sentence(tmp_path: Path) -> None:
    with opened(tmp_path, rounds=Each(width=1), durable=False, trust=Checking([0])) as pool:
        for number in range(9):
            handed(pool, offered(pool, f"w{number}"), float(number + 1))
        with pytest.raises(MusterError, match="unit 0: no quorum among 9 results"):
            pool.wait(0)


def test_a_pool_goes_on_only_with_the_trust_that_it_was_begun_with(tmp_path: Path) -> None:
    opened(tmp_path, trust=Replication()).close()
    with pytest.raises(DataError, match="trust"):
        opened(tmp_path)


def test_the_first_broken_entry_is_named_whatever_was_done_to_the_log(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        for number in range(6):
            ledger.testify("refused", "liar", f"lie {number}", now=float(number))
        entries = ledger.evidence()
    head = (entries[-1].number, entries[-1].hash)
    assert first_broken(entries, last=head) is None
    for place, change in (
        (0, {"worker": "honest"}),
        (3, {"detail": ""}),
        (5, {"time": 1.0}),
        (2, {"hash": "0"}),
    ):
        forged = [*entries[:place], replace(entries[place], **change), *entries[place + 1 :]]
        assert first_broken(forged) == place + 1
    assert first_broken([*entries[:2], *entries[3:]]) == 3
    assert first_broken(entries[:4]) is None  # nothing in the entries themselves says that there were more
    assert first_broken(entries[:4], last=head) == 5


KILLED = """
import sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_lying_workers as t
from muster.engine.pool.rules import Rules
rules, trust = Rules(silence_s=0.5), t.Replication(0.3, secret=b"s")
pool = t.opened(Path(sys.argv[1]), sys.argv[3], t.Each(count=12, width=5), trust=trust, rules=rules)
print("ready", flush=True)
def liar(task):
    found = t.honest(task)
    return t.replace(found, weights=found.weights | {"w": found.weights["w"] + 5}) if task.work["round"] % 3 == 2 else found
work = {"liar": liar, "a": t.honest, "b": t.honest, "c": t.honest}
threads = [threading.Thread(target=t.Worker(pool, name, each).run) for name, each in work.items()]
for thread in threads: thread.start()
for thread in threads: thread.join()
pool.wait(0)
pool.close()
print("done", flush=True)
"""


@pytest.mark.kill
@pytest.mark.parametrize("rule", ["fedavg", "vc-asgd"])
def test_kills_at_random_moments_lose_no_retraction(tmp_path: Path, rule: str) -> None:
    draws, kills = random.Random(5), 0
    while True:
        command = [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parent, rule]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0.01, 0.2))
        if kills < 3:
            process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        if rest == "done\n":
            break
        kills += 1
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        gone = set().union(*(each.numbers for each in ledger.retractions()))
        counted = [each for each in ledger.accepted() if each.number not in gone]
        liars = {entry.worker for entry in ledger.evidence() if entry.kind == "lie"}
    assert liars == {"liar"}
    lone = [each for each in counted if each.worker == "liar" and "agreed" not in each.detail]
    assert lone == []
    model = replayed(tmp_path, muster.merge.get(rule)).model["w"]
    trust = Replication(0.3, secret=b"s")
    with opened(tmp_path, rule, Each(count=12, width=5), durable=False, trust=trust) as pool:
        np.testing.assert_array_equal(pool.wait(0).model["w"], model)
    places = sorted(each.detail.get("place", each.unit) for each in counted)
    if rule == "vc-asgd":
        assert places == list(range(60))  # every unit counts once
        values = [
            value_of({"place": unit % 5, "round": unit // 5})
            for unit in (each.detail.get("place", each.unit) for each in counted)
        ]
        np.testing.assert_array_equal(model, folded(values, muster.merge.get(rule).alpha))
