"""Is it worth searching on? What random trials tell about trials that have not been run.

The tuning curve is the median of the best score of n random trials, over n. Its band (Lourie et al., 2024,
"Show Your Work with Confidence", arXiv 2311.09480) assumes nothing but independent draws, and therefore tells little
beyond the number of draws there are.

What lies above the best score seen needs an assumption on how the scores fall off from the best. With u the share of
random trials that score better than y, two are made:

- of the gain of further trials: y is a concave function of -log(u), which is the tail of an exponential distribution
  or a lighter one. It holds for a score that is quadratic in the hyperparameters near its optimum (Lourie et al.,
  2025, arXiv 2510.02721), and stays true if normal noise is added, such as that of seeds;
- of the best possible score: y is a concave function of -u^(2/d), with d searched hyperparameters that are numbers. It
  holds for such a quadratic score, and is the interval of de Haan (1981, "Estimation of the minimum of a function
  using order statistics").

Where y is a concave function of x, the step from the best y seen to a better one, divided by the distance between the
best and the (k + 1)-th best, is at most that of x. The quotients of x have a known distribution, so their quantiles
are limits for y, too large ones if y is not linear in x.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.analysis.trial_summary import finite_value
from hpo.search.samplers import DRAWN_BY, RANDOM
from hpo.storage.criteria import DEVICE_SECONDS, violation
from hpo.storage.snapshot import Results
from hpo.tasks.metrics import METRICS

Array = np.ndarray[Any, np.dtype[Any]]

CONFIDENCE = 0.95
MORE = 20  # further trials whose gain is told
FEWEST = 10  # random trials from which on anything is told
EXACT = 100  # draws up to which the narrow band is computed, in 3 s; its time grows with their square
POINTS = 100  # of a curve, at most
SIMULATED = 20_000  # draws of a quotient; the error of its 95 % quantile is about 2 %


class UntoldError(ValueError):
    """The trials of a study do not tell it; the message says why."""


@dataclass(frozen=True)
class Draws:
    """The random trials of a study, up to the first that has not ended.

    A trial without a value (pruned, failed) or beyond a limit is a draw whose score is below all others: that is its
    part in a search with the same pruner and limits. What it would have scored without the pruner is unknown.

    Attributes:
        scores: The score of each trial, by number; higher is better, -inf without a value.
        sign: 1 if the metric is maximised, -1 if it is minimised; values are scores times the sign.
        limit: No score is above it.
        numeric: Searched hyperparameters that are numbers, at least 1.
        pruned: Trials that the pruner ended.
        seconds: The device seconds of each trial, of those that have them.
        examples: How many examples each trial has trained on; none for an objective of one's own.
    """

    scores: tuple[float, ...]
    sign: int
    limit: float
    numeric: int
    pruned: int
    seconds: tuple[float, ...] = ()
    examples: tuple[int, ...] = ()

    @property
    def valued(self) -> int:
        """Trials that have a value."""
        return sum(math.isfinite(score) for score in self.scores)


@dataclass(frozen=True)
class Mean:
    """The mean of something over independent trials, and its t interval for `CONFIDENCE`; None of one trial."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """A tuning curve, in values of the metric. Infinite where nothing is known.

    Attributes:
        trials: Numbers of random trials.
        median: The median of the best value of so many, estimated.
        worst: The end of the band with the worse values.
        best: The end with the better ones. The true curve lies between the two, everywhere, with `CONFIDENCE`.
    """

    trials: tuple[int, ...]
    median: tuple[float, ...]
    worst: tuple[float, ...]
    best: tuple[float, ...]


@dataclass(frozen=True)
class Outlook:
    """What further random trials may bring; every limit is for `CONFIDENCE`, one-sided.

    Attributes:
        more: Number of further trials.
        chance: The probability that one of them scores better than all random trials so far; less with equal scores.
        gain: Most by which they improve the best value.
        mean_gain: Most by which they improve it on average.
        possible: The best value that the space can give, apart from lucky seeds; the limit of the metric if that is
            nearer. Infinite if it is not limited.
    """

    more: int
    chance: float
    gain: float
    mean_gain: float
    possible: float


# ---------------------------------------------------------------- which trials


def random_draws(results: Results) -> Draws:
    """Return the independent random draws of a study.

    Raises:
        UntoldError: There are too few, or the space is finite: then no point is drawn twice.
    """
    drawn = [trial for trial in results.trials if _is_random(trial)]
    ended = list(takewhile(lambda trial: trial.state.is_finished(), drawn))
    if len(ended) < FEWEST:
        raise UntoldError(_too_few(results, len(ended)))
    if not all(any(map(_is_continuous, trial.distributions.values())) for trial in ended):
        raise UntoldError("the space has finitely many points, of which none is drawn twice")
    sign = 1 if results.direction == "maximize" else -1
    own = results.attrs.get("config", {}).get("objective") is not None
    return Draws(
        tuple(_score(trial, sign) for trial in ended),
        sign,
        _limit(results),
        max(1, *(sum(map(_is_numeric, trial.distributions.values())) for trial in ended)),
        sum(trial.state == TrialState.PRUNED and trial.user_attrs.get("reason") == "pruner" for trial in ended),
        tuple(trial.user_attrs[DEVICE_SECONDS] for trial in ended if DEVICE_SECONDS in trial.user_attrs),
        () if own else tuple(trial.last_step for trial in ended if trial.last_step is not None),
    )


def other_samplers(results: Results) -> list[str]:
    """Return the names of the samplers that have drawn trials with a model or from a sequence."""
    named = [trial.system_attrs.get(DRAWN_BY) for trial in results.trials]
    return list(dict.fromkeys(str(name) for name in named if name not in (None, RANDOM)))


def _is_random(trial: FrozenTrial) -> bool:
    return trial.system_attrs.get(DRAWN_BY) == RANDOM and not trial.system_attrs.get("fixed_params")


def _too_few(results: Results, count: int) -> str:
    if not any(DRAWN_BY in trial.system_attrs for trial in results.trials):
        return "no trial says that it was drawn at random"
    if names := other_samplers(results):
        return f"the trials were drawn by {' and '.join(names)}" + (f", all but {count}" if count else "")
    were = "trial has" if count == 1 else "trials have"
    return f"{count} random {were} ended, and {FEWEST} are needed"


def _score(trial: FrozenTrial, sign: int) -> float:
    counts = trial.state == TrialState.COMPLETE and not violation(trial)
    value = finite_value(trial) if counts else None
    return -math.inf if value is None else sign * value


def _limit(results: Results) -> float:
    """Return the best possible score of a metric: 1, or 0 of a loss; that of a custom objective is unknown."""
    config = results.attrs.get("config", {})
    if config.get("objective") is not None or results.metric not in METRICS:
        return math.inf
    return 0.0 if results.direction == "minimize" else 1.0


def _is_continuous(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution) and distribution.step is None and not distribution.single()


def _is_numeric(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, CategoricalDistribution) and not distribution.single()


def mean_of(costs: Sequence[float]) -> Mean | None:
    """Return the mean of a cost of the draws; None if none is known.

    The cost of n more such trials is n times that on average, whatever the costs depend on.
    """
    from scipy.stats import t

    if not costs:
        return None
    mean = float(np.mean(costs))
    if len(costs) == 1:
        return Mean(mean, None, None)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(costs) - 1)) * float(np.std(costs, ddof=1)) / math.sqrt(len(costs))
    return Mean(mean, max(mean - reach, 0.0), mean + reach)


# ---------------------------------------------------------------- the curve


def tuning_curve(draws: Draws) -> Curve:
    """Return the tuning curve of up to as many trials as there are draws, with a simultaneous band.

    Up to `EXACT` draws the band is the one of Learned-Miller and DeStefano (2008), beyond that of Kolmogorov and
    Smirnov, which is wider for many trials and takes no time. Equal scores make both wider than needed.
    """
    from opda.nonparametric import EmpiricalDistribution

    count = len(draws.scores)
    trials = np.unique(np.geomspace(1, count, POINTS).round().astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal scores; see above
        low, middle, high = EmpiricalDistribution.confidence_bands(
            np.array(draws.scores),
            CONFIDENCE,
            b=draws.limit,
            generator=_generator(count),
            method="ld_equal_tailed" if count <= EXACT else "ks",
            n_jobs=1,
        )
    # The lower band of the distribution function is the upper one of its quantiles.
    columns = (distribution.quantile_tuning_curve(trials) for distribution in (middle, high, low))
    return Curve(tuple(trials.tolist()), *(tuple((draws.sign * column).tolist()) for column in columns))


@cache
def _generator(count: int) -> np.random.Generator:
    """Return a generator, the same for the same number of draws: opda caches the band by it."""
    return np.random.default_rng(count)


# ---------------------------------------------------------------- beyond the best score


def outlook(draws: Draws, best: float, more: int = MORE) -> Outlook:
    """Return what further random trials may bring.

    Args:
        draws: The random trials so far.
        best: The best value of the study, of whichever trial.
        more: Number of further trials.

    Raises:
        UntoldError: Too few trials have a value, or all have the same.
    """
    count, rank = len(draws.scores), _rank(draws)
    if draws.valued <= rank:
        raise UntoldError(
            f"{draws.valued} of {count} random trials have a value, and {rank + 1} are needed"
            + (f" ({draws.pruned} were pruned)" if draws.pruned else "")
        )
    scores = sorted(draws.scores, reverse=True)
    step = _step(scores)  # scores that are equal because they are rounded may differ by as much
    spread = scores[0] - scores[rank] + step
    if spread == 0:
        raise UntoldError("all random trials have the same value")
    gain, mean_gain = (quotient * spread + step for quotient in _gains(count, more, rank))
    possible = min(scores[0] + _room(rank, draws.numeric) * spread + step, draws.limit)
    known = draws.sign * best
    room = draws.limit - known
    ahead = known - scores[0]  # of the random trials, where the best trial is not one of them
    return Outlook(
        more,
        more / (count + more) if room > 0 else 0.0,
        min(max(gain - ahead, 0.0), room),
        min(mean_gain, room),
        draws.sign * max(possible, known) if possible < math.inf else draws.sign * math.inf,
    )


def _rank(draws: Draws) -> int:
    """Return k: the spread of the scores is measured from the best to the (k + 1)-th best."""
    return max(3, min(len(draws.scores) // 8, draws.valued // 2))


def _step(scores: Sequence[float]) -> float:
    """Return the smallest difference between scores if some are equal, else 0."""
    finite = [score for score in scores if math.isfinite(score)]
    gaps = np.diff(np.unique(finite))
    gaps = gaps[gaps > 1e-9 * max(map(abs, finite))]  # others are errors of rounding
    return float(gaps.min()) if 0 < len(gaps) < len(finite) - 1 else 0.0


@cache
def _gains(count: int, more: int, rank: int) -> tuple[float, float]:
    """Return the quantiles of the gain and of the mean gain of `more` trials, in spreads of `count` exponential scores.

    Of uniform u, the (k + 1)-th smallest of n is Beta(k + 1, n - k), and the smallest is that times Beta(1, k).
    """
    generator = np.random.default_rng(0)
    threshold = generator.beta(rank + 1, count - rank, SIMULATED)
    ratio = generator.beta(1, rank, SIMULATED)
    best, new = ratio * threshold, generator.beta(1, more, SIMULATED)
    gain = np.maximum(0.0, np.log(best / new))
    # The mean of the gain over the new trials, which is the integral of (1 - (1 - u)^more) / u from 0 to the best.
    mean = sum((1 - (1 - best) ** j) / j for j in range(1, more + 1))
    return _quantile(gain / -np.log(ratio)), _quantile(mean / -np.log(ratio))


def _quantile(values: Array) -> float:
    return float(np.quantile(values, CONFIDENCE))


def _room(rank: int, numeric: int) -> float:
    """Return the quantile of the distance from the best score seen to the optimum, in spreads."""
    ratio = float((1 - (1 - CONFIDENCE) ** (1 / rank)) ** (2 / numeric))
    return ratio / (1 - ratio)
