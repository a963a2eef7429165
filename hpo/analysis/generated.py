"""Generated text in the verdict: its scores for two models with paired intervals, and some examples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpo.analysis.bootstrap import CONFIDENCE, intervals
from hpo.core.formatting import number
from hpo.core.seeds import derived_seed
from hpo.tasks.metrics import of_generated_text, score

Array = np.ndarray[Any, Any]

SAMPLES = 10  # examples that are shown
LONGEST = 1000  # characters of a text that are stored


def of_models(models: Sequence[Any], baselines: Mapping[str, Any], groups: Array | None, seed: int) -> dict[str, Any]:
    """Return what two models, or one, have generated for the test split, as JSON values.

    Args:
        models: Predictions of the best trial, and of the published default if it is another one, with generated texts.
        baselines: Name in words -> predictions to compare the best trial's with.
        groups: As in `hpo.analysis.bootstrap.intervals`.
        seed: The study's seed, from which the examples are drawn.

    Returns:
        - `metrics`: name -> `scores` of the models, and of two of them `difference`, with `low` and `high` or `untold`;
        - `baselines`: name in words -> the same as `metrics`, of the best trial and the baseline;
        - `samples`: `row` from 1, `source`, `expected`, and `generated` by each of the models.
    """
    return {
        "metrics": {name: compared(name, models, groups) for name in of_generated_text(models[0].task)},
        "baselines": {
            says: {name: compared(name, (models[0], other), groups) for name in of_generated_text(models[0].task)}
            for says, other in baselines.items()
        },
        "samples": _samples(models, seed),
    }


def without_model(texts: Mapping[str, Sequence[str]], like: Any) -> dict[str, Any]:
    """Return name in words -> predictions whose generated texts were made without a model.

    Args:
        texts: Name in words -> a text for each example.
        like: A model's predictions for the same examples.
    """
    return {says: replace(like, generated=list(made)) for says, made in texts.items()}


def compared(metric: str, models: Sequence[Any], groups: Array | None, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the scores of the models, the difference of two of them, and its interval."""
    scores = [score(metric, model) for model in models]
    if len(models) == 1:
        return {"scores": scores}
    (interval,) = intervals(metric, models, labels, groups)
    ends = {"untold": interval} if isinstance(interval, str) else {"low": interval[0], "high": interval[1]}
    return {"scores": scores, "difference": scores[0] - scores[1], **ends}


def _samples(models: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Return some examples, drawn from the seed, with what each model has generated."""
    count = len(models[0])
    drawn = np.random.default_rng(derived_seed(seed, "samples")).permutation(count)[:SAMPLES]
    return [
        {
            "row": int(row) + 1,
            "source": _cut(models[0].sources[row]),
            "expected": _cut(models[0].expected[row]),
            "generated": [_cut(model.generated[row]) for model in models],
        }
        for row in np.sort(drawn)
    ]


def _cut(text: str) -> str:
    """Return a text, of a long one the beginning and how much is left out."""
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]} [... {left:,} more characters]"


Table = tuple[str, list[str], list[list[str]]]


def tables(look: Mapping[str, Any]) -> list[Table]:
    """Return (title, heads, rows) of the scores of generated text in a look, and of each baseline; nothing if none."""
    found = look.get("generated")
    if not found:
        return []
    examples = look["examples"]
    made = [_table(f"Generated text, on {examples} test examples", found["metrics"], "published default")]
    made += [_table(f"{says}, on the same examples", each, "baseline") for says, each in found["baselines"].items()]
    return made


def _table(title: str, metrics: Mapping[str, Any], other: str) -> Table:
    """Return the scores of the best trial, and of another model if there is one."""
    if len(next(iter(metrics.values()))["scores"]) == 1:
        return title, ["metric", "best trial"], [[name, number(each["scores"][0], 4)] for name, each in metrics.items()]
    rows = [
        [name, *(number(value, 4) for value in each["scores"]), f"{each['difference']:+.4g}", *ends(each)]
        for name, each in metrics.items()
    ]
    heads = ["metric", "best trial", other, "difference", f"{CONFIDENCE:.0%} interval", "best trial is"]
    return f"{title}; each interval by itself, for other test rows", heads, rows


def ends(difference: Mapping[str, Any]) -> tuple[str, str]:
    """Return a difference's interval, and what it shows, in a metric of which more is better."""
    if "untold" in difference:
        return "none", "unknown"
    low, high = difference["low"], difference["high"]
    shown = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
    return f"{low:+.4g} to {high:+.4g}", shown
