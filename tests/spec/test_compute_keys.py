"""The keys of `how` that say how to compute."""

from __future__ import annotations

from typing import Any

import pytest

from muster.errors import JobError
from muster.spec import parse_job


def how(**keys: Any) -> Any:
    return parse_job({"what": {"app": "vision.superres"}, "how": {"steps": 3, "batch": 2} | keys}).how


def test_nothing_changes_unless_asked_for() -> None:
    plain = how()
    assert (plain.precision, plain.channels_last, plain.compile) == ("fp32", False, "off")
    assert (plain.activation_checkpointing, plain.ema_decay) == (False, None)


def test_all_of_them_together_are_a_job() -> None:
    full = how(
        precision="fp16",
        channels_last=True,
        compile="auto",
        activation_checkpointing=True,
        ema_decay=0.999,
        micro_batch=1,
    )
    assert (full.precision, full.compile, full.ema_decay) == ("fp16", "auto", 0.999)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("precision", "fp8", "how.precision: found 'fp8'; "),
        ("precision", "fp8", "fp32, bf16, fp16, fp64"),
        ("compile", True, "how.compile: found true; expected one of"),
        ("compile", "max", "how.compile: found 'max'; expected one of: off, on, auto"),
        ("channels_last", "yes", "how.channels_last: found 'yes'; expected true or false"),
        ("activation_checkpointing", 1, "how.activation_checkpointing: found 1; expected true or false"),
        ("ema_decay", 1.0, "how.ema_decay: found 1.0; expected a number above 0 to below 1"),
        ("ema_decay", 0, "how.ema_decay: found 0; expected a number above 0 to below 1"),
        ("ema", 0.9, "how.ema: unknown key; "),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(key: str, value: Any, said: str) -> None:
    with pytest.raises(JobError) as refused:
        how(**{key: value})
    assert said in str(refused.value)
