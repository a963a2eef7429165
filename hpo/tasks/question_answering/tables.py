"""The questions of one split as a table, from files or from a data set on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo.core.errors import DataError
from hpo.data.keys import no_column
from hpo.tasks.question_answering.keys import QuestionKeys
from hpo.tasks.question_answering.questions import Problems, Question, Row, questions_of
from hpo.tasks.question_answering.reading import read_rows

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

QUESTION = "a question"
"""Column of `Question` objects; a column of a file with this name is not read."""


def read_table(keys: QuestionKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
    """Return the questions of one split, indexed by (file, question from 1), with the columns of groups and conditions.

    Raises:
        DataError: A file or data set cannot be read, has no questions or some that cannot be used, lacks a column, or
            has a question with the id of one in another file.
    """
    import pandas as pd

    from hpo.core.paths import expand

    if keys.dataset is not None:
        files = {f"{keys.dataset} ({source})": _from_hub(keys, split, source, folder)}
    else:
        files = {}
        for path in expand(source, folder):
            log.info("reading %s", path)
            files[str(path)] = read_rows(path, keys.named, keys.encoding)
    _refuse_repeated_ids(files)
    more = [column for column in (keys.group, *(keys.where if split == "train" else ())) if column]
    frames = [_table(name, rows, list(dict.fromkeys(more))) for name, rows in files.items()]
    return pd.concat(frames, keys=list(files))


def _from_hub(
    keys: QuestionKeys, split: str, source: str | list[str], folder: Path
) -> list[tuple[Question, Mapping[str, Any]]]:
    from hpo.data.tables import read_table as read_rows_of

    table = read_rows_of(keys, split, source, folder)
    records: list[dict[str, Any]] = [
        {str(name): value for name, value in row.items()} for row in table.to_dict("records")
    ]
    rows: list[Row] = [(f"row {number}", row) for number, row in enumerate(records, 1)]
    problems = Problems(f"{keys.dataset} ({source})")
    found = questions_of(rows, keys.named, problems, answered=False)
    return list(zip(found, (row for _, row in rows), strict=True))


def _table(name: str, rows: list[tuple[Question, Mapping[str, Any]]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    present = dict.fromkeys(key for _, row in rows for key in row)
    if missing := [column for column in columns if column not in present]:
        raise DataError(
            f"{no_column(name, missing, list(map(str, present)))}. Name the columns under data: group, where"
        )
    values = {column: [row.get(column) for _, row in rows] for column in columns}
    return pd.DataFrame(values | {QUESTION: [question for question, _ in rows]}, index=range(1, len(rows) + 1))


def _refuse_repeated_ids(files: Mapping[str, list[tuple[Question, Mapping[str, Any]]]]) -> None:
    """Refuse questions of different files with one id; those of one file are checked with its other problems."""
    seen: dict[str, str] = {}
    repeated = [
        (question.place, seen[question.id])
        for rows in files.values()
        for question, _ in rows
        if seen.setdefault(question.id, question.place) != question.place
    ]
    if repeated:
        place, earlier = repeated[0]
        raise DataError(
            f"{len(repeated)} questions have the id of a question in another file, the first is {place}: so has "
            f"{earlier}. Give each question its own"
        )
