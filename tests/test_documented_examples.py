"""The Python of the documentation runs and prints what its comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = [
    example
    for page in ("merge-rules.md", "federated.md", "flow.md")
    for example in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_prints_what_its_comment_says(example: str) -> None:
    promised = re.findall(r"print\(.*\)  # (.*)", example)
    assert promised
    printed = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, check=True, timeout=120
    )
    assert printed.stdout.splitlines() == promised
