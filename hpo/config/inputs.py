"""The check that the model, the files and the columns that a study names exist. No rows and no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.config.paths import expand, model_source
from hpo.config.schema import DataConfig
from hpo.core.errors import DataError, ModelError, Problem


def problems(raw: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Return a problem for the model, each file and each column that a study names and that does not exist.

    Names on the Hub are not looked up, as that needs the network. Settings that are not valid are skipped, because
    `checks.validated` reports them.

    Args:
        raw: The study as plain values.
        folder: The study file's folder.
    """
    found: list[Problem] = []
    if isinstance(model := raw.get("model"), str):
        try:
            model_source(model, folder)
        except ModelError as error:
            found.append(Problem(("model",), str(error)))
    if isinstance(checksums := raw.get("checksums", {}), Mapping):
        for name in checksums:
            found += _files(("checksums", str(name)), str(name), folder)[1]
    try:
        data = DataConfig.model_validate(raw.get("data"))
    except ValidationError:
        return found
    return found if data.dataset is not None else found + _data_problems(data, folder)


def _files(place: tuple[str, ...], names: str | list[str], folder: Path) -> tuple[list[Path], list[Problem]]:
    try:
        return expand(names, folder), []
    except DataError as error:
        return [], [Problem(place, str(error))]


def _data_problems(data: DataConfig, folder: Path) -> list[Problem]:
    files: dict[str, list[Path]] = {}
    found: list[Problem] = []
    for split in ("train", "validation", "test"):
        names = getattr(data, split)
        if not isinstance(names, int | float):
            files[split], missing = _files(("data", split), names, folder)
            found += missing
    if not any(files.values()):
        return found  # there is nothing to read, so pandas is not loaded
    from hpo.config import readers  # loads pandas

    dialect = readers.Dialect(data.encoding, data.separator)
    lacking: dict[tuple[str, ...], list[str]] = {}  # place in the study -> a message for each file
    formats = []
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        required = dict(_columns(data, split))
        try:
            formats.append(readers.format_of(path))
            columns = readers.columns_of(path, dialect, set(required.values()))
        except DataError as error:
            found.append(Problem(("data", split), str(error)))
            continue
        for place, column in required.items():
            if column not in columns:
                lacking.setdefault(place, []).append(no_column(str(path), [column], columns))
    for place, messages in lacking.items():
        more = f"; {len(messages) - 1} more of the files lack it" if len(messages) > 1 else ""
        found.append(Problem(place, messages[0] + more))
    return found + _unread_options(data, formats)


def _columns(data: DataConfig, split: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (place in the study, column) of each column that a split must have."""
    yield ("data", "text"), data.text
    if data.text_pair:
        yield ("data", "text_pair"), data.text_pair
    if isinstance(data.label, str):
        yield ("data", "label"), data.label
    else:
        yield from ((("data", "label", str(i)), column) for i, column in enumerate(data.label))
    if data.group:
        yield ("data", "group"), data.group
    if split == "train":
        yield from ((("data", "where", column), column) for column in data.where)


def no_column(where: str, missing: list[str], columns: list[str]) -> str:
    """Return the message that a table lacks columns, with a hint where its separator seems to be wrong."""
    message = f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, columns))}"
    sign = next((sign for sign in (";", "\t", "|", ",") if len(columns) == 1 and sign in columns[0]), None)
    if sign is None:
        return message
    quoted = '"\\t"' if sign == "\t" else f'"{sign}"'
    return f"{message}. Its fields look separated by {quoted}: set data: {{separator: {quoted}}}"


def _unread_options(data: DataConfig, formats: list[Any]) -> list[Problem]:
    """Return a problem for an option that none of the files reads."""
    found = []
    if data.encoding and formats and not any(entry.text for entry in formats):
        found.append(Problem(("data", "encoding"), "is for text files, and there are none; leave it out"))
    if data.separator and formats and not any(entry.delimited for entry in formats):
        found.append(Problem(("data", "separator"), "is for CSV and TSV files, and there are none; leave it out"))
    return found
