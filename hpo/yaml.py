"""YAML 1.2 with line numbers, read strictly: no duplicate keys, no anchors (a few lines could expand to gigabytes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarbool import ScalarBoolean

from hpo.errors import ConfigError, Problem

SourcePath = tuple[str | int, ...]


def read(path: Path) -> tuple[dict[str, Any], dict[SourcePath, int]]:
    """Read a mapping from a file.

    Returns:
        The mapping as plain values, and the 1-based line of every key and list item by its path.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem((), f"is not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Problem((), f"cannot be read: {error.strerror}")]) from None
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, AliasEvent):
                message = f"uses the alias *{event.anchor}; write the value out"
                raise ConfigError(str(path), [Problem((), message, event.start_mark.line + 1)])
        document = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        said = " ".join(str(error.problem or error.context).split("\n")[:1])
        raise ConfigError(str(path), [Problem((), f"is not valid YAML: {said}", line)]) from None
    except YAMLError as error:
        raise ConfigError(str(path), [Problem((), f"is not valid YAML: {error}")]) from None
    except RecursionError:
        raise ConfigError(str(path), [Problem((), "is nested too deeply")]) from None
    if not isinstance(document, Mapping):
        raise ConfigError(str(path), [Problem((), "must be a mapping, `key: value` lines")])
    lines: dict[SourcePath, int] = {}
    _collect_lines(document, (), lines)
    for place, line in lines.items():
        if isinstance(place[-1], tuple | Mapping):
            raise ConfigError(str(path), [Problem((), "has a list or a mapping as a key", line)])
    plain = _plain(document)
    assert isinstance(plain, dict)
    return plain, lines


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a mapping of plain values as a file that `read` gives back equal."""
    writer = YAML(typ="rt", pure=True)
    writer.width = 10_000  # no folded lines
    writer.allow_unicode = False  # some of it would be read back as something else
    writer.dump(dict(content), path)


def scalar(text: str) -> Any:
    """Read one value as YAML would: numbers, true, lists and mappings in flow style."""
    try:
        return _plain(YAML(typ="safe", pure=True).load(StringIO(text)))
    except YAMLError:
        return text


def line_of(path: SourcePath, lines: Mapping[SourcePath, int]) -> int | None:
    """Return the line of a value, or of the closest one that contains it."""
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
