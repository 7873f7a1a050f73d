"""Several files of one store, as they are written in one address."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from muster.errors import DataError
from muster.pillars.io.sources._store import Store

_SEQUENCE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")


def expand(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: dict[str, Any] | None = None,
    timeout_s: float = 60.0,
) -> tuple[Store, list[str]]:
    """The store of some addresses, and the paths of the files that they stand for.

    ``{000..012}`` stands for 000, 001, ... 012, several of them for all combinations; a shell pattern for what matches it, in
    sorted order.

    Raises:
        DataError: no address, none that matches, or addresses of different stores.
    """
    given = [os.fspath(url) for url in ([urls] if isinstance(urls, str | os.PathLike) else urls)]
    if not given:
        raise DataError("no address of a file was given")
    store = Store(given[0], options, timeout_s)
    paths: list[str] = []
    for url in (each for text in given for each in _sequences(text)):
        if Store(url, options, timeout_s).protocol != store.protocol:
            raise DataError(f"{url} is in another kind of store than {given[0]}; open them as two sources")
        path = store.path(url)
        # In HTTP a question mark begins a query.
        wild = _WILD.search(path.replace("?", "") if store.protocol in ("http", "https") else path)
        found = store.glob(path) if wild else [path]
        if not found:
            raise DataError(f"{url}: nothing matches")
        paths += found
    return store, paths


def _sequences(text: str) -> list[str]:
    match = _SEQUENCE.search(text)
    if match is None:
        return [text]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise DataError(f"{text}: the sequence {match.group()} is empty; the smaller number comes first")
    return [
        each
        for number in numbers
        for each in _sequences(f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}")
    ]
