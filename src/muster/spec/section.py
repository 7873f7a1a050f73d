"""What all sections of a job file have in common, and how their validators refuse a value."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a job: immutable, refuses unknown keys, every field described for the reference page."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def refuse(found: str, *, mend: str, key: str = "") -> PydanticCustomError:
    """The error for a validator of a section to raise; it becomes a `JobError` that knows file and line.

    Arguments:
        found: what is wrong, in a few words.
        mend: what would be right.
        key: the key path below the validated part, such as ``schedule.every``; empty means that part itself.
    """
    # pydantic formats the template: braces in a user's value must come in through its context
    return PydanticCustomError("refused", "{found}; {mend}", {"found": found, "mend": mend, "key": key})
