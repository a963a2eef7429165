"""The check that the model, the files and the columns that a study names exist. No rows and no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.config.schema import keys_of
from hpo.core.errors import DataError, ModelError, Problem
from hpo.core.paths import expand, model_source
from hpo.data.keys import DataKeys, Place, no_column
from hpo.tasks.registry import reader_of
from hpo.tasks.task import Task


def problems(raw: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Return a problem for each model, file and column that a study names and that does not exist.

    Names on the Hub are not looked up, as that needs the network. Settings that are not valid are skipped, because
    `values.validated` reports them.

    Args:
        raw: The study as plain values.
        folder: The study file's folder.
    """
    found = _model_problems(raw.get("model"), folder)
    if isinstance(checksums := raw.get("checksums", {}), Mapping):
        for name in checksums:
            found += _files(("checksums", str(name)), str(name), folder)[1]
    return found + [problem for place, part in _studies(raw) for problem in _of_data(place, part, folder)]


def _studies(raw: Mapping[str, Any]) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield (place, mapping with `task` and `data`) of each task of a study."""
    tasks = raw.get("tasks")
    if tasks is None:
        yield (), raw
    elif isinstance(tasks, Mapping):
        yield from ((("tasks", str(name)), part) for name, part in tasks.items() if isinstance(part, Mapping))


def _of_data(place: Place, part: Mapping[str, Any], folder: Path) -> list[Problem]:
    """Return the problems of the data of one task."""
    try:
        data = keys_of(part).model_validate(part.get("data"))
    except ValidationError:
        return []
    if data.dataset is not None:
        return []
    found = _data_problems(reader_of(part.get("task")), data, folder)
    return [Problem((*place, *problem.path), problem.message, problem.line) for problem in found]


def _model_problems(setting: Any, folder: Path) -> list[Problem]:
    """Return a problem for each model that is not there, and for each that another name stands for too."""
    found: list[Problem] = []
    named: dict[str, str] = {}  # source -> the first of its names
    places: list[tuple[tuple[str | int, ...], Any]] = [(("model",), setting)]
    if isinstance(setting, list):
        places = [(("model", number), name) for number, name in enumerate(setting)]
    for place, name in places:
        if not isinstance(name, str):
            continue
        try:
            source = str(Path(model_source(name, folder)).resolve())
        except ModelError as error:
            found.append(Problem(place, str(error)))
            continue
        if (other := named.setdefault(source, name)) != name:
            found.append(Problem(place, f"{name!r} is the same model as {other!r}; name each model once"))
    return found


def _files(place: Place, names: str | list[str], folder: Path) -> tuple[list[Path], list[Problem]]:
    try:
        return expand(names, folder), []
    except DataError as error:
        return [], [Problem(place, str(error))]


def _data_problems(task: Task, data: DataKeys, folder: Path) -> list[Problem]:
    files: dict[str, list[Path]] = {}
    found: list[Problem] = []
    for split in ("train", "validation", "test"):
        names = getattr(data, split)
        if not isinstance(names, int | float):
            files[split], missing = _files(("data", split), names, folder)
            found += missing
    if not any(files.values()):
        return found  # there is nothing to read, so pandas is not loaded
    from hpo.data import readers  # loads pandas

    dialect = readers.Dialect(data.encoding, data.separator)
    lacking: dict[Place, list[str]] = {}  # place in the study -> a message for each file
    formats = []
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        if path.suffix.lower() in task.formats:
            continue
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


def _columns(data: DataKeys, split: str) -> Iterator[tuple[Place, str]]:
    """Yield (place in the study, column) of each column that a split must have."""
    yield from ((("data", *place), column) for place, column in data.columns())
    if split == "train":
        yield from ((("data", "where", column), column) for column in data.where)


def _unread_options(data: DataKeys, formats: list[Any]) -> list[Problem]:
    """Return a problem for an option that none of the files reads."""
    found = []
    if data.encoding and formats and not any(entry.text for entry in formats):
        found.append(Problem(("data", "encoding"), "is for text files, and there are none; leave it out"))
    if data.separator and formats and not any(entry.delimited for entry in formats):
        found.append(Problem(("data", "separator"), "is for CSV and TSV files, and there are none; leave it out"))
    return found
