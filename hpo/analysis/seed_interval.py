"""Intervals over training seeds and test rows: what other runs on other rows of the same kind would give.

S runs of a configuration are scored on the same n rows. Two things vary: the seeds of training, and the rows. This is
the design of S readers who read the same n cases, and its interval is the one of that field (Obuchowski and Rockette,
1995; degrees of freedom of Hillis, 2007): a t interval whose variance is

    var(score of a run) / S  +  max(0, covariance of two runs' scores over resamples of the rows)

The first part has the seeds, and what is of both seed and row. The second has the rows that are hard for every run.
Only the first part is estimated from few numbers, so the degrees of freedom are (S - 1) (variance / first part)^2.

Coverage of the 95 % interval of a difference whose truth is known, in 1,000 simulated confirmations a number, of 300
resamples each, with a standard error of 0.7 % (`python tests/analysis/test_seed_interval.py`):

    | rows | what differs, metric | 3 seeds | 5 seeds | 10 seeds |
    |---|---|---|---|---|
    | 200 | seeds differ most | 93.6% | 94.0% | 95.7% |
    | 200 | rows differ most | 94.3% | 94.5% | 94.9% |
    | 200 | both | 92.3% | 93.6% | 94.9% |
    | 200 | neither | 93.2% | 94.3% | 95.0% |
    | 200 | both, f1_binary | 93.0% | 94.0% | 94.9% |
    | 1000 | seeds differ most | 94.7% | 93.3% | 95.0% |
    | 1000 | rows differ most | 94.1% | 95.3% | 94.1% |
    | 1000 | both | 93.2% | 94.4% | 94.1% |
    | 1000 | neither | 93.2% | 95.1% | 95.5% |
    | 1000 | both, f1_binary | 91.8% | 93.6% | 94.3% |

In such a simulation with accuracy and 5 seeds, a t interval over the seeds alone covers 76 to 98 %, an interval over
the rows alone 20 to 96 %, and a bootstrap of seeds and rows together 89 to 99.5 % (400 confirmations a number).
With 2 seeds the interval of this module covers 86 to 94 %.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpo.analysis.bootstrap import CONFIDENCE, UNDEFINED

Array = np.ndarray[Any, Any]

FEWEST_SEEDS = 3
"""Repetitions below which the interval covers too little, see above."""


def interval(
    scores: Array, resampled: Array | None = None, confidence: float = CONFIDENCE
) -> tuple[float, float] | str:
    """Return the interval of the mean score of a configuration over seeds and rows, or of a mean difference.

    Args:
        scores: [S] score of each run; for a difference, that of the runs of the same repetition.
        resampled: [R, S] the same on R resamples of the rows, the same rows for all runs; NaN where undefined. None if
            there are no rows: the interval is then over seeds alone.
        confidence: Share of intervals that are to hold the truth.

    Returns:
        (low, high) with low < high; or the reason why there is none.
    """
    count = len(scores)
    if count < FEWEST_SEEDS:
        return f"there are {count} runs of each configuration, and it needs {FEWEST_SEEDS}"
    if resampled is not None:
        defined = resampled[np.isfinite(resampled).all(axis=1)]
        if len(defined) < (1 - UNDEFINED) * len(resampled):
            return f"{len(resampled) - len(defined)} of {len(resampled)} resamples of the test rows have no score"
    rows = 0.0 if resampled is None else _covariance(defined)
    return _t_interval(scores, rows, confidence)


def _t_interval(scores: Array, rows: float, confidence: float) -> tuple[float, float] | str:
    """Return the interval for a variance of the rows."""
    import scipy.stats

    count, seeds = len(scores), float(scores.var(ddof=1)) / len(scores)
    variance = seeds + rows
    if math.sqrt(variance) <= 1e-12 * max(1.0, float(abs(scores).max())):
        return "every run gives the same, so the runs do not tell how much others would differ"
    tail = (1 + confidence) / 2
    if seeds <= 1e-12 * variance:
        reach = float(scipy.stats.norm.ppf(tail))
    else:
        reach = float(scipy.stats.t.ppf(tail, (count - 1) * (variance / seeds) ** 2))
    mean, half = float(scores.mean()), reach * math.sqrt(variance)
    return mean - half, mean + half


def _covariance(resampled: Array) -> float:
    """Return the mean covariance of two runs' scores over the resamples, 0 if it is negative."""
    count: int = resampled.shape[1]
    every: Array = np.cov(resampled, rowvar=False)
    between = float(every.sum()) - float(np.trace(every))
    return max(0.0, between / (count * (count - 1)))
