from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import scipy.stats

import hpo
from hpo.analysis import plots
from hpo.analysis.tuning_curve import FEWEST
from hpo.analysis.worth import worth_facts, worth_text
from hpo.storage.snapshot import Results, read
from hpo.storage.snapshot_json import finite_json

SPACE = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}


def searched(direction: Any = "maximize", trials: int = 20, **options: Any) -> Results:
    sign = 1 if direction == "maximize" else -1

    def objective(params: dict[str, float]) -> float:
        return sign * (0.9 - (params["x"] - 0.4) ** 2 - (params["y"] - 0.6) ** 2)

    options = {"sampler": "random", "pruner": "none"} | options
    return read(hpo.optimize(objective, SPACE, direction=direction, trials=trials, **options))


def test_a_random_search_is_told_what_twenty_more_trials_may_bring() -> None:
    results = searched()
    gain, possible = worth_text(results)  # no time has passed
    assert gain.startswith("20 more random trials would improve the best value, 0.8")
    assert "with a probability of 50%: by at most 0." in gain
    start = (
        "If near the best the value is quadratic in the 2 numbers that are searched, none of the space is better than "
    )
    assert possible.startswith(start)
    limit = worth_facts(results)["outlook"]["possible"]
    assert results.best is not None
    assert results.best.value is not None
    assert results.best.value <= 0.9 <= limit  # 0.9 is the optimum


def test_what_more_trials_cost_is_their_number_times_the_mean_of_those_before() -> None:
    results = searched(trials=10)
    results.attrs["config"]["objective"] = None  # as of fine-tuning, whose steps are examples
    for number, trial in enumerate(results.trials):
        trial.user_attrs["device_seconds"] = 60.0 + number
        trial.intermediate_values = {1000 + 100 * (number % 2): 0.5}
    _, cost, _ = worth_text(results)
    assert cost == (
        "They would take about 21 min 30 s of device time and 21,000 examples: a random trial has taken "
        "1 min 4 s of device time (1 min 2 s to 1 min 7 s) and 1,050 examples (1,012 to 1,088) on average"
    )
    told = worth_facts(results)["cost"]
    low, high = scipy.stats.t.interval(0.95, 9, 64.5, scipy.stats.sem([60.0 + number for number in range(10)]))
    assert told["seconds"] == pytest.approx({"mean": 64.5, "low": low, "high": high})
    title = plots.tuning_curve(results).layout.xaxis.title.text
    assert title == "random trials (one takes 1,050 examples and 1 min 4 s on average)"


def test_a_minimised_objective_has_the_same_outlook() -> None:
    up, down = worth_facts(searched()), worth_facts(searched("minimize"))
    for name in ("chance", "gain", "mean_gain"):
        assert up["outlook"][name] == down["outlook"][name]
    assert up["outlook"]["possible"] == -down["outlook"]["possible"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sampler": "tpe"}, "trials were drawn by tpe; only independent random draws tell it"),
        ({"sampler": "qmc"}, "trials were drawn by qmc"),
        ({"trials": 5}, "5 random trials have ended, and 10 are needed"),
    ],
)
def test_what_cannot_be_told_is_said(options: dict[str, Any], reason: str) -> None:
    results = searched(**options)
    (text,) = worth_text(results)
    assert text.startswith("Whether more trials are worth it cannot be told: ")
    assert reason in text
    facts = worth_facts(results)
    assert facts["outlook"] is None
    assert reason in facts["untold"]


def test_the_random_start_of_another_sampler_has_a_curve_but_no_outlook() -> None:
    facts = worth_facts(searched(sampler={"name": "tpe", "n_startup_trials": 15}))
    assert facts["draws"]["ended"] == 15
    assert list(facts["curve"]["trials"]) == list(range(1, 16))
    assert facts["outlook"] is None


def test_a_study_that_has_reached_its_target_tells_nothing_of_more_trials() -> None:
    with pytest.warns(UserWarning, match="stop.target"):
        results = searched(trials=60, seed=2, stop={"target": 0.88})
    assert FEWEST <= results.counts["complete"] < 60
    assert worth_facts(results)["untold"].startswith("the study has reached its target")


@pytest.mark.parametrize("stop", [None, "x", {"target": "y"}, []])
def test_a_stop_that_hpo_did_not_write_is_no_target(stop: Any) -> None:
    results = searched()
    attrs = {**results.attrs, "config": {**results.attrs["config"], "stop": stop}}
    assert worth_facts(replace(results, attrs=attrs))["outlook"] is not None


def test_a_study_that_was_pruned_says_so(sample_results: Callable[..., Results]) -> None:
    results = sample_results(60)
    for trial in results.trials:
        if trial.user_attrs.get("reason") == "median":
            trial.user_attrs["reason"] = "pruner"
    text = worth_text(results)[0]
    assert text.startswith("20 more random trials, pruned as these were, would improve the best accuracy, ")
    assert "a probability of at most " in text


def test_facts_are_json_without_infinities() -> None:
    facts = worth_facts(searched())
    assert json.loads(json.dumps(finite_json(facts), allow_nan=False))["curve"]["best"][-1] is None


def test_nothing_is_said_of_a_study_without_a_completed_trial(sample_results: Callable[..., Results]) -> None:
    assert worth_text(sample_results(0)) == []
