"""Spot traces: real ones, and files that are none."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from muster.errors import DataError
from muster.fleet import read_trace

GOOD = {"metadata": {"gap_seconds": 60}, "data": [0, 2, 2, 1], "prices": [9.0, 1.0, 2.0, 3.0]}


def written(folder: Path, told: object) -> Path:
    path = folder / "trace.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return path


def test_ticks_become_steps(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, GOOD))
    made = trace.availability(notice_s=120)
    assert (made.times_s, made.instances, made.length_s, made.notice_s) == ((0, 60, 180), (0, 2, 1), 240, 120)
    assert made.instance_seconds() == 60 * sum(GOOD["data"])  # type: ignore[arg-type]


def test_the_price_is_that_of_the_time_in_which_instances_were_there(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, GOOD)).price_per_hour() == (2 * 1 + 2 * 2 + 1 * 3) / 5
    without = {key: GOOD[key] for key in ("metadata", "data")}
    assert read_trace(written(tmp_path, without)).price_per_hour() is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"metadata": {"gap_seconds": 1}, "data": [' + "9" * 5000 + "]}", "not JSON"),
        ([], "expected an object"),
        ({}, "gap_seconds: found nothing"),
        (GOOD | {"metadata": []}, "gap_seconds: found nothing"),
        (GOOD | {"metadata": {"gap_seconds": 0}}, "gap_seconds: found 0; expected seconds, above 0"),
        (GOOD | {"metadata": {"gap_seconds": -5}}, "gap_seconds: found -5"),
        (GOOD | {"metadata": {"gap_seconds": True}}, "gap_seconds: found True"),
        (GOOD | {"metadata": {"gap_seconds": float("nan")}}, "gap_seconds: found nan"),
        (GOOD | {"data": []}, "data: found a list of 0; expected a list of numbers"),
        (GOOD | {"data": None}, "data: found nothing"),
        (GOOD | {"data": [1, 1, -1, 0]}, "data, tick 2: found -1"),
        (GOOD | {"data": [1, 1.5]}, "data, tick 1: found 1.5"),
        (GOOD | {"data": [1, "1"]}, "data, tick 1: found '1'"),
        (GOOD | {"data": [1, True]}, "data, tick 1: found True"),
        (GOOD | {"data": [10**9]}, "data, tick 0: found 1000000000; expected a whole number, 0 to 1,000,000"),
        (GOOD | {"prices": [1.0]}, "prices: found 1 of them; expected one for each of the 4 ticks"),
        (GOOD | {"prices": 3}, "prices: found 3"),
        (GOOD | {"prices": [1, 1, 1, -1]}, "prices, tick 3: found -1"),
        (GOOD | {"prices": [1, 1, 1, float("inf")]}, "prices, tick 3: found inf"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_sentence(tmp_path: Path, told: object, words: str) -> None:
    path = written(tmp_path, told)
    with pytest.raises(DataError) as raised:
        read_trace(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path)


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "trace.json"
    whole = json.dumps(GOOD).encode()
    pieces = [
        b"-1",
        b"1e999",
        b"NaN",
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"\xff\xfe",
        b"\x00",
        b"1e308",
        b"0.1",
        b"true",
    ]
    read = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(damaged) + 1)
            kind = draw.randrange(3)
            if kind == 0:
                damaged[place : place + draw.randint(0, 6)] = draw.choice(pieces)
            elif kind == 1:
                del damaged[place : place + draw.randint(1, 30)]
            else:
                damaged[place:place] = bytes([draw.randrange(256)])
        path.write_bytes(damaged)
        try:
            made = read_trace(path).availability()
        except DataError:
            continue
        read += 1
        assert made.instance_seconds() >= 0
        assert min(made.instances) >= 0
    assert 0 < read < 1000  # some damage leaves a trace, most does not


FOLDER = Path(os.environ.get("MUSTER_DATA", "/nowhere")) / "spot"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the spot traces are not in $MUSTER_DATA/spot")
def test_the_published_traces_are_read_to_the_last_tick() -> None:
    """Ticks, share of time with an instance, and falls, counted from the files by a script that shares nothing with ours."""
    known = {
        "availability-1-node-aws-02-15-2023-us-east-1a_v100_1": (20158, 195, 3360, 253),
        "availability-1-node-aws-02-15-2023-us-east-2a_v100_1": (20158, 195, 15306, 145),
        "availability-1-node-aws-02-15-2023-us-west-2a_v100_1": (20158, 195, 17801, 158),
        "availability-16-node-aws-08-27-2023-us-west-2a_v100_1": (4736, 300, 32672, 1473),
        "preemption-1-node-aws-04-22-2023-us-west-2b_v100_1": (19961, 32, 15825, 44),
        "preemption-1-node-gcp-04-30-2023-us-central1-a_c3-88": (5476, 30, 5475, 0),
        "preemption-4-node-aws-08-03-2023-us-west-2c_v100_1": (5131, 300, 16750, 330),
    }
    for name, (ticks, gap, instance_ticks, falls) in known.items():
        trace = read_trace(FOLDER / f"{name}.json")
        made = trace.availability()
        assert made.length_s == ticks * gap
        assert made.instance_seconds() == pytest.approx(instance_ticks * gap)
        assert made.interruptions == falls
    priced = read_trace(FOLDER / "preemption-1-node-aws-04-22-2023-us-west-2b_v100_1.json")
    assert priced.price_per_hour() == pytest.approx(0.918)
