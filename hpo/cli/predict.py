"""`hpo predict`: texts or the rows of a file through an exported model, or through a study's best trial."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from hpo.analysis.export import chosen, weights_of
from hpo.analysis.predictions import FORMATS, jsonl, write
from hpo.cli.locate_study import results_of
from hpo.config import yaml
from hpo.config.schema import Decoding, GenerateConfig
from hpo.core.errors import DataError, HpoError, StudyError
from hpo.data.keys import DataKeys
from hpo.execution.study_setup import folder_of
from hpo.tasks.registry import reader_of, task_for
from hpo.tasks.task import Task

if TYPE_CHECKING:
    from hpo.finetune.predictor import Predictor

CHUNK = 512  # rows that are tokenised and sorted by length together

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A model on disk, and how its study reads texts.

    Attributes:
        folder: Weights, configuration and tokenizer.
        max_length: Tokens after which a text is cut; None if there is no study.
        precision: As in a study file.
        data: The keys of `data:` by which its study read rows, as plain values.
        generate: How its study generated text, as plain values.
    """

    folder: Path
    max_length: int | None = None
    precision: str = "auto"
    data: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)

    def renamed(self, **columns: str | None) -> Source:
        """Return the same with other columns, those that are not None."""
        given = {key: column for key, column in columns.items() if column is not None}
        return replace(self, data={**self.data, **given})

    @property
    def task(self) -> Task:
        """The task of the model, by its configuration."""
        try:
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
            architecture = str((config.get("architectures") or [""])[0])
            return task_for(architecture, config.get("problem_type"), len(config.get("id2label") or "12"))
        except (OSError, ValueError, AttributeError):  # an error when the model is loaded
            return reader_of(None)

    @property
    def keys(self) -> DataKeys:
        """The keys of `data:` that its task reads."""
        model = self.task.keys
        known = {key: value for key, value in self.data.items() if key in model.model_fields and value is not None}
        try:
            return model.model_validate(known)
        except ValidationError:
            return model()

    @property
    def generation(self) -> GenerateConfig:
        """How text is generated: as in its study, in the way of decoding that was chosen there, or by default."""
        try:
            return GenerateConfig.model_validate({**self.generate, **(self._decoding if self.generate else {})})
        except ValidationError:
            return GenerateConfig()

    @property
    def _decoding(self) -> dict[str, Any]:
        """The way of decoding that the model's own settings name; nothing if there are none."""
        try:
            settings = json.loads((self.folder / "generation_config.json").read_text("utf-8"))
            return {name: settings[name] for name in Decoding._fields}
        except (OSError, ValueError, TypeError, KeyError):
            return {}


def refuse(texts: Sequence[str], file: Path | None, output: Path | None) -> None:
    """Raise an `HpoError` unless there are either texts or a file, and a known format to write."""
    if bool(texts) == (file is not None):
        raise HpoError("name the texts to predict, or a file of rows with --file; one of the two")
    if output is not None and output.suffix.lower() not in FORMATS:
        raise HpoError(
            f"{output}: cannot write {output.suffix or 'a file without an ending'}; use {', '.join(FORMATS)}"
        )
    if file is not None and not file.is_file():
        raise DataError(f"there is no file {file}")
    if output is not None and file is not None and output.resolve() == file.resolve():
        raise HpoError(f"{output} is the file that is read; name another one with -o")


def find(model: str, storage: str | None) -> Source:
    """Return the model of a folder, or of a study its best trial's weights.

    Raises:
        StudyError: The name is neither, no trial has completed, or the weights are missing.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise StudyError(f"folder {model} has no config.json; name one that hpo export wrote, or a study")
        study = folder / "study.yaml"
        return _described(folder, yaml.read(study)[0] if study.is_file() else {})
    results = results_of(model, storage)
    weights = weights_of(results, folder_of(results.name) / "trials", chosen(results, None))
    return _described(weights, results.attrs.get("config", {}))


def _described(folder: Path, study: Mapping[str, Any]) -> Source:
    """Return a folder's model; the settings come from a study file, which may be malformed."""
    data, length, generate = study.get("data"), study.get("max_length"), study.get("generate")
    if isinstance(tasks := study.get("tasks"), Mapping) and isinstance(part := tasks.get(folder.name), Mapping):
        data = part.get("data")
    return Source(
        folder,
        length if isinstance(length, int) else None,
        str(study.get("precision", "auto")),
        data if isinstance(data, Mapping) else {},
        generate if isinstance(generate, Mapping) else {},
    )


def run(source: Source, texts: Sequence[str], file: Path | None, output: Path | None, console: Console) -> str:
    """Predict, and return what to print: the path of the file that was written, or the rows as JSON lines.

    Args:
        source: The model.
        texts: Texts, or pairs one after the other; none if there is a file.
        file: A file of rows.
        output: CSV or JSONL file to write; None returns the rows.
        console: Where a progress bar goes, if it is a terminal.

    Raises:
        HpoError: The rows or the model cannot be read, or the file cannot be written.
    """
    keys = source.keys
    task = source.task
    columns = task.input_columns(keys)
    rows = _given(columns, texts) if file is None else _read(task, keys, file)
    task.unlabelled(rows, keys)  # all rows are checked before the model is loaded
    from hpo.finetune.predictor import Predictor

    predictor = Predictor(source.folder, source.max_length, source.precision, source.generation)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("predicting", total=len(rows))
        predicted: Rows = []
        for found in _predicted(predictor, keys, rows):
            predicted += found
            progress.update(bar, completed=len(predicted))
    if output is None:
        return jsonl(predicted)
    return f"{write(predicted, output)}\n"


def _given(columns: Sequence[str], texts: Sequence[str]) -> Rows:
    count = len(columns)
    if len(texts) % count:
        each = "two texts" if count == 2 else f"{count} texts"
        raise HpoError(
            f"the model reads {' and '.join(columns)}, so give {each} for each answer; these are {len(texts)}"
        )
    return [dict(zip(columns, texts[start : start + count], strict=True)) for start in range(0, len(texts), count)]


def _read(task: Task, keys: DataKeys, file: Path) -> Rows:
    """Return the rows of a file, all their columns."""
    rows = task.input_rows(file, keys)
    if not rows:
        raise DataError(f"{file} has no rows")
    if missing := [column for column in task.input_columns(keys) if column not in rows[0]]:
        step = (
            "Name the columns with --text and --text-pair" if "text" in task.keys.model_fields else "Rename the columns"
        )
        raise DataError(f"{file} has no column {', '.join(map(repr, missing))}; it has {', '.join(rows[0])}. {step}")
    reserved = [name for name in rows[0] if name in task.answer_keys or name.startswith("probability of ")]
    if reserved:
        raise DataError(
            f"{file} has a column {', '.join(map(repr, reserved))}, where predictions go; rename it or leave it out"
        )
    return rows


def _predicted(predictor: Predictor, keys: DataKeys, rows: Rows) -> Iterator[Rows]:
    """Yield the rows with the model's predictions, chunk by chunk."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        yield [row | found for row, found in zip(chunk, predictor(chunk, keys), strict=True)]
