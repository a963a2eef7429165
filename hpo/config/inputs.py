"""Whether the model, the files and the columns that a study names are there, without loading any of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hpo.config.paths import expand, model_source
from hpo.config.schema import DataConfig
from hpo.core.errors import DataError, ModelError, Problem

if TYPE_CHECKING:
    pass


def problems(raw: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Return what a study names and is not there.

    Names on the Hub are not looked up, as that needs the network. Settings that are not well-formed are skipped: the
    check of the settings has said so.

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
        return found  # nothing to read, and pandas need not be loaded
    readers = importlib.import_module("hpo.finetune.data.readers")
    dialect = readers.Dialect(data.encoding, data.separator)
    lacking: dict[tuple[str, ...], list[str]] = {}
    formats = []
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        wanted = dict(_columns(data, split))
        try:
            formats.append(readers.format_of(path))
            columns = readers.columns_of(path, dialect, set(wanted.values()))
        except DataError as error:
            found.append(Problem(("data", split), str(error)))
            continue
        for place, column in wanted.items():
            if column not in columns:
                lacking.setdefault(place, []).append(no_column(str(path), [column], columns))
    for place, said in lacking.items():
        more = f"; {len(said) - 1} more of the files lack it" if len(said) > 1 else ""
        found.append(Problem(place, said[0] + more))
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
    """Return that a table lacks columns, and what to do about it."""
    said = f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, columns))}"
    sign = next((sign for sign in (";", "\t", "|", ",") if len(columns) == 1 and sign in columns[0]), None)
    if sign is None:
        return said
    written = '"\\t"' if sign == "\t" else f'"{sign}"'
    return f"{said}. Its fields look separated by {written}: set data: {{separator: {written}}}"


def _unread_options(data: DataConfig, formats: list[Any]) -> list[Problem]:
    """Return a problem for an option that none of the files reads."""
    found = []
    if data.encoding and formats and not any(entry.text for entry in formats):
        found.append(Problem(("data", "encoding"), "is for text files, and there are none; leave it out"))
    if data.separator and formats and not any(entry.delimited for entry in formats):
        found.append(Problem(("data", "separator"), "is for CSV and TSV files, and there are none; leave it out"))
    return found
