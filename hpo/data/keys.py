"""The keys of `data:` that all tasks have in common: where rows come from, and how they are divided."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from typing import Annotated

from pydantic import Field, field_validator

from hpo.core.settings import Mark, Settings

Files = str | list[str]
Share = Files | float | int
Place = tuple[str, ...]  # of a key in a study file


class DataKeys(Settings):
    """Where the rows come from and how they are divided. Each task adds the keys that say what a row means."""

    dataset: str | None = None
    """Name of a data set on the Hub; `train`, `validation` and `test` then name its splits."""
    subset: str | None = None
    """Configuration of the Hub data set, e.g. `sst2` of `nyu-mll/glue`."""
    train: Files = "train"
    """Files (CSV, TSV, JSON, JSONL, Parquet; `*` allowed) or a split of the Hub data set."""
    validation: Share = 0.1
    """Files or a split, or how much of `train` to set aside: a share below 1 or a number of rows."""
    test: Share = 0.1
    """The same for the test split, which the search never sees."""
    where: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Use only the rows of `train` in which these columns have these values."""
    rows: int | None = Field(default=None, ge=10)
    """Use a seeded sample of this many rows of `train`, before anything is set aside."""
    group: Annotated[str | None, Mark.NEWER] = None
    """Column of groups: rows with the same value are in the same split, and are resampled together."""
    encoding: Annotated[str | None, Mark.NEWER] = None
    """Encoding of text files, e.g. `cp1252`; UTF-8 if empty."""
    separator: Annotated[str | None, Mark.NEWER] = None
    """Separator of the fields of CSV and TSV files, e.g. `;`; if empty, the comma and the tab."""

    def columns(self) -> Iterator[tuple[Place, str]]:
        """Yield (place in `data:`, column) of each column that the rows of every split must have."""
        if self.group:
            yield ("group",), self.group

    def labels(self) -> tuple[str, ...]:
        """Return the columns of labels, whose numbers a data set of the Hub has names for."""
        return ()

    @field_validator("validation", "test")
    @classmethod
    def _share(cls, value: Share) -> Share:
        if isinstance(value, bool) or (isinstance(value, int | float) and value <= 0):
            raise ValueError("must be files, a share between 0 and 1, or a number of rows")
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"a share must be below 1, not {value}; a number of rows is written without a point")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            TextIOWrapper(BytesIO(), encoding=value)
        except (LookupError, ValueError):
            raise ValueError(f"{value!r} is not a text encoding of Python; e.g. cp1252, latin-1, utf-16") from None
        return value

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f'must be one character, e.g. ";" or "\\t" (in double quotes), not {value!r}')
        return value


def no_column(where: str, missing: list[str], columns: list[str]) -> str:
    """Return the message that a table lacks columns, with a hint where its separator seems to be wrong."""
    message = f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, columns))}"
    sign = next((sign for sign in (";", "\t", "|", ",") if len(columns) == 1 and sign in columns[0]), None)
    if sign is None:
        return message
    quoted = '"\\t"' if sign == "\t" else f'"{sign}"'
    return f"{message}. Its fields look separated by {quoted}: set data: {{separator: {quoted}}}"
