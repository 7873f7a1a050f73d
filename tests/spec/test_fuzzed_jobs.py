"""Whatever bytes stand in a job file, it is a job or one clear error, and soon."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muster.errors import JobError
from muster.spec import Job, dump_job, load_job, parse_job
from muster.spec.yaml_reading import LARGEST_BYTES, read_yaml

_FUZZ = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_TOKENS = [
    b":",
    b": ",
    b"-",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\n",
    b"\n  ",
    b"\t",
    b"#",
    b"&a ",
    b"*a",
    b"!!int ",
]
_TOKENS += [
    b"!",
    b"|\n",
    b">",
    b"'",
    b'"',
    b"\\x",
    b'"\\U99999999"',
    b"%",
    b"---\n",
    b"...",
    b"?",
    b"<<: ",
    b"\x00",
    b"\xff",
]
_TOKENS += [b"null", b"true", b".inf", b".nan", b"1e999", b"9" * 50, b"\xef\xbb\xbf", "�é字😀".encode()]
_EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(_TOKENS) | st.binary(max_size=4)),
    min_size=1,
    max_size=6,
)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "30s", "0s", "200 steps", "gang", "cuda", "4GB", "host:1", "cluster", "halve", "superres"]
    )
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _check(error: JobError) -> None:
    """An error is one sentence that says what was found and what would be right."""
    text = str(error)
    assert "\n" not in text
    assert error.found
    assert error.mend
    assert len(text) < 1500


@_FUZZ
@given(edits=_EDITS)
def test_any_edit_of_the_bytes_is_a_job_or_one_error(
    edits: list[tuple[float, int, bytes]], valid: str, job_file: Callable[[bytes], Path]
) -> None:
    content = valid.encode()
    for place, removed, inserted in edits:
        at = int(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    path = job_file(content)
    try:
        job = load_job(path, environ={})
    except JobError as error:
        _check(error)
    else:
        assert load_job(job_file(dump_job(job).encode()), environ={}) == job


@_FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_are_plain_data_or_one_error(content: bytes) -> None:
    try:
        read_yaml(content, "fuzz")
    except JobError as error:
        _check(error)


@_FUZZ
@given(data=st.data())
def test_any_change_of_the_structure_is_a_job_or_one_error(data: st.DataObject, valid: str) -> None:
    content = copy.deepcopy(read_yaml(valid.encode(), "valid").content)
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        while isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
            if isinstance(place[key], dict) and data.draw(st.booleans()):
                place = place[key]
                continue
            change = data.draw(st.sampled_from(["replace", "remove", "rename", "add"]))
            if change in ("remove", "rename"):
                value = place.pop(key)
                if change == "rename":
                    place[data.draw(st.text(max_size=12))] = value
            elif change == "replace":
                place[key] = data.draw(_VALUES)
            else:
                place[
                    data.draw(
                        st.sampled_from(["device", "betas", "schedule", "micro_batch", "x", "min_ranks"])
                    )
                ] = data.draw(_VALUES)
            break
    try:
        assert isinstance(parse_job(content), Job)
    except JobError as error:
        _check(error)


@_FUZZ
@given(keys=st.text(max_size=20), value=st.text(st.characters(), max_size=30), in_environment=st.booleans())
def test_any_setting_is_taken_or_one_error(
    keys: str, value: str, in_environment: bool, valid: str, job_file: Callable[[str], Path]
) -> None:
    path = job_file(valid)
    environ = {f"MUSTER_SET_{keys}": value} if in_environment else {}
    try:
        load_job(path, [] if in_environment else [f"{keys}={value}"], environ=environ)
    except JobError as error:
        _check(error)


_FULL = LARGEST_BYTES - 1000
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    "content",
    [
        _LAUGHS,
        "[" * _FULL,
        "{a: " * (_FULL // 4),
        "- " * (_FULL // 2),
        "".join(f"{' ' * n}a:\n" for n in range(300)),
        "".join(f"k{n}: 1\n" for n in range(6000)),
        "what: [" + "a," * (_FULL // 2) + "]",
        "how: {ranks: " + "9" * _FULL + "}",
        '"' + "\\n" * (_FULL // 2) + '"',
        "&" * _FULL,
        "\n" * _FULL,
        "x" * 10 * LARGEST_BYTES,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_bomb_is_refused_within_seconds(content: str, job_file: Callable[[str], Path]) -> None:
    path = job_file(content)
    began = time.process_time()
    with pytest.raises(JobError):
        load_job(path, environ={})
    assert time.process_time() - began < 10
