"""`hpo predict`: texts or the rows of a file through an exported model, or through a study's best trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from hpo.analysis.export import chosen, weights_of
from hpo.analysis.predictions import FORMATS, jsonl, prediction_rows, write
from hpo.cli.locate_study import results_of
from hpo.config import yaml
from hpo.core.errors import DataError, HpoError, StudyError
from hpo.execution.study_setup import folder_of

if TYPE_CHECKING:
    from hpo.finetune.predictor import Predictor

CHUNK = 512  # rows that are tokenised and sorted by length together

RESERVED = ("predicted", "probability", "probabilities")  # keys of a prediction

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A model on disk, and how its study reads texts.

    Attributes:
        folder: Weights, configuration and tokenizer.
        max_length: Tokens after which a text is cut; None if there is no study.
        precision: As in a study file.
        text: Column of the text.
        text_pair: Column of the second text; None if the model reads one text.
    """

    folder: Path
    max_length: int | None = None
    precision: str = "auto"
    text: str = "text"
    text_pair: str | None = None


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
    data = study.get("data")
    columns = data if isinstance(data, Mapping) else {}
    length, pair = study.get("max_length"), columns.get("text_pair")
    return Source(
        folder,
        length if isinstance(length, int) else None,
        str(study.get("precision", "auto")),
        str(columns.get("text", "text")),
        None if pair is None else str(pair),
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
    rows = _given(source, texts) if file is None else _read(source, file)
    from hpo.finetune.predictor import Predictor

    predictor = Predictor(source.folder, source.max_length, source.precision)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("predicting", total=len(rows))
        predicted: Rows = []
        for found in _predicted(predictor, source, rows):
            predicted += found
            progress.update(bar, completed=len(predicted))
    if output is None:
        return jsonl(predicted)
    return f"{write(predicted, output)}\n"


def _given(source: Source, texts: Sequence[str]) -> Rows:
    if source.text_pair is None:
        return [{source.text: text} for text in texts]
    if len(texts) % 2:
        raise HpoError(f"the model reads pairs, so give two texts for each; these are {len(texts)}")
    return [
        {source.text: first, source.text_pair: second} for first, second in zip(texts[::2], texts[1::2], strict=True)
    ]


def _read(source: Source, file: Path) -> Rows:
    """Return the rows of a file, all their columns, texts as strings."""
    from hpo.config.readers import read_rows
    from hpo.finetune.data.labels import is_missing

    table = read_rows(file)
    wanted = [column for column in (source.text, source.text_pair) if column is not None]
    if missing := [column for column in wanted if column not in table.columns]:
        raise DataError(
            f"{file} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, table.columns))}. "
            "Name the columns with --text and --text-pair"
        )
    if table.empty:
        raise DataError(f"{file} has no rows")
    reserved = [name for name in table.columns if name in RESERVED or str(name).startswith("probability of ")]
    if reserved:
        raise DataError(
            f"{file} has a column {', '.join(map(repr, reserved))}, where predictions go; rename it or leave it out"
        )
    for column in wanted:
        table[column] = ["" if is_missing(text) else str(text) for text in table[column]]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _predicted(predictor: Predictor, source: Source, rows: Rows) -> Iterator[Rows]:
    """Yield the rows with the model's predictions, chunk by chunk."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        pairs = None if source.text_pair is None else [row[source.text_pair] for row in chunk]
        outputs = predictor([row[source.text] for row in chunk], pairs)
        yield [row | found for row, found in zip(chunk, prediction_rows(outputs, predictor.labels), strict=True)]
