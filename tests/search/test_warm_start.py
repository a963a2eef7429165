"""What is learned from earlier studies: ranks, weights, priors, and a space that has them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from hpo.search.cross_entropy import NARROWEST, place_of, share_of
from hpo.search.samplers import DRAWN_BY, PRIOR, RANDOM, TrialSeededSampler
from hpo.search.warm_start import BETTER, WarmStart, learn, ranked, stored_in
from hpo.space.parameters import Near, Weights
from hpo.space.parser import parse
from hpo.space.search_space import SearchSpace

SPACE = parse(
    {
        "rate": {"low": 1e-6, "high": 1e-2, "log": True},
        "epochs": {"low": 1, "high": 4},
        "kind": ["a", "b", "c"],
        "depth": {"low": 0.0, "high": 1.0, "step": 0.25, "when": {"kind": "a"}},
        "one": [7],
    }
)
POINTS = st.fixed_dictionaries(
    {
        "rate": st.floats(1e-6, 1e-2),
        "epochs": st.integers(1, 4),
        "kind": st.sampled_from("abc"),
        "depth": st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    }
)


def ended(
    number: int,
    state: TrialState = TrialState.COMPLETE,
    value: float | None = None,
    curve: dict[int, float] | None = None,
    params: dict[str, Any] | None = None,
    **attrs: Any,
) -> FrozenTrial:
    point = params or {}
    distributions = {name: SPACE.parameters[name].distribution() for name in point}
    trial = optuna.create_trial(
        state=state,
        value=value,
        params=point,
        distributions=distributions,
        user_attrs=attrs,
        intermediate_values=curve or {},
    )
    trial.number = number
    return trial


def pruned(number: int, curve: dict[int, float], reason: str = "pruner", **attrs: Any) -> FrozenTrial:
    return ended(number, TrialState.PRUNED, curve=curve, reason=reason, **attrs)


def completed(points: list[dict[str, Any]]) -> list[FrozenTrial]:
    return [ended(number, value=-float(number), params=point) for number, point in enumerate(points)]


def test_only_values_after_equal_training_are_compared() -> None:
    trials = [
        pruned(0, {10: 0.9}),
        pruned(1, {10: 0.5, 20: 0.4}),
        ended(2, value=0.3),
        ended(3, value=0.6),
        pruned(4, {10: 0.1, 20: 0.7}),
        pruned(5, {10: 0.95}, "diverged"),
    ]
    assert [trial.number for trial in ranked(trials, "maximize")] == [3, 2, 4, 1, 0, 5]
    assert [trial.number for trial in ranked(trials, "minimize")] == [2, 3, 1, 4, 0, 5]


def test_trials_that_tell_nothing_are_left_out() -> None:
    trials = [
        ended(0, TrialState.FAIL),
        ended(1, TrialState.WAITING),
        pruned(2, {10: 0.5}, "out_of_memory"),
        pruned(3, {10: 0.5}, "stopped_by_user"),
        ended(4, value=0.9, duplicate_of=5),
        ended(5, value=0.9),
        ended(6, value=math.inf),
    ]
    assert [trial.number for trial in ranked(trials, "maximize")] == [5]


def test_the_published_default_is_ranked_only_where_nothing_is_pruned() -> None:
    default, other = ended(0, value=0.1, baseline=True), ended(1, value=0.2)
    assert [trial.number for trial in ranked([default, other], "maximize")] == [1, 0]
    assert [trial.number for trial in ranked([default, other, pruned(2, {10: 0.3})], "maximize")] == [1, 2]


@given(st.lists(POINTS, min_size=4, max_size=24), st.integers(1, 3))
def test_a_prior_is_one_that_a_study_file_may_have_and_is_never_narrower_than_few_trials_allow(
    points: list[dict[str, Any]], studies: int
) -> None:
    start = learn(SPACE, {str(index): completed(points) for index in range(studies)})
    space = start.applied(SPACE)
    again = parse(space.to_dict())  # checks that means are in the ranges, and so on
    assert again.parameters == space.parameters
    assert "one" not in start.priors
    better = studies * -(-len(points) // BETTER)
    for name in ("rate", "epochs"):
        prior, distribution = start.priors[name], SPACE.parameters[name].distribution()
        assert isinstance(prior, Near)
        share = share_of(distribution, prior.spread)  # type: ignore[arg-type]
        assert max(NARROWEST, (1 / 12 / (better + 1)) ** 0.5) <= share + 1e-9 <= 0.51
    kinds = start.priors["kind"]
    assert isinstance(kinds, Weights)
    assert min(kinds.weights) > 0
    assert sum(kinds.weights) == pytest.approx(
        1 + sum(1 - rank / (better / studies) for rank in range(better // studies)) * studies
    )


@given(st.lists(POINTS, min_size=4, max_size=40), st.floats(0.1, 10), st.floats(-5, 5), st.randoms())
def test_neither_the_scale_of_scores_nor_the_order_of_trials_matters(
    points: list[dict[str, Any]], scale: float, offset: float, random: Any
) -> None:
    trials = completed(points)
    other = [ended(t.number, value=scale * (t.value or 0.0) + offset, params=t.params) for t in trials]
    random.shuffle(other)
    assert learn(SPACE, {"s": ranked(other, "maximize")}) == learn(SPACE, {"s": ranked(trials, "maximize")})


def test_the_mean_is_that_of_the_better_trials_by_weight_on_the_scale_of_the_parameter() -> None:
    points = [{"rate": rate, "epochs": 2, "kind": "a"} for rate in (1e-3, 1e-5, *[1e-6] * 6)]
    start = learn(SPACE, {"s": completed(points)})
    prior = start.priors["rate"]
    assert isinstance(prior, Near)
    assert math.log10(prior.mean) == pytest.approx((-3 * 1 + -5 * 0.5) / 1.5)
    variance = (((-3 + 11 / 3) / 4) ** 2 + 0.5 * ((-5 + 11 / 3) / 4) ** 2 + 1 / 12) / 2.5
    assert math.log10(prior.spread) / 4 == pytest.approx(variance**0.5)
    assert start.priors["kind"] == Weights(weights=[1.5 + 1 / 3, 1 / 3, 1 / 3])
    assert "depth" not in start.priors  # no better trial has it
    assert [(source.ranked, source.better) for source in start.sources] == [(8, 2)]


def test_a_conditional_parameter_is_learned_from_the_trials_that_have_it() -> None:
    points = [{"rate": 1e-4, "kind": "b"}, {"rate": 1e-4, "kind": "a", "depth": 0.75}, *[{"kind": "b"}] * 6]
    prior = learn(SPACE, {"s": completed(points)}).priors["depth"]
    assert isinstance(prior, Near)
    assert place_of(SPACE.parameters["depth"].distribution(), prior.mean) == pytest.approx(0.7)  # of -0.125 to 1.125


def test_the_best_of_each_study_is_tried_first_and_once() -> None:
    points = [{"rate": 1e-4, "epochs": 2, "kind": "b"}] * 4
    space = SearchSpace(SPACE.parameters, configurations=({"epochs": 4},))
    studies = {"a": completed(points), "b": completed([{"rate": 1e-3, "epochs": 1, "kind": "c"}] * 4)}
    start = learn(space, {**studies, "c": completed(points)})
    assert start.asked == ["a", "b", "c"]
    assert list(start.applied(space).configurations) == [points[0], studies["b"][0].params, {"epochs": 4}]


def test_it_is_stored_to_the_bit_and_draws_the_same() -> None:
    random = np.random.default_rng(0)
    points = [{"rate": float(10 ** random.uniform(-6, -2)), "epochs": 3, "kind": "c"} for _ in range(9)]
    start = learn(SPACE, {"s": completed(points)})
    again = stored_in({"warm_start": json.loads(json.dumps(start.model_dump(mode="json")))})
    assert again == start

    def rows(warm: WarmStart) -> list[Any]:
        space = warm.applied(SPACE)
        study = optuna.create_study(sampler=TrialSeededSampler("random", {}, space, 3))
        points = [space.suggest(study.ask()) for _ in range(6)]
        return [(*each, trial.system_attrs[DRAWN_BY]) for *each, trial in zip(points, study.trials, strict=True)]

    assert again is not None
    assert rows(again) == rows(start)
    assert [drawn_by for _, drawn_by in rows(start)] == [PRIOR, RANDOM] * 3


@pytest.mark.parametrize("stored", [{}, {"warm_start": 3}, {"warm_start": {"sources": [], "priors": {"x": {}}}}])
def test_attributes_of_another_form_are_no_warm_start(stored: dict[str, Any]) -> None:
    assert stored_in(stored) is None


def test_the_sentence_says_from_what_it_is() -> None:
    points = [{"rate": 1e-4, "epochs": 2, "kind": "b"}] * 8
    said = learn(SPACE, {"a": completed(points), "b": completed(points[:5])}).sentence()
    assert said.startswith("warm start: learned from the better quarter of a (2 of 8 trials), b (2 of 5 trials)")
    assert "rate near 0.0001 (spread" in said
    assert "kind by weights 0.33 : 3.3 : 0.33" in said
    assert said.endswith("the best configuration of them is tried first")
