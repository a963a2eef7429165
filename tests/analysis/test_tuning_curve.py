"""What is told of trials that have not been run is compared with searches whose further trials are known.

Over 1,000 seeds, with 12, 20, 64 and 150 random trials of each of the scores below (AMD EPYC, 2026-11-28), the band of
the tuning curve held the whole curve in 98.2 to 100 % of the studies, and the gain of 20 more trials was within its
limit in 96.7 to 100 %. Scores that are nearer to the assumption come nearer to 95 %: `test_the_limits_are_exact`.

Of 1,000 studies replayed from 1,024 recorded fine-tuning runs, with 20, 64 and 128 random trials, the gain of 20 more
was within its limit in 98.4 to 100 % without a pruner, and in 99.6 to 100 % with the median pruner or successive
halving. With these pruners the best value was improved less often than the probability that is said, 24 % at 64
trials: in 9 % and 13 % of the studies. So the probability is called a limit where trials were pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.analysis.tuning_curve import (
    FEWEST,
    MORE,
    Draws,
    UntoldError,
    other_samplers,
    outlook,
    random_draws,
    tuning_curve,
)
from hpo.search.samplers import DRAWN_BY, RANDOM
from hpo.storage.snapshot import Results

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)


def draws(scores: Any, limit: float = math.inf, numeric: int = 2, sign: int = 1, pruned: int = 0) -> Draws:
    return Draws(tuple(np.minimum(scores, limit).tolist()), sign, limit, numeric, pruned)


def gain_of(old: Array, new: Array) -> float:
    return max(0.0, float(new.max() - old.max()))


# ---------------------------------------------------------------- coverage

SCORES: dict[str, tuple[Callable[[int], Array], float]] = {
    "accuracy on 200 rows": (
        lambda n: np.round((0.97 - 0.02 * RNG.random(n) ** (2 / 3) + RNG.normal(size=n) * 0.004) * 200) / 200,
        1.0,
    ),
    "almost half collapsed": (
        lambda n: np.where(RNG.random(n) < 0.4, 0.5, np.round(800 - 100 * RNG.random(n) ** (2 / 3)) / 1000),
        1.0,
    ),
    "quadratic with noise": (lambda n: 0.8 - 0.1 * RNG.random(n) + RNG.normal(size=n) * 0.01, math.inf),
    "almost a third without a value": (lambda n: np.where(RNG.random(n) < 0.3, -np.inf, RNG.normal(size=n)), math.inf),
}


@pytest.mark.parametrize("name", SCORES)
def test_band_and_limit_hold_in_at_least_95_percent_of_studies(name: str) -> None:
    draw, limit = SCORES[name]
    trials = tuning_curve(draws(draw(20), limit)).trials
    large = np.sort(np.minimum(draw(200_000), limit))
    true = large[np.ceil(0.5 ** (1 / np.array(trials)) * len(large)).astype(int) - 1]
    studies, in_band, in_limit = 200, 0, 0
    for _ in range(studies):
        made, new = draws(draw(20), limit), np.minimum(draw(MORE), limit)
        curve = tuning_curve(made)
        in_band += bool(np.all(curve.worst <= true + 1e-9) and np.all(true <= np.array(curve.best) + 1e-9))
        in_limit += gain_of(np.array(made.scores), new) <= outlook(made, max(made.scores)).gain + 1e-12
    # A coverage of 95 % gives fewer than 182 of 200 in one of 100 tests.
    assert in_band >= 182
    assert in_limit >= 182


def test_the_limits_are_exact_where_their_assumption_holds_with_equality() -> None:
    studies, count, within, improved, mean_within, room = 4000, 40, 0, 0, 0, 0
    for _ in range(studies):
        scores = RNG.exponential(size=count)
        ahead, gain = outlook(draws(scores), scores.max()), gain_of(scores, RNG.exponential(size=MORE))
        within += gain <= ahead.gain
        improved += gain > 0
        beaten = math.exp(-scores.max())  # the share of trials that are better
        mean_within += sum((1 - (1 - beaten) ** j) / j for j in range(1, MORE + 1)) <= ahead.mean_gain
        squares = -(RNG.random(count) ** (2 / 3))  # quadratic in three hyperparameters, with 0 as the optimum
        room += outlook(draws(squares, numeric=3), squares.max()).possible >= 0
    for held in (within, mean_within, room):
        assert held / studies == pytest.approx(0.95, abs=0.015)
    assert improved / studies == pytest.approx(MORE / (count + MORE), abs=0.03)


def test_a_search_with_successive_halving_keeps_within_its_limit() -> None:
    def searched(count: int) -> Array:
        """Prune at a first evaluation, which has noise, what is not among the better third of the trials so far."""
        final = 0.9 - 0.1 * RNG.random(count)
        first = final + RNG.normal(size=count) * 0.02
        kept = [sum(first[:i] > first[i]) < max(1, (i + 1) // 3) for i in range(count)]
        return np.where(kept, final, -np.inf)

    within, told = 0, 0
    for _ in range(300):
        scores = searched(40 + MORE)
        old, new = scores[:40], scores[40:]
        try:
            ahead = outlook(draws(old, 1.0), old.max())
        except UntoldError:
            continue
        told += 1
        within += gain_of(old, new) <= ahead.gain
    assert told > 250
    assert within / told >= 0.93


# ---------------------------------------------------------------- invariants

VALUES = st.lists(st.integers(0, 1000), min_size=FEWEST, max_size=60).filter(lambda x: len(set(x)) > 1)


@given(VALUES, st.sampled_from([0.5, 2.0, 16.0]), st.integers(-8, 8))
def test_a_metric_in_other_units_has_the_same_outlook_in_those_units(
    values: list[int], scale: float, shift: int
) -> None:
    scores = np.array(values, dtype=float)
    one, other = (outlook(draws(x), x.max()) for x in (scores, scale * scores + shift))
    assert other.gain == pytest.approx(scale * one.gain)
    assert other.mean_gain == pytest.approx(scale * one.mean_gain)
    assert other.possible == pytest.approx(scale * one.possible + shift)


@given(VALUES)
def test_a_minimised_metric_is_a_maximised_one_mirrored(values: list[int]) -> None:
    scores = np.array(values, dtype=float)
    up, down = draws(scores), draws(scores, sign=-1)
    one, other = outlook(up, scores.max()), outlook(down, -scores.max())
    assert (other.gain, other.mean_gain, other.possible) == (one.gain, one.mean_gain, -one.possible)
    assert [-value for value in tuning_curve(down).best] == list(tuning_curve(up).best)


@given(VALUES)
def test_limits_are_ordered_and_bounded(values: list[int]) -> None:
    made = draws(np.array(values, dtype=float), 1000.0)
    best = max(made.scores)
    few, many = outlook(made, best, 5), outlook(made, best, 50)
    assert 0 <= few.gain <= many.gain <= 1000 - best
    assert few.mean_gain <= many.mean_gain
    assert few.chance < many.chance < 1 or best == 1000
    assert best <= few.possible == many.possible <= 1000


@given(VALUES)
def test_a_curve_rises_inside_its_band_and_ends_at_the_best_score(values: list[int]) -> None:
    curve = tuning_curve(draws(np.array(values, dtype=float), 1000.0))
    rows = list(zip(curve.worst, curve.median, curve.best, strict=True))
    assert all(worst <= median <= best for worst, median, best in rows)
    assert all(sorted(column) == list(column) for column in zip(*rows, strict=True))
    assert curve.trials[0] == 1
    assert curve.trials[-1] == len(values)
    assert curve.median[-1] <= max(values)


def test_what_the_best_of_all_trials_is_ahead_of_the_random_ones_is_no_gain() -> None:
    scores = np.linspace(0.5, 0.7, 20)
    alone, ahead = (outlook(draws(scores, 1.0), best) for best in (0.7, 0.72))
    assert ahead.gain == pytest.approx(alone.gain - 0.02)
    assert outlook(draws(scores, 1.0), 0.99).gain == 0


def test_nothing_improves_the_best_possible_score() -> None:
    ahead = outlook(draws([1.0, *np.linspace(0.5, 0.9, 19)], 1.0), 1.0)
    assert (ahead.chance, ahead.gain, ahead.mean_gain, ahead.possible) == (0, 0, 0, 1)


def test_thousands_of_draws_take_no_time_and_make_no_larger_curve() -> None:
    curve = tuning_curve(draws(RNG.random(20_000), 1.0))
    assert len(curve.trials) <= 100
    assert curve.trials[-1] == 20_000
    assert np.isfinite(curve.worst).all()


# ---------------------------------------------------------------- which trials

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-5, 1e-3, log=True),
    "size": IntDistribution(1, 9),
    "kind": CategoricalDistribution(("a", "b")),
    "fixed": IntDistribution(3, 3),
}


def trial(number: int, state: TrialState = TrialState.COMPLETE, **options: Any) -> FrozenTrial:
    space = options.pop("space", SPACE)
    params = {"rate": 1e-5 + number * 1e-6, "size": 2, "kind": "a", "fixed": 3}
    made = create_trial(
        state=state,
        value=float(number) if state == TrialState.COMPLETE else None,
        params={name: params[name] for name in space},
        distributions=space,
        **({"system_attrs": {DRAWN_BY: RANDOM}} | options),
    )
    made.number = number
    return made


def study(*trials: FrozenTrial, direction: Any = "maximize", **config: Any) -> Results:
    return Results("s", direction, trials, {"config": {"metric": "accuracy", **config}})


def test_trials_without_a_value_are_the_worst_draws() -> None:
    pruned = trial(0, TrialState.PRUNED, user_attrs={"reason": "pruner"})
    diverged = trial(1, TrialState.PRUNED, user_attrs={"reason": "diverged"})
    found = random_draws(study(pruned, diverged, trial(2, TrialState.FAIL), *map(trial, range(3, 12))))
    assert found.scores == (*[-math.inf] * 3, *map(float, range(3, 12)))
    assert (found.valued, found.pruned, found.numeric) == (9, 1, 2)


def test_only_draws_count_and_only_before_the_first_that_has_not_ended() -> None:
    published = trial(0, system_attrs={})
    added = trial(1, system_attrs={DRAWN_BY: RANDOM, "fixed_params": {"rate": 1e-4}})
    model = trial(2, system_attrs={DRAWN_BY: "tpe"})
    later = [trial(13, TrialState.RUNNING), trial(14)]
    results = study(published, added, model, *map(trial, range(3, 13)), *later)
    assert random_draws(results).scores == tuple(map(float, range(3, 13)))
    assert other_samplers(results) == ["tpe"]


@pytest.mark.parametrize(
    ("direction", "config", "limit"),
    [
        ("maximize", {}, 1.0),
        ("minimize", {"metric": "loss"}, 0.0),
        ("maximize", {"objective": "m:f", "metric": None}, math.inf),
        ("minimize", {"metric": "seconds"}, math.inf),
    ],
)
def test_the_limit_of_a_metric(direction: str, config: dict[str, Any], limit: float) -> None:
    assert random_draws(study(*map(trial, range(12)), direction=direction, **config)).limit == limit


GRID = {"size": IntDistribution(1, 9)}


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], "no trial says that it was drawn at random"),
        ([trial(i, system_attrs={}) for i in range(20)], "no trial says that it was drawn at random"),
        ([trial(i, system_attrs={DRAWN_BY: "qmc"}) for i in range(20)], "the trials were drawn by qmc"),
        ([trial(0), *(trial(i, system_attrs={DRAWN_BY: "tpe"}) for i in range(1, 20))], "by tpe, all but 1"),
        ([trial(i) for i in range(9)], "9 random trials have ended, and 10 are needed"),
        ([trial(i, space=GRID) for i in range(20)], "the space has finitely many points"),
    ],
)
def test_what_cannot_be_told_has_a_reason(trials: list[FrozenTrial], reason: str) -> None:
    with pytest.raises(UntoldError, match=reason):
        random_draws(study(*trials))


def test_too_few_or_equal_values_tell_nothing() -> None:
    with pytest.raises(UntoldError, match=r"3 of 20 random trials have a value, and 4 are needed \(17 were pruned\)"):
        outlook(draws([1.0, 2.0, 3.0, *[-math.inf] * 17], pruned=17), 3.0)
    with pytest.raises(UntoldError, match="all random trials have the same value"):
        outlook(draws([0.5] * 20), 0.5)
