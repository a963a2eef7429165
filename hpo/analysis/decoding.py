"""The choice of a way of decoding: each is tried on rows of the validation split, with weights that are there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from hpo.config.schema import Decoding, GenerateConfig
from hpo.core.formatting import duration, number
from hpo.storage.snapshot import DECODING, attrs_of
from hpo.tasks.metrics import score

if TYPE_CHECKING:
    from hpo.finetune.scorable import OneModelArray

log = logging.getLogger(__name__)

Choice = Mapping[str, Any]
"""JSON values: `trial`, `metric`, `rows` (of the validation split), `seconds` (of all), `tried`: for each way of
decoding `num_beams`, `length_penalty`, `score` and `seconds`; and `chosen`, one of them."""
Table = tuple[str, list[str], list[list[str]]]


def choice_of(
    study: optuna.Study, array: OneModelArray, trial: int, folder: Path, predictions: Callable[[], Any]
) -> dict[str, Any] | None:
    """Return how a trial's weights decode, chosen on the validation split, and write it into their settings.

    It is chosen once, and stored in the study. Of equal scores, fewer beams are chosen, and of these the first listed.

    Args:
        study: The study.
        array: The array that trained the trial.
        trial: Its number.
        folder: Its weights.
        predictions: Returns its predictions for the validation split.

    Returns:
        None if the study has no choice.
    """
    generate = array.setup.config.generate
    if generate is None or len(generate.decodings) == 1:
        return None
    attribute = f"{DECODING}:{trial}"
    choice: dict[str, Any] | None = attrs_of(study).get(attribute)
    if choice is None:
        choice = _tried(array, generate, trial, folder, predictions())
        study.set_user_attr(attribute, choice)
    array.set_decoding(folder, in_use(generate, choice))
    return choice


def in_use(generate: GenerateConfig, choice: Choice | None) -> Decoding:
    """Return the way of decoding that was chosen; the first of the study file if there was no choice."""
    if choice is None:
        return generate.decodings[0]
    return Decoding(choice["chosen"]["num_beams"], choice["chosen"]["length_penalty"])


def _tried(
    array: OneModelArray, generate: GenerateConfig, trial: int, folder: Path, predictions: Any
) -> dict[str, Any]:
    """Generate for rows of the validation split in every way of decoding, and return the scores."""
    rows = array.setup.sampled("validation")
    known = predictions.take(rows)
    written = array.written(folder, "validation", rows, generate.decodings)
    tried = []
    for decoding in generate.decodings:
        log.info("trial %d generates for %d validation examples, %s", trial, len(rows), in_words(decoding._asdict()))
        began = time.perf_counter()
        value = score(generate.chosen_by, replace(known, generated=next(written)))
        seconds = round(time.perf_counter() - began, 3)
        tried.append({**decoding._asdict(), "score": value, "seconds": seconds})
    return {
        "trial": trial,
        "metric": generate.chosen_by,
        "rows": len(rows),
        "seconds": round(sum(each["seconds"] for each in tried), 3),
        "tried": tried,
        "chosen": max(tried, key=lambda each: (each["score"], -each["num_beams"])),  # of equal ones the first
    }


# ---------------------------------------------------------------- words and tables


def in_words(decoding: Mapping[str, Any]) -> str:
    """Return a way of decoding in words; with one beam no length penalty is read."""
    beams = f"num_beams {decoding['num_beams']}"
    return beams if decoding["num_beams"] == 1 else f"{beams}, length_penalty {decoding['length_penalty']:g}"


def sentences(choices: Iterable[Choice], untuned: bool = False) -> list[str]:
    """Return what was tried, on how many rows, for how long, and what was chosen; a text for each trial.

    Args:
        choices: Those of the best trial and of the published default.
        untuned: Whether a model untuned has generated too.
    """
    texts = []
    for place, choice in enumerate(choices):
        chosen, tried = choice["chosen"], choice["tried"]
        ties = sum(each["score"] == chosen["score"] for each in tried) - 1
        same = f"; {ties} more score{'s' * (ties == 1)} the same" if ties else ""
        also = "; the model untuned decodes in that way too" if untuned and place == 0 else ""
        texts.append(
            f"Trial {choice['trial']} decodes with {in_words(chosen)}: of {len(tried)} ways that were tried on "
            f"{choice['rows']} validation examples, in {duration(choice['seconds'])}, it has the best "
            f"{choice['metric']}, {number(chosen['score'])}, which the choice flatters{same}{also}"
        )
    return texts


def tables(choices: Iterable[Choice]) -> list[Table]:
    """Return (title, heads, rows) of the ways of decoding that were tried for each trial."""
    found = []
    for choice in choices:
        rows = [
            [
                str(each["num_beams"]),
                "-" if each["num_beams"] == 1 else f"{each['length_penalty']:g}",
                number(each["score"]),
                number(each["seconds"], 3),
                "chosen" if each == choice["chosen"] else "",
            ]
            for each in choice["tried"]
        ]
        title = f"Decoding of trial {choice['trial']}, on {choice['rows']} validation examples"
        found.append((title, ["num_beams", "length_penalty", str(choice["metric"]), "seconds", ""], rows))
    return found
