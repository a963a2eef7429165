"""What a metric is: a score of predictions, with its direction, its tasks, and how it is computed on resamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpo.core.types import Direction

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Metric:
    """A score of a model's predictions.

    Attributes:
        score: Predictions for a split -> the score.
        tasks: The tasks for which it is defined, names in `TASKS`.
        direction: Whether more or less is better.
        counts: Predictions for n examples -> what adds up over examples, [n, k]; None if nothing does.
        value: Sums of `counts` over some examples, [k] -> the score of these examples.
        too_few: Sums of `counts` over all examples -> why they are too few to compare models, or None.
        resampled: Predictions -> a function of example numbers -> the score of these examples, as `score` gives it; see
            `hpo.tasks.classification.resampling`.
        needs: Classes that must have enough rows for the score to be reliable: the `positive` one, or `every`.
        aliases: Names of it in other programs, for "did you mean" in an error.
        generated: The tasks for which it is a score of generated text: measured at the end of a trial and on the test
            split, so that it can be a limit or the second metric, and never what a study is searched by.
    """

    score: Callable[[Any], float]
    tasks: tuple[str, ...]
    direction: Direction = "maximize"
    counts: Callable[[Any], Array] | None = None
    value: Callable[[Array], float] = lambda sums: float(sums[0] / sums[1])
    too_few: Callable[[Array], str | None] | None = None
    resampled: Callable[[Any], Callable[[Array], float]] | None = None
    needs: Literal["", "positive", "every"] = ""
    aliases: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()


def summed(
    counts: Callable[[Any], Array],
    value: Callable[[Array], float],
    tasks: tuple[str, ...],
    direction: Direction = "maximize",
    aliases: tuple[str, ...] = (),
    generated: tuple[str, ...] = (),
    too_few: Callable[[Array], str | None] | None = None,
) -> Metric:
    """Return a metric that is a function of counts which add up over examples; arguments as in `Metric`."""

    def score(predictions: Any) -> float:
        return value(counts(predictions).sum(axis=0))

    return Metric(score, tasks, direction, counts, value, too_few, aliases=aliases, generated=generated)
