"""The readers of tables, by file ending. An error names the line that is malformed."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from hpo.core.errors import DataError

_NEXT_OBJECT = re.compile(r"[\s,]*(?=\{)")
_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Dialect:
    """How text files are written.

    Attributes:
        encoding: Python's name of the encoding; None is UTF-8.
        separator: Separator of the fields of CSV and TSV files; None is the one of the file ending.
    """

    encoding: str | None = None
    separator: str | None = None


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        rows: Reads all rows.
        columns: Returns the names of the columns: all, or enough to contain the wanted ones.
        text: Whether the file is text and has an encoding.
        delimited: Whether the fields have a separator.
    """

    rows: Callable[[Path, Dialect], pd.DataFrame]
    columns: Callable[[Path, Dialect, Collection[str]], list[str]]
    text: bool = True
    delimited: bool = False


# ---------------------------------------------------------------- text


def text_of(path: Path, encoding: str | None) -> str:
    """Return the text of a file; `encoding` as in `Dialect`.

    Raises:
        DataError: It cannot be read, or is not text of this encoding.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return raw.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(path, raw, encoding, error)) from None


def _undecodable(path: Path, raw: bytes, encoding: str | None, error: UnicodeDecodeError) -> str:
    """Return the message that a file is not text of its encoding, with the encoding that it may have."""
    before = raw[: error.start].decode(encoding or "utf-8", "replace")
    line = len(_BREAK.findall(before)) + 1
    message = f"{path} is not {encoding or 'UTF-8'} text: line {line} has the byte 0x{raw[error.start]:02x}. "
    if encoding is not None:
        return f"{message}Set data: {{encoding: ...}} to the encoding it was saved in"
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return f"{message}It begins as UTF-16 does: {_remedy(path, 'utf-16')}"
    # The bytes 0x80 to 0x9f are control characters in latin-1, which texts do not contain. In cp1252 they are letters
    # and punctuation, except for these five, which are not defined.
    if any(byte in raw for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)):
        return (
            f"{message}It is neither cp1252 nor latin-1 text, which do not have all of its characters. Find out in "
            "which encoding it was saved, and set data: {encoding: ...}"
        )
    latin = re.search(rb"[\x80-\x9f]", raw) is None
    shown = _BREAK.split(raw.decode("cp1252"))[line - 1].strip()
    which = "cp1252 or latin-1, which are the same here" if latin else "cp1252 (not as latin-1)"
    return f"{message}Read as {which}, the line is {_cut(shown)!r}. If that is right: {_remedy(path, 'cp1252')}"


def _remedy(path: Path, encoding: str) -> str:
    converted = path.with_suffix(f".utf-8{path.suffix}")
    return (
        f"set data: {{encoding: {encoding}}}, or convert it: iconv -f {encoding} -t utf-8 '{path}' > '{converted.name}'"
    )


def _cut(line: str, width: int = 60) -> str:
    """Return a line, or the part of a long line around its first character that is not ASCII."""
    at = next((i for i, character in enumerate(line) if ord(character) > 127), 0)
    start = max(0, min(at - width // 2, len(line) - width))
    return line[start : start + width]


# ---------------------------------------------------------------- CSV and TSV


def _read_delimited(path: Path, dialect: Dialect, delimiter: str, **options: Any) -> pd.DataFrame:
    text = text_of(path, dialect.encoding)
    delimiter = dialect.separator or delimiter
    try:
        table: pd.DataFrame = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, **options)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except pd.errors.ParserError as error:
        raise DataError(f"{path}{_malformed(text, delimiter, str(error))}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas has read the first column as an index
        raise DataError(f"{path} has more fields in its rows than in its header; name every column, or quote the text")
    return table


def _delimited(delimiter: str) -> Format:
    return Format(
        rows=lambda path, dialect: _read_delimited(path, dialect, delimiter),
        columns=lambda path, dialect, _: list(_read_delimited(path, dialect, delimiter, nrows=1).columns),
        delimited=True,
    )


def _malformed(text: str, delimiter: str, error: str) -> str:
    """Return the message of a pandas error, with the line of the file in place of the row number of pandas."""
    fields = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", error)
    quote = re.search(r"EOF inside string starting at row (\d+)", error)
    if fields:
        row, what = int(fields[2]) - 1, f"{fields[3]} fields, not {fields[1]}; quote the text that has a {delimiter!r}"
    elif quote:
        row, what = int(quote[1]), 'a " opens a text here and none closes it'
    else:
        return f" is not a well-formed table: {error.strip()}"
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for _ in islice(rows, row):
        pass
    return f", line {rows.line_num + 1}: {what}"


# ---------------------------------------------------------------- JSON


def _read_json(path: Path, dialect: Dialect) -> pd.DataFrame:
    """Read one object per line, or one array of objects."""
    text = text_of(path, dialect.encoding)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path, dialect)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {number} of its array is no object with a text and a label")
    return pd.DataFrame(rows)


def _json_columns(path: Path, dialect: Dialect, wanted: Collection[str]) -> list[str]:
    text = text_of(path, dialect.encoding)
    if not text.lstrip().startswith("["):
        return _jsonl_columns(path, dialect, wanted)
    found, at, decoder = dict[str, None](), text.index("[") + 1, json.JSONDecoder()
    while not set(wanted) <= set(found) and (start := _NEXT_OBJECT.match(text, at)) is not None:
        try:
            row, at = decoder.raw_decode(text, start.end())
        except json.JSONDecodeError:
            break
        found |= dict.fromkeys(row)
    return list(found) if set(wanted) <= set(found) else list(_read_json(path, dialect).columns)


def _json_lines(path: Path, dialect: Dialect) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text_of(path, dialect.encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not a JSON object ({error.msg})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        yield row


def _read_jsonl(path: Path, dialect: Dialect) -> pd.DataFrame:
    return pd.DataFrame(list(_json_lines(path, dialect)))


def _jsonl_columns(path: Path, dialect: Dialect, wanted: Collection[str]) -> list[str]:
    """Return the columns of the first lines: of as many lines as are needed to find all wanted columns."""
    found: dict[str, None] = {}
    for row in _json_lines(path, dialect):
        found |= dict.fromkeys(row)
        if set(wanted) <= set(found):
            break
    return list(found)


# ---------------------------------------------------------------- Parquet


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({error})") from None


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({error})") from None


READERS: dict[str, Format] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": Format(_read_jsonl, _jsonl_columns),
    ".json": Format(_read_json, _json_columns),
    ".parquet": Format(lambda path, _: _read_parquet(path), lambda path, _, wanted: _parquet_columns(path), text=False),
}


def format_of(path: Path) -> Format:
    """Return the format of a file, by its ending.

    Raises:
        DataError: The format is not known.
    """
    entry = READERS.get(path.suffix.lower())
    if entry is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without an ending'}; use {', '.join(READERS)}")
    return entry


def read_rows(path: Path, dialect: Dialect | None = None) -> pd.DataFrame:
    """Return the rows of a file; all values of a CSV or TSV file are text.

    Raises:
        DataError: The file is not text of its encoding, is malformed, or has an unknown format.
    """
    return format_of(path).rows(path, dialect or Dialect())


def columns_of(path: Path, dialect: Dialect, wanted: Collection[str]) -> list[str]:
    """Return the columns of a file. Rows are read only as far as that is necessary.

    Args:
        path: The file.
        dialect: How it is written.
        wanted: Columns to find: JSON objects are read until all of them have occurred.

    Raises:
        DataError: As `read_rows`.
    """
    return format_of(path).columns(path, dialect, wanted)
