"""Two studies of one task on the same data: their best trials on the same test rows, and their tuning curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpo.analysis.bootstrap import intervals, intervals_of_counts
from hpo.analysis.predictions import COUNTS, GROUP
from hpo.analysis.tuning_curve import CONFIDENCE, UntoldError, random_draws, tuning_curve
from hpo.analysis.verdict_text import as_text, difference
from hpo.core.errors import HpoError, StudyError
from hpo.core.formatting import number, plain
from hpo.core.numbers import finite_or_none
from hpo.data.splits import together
from hpo.execution.study_setup import EXPLANATIONS, folder_of
from hpo.storage.snapshot import Results
from hpo.tasks.classification.rereading import PROBABILITY
from hpo.tasks.language.metrics import OF_TOKENS
from hpo.tasks.metrics import METRICS, score
from hpo.tasks.registry import TASKS
from hpo.tasks.task import Predictions, Task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Tested:
    """The best trial of a study on the test split, as its file of predictions has it.

    Attributes:
        rows: What each row says, and what is expected of a model, by column.
        groups: [n] rows with the same number are resampled together; None if the file does not say.
        score: The value of the study's metric.
        outputs: The predictions, or the counts of the metric [n, k].
        labels: Names of the labels of predictions.
    """

    rows: list[dict[str, str]]
    groups: Array | None
    score: float
    outputs: Predictions | Array
    labels: tuple[str, ...] = ()


def compare(first: Results, second: Results) -> dict[str, Any]:
    """Compare two studies that may differ in model, space, sampler and number of trials.

    Returns:
        JSON values: `studies`, each with `name`, `trials` (that have ended), `best`, `validation`, `test`, and `curve`
        (or the reason `untold`); `metric`, `examples`; `compared`: the difference of the test scores, first - second,
        with `low`, `high` and `shown`, or the reason `untold`.

    Raises:
        StudyError: They differ in task, metric, data or tokens, or a best trial has not been scored on the test split.
        HpoError: A file of predictions cannot be read.
    """
    _refuse(first, second)
    one, other = (_tested(results) for results in (first, second))
    if one.rows != other.rows:
        raise StudyError("the files of predictions are of other test rows; run both studies again, which writes them")
    _refuse_other_units(first.metric, one, other)
    return {
        "metric": first.metric,
        "examples": len(one.rows),
        "studies": [_facts(results, tested.score) for results, tested in ((first, one), (second, other))],
        "compared": {"difference": one.score - other.score, **_interval(first, one, other)},
    }


def compared_text(found: Mapping[str, Any]) -> str:
    """Return what `compare` found, in sentences and a table of the tuning curves."""
    metric, studies = found["metric"], found["studies"]
    names = [plain(study["name"]) for study in studies]
    lines = [
        f"{name}: trial {study['best']} is the best of {study['trials']}, {metric} {number(study['validation'])} on "
        f"the validation split, {number(study['test'])} on the test split"
        for name, study in zip(names, studies, strict=True)
    ]
    told = difference(found["compared"], metric, f"the best trial of {names[0]}")
    lines.append(f"On the same {found['examples']} test examples the difference is {told}")
    untold = [f"{name} ({study['untold']})" for name, study in zip(names, studies, strict=True) if study["untold"]]
    if untold:
        return "\n".join([*lines, f"Tuning curves cannot be compared without that of {' and '.join(untold)}"])
    heads = ["random trials", *names]
    title = f"Median of the best {metric} of so many random trials, with the {CONFIDENCE:.0%} band of each curve"
    return "\n".join([*lines, as_text((title, heads, list(_curve_rows(studies))))])


def _curve_rows(studies: Any) -> Iterator[list[str]]:
    """Yield a row for 1, about 2, 4 ... random trials, up to those of the study that has fewer."""
    curves = [study["curve"] for study in studies]
    shared = sorted(set(curves[0]["trials"]) & set(curves[1]["trials"]))
    count = 1
    for trials in shared:
        if trials >= count:
            yield [str(trials), *(_cell(curve, curve["trials"].index(trials)) for curve in curves)]
            count = 2 * trials


def _cell(curve: Mapping[str, Any], place: int) -> str:
    median, worst, best = (curve[name][place] for name in ("median", "worst", "best"))
    return f"{_value(median)} ({_value(worst)} to {_value(best)})"


def _value(value: float | None) -> str:
    return "unknown" if value is None else number(value)


# ---------------------------------------------------------------- what is compared


def _refuse(first: Results, second: Results) -> None:
    """Refuse studies that do not compare.

    Raises:
        StudyError: With everything in which they differ.
    """
    names = f"{first.name!r} and {second.name!r}"
    if custom := [r.name for r in (first, second) if r.attrs.get("config", {}).get("objective") or not r.facts]:
        raise StudyError(f"{' and '.join(custom)} did not fine-tune, and has no test split; compare hpo show of both")
    pairs = {
        "task": (first.facts.get("task"), second.facts.get("task")),
        "metric": (first.metric, second.metric),
        "data": (first.facts.get("data"), second.facts.get("data")),
    }
    if differ := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
        lines = [f"  {key}: {a!r} and {b!r}{EXPLANATIONS.get(key, '')}" for key, (a, b) in differ.items()]
        raise StudyError(f"studies {names} do not compare:\n" + "\n".join(lines))
    if TASKS[str(first.facts.get("task"))].reread is None and METRICS[first.metric].counts is None:
        raise StudyError(
            f"{first.metric} cannot be computed from files of predictions, so studies of several tasks are not "
            "compared on the same test rows; compare hpo show of both"
        )
    if missing := [results.name for results in (first, second) if results.verdict is None]:
        raise StudyError(
            f"the best trial of {' and '.join(missing)} has not been scored on the test split; run it to its end: "
            + "; ".join(f"hpo run {name}" for name in missing)
        )


def _refuse_other_units(metric: str, one: _Tested, other: _Tested) -> None:
    """Refuse means over other units, as those of models whose tokenizers divide the same texts into other tokens.

    Raises:
        StudyError: They are.
    """
    if metric not in OF_TOKENS or not (isinstance(one.outputs, np.ndarray) and isinstance(other.outputs, np.ndarray)):
        return
    if not np.array_equal(one.outputs[:, 1], other.outputs[:, 1]):
        raise StudyError(
            f"{metric} of the two studies does not compare: their models read the same test rows as other tokens or "
            "windows, and it is a mean over these. Compare studies of models with one tokenizer and one max_length, or "
            "by a metric that does not depend on them, as bits_per_byte of causal_lm and seq2seq"
        )


def _interval(results: Results, one: _Tested, other: _Tested) -> dict[str, Any]:
    """Return the paired interval of the difference, or why there is none."""
    if one.groups is None or other.groups is None:
        return {"untold": "the files of predictions lack the groups of the rows", "shown": False}
    if isinstance(one.outputs, np.ndarray) and isinstance(other.outputs, np.ndarray):
        (found,) = intervals_of_counts(results.metric, [one.outputs, other.outputs], one.groups)
    else:
        models: Any = [one.outputs, other.outputs]
        (found,) = intervals(results.metric, models, one.labels, one.groups)
    if isinstance(found, str):
        return {"untold": found, "shown": False}
    return {"low": found[0], "high": found[1], "shown": found[0] > 0 or found[1] < 0}


def _facts(results: Results, test: float) -> dict[str, Any]:
    best = results.best
    assert best is not None  # it has a verdict
    facts = {
        "name": results.name,
        "trials": sum(trial.state.is_finished() for trial in results.trials),
        "best": best.number,
        "validation": best.value,
        "test": test,
        "curve": None,
        "untold": None,
    }
    try:
        curve = tuning_curve(random_draws(results))
    except UntoldError as reason:
        return facts | {"untold": str(reason)}
    names = ("trials", "median", "worst", "best")
    return facts | {"curve": {name: [finite_or_none(value) for value in getattr(curve, name)] for name in names}}


# ---------------------------------------------------------------- files of predictions


def _tested(results: Results) -> _Tested:
    """Read the best trial's predictions of the test split.

    Raises:
        HpoError: The file is missing or damaged, or it is not what was scored.
    """
    assert results.best is not None
    assert results.verdict is not None
    path = folder_of(results.name) / "predictions" / f"trial_{results.best.number}_test.csv"
    again = f"delete it and run hpo run {results.name}, which writes it again"
    try:
        tested = _read(path, results)
    except OSError as error:
        raise HpoError(f"predictions {path} cannot be read ({error.strerror}); {again}") from None
    except (KeyError, ValueError) as error:
        raise HpoError(f"predictions {path} cannot be read ({type(error).__name__}: {error}); {again}") from None
    stored = results.verdict["best"]["score"]
    if not np.isclose(tested.score, stored, rtol=1e-4, atol=1e-6):
        raise HpoError(f"predictions {path} score {tested.score:.6g}, but {stored:.6g} was scored; {again}")
    return tested


def _read(path: Path, results: Results) -> _Tested:
    """Read a file of predictions, as `hpo.analysis.verdict` writes it."""
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    if not table:
        raise ValueError("it has no rows")
    task, metric = TASKS[str(results.facts["task"])], results.metric
    asked = [{key: value for key, value in row.items() if not _is_answer(key, task)} for row in table]
    groups = _groups(table, results)
    if task.reread is not None:
        predictions, labels = task.reread(table)
        return _Tested(asked, groups, score(metric, predictions), predictions, labels)
    counts = np.array([json.loads(row[f"{COUNTS}{metric}"]) for row in table], dtype=float)
    return _Tested(asked, groups, METRICS[metric].value(counts.sum(axis=0)), counts)


def _is_answer(column: str, task: Task) -> bool:
    return column in (*task.answer_keys, GROUP) or column.startswith((PROBABILITY, COUNTS))


def _groups(table: list[dict[str, str]], results: Results) -> Array | None:
    """Return the group of each row; None where a file of a former version lacks them.

    Such files are of texts. Without groups in the data, texts that are equal are a group.
    """
    if GROUP in table[0]:
        return np.array([int(row[GROUP]) for row in table])
    data = results.attrs.get("config", {}).get("data")
    if isinstance(data, Mapping) and data.get("group") is not None:
        return None
    return together([(row["text"], row.get("text_pair")) for row in table])
