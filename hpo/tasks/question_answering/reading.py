"""Questions from files: SQuAD's JSON, or rows of a JSON array, JSONL or Parquet as the Hub has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.core.errors import DataError, nearest
from hpo.tasks.question_answering.questions import MARK, Columns, Problems, Question, Row, questions_of

ENDINGS = (".json", ".jsonl", ".parquet")
_SQUAD = "{data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}"


def read_rows(path: Path, columns: Columns, encoding: str | None = None) -> list[tuple[Question, Mapping[str, Any]]]:
    """Return the questions of a file, each with its whole row.

    Args:
        path: SQuAD's JSON (`{"data": [{"paragraphs": [{"context", "qas"}]}]}`, version 1.1 or 2.0), or rows.
        columns: The names of the columns of rows. SQuAD's JSON has its own.
        encoding: Python's name of the encoding of a text file; None is UTF-8.

    Raises:
        DataError: The file cannot be read, has no questions, or has some that cannot be used.
    """
    problems = Problems(str(path))
    rows, is_squad = _rows_of(path, encoding, problems)
    if not is_squad:
        _refuse_missing_columns(rows, columns, problems)
    found = questions_of(rows, Columns() if is_squad else columns, problems, answered=is_squad)
    return list(zip(found, (row for _, row in rows), strict=True))


def unanswered_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of questions without checking them; SQuAD's JSON with the columns of `Columns()`.

    Raises:
        DataError: The file cannot be read.
    """
    problems = Problems(str(path))
    rows, _ = _rows_of(path, None, problems)
    problems.refuse()
    return [{key: value for key, value in row.items() if isinstance(key, str)} for _, row in rows]


def _rows_of(path: Path, encoding: str | None, problems: Problems) -> tuple[list[Row], bool]:
    """Return the rows of a file, and whether it is SQuAD's JSON."""
    if path.suffix.lower() not in ENDINGS:
        ending = path.suffix or "a file without an ending"
        raise DataError(f"{path}: cannot read questions from {ending}; use {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".parquet":
        from hpo.data import readers

        elements: Any = list(enumerate(readers.read_rows(path).to_dict("records"), 1))
    else:
        elements = _json(path, encoding, problems)
    if isinstance(elements, Mapping):
        return squad_rows(elements, problems), True
    return _rows(path, elements, problems), False


def squad_rows(document: Mapping[str, Any], problems: Problems) -> list[Row]:
    """Return the questions of SQuAD's JSON as rows with the columns of `Columns()` and `title`; places count from 1."""
    return [
        (place, {"title": article.get("title"), **question, "context": paragraph.get("context")})
        for in_article, article in _objects(document, "data", "article", "", problems)
        for in_paragraph, paragraph in _objects(article, "paragraphs", "paragraph", in_article, problems)
        for place, question in _objects(paragraph, "qas", "question", in_paragraph, problems)
    ]


def _objects(
    parent: Mapping[str, Any], key: str, name: str, place: str, problems: Problems
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, object) of the objects that are listed under a key."""
    children = parent.get(key)
    if not isinstance(children, list):
        keys = ", ".join(map(repr, parent))
        detail = f"it has {f'the keys {keys}' if keys else 'no keys'}"
        problems.add(f"objects without a list {key!r}", place or "the file", f"{detail}. Write {_SQUAD}")
        return
    for number, child in enumerate(children, 1):
        where = f"{place}, {name} {number}" if place else f"{name} {number}"
        if isinstance(child, Mapping):
            yield where, child
        else:
            problems.add(f"elements of {key!r} that are no objects", where, f"it is {child!r:.60}")


# ---------------------------------------------------------------- files


def _json(path: Path, encoding: str | None, problems: Problems) -> Any:
    """Return what a file holds; elements of a JSON array and lines of JSONL with their numbers, from 1."""
    from hpo.data import readers

    text = readers.text_of(path, encoding)
    if path.suffix.lower() == ".jsonl":
        return list(_lines(text, problems))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(document, Mapping | list):
        raise DataError(f"{path} is neither SQuAD's JSON, an object with a list 'data', nor an array of questions")
    return list(enumerate(document, 1)) if isinstance(document, list) else document


def _lines(text: str, problems: Problems) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except json.JSONDecodeError as error:
            detail = f"{error.msg} at its character {error.colno}. Write one object a line"
            problems.add("lines that are not JSON", f"line {number}", detail)


def _rows(path: Path, elements: Sequence[tuple[int, Any]], problems: Problems) -> list[Row]:
    unit = "line" if path.suffix.lower() == ".jsonl" else "row"
    for number, row in elements:
        if not isinstance(row, Mapping):
            problems.add("rows that are no objects", f"{unit} {number}", f"it is {row!r:.60}")
    return [(f"{unit} {number}", row) for number, row in elements if isinstance(row, Mapping)]


def _refuse_missing_columns(rows: Sequence[Row], columns: Columns, problems: Problems) -> None:
    """Refuse a file of which no row has some column, before every row is refused for it."""
    present = dict.fromkeys(key for _, row in rows for key in row)
    required = [name for name in vars(columns).values() if name != columns.answers or MARK not in present]
    missing = [name for name in required if rows and name not in present]
    for name in missing:
        detail = f"{name!r}{nearest(name, present)}. Name the columns under data:"
        problems.add("columns that no row has", "its rows", detail)
    if missing:
        problems.refuse()
