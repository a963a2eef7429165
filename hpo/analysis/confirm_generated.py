"""Generated text in a confirmation: what each run writes for the test split, and its scores over seeds and rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hpo.analysis import decoding
from hpo.config.schema import Decoding
from hpo.execution.confirmation import Configuration, Confirmed
from hpo.storage.snapshot import DECODING, Results
from hpo.tasks.metrics import of_generated_text

if TYPE_CHECKING:
    from hpo.finetune.scorable import OneModelArray, ScorableArray

log = logging.getLogger(__name__)

KEPT = ("name", "mean", "sd", "to_default", "to_best")
"""What is kept of each configuration's comparison by a score of generated text; see `hpo.analysis.confirm`."""


def writes(confirmed: Confirmed) -> bool:
    """Return whether the runs generate text."""
    return confirmed.study.config.generate is not None


def way_of(results: Results, configuration: Configuration, confirmed: Confirmed) -> Decoding | None:
    """Return how the runs of a configuration decode; None if the study generates nothing.

    It is what the verdict chose for the configuration, else for the best trial, else the first way of the study file.
    """
    generate = confirmed.study.config.generate
    if generate is None:
        return None
    numbers = [configuration.trial, results.best.number if results.best else None]
    choices = (results.attrs.get(f"{DECODING}:{number}") for number in numbers)
    return decoding.in_use(generate, next(filter(None, choices), None))


def with_texts(predictions: Any, array: OneModelArray, weights: Path, way: Decoding, path: Path) -> Any:
    """Return a run's predictions for the test split with generated texts, which are stored, and generated once.

    Args:
        predictions: Without texts.
        array: The array of the run's model.
        weights: The run's weights; the way of decoding is written into their settings.
        way: How they decode.
        path: Where the texts are stored.
    """
    array.set_decoding(weights, way)
    key, texts = list(way), None
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: generated again
        stored = json.loads(path.read_text("utf-8"))
        texts = stored["texts"] if stored["decoding"] == key else None
    if texts is None:
        log.info("generating for the test split, %s", decoding.in_words(way._asdict()))
        (texts,) = array.written(weights, "test", np.arange(len(predictions)), [way])
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"decoding": key, "texts": texts}), encoding="utf-8")
    return replace(predictions, generated=texts)


def of_runs(
    results: Results,
    chosen: Sequence[Configuration],
    confirmed: Confirmed,
    compared: Callable[[str], Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the scores of generated text over seeds and rows, as JSON values.

    Args:
        results: The study.
        chosen: The configurations.
        confirmed: Their runs.
        compared: Name of a metric -> what `hpo.analysis.confirm.Comparison.facts` returns of it.

    Returns:
        - `decoding`: name of a configuration -> how it decodes, in words;
        - `metrics`: name of a metric -> for each configuration what `KEPT` names.
    """
    ways = {each.name: way_of(results, each, confirmed) for each in chosen}
    names = of_generated_text(cast("ScorableArray", confirmed.done.array).setup.data.task)
    return {
        "decoding": {name: decoding.in_words(way._asdict()) for name, way in ways.items() if way is not None},
        "metrics": {
            name: [{key: each[key] for key in KEPT} for each in compared(name)["configurations"]] for name in names
        },
    }
