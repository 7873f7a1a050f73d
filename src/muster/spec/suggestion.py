"""Did you mean: the known word nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` most resembles, or None if it resembles none."""
    known = list(known)
    folded = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower()[:100], list(folded), n=1, cutoff=0.6)
    if matches:
        return folded[matches[0]]
    # 'superres' for 'vision.superres': too short for the ratio, yet plainly meant
    endings = [name for name in known if word and name.rsplit(".", 1)[-1].lower() == word.lower()]
    return endings[0] if len(endings) == 1 else None


def expected_one_of(word: object, known: Iterable[str]) -> str:
    """``did you mean adam? Known are adam, adamw, sgd``, or only the second half."""
    known = list(known)
    listed = ", ".join(known) if known else "none"
    guess = nearest(word, known) if isinstance(word, str) else None
    return f"did you mean {guess}? (one of: {listed})" if guess else f"expected one of: {listed}"
