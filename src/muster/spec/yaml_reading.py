"""From the bytes of a job file to plain data that knows its lines.

A job file is the plain part of YAML: mappings, sequences and scalars of YAML 1.2's core schema (section
10.3.2). Tags, anchors and aliases, merge keys and several documents are refused, so that no input takes long,
builds an object or means something else than it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from muster.errors import JobError

KeyPath = tuple[str | int, ...]

LARGEST_BYTES: Final = 64 * 1024
DEEPEST: Final = 16
_SCALARS: Final = (
    (re.compile(r"(null|Null|NULL|~)?"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]{1,40}"), int),
    (re.compile(r"0o[0-7]{1,40}"), lambda text: int(text, 8)),
    (re.compile(r"0x[0-9a-fA-F]{1,40}"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,40})?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", "").lower())),
)


@dataclass(frozen=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the one-based line of each key path in it."""

    content: Any
    lines: dict[KeyPath, int]


def resolve_scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar by YAML 1.2's core schema."""
    for pattern, build in _SCALARS:
        if pattern.fullmatch(text):
            return build(text)
    return text


def dotted(path: KeyPath) -> str:
    """A key path as people write it: ``how.optimizer.betas[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def readable_key(path: KeyPath) -> str:
    """A key path for a message: printable, and of a sane length."""
    text = "".join(sign if sign.isprintable() else "�" for sign in dotted(path))
    return text if len(text) <= 100 else text[:99] + "…"


def read_yaml(content: bytes, source: str) -> Document:
    """Reads one document of at most `LARGEST_BYTES`.

    Arguments:
        content: the bytes, in UTF-8.
        source: where they come from, for messages.

    Raises:
        JobError: names the line and what would be right.
    """
    if len(content) > LARGEST_BYTES:
        raise JobError(
            f"larger than {LARGEST_BYTES // 1024} KiB",
            mend="a job file is a page of YAML; is it this file?",
            source=source,
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobError(
            f"found the byte 0x{content[error.start]:02x}, which is not UTF-8",
            mend="save the file as UTF-8",
            source=source,
            line=line,
        ) from None
    return _Reader(text, source).document()


class _Reader:
    """Builds the document from the parser's events; the parser is iterative and its depth is bounded here."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._lines: dict[KeyPath, int] = {}
        self._events = self._parse(text)

    def document(self) -> Document:
        from ruamel.yaml.events import DocumentStartEvent, StreamEndEvent, StreamStartEvent

        content: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, StreamStartEvent):
                continue
            if isinstance(event, StreamEndEvent):
                break
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(
                        event, (), "a second YAML document", "keep one job in a file: remove this '---'"
                    )
                content = self._node(next(self._events), ())
        return Document(content, self._lines)

    def _parse(self, text: str) -> Iterator[Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError
        from ruamel.yaml.reader import ReaderError

        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._not_yaml(str(error.problem or error.context), mark and mark.line + 1) from error
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            found = f"the control character U+{ord(text[error.position]):04X}"
            raise JobError(f"found {found}", mend="remove it", source=self._source, line=line) from error
        except Exception as error:
            # ruamel's scanner answers some malformed escapes and directives with Python's own errors; nothing
            # but its code runs in this block
            raise self._not_yaml(str(error), max(self._lines.values(), default=1)) from error

    def _not_yaml(self, problem: str, line: int | None) -> JobError:
        mend = "correct the YAML syntax there"
        if "\\t" in problem:
            problem, mend = "found a tab", "indent with spaces"
        elif "mapping values are not allowed" in problem:
            mend = "check the indentation, and put quotes around a value with ': ' in it"
        elif "could not find expected ':'" in problem:
            mend = "write each line as 'key: value'"
        elif "expected <block end>" in problem:
            mend = "indent the keys of a section by the same number of spaces"
        elif "expected ',' or" in problem:
            mend = "close the brace or bracket"
        return JobError(
            f"not valid YAML: {' '.join(problem.split())}", mend=mend, source=self._source, line=line
        )

    def _node(self, event: Any, path: KeyPath) -> Any:
        from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent

        if isinstance(event, AliasEvent) or event.anchor is not None:
            sign = "alias *" if isinstance(event, AliasEvent) else "anchor &"
            self._refuse(
                event,
                path,
                f"the {sign}{_short(str(event.anchor), 30)}",
                "write the value out: job files have no anchors",
            )
        if event.tag is not None:
            self._refuse(
                event, path, f"the tag {_short(str(event.tag))}", "remove it: job files hold plain values"
            )
        self._lines.setdefault(path, event.start_mark.line + 1)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= DEEPEST:
            self._refuse(event, path[:4], f"nested deeper than {DEEPEST}", "no key of a job is that deep")
        return self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)

    def _scalar(self, event: Any, path: KeyPath) -> Any:
        text: str = event.value
        if bad := re.search("[\0\ud800-\udfff]", text):
            self._refuse(event, path, f"found the character U+{ord(bad[0]):04X} in a text", "remove it")
        if event.style:  # quoted or a block: text as it stands
            return text
        return resolve_scalar(text)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        from ruamel.yaml.events import MappingEndEvent, ScalarEvent

        result: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, (*path, "?")) if isinstance(event, ScalarEvent) else None
            if not isinstance(key, str) or not key:
                found = (
                    "a key that is not text" if key is None else f"the key {event.value}, which is not text"
                )
                self._refuse(event, path, f"found {found}", "keys are plain words, such as 'ranks'")
            self._lines.pop((*path, "?"))
            line = event.start_mark.line + 1
            here = (*path, key)
            if key in result:
                first = self._lines[here]
                self._refuse(
                    event, here, f"given a second time (first on line {first})", "keep one of the two"
                )
            self._lines[here] = line
            result[key] = self._node(next(self._events), here)
        return result

    def _sequence(self, path: KeyPath) -> list[Any]:
        from ruamel.yaml.events import SequenceEndEvent

        result: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            result.append(self._node(event, (*path, len(result))))
        return result

    def _refuse(self, event: Any, path: KeyPath, found: str, mend: str) -> NoReturn:
        key = readable_key(path)
        raise JobError(found, mend=mend, key=key, source=self._source, line=event.start_mark.line + 1)


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
