"""One look at the test split: the best trial and the published default, and whether their difference is shown."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from hpo.finetune.metrics import METRICS, score
from hpo.finetune.tasks import Outputs
from hpo.results import read

if TYPE_CHECKING:
    from hpo.finetune.array import FineTuneArray

log = logging.getLogger(__name__)

RESAMPLES = 2000
CONFIDENCE = 0.95


def interval(metric: str, best: Outputs, baseline: Outputs, seed: int = 0) -> tuple[float, float]:
    """Return a paired bootstrap interval of score(best) - score(baseline), in the metric's own direction.

    Rows are drawn with replacement, the same for both models, so that what makes a row hard cancels
    (Efron and Tibshirani, 1993, percentile method, `RESAMPLES` resamples, `CONFIDENCE` coverage).

    Args:
        metric: Name in `METRICS`.
        best: Outputs of the one model on n rows.
        baseline: Outputs of the other on the same rows.
        seed: Seeds the resampling.
    """
    log.info("comparing the two on %s resamples of the test rows", f"{RESAMPLES:,}")
    rng, count = np.random.default_rng(seed), len(best.targets)
    samples = (rng.integers(0, count, count) for _ in range(RESAMPLES))
    if (of := METRICS[metric].rows) is not None:
        gains = of(best) - of(baseline)
        differences = [float(gains[rows].mean()) for rows in samples]
    else:
        differences = [score(metric, best.take(rows)) - score(metric, baseline.take(rows)) for rows in samples]
    defined = [difference for difference in differences if math.isfinite(difference)]  # a resample may lack a class
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined or [0.0], [tail, 1 - tail])
    return float(low), float(high)


def judge(study: optuna.Study, array: FineTuneArray, folder: Path) -> dict[str, Any] | None:
    """Score the kept weights on the test split and keep the verdict with the study.

    A verdict is taken once for a best trial: running the study again with nothing new does not look again.

    Args:
        study: A study at rest.
        array: What trained it.
        folder: Folder of the kept weights, one folder a trial.

    Returns:
        `metric`, `examples`, `best` and `baseline` (`number`, `score`), and, where there are two, `difference`,
        `low`, `high`, `confidence` and `shown` (whether the interval leaves out zero); None if no trial
        completed.
    """
    results = read(study)
    best, baseline = results.best, results.baseline
    if best is None or not (folder / str(best.number)).is_dir():
        return None
    before: dict[str, Any] | None = results.attrs.get("test")
    compared = baseline is not None and (folder / str(baseline.number)).is_dir()
    if before is not None and before["best"]["number"] == best.number and (before["baseline"] or not compared):
        return before
    log.info("scoring trial %d, the best, on the test split", best.number)
    outputs = array.outputs_of(folder / str(best.number), "test")
    verdict: dict[str, Any] = {
        "metric": array.metric,
        "examples": len(outputs.targets),
        "best": {"number": best.number, "score": score(array.metric, outputs)},
        "baseline": None,
        "shown": False,
        "confidence": CONFIDENCE,
    }
    if compared:
        assert baseline is not None
        log.info("scoring trial %d, the published default, on the test split", baseline.number)
        other = array.outputs_of(folder / str(baseline.number), "test")
        low, high = (0.0, 0.0) if best.number == baseline.number else interval(array.metric, outputs, other)
        verdict["baseline"] = {"number": baseline.number, "score": score(array.metric, other)}
        verdict["difference"] = verdict["best"]["score"] - verdict["baseline"]["score"]
        verdict |= {"low": low, "high": high, "shown": low > 0 or high < 0}
    study.set_user_attr("test", verdict)
    return verdict


def sentence(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as a sentence; "no difference shown" where the interval includes zero."""
    best, baseline, metric = verdict["best"], verdict["baseline"], verdict["metric"]
    said = f"On {verdict['examples']} test examples, trial {best['number']} scores {best['score']:.4g} ({metric})"
    if baseline is None:
        return f"{said}. There is no published default to compare it with"
    if best["number"] == baseline["number"]:
        return f"{said}. The published default is the best trial: no difference shown"
    better = (verdict["difference"] > 0) == (METRICS[metric].direction == "maximize")
    shown = f"the best trial is {'better' if better else 'worse'}" if verdict["shown"] else "no difference shown"
    return (
        f"{said}; the published default (trial {baseline['number']}) scores {baseline['score']:.4g}. The difference "
        f"is {verdict['difference']:+.4g} ({verdict['low']:+.4g} to {verdict['high']:+.4g}, "
        f"{verdict['confidence']:.0%} confidence): {shown}"
    )
