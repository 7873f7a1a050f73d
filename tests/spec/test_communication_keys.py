"""The keys of `how.communication`."""

from __future__ import annotations

from typing import Any

import pytest

from muster.errors import JobError
from muster.spec import dump_job, load_job, parse_job


def job(precision: str = "fp32", **communication: Any) -> Any:
    how = {"steps": 3, "batch": 2, "precision": precision, "communication": communication}
    return parse_job({"what": {"app": "vision.superres"}, "how": how})


def test_gradients_travel_as_they_are_unless_asked_for() -> None:
    plain = job().how.communication
    assert (plain.compression, plain.lossy, plain.buckets) == ("none", False, "default")
    assert (plain.rank, plain.density) == (None, None)


@pytest.mark.parametrize(
    ("method", "rank", "density"),
    [("powersgd", 4, None), ("topk", None, 0.01), ("oktopk", None, 0.01), ("auto", None, None)],
)
def test_the_resolved_job_holds_the_options_of_the_method_and_loads_back(
    method: str, rank: int | None, density: float | None, tmp_path: Any
) -> None:
    resolved = job(compression=method, buckets=2)
    found = resolved.how.communication
    assert (found.rank, found.density, found.buckets) == (rank, density, 2.0)
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(resolved))
    assert load_job(path, environ={}) == resolved


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"compression": "gzip"}, "compression: found 'gzip'; expected one of: none, bf16, fp16, int8"),
        ({"compresion": "topk"}, "compresion: unknown key; did you mean compression?"),
        ({"rank": 2}, "rank: none has no rank; remove the key, or set compression: powersgd"),
        (
            {"compression": "topk", "rank": 2},
            "rank: topk has no rank; remove the key, or set compression: powersgd",
        ),
        (
            {"compression": "auto", "density": 0.1},
            "density: auto has no density; remove the key, or set compression: topk or oktopk",
        ),
        ({"compression": "topk", "density": 0}, "density: found 0; expected a number above 0 to 1"),
        ({"compression": "oktopk", "density": 1.5}, "density: found 1.5; expected a number above 0 to 1"),
        ({"compression": "powersgd", "rank": 0}, "rank: found 0; expected a whole number from 1 to 1024"),
        ({"compression": "bf16", "lossy": True}, "lossy: bf16 is not lossy; remove the key, or set"),
        ({"buckets": "large"}, "buckets: found 'large'; expected default, auto, or a number of MiB above 0"),
        ({"buckets": 0}, "buckets: found 0; expected default, auto, or a number of MiB above 0 to 1024"),
        ({"buckets": True}, "buckets: found true; expected default, auto, or a number of MiB above 0"),
        ({"buckets": float("nan")}, "buckets: found NaN; expected default, auto, or a number of MiB"),
        ({"buckets": [1, 2]}, "buckets: found [1, 2]; expected default, auto, or a number of MiB"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as refused:
        job(**keys)
    assert f"how.communication.{said}" in str(refused.value)


@pytest.mark.parametrize("method", ["bf16", "fp16", "int8", "auto"])
def test_what_rounds_to_few_bits_does_not_go_with_fp64(method: str) -> None:
    with pytest.raises(JobError, match=r"how\.communication\.compression: .* set compression: none, or"):
        job(precision="fp64", compression=method)


@pytest.mark.parametrize("method", ["none", "powersgd", "topk", "oktopk"])
def test_what_keeps_the_dtype_goes_with_fp64(method: str) -> None:
    assert job(precision="fp64", compression=method, buckets="auto").how.communication.compression == method
