"""Pairs of a source and a target: the examples of sequence to sequence, read from tables and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any

from hpo.core.errors import DataError
from hpo.tasks.dataset import Split
from hpo.tasks.seq2seq.keys import PairKeys

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairSplit(Split):
    """Sources with their targets.

    Attributes:
        sources: n texts, without the prefix.
        targets: n texts; empty ones where they are not known.
    """

    sources: list[str]
    targets: list[str]

    @property
    def contents(self) -> list[str]:
        """The sources: pairs with one source stay in one split."""
        return self.sources

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield sources and targets."""
        for source, target in zip(self.sources, self.targets, strict=True):
            yield json.dumps([name, source, target]).encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return sources and targets."""
        return [{"source": s, "target": t} for s, t in zip(self.sources, self.targets, strict=True)]


def unfold(table: pd.DataFrame, keys: PairKeys) -> pd.DataFrame:
    """Return a table whose objects of column `pair` are two columns, named as the source and the target.

    Raises:
        DataError: Rows have no object there, or one that lacks the source or the target.
    """
    from hpo.data.tables import place

    assert keys.pair is not None
    wrong = [row for row, cell in table[keys.pair].items() if not isinstance(cell, Mapping)]
    if wrong:
        raise DataError(
            f"column {keys.pair!r} holds no object in {len(wrong)} rows, first in {place(wrong[0])}; name the columns "
            "of texts under data: source and target, and leave data: pair out"
        )
    columns = {}
    for name in (keys.source, keys.target):
        lacking = [row for row, cell in table[keys.pair].items() if name not in cell]
        if lacking:
            has = next(", ".join(map(repr, cell)) or "none" for cell in table[keys.pair] if name not in cell)
            raise DataError(
                f"column {keys.pair!r} has no {name!r} in {len(lacking)} rows, first in {place(lacking[0])}, which has "
                f"{has}; name two of them under data: source and target"
            )
        columns[name] = [cell[name] for cell in table[keys.pair]]
    return table.drop(columns=keys.pair).assign(**columns)


def prepare(frames: Mapping[str, pd.DataFrame], keys: PairKeys) -> None:
    """Put strings in place of the texts of all splits.

    Raises:
        DataError: Texts are missing, empty or no texts; all are counted.
    """
    problems = [
        problem
        for split, table in frames.items()
        for column in (keys.source, keys.target)
        for problem in _problems(split, table, column)
    ]
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. Leave these rows out of the files, or name other columns under data: source and "
            "target"
        )
    for table in frames.values():
        for column in (keys.source, keys.target):
            table[column] = list(map(str, table[column]))


def _problems(split: str, table: pd.DataFrame, column: str) -> Iterator[str]:
    """Yield what is wrong with a column of texts, with the number of rows and the first one."""
    from hpo.data.tables import is_missing, place

    found: dict[str, list[Any]] = {"is empty": [], "is no text": []}
    for row, cell in table[column].items():
        if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
            found["is empty"].append(row)
        elif not isinstance(cell, str | Number):
            found["is no text"].append(row)
    for what, rows in found.items():
        if rows:
            yield f"{split}: column {column!r} {what} in {len(rows)} of {len(table)} rows, first in {place(rows[0])}"


def untranslated(rows: Sequence[Mapping[str, Any]], keys: PairKeys) -> PairSplit:
    """Return rows as pairs whose targets are not known.

    Raises:
        DataError: A source is empty.
    """
    from hpo.data.tables import is_missing

    cells = [row[keys.source] for row in rows]
    empty = [number for number, cell in enumerate(cells, 1) if is_missing(cell) or not str(cell).strip()]
    if empty:
        raise DataError(
            f"the source is empty in {len(empty)} of {len(cells)} rows, first in row {empty[0]}; fill it in"
        )
    return PairSplit(list(map(str, cells)), [""] * len(cells))
