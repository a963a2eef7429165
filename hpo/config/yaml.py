"""YAML 1.2 with line numbers, read strictly: without duplicate keys, tags and aliases.

Aliases could expand a small file to gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.scalarbool import ScalarBoolean

from hpo.core.errors import ConfigError, Problem

SourcePath = tuple[str | int, ...]

LARGEST = 1 << 17  # bytes; reading them takes seconds
LONGEST = 1000  # characters of a number; Python does not print an integer of thousands of digits
DEEPEST = 32  # levels of nesting; a study needs about eight, and the time to read is quadratic in them


def read(path: Path) -> tuple[dict[str, Any], dict[SourcePath, int]]:
    """Read a mapping from a file.

    Returns:
        The mapping as plain values, and the 1-based line of every key and list item by its path.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    document = _document(_text(path), path)
    if not isinstance(document, Mapping):
        raise ConfigError(str(path), [Problem((), "must be a mapping, `key: value` lines")])
    lines: dict[SourcePath, int] = {}
    _collect_lines(document, (), lines)
    for key, line in _odd_keys(document):
        what = "a list or a mapping" if isinstance(key, tuple | Mapping) else f"{key}, which is not text,"
        raise ConfigError(str(path), [Problem((), f"has {what} as a key; write it in quotes", line)])
    plain = _plain(document)
    assert isinstance(plain, dict)
    return plain, lines


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(str(path), [Problem((), f"is larger than {LARGEST:,} bytes")])
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem((), f"is not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Problem((), f"cannot be read: {error.strerror}")]) from None


def _document(text: str, path: Path) -> Any:
    """Return a text as ruamel's round-trip values, which know their lines."""
    try:
        for message, where in _refused(text):
            raise ConfigError(str(path), [Problem((), message, where)])
        return YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        message = " ".join(str(error.problem or error.context).split("\n")[:1])
        raise ConfigError(str(path), [Problem((), f"is not valid YAML: {message}", line)]) from None
    except (YAMLError, ValueError) as error:  # ValueError: e.g. a date in month 13
        raise ConfigError(str(path), [Problem((), f"is not valid YAML: {error}")]) from None


def _refused(text: str) -> Iterator[tuple[str, int]]:
    """Yield a message and a line for everything in a text that is not plain keys and values."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            yield f"is nested more than {DEEPEST} levels deep; a study needs fewer", line
        elif isinstance(event, AliasEvent):
            yield f"uses the alias *{event.anchor}; write the value out", line
        elif getattr(event, "tag", None) is not None:
            yield f"has the tag {event.tag}; leave it out", line
        elif getattr(event, "version", None) is not None:
            yield "has a %YAML directive; leave it out, the file is read as YAML 1.2", line
        elif isinstance(event, ScalarEvent) and event.style is None:
            if event.value == "<<":
                yield "has the merge key <<; write the keys out", line
            elif len(event.value) > LONGEST and event.value.lstrip("+-.")[:1].isdigit():
                yield f"has a number of {len(event.value)} digits", line


def write(content: Mapping[str, Any], path: Path, comments: Mapping[SourcePath, str] = MappingProxyType({})) -> None:
    """Write a mapping of plain values to a file. `read` returns an equal mapping.

    Args:
        content: The mapping.
        path: The file.
        comments: Place of a value -> the comment above it, one line; the empty place is the top of the file.
    """
    writer = YAML(typ="rt", pure=True)
    writer.width = 10_000  # no folded lines
    writer.allow_unicode = False  # some characters would be read back as others
    whole = _commented(content)
    for place, comment in comments.items():
        parent = whole
        for key in place[:-1]:
            parent = parent[key]
        line = " ".join(comment.split())
        if place:
            parent.yaml_set_comment_before_after_key(place[-1], before=line, indent=2 * (len(place) - 1))
        else:
            whole.yaml_set_start_comment(line)
    writer.dump(whole, path)


def _commented(node: Any) -> Any:
    """Return plain values with mappings that can have comments."""
    if isinstance(node, Mapping):
        return CommentedMap({key: _commented(value) for key, value in node.items()})
    return node


def scalar(text: str) -> Any:
    """Return the value of a YAML text, e.g. of `3`, `true`, `[1, 2]`; the text itself where it is not valid."""
    try:
        if any(_refused(text)):
            return text
        return _plain(YAML(typ="safe", pure=True).load(StringIO(text)))
    except (YAMLError, ValueError):
        return text


def line_of(path: SourcePath, lines: Mapping[SourcePath, int]) -> int | None:
    """Return the line of a value, or of the innermost mapping or list with a line that contains it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _collect_lines(node: Any, path: SourcePath, lines: dict[SourcePath, int]) -> None:
    if isinstance(node, Mapping):
        children: list[tuple[Any, Any]] = list(node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str):
        children = list(enumerate(node))
    else:
        return
    for key, child in children:
        lines[(*path, key)] = node.lc.data[key][0] + 1
        _collect_lines(child, (*path, key), lines)


def _odd_keys(node: Any) -> Iterator[tuple[Any, int]]:
    """Yield the keys that are not text, and their lines."""
    for key in node if isinstance(node, Mapping) else ():
        if not isinstance(key, str):
            yield key, node.lc.data[key][0] + 1
    if isinstance(node, Mapping | Sequence) and not isinstance(node, str):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _odd_keys(child)


def _plain(node: Any) -> Any:
    """Return ruamel's round-trip values as plain Python ones."""
    if isinstance(node, Mapping):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, str):
        return str(node)
    if isinstance(node, bool | ScalarBoolean):
        return bool(node)
    if isinstance(node, Sequence):
        return [_plain(item) for item in node]
    for kind in (int, float):
        if isinstance(node, kind):
            return kind(node)
    return node
