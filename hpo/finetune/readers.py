"""Files of rows as tables: file ending -> reader. What is malformed is named with its line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pandas as pd

from hpo.errors import DataError


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        read, byte = error.object[: error.start], error.object[error.start]  # without the byte-order mark
        wide = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raise DataError(
            f"{path} is not UTF-8 text: line {len((read + b'.').splitlines())} has the byte 0x{byte:02x}. "
            f"Convert it, e.g. with: iconv -f {'utf-16' if wide else 'latin1'} -t utf-8"
        ) from None


def _read_delimited(path: Path, delimiter: str) -> pd.DataFrame:
    text = _text_of(path)
    try:
        table = pd.read_csv(io.StringIO(text), sep=delimiter, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except pd.errors.ParserError as error:
        raise DataError(f"{path}{_malformed(text, delimiter, str(error))}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for names of rows
        raise DataError(f"{path} has more fields in its rows than in its header; name every column, or quote the text")
    return table


def _malformed(text: str, delimiter: str, said: str) -> str:
    """Return what pandas found, with the line of the file where it counts rows."""
    fields = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", said)
    quote = re.search(r"EOF inside string starting at row (\d+)", said)
    if fields:
        row, what = int(fields[2]) - 1, f"{fields[3]} fields, not {fields[1]}; quote the text that has a {delimiter!r}"
    elif quote:
        row, what = int(quote[1]), 'a " opens a text here and none closes it'
    else:
        return f" is not a well-formed table: {said.strip()}"
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for _ in islice(rows, row):
        pass
    return f", line {rows.line_num + 1}: {what}"


def _read_json(path: Path) -> pd.DataFrame:
    """Read one object a line, or one array of objects."""
    text = _text_of(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {number} of its array is no object with a text and a label")
    return pd.DataFrame(rows)


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not a JSON object ({error.msg})") from None
        if not isinstance(rows[-1], dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
    return pd.DataFrame(rows)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file ({error})") from None


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a file; those of a CSV or TSV file as text.

    Raises:
        DataError: The file is not UTF-8, malformed, or of an unknown kind.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without an ending'}; use {', '.join(READERS)}")
    return reader(path)
