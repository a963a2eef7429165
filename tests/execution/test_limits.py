"""Limits and fronts while a study runs: a toy whose feasible part and whose Pareto front are known.

The score of a width w rises up to w = 6 and falls from there; its latency is 10 w. Within a latency of 20, the best is
w = 2, while the best of all is w = 6. The front of score and latency is every width up to 6.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import hpo
from hpo.core.errors import ConfigError
from hpo.search.comparison import Comparison
from hpo.storage.criteria import violation
from hpo.storage.snapshot import read

SPACE = {"width": {"low": 0.1, "high": 10.0}}
WIDTHS = {"width": [1, 2, 3, 4, 5, 6, 7, 8]}
LIMITS = {"latency_ms": {"most": 20}}
SECOND = {"name": "latency_ms", "direction": "minimize"}


def score(width: float) -> float:
    return 6.0 - abs(width - 6.0)


def toy(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
    for step in range(1, 5):
        yield hpo.Evaluation(score(params["width"]) * step / 4, metrics={"latency_ms": 10.0 * params["width"]})


def widths(trials: Any) -> list[float]:
    return [trial.params["width"] for trial in trials]


def test_the_best_trial_is_the_best_within_the_limits_and_the_front_is_the_known_one() -> None:
    study = hpo.optimize(
        toy, WIDTHS, sampler="grid", pruner="none", limits={"latency_ms": {"most": 45}}, second_metric=SECOND
    )
    results = read(study)
    assert results.best is not None
    assert results.best.params == study.best_trial.params == {"width": 4}
    assert widths(results.front) == [4, 3, 2, 1]
    assert sorted(widths(results.within_limits)) == [1, 2, 3, 4]


def test_without_a_limit_the_front_ends_where_the_score_falls() -> None:
    results = read(hpo.optimize(toy, WIDTHS, sampler="grid", pruner="none", second_metric=SECOND))
    assert widths(results.front) == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("sampler", ["tpe", "cross_entropy", "gp"])
def test_a_sampler_with_a_model_learns_from_the_limits(sampler: str) -> None:
    """Uniform draws would have 4 of 20 widths within the limit; without limits, a sampler goes to a width of 6."""
    asked: dict[str, Any] = {"trials": 40 if sampler != "gp" else 16, "sampler": sampler, "pruner": "none"}
    limited = read(hpo.optimize(toy, SPACE, **asked, limits=LIMITS))
    free = read(hpo.optimize(toy, SPACE, **asked))
    within = sum(width <= 2 for width in widths(free.complete))
    assert len(limited.within_limits) > max(1.2 * within, 0.22 * asked["trials"])
    assert limited.best is not None
    assert 1.5 < limited.best.params["width"] <= 2


def test_random_draws_do_not_depend_on_the_limits() -> None:
    asked: dict[str, Any] = {"trials": 8, "sampler": "random", "pruner": "none"}
    assert widths(hpo.optimize(toy, SPACE, **asked, limits=LIMITS).trials) == widths(
        hpo.optimize(toy, SPACE, **asked).trials
    )


@pytest.mark.parametrize("sampler", ["random", "tpe", "cross_entropy"])
@pytest.mark.parametrize("round_size", [None, 8])
def test_a_study_in_parts_is_the_same_as_a_whole_one(sampler: str, round_size: int | None, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"sampler": sampler, "pruner": "asha", "limits": LIMITS, "second_metric": SECOND}
    url = f"sqlite:///{tmp_path}/parts.db"

    def table(study: optuna.Study) -> list[Any]:
        return [(row.params, row.state, row.values, row.constraints) for row in study.trials]

    whole = hpo.optimize(toy, SPACE, trials=24, round_size=round_size, **asked)
    for trials in (3, 11, 24) if round_size is None else (8, 16, 24):
        parts = hpo.optimize(toy, SPACE, trials=trials, storage=url, round_size=round_size, **asked)
    assert table(parts) == table(whole)


# ---------------------------------------------------------------- pruning


def test_a_trial_within_the_limits_is_not_pruned_for_those_beyond_them() -> None:
    """In one round all widths are compared: two of eight go on, which are the two within the limit."""
    asked: dict[str, Any] = {"sampler": "grid", "round_size": 8, "pruner": {"name": "asha", "reduction_factor": 4}}
    limited = hpo.optimize(toy, WIDTHS, **asked, limits=LIMITS)
    free = hpo.optimize(toy, WIDTHS, **asked)
    assert {row.params["width"] for row in limited.trials if row.last_step > 1} == {1, 2}  # type: ignore[operator]
    assert {row.params["width"] for row in free.trials if row.last_step > 1} & {5, 6, 7}  # type: ignore[operator]
    assert limited.best_trial.params == {"width": 2}


def test_the_median_is_that_of_the_trials_within_the_limits() -> None:
    order = [6, 7, 5, 8, 1, 2]

    def study(**limits: Any) -> dict[Any, TrialState]:
        ran = hpo.optimize(
            toy,
            {"parameters": {"width": order}, "configurations": [{"width": width} for width in order]},
            trials=len(order),
            sampler="random",
            pruner={"name": "median", "n_startup_trials": 1},
            **limits,
        )
        return {row.params["width"]: row.state for row in ran.trials}

    assert study()[1] == TrialState.PRUNED
    assert study(limits=LIMITS)[1] == TrialState.COMPLETE


def test_trials_beyond_a_limit_are_ordered_by_how_far() -> None:
    from hpo.storage.criteria import Criteria, Limit
    from hpo.storage.step_metrics import METRICS_AT

    compared = Comparison("maximize", criteria=Criteria((Limit("m", most=1.0),)))
    assert compared.stored({"loss": 0.1, "m": 2.0, "other": 3.0}) == {"loss": 0.1, "m": 2.0}

    def row(value: float, m: float) -> FrozenTrial:
        at = {METRICS_AT: {"m": {"1": m}}}
        return optuna.trial.create_trial(value=value, intermediate_values={1: value}, system_attrs=at)

    rows = [row(0.2, 0.5), row(0.1, 1.0), row(0.8, 1.5), row(0.9, 2.0), row(0.8, 2.0)]
    keys = [compared.curve(each)[1] for each in rows]
    assert keys == sorted(keys)


# ---------------------------------------------------------------- limits that change, and what is missing


def test_limits_may_change_when_a_study_goes_on_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    asked: dict[str, Any] = {"storage": url, "sampler": "grid", "pruner": "none"}
    with pytest.warns(
        UserWarning, match=r"none of 8 completed trials .* nearest is trial \d+, with value 1: latency_ms 10"
    ):
        study = hpo.optimize(toy, WIDTHS, **asked, limits={"latency_ms": {"most": 5}})
    ended = [row.datetime_complete for row in study.trials]
    assert read(study).best is None
    with pytest.raises(ValueError, match="No feasible trials"):
        study.best_trial  # noqa: B018
    study = hpo.optimize(toy, WIDTHS, **asked, limits={"latency_ms": {"most": 30}})
    assert read(study).best.params == {"width": 3}  # type: ignore[union-attr]
    study = hpo.optimize(toy, WIDTHS, **asked)
    assert read(study).best.params == {"width": 6}  # type: ignore[union-attr]
    assert [row.datetime_complete for row in study.trials] == ended


def test_a_study_without_criteria_is_stored_without_constraints_and_opens_unchanged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    study = hpo.optimize(toy, WIDTHS, storage=url, sampler="grid", pruner="none")
    assert not any(row.constraints for row in study.trials)
    older = {key: value for key, value in study.user_attrs["config"].items() if key not in ("limits", "second_metric")}
    study.set_user_attr("config", older)
    before = study.user_attrs
    assert hpo.optimize(toy, WIDTHS, storage=url, sampler="grid", pruner="none").user_attrs == before


def test_an_objective_that_does_not_report_what_is_limited_ends_the_study_and_says_which() -> None:
    def silent(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
        yield hpo.Evaluation(params["width"], metrics={"loss": 1.0})

    def returns(params: Mapping[str, Any]) -> hpo.Evaluation:
        return hpo.Evaluation(params["width"])

    asked: dict[str, Any] = {"trials": 3, "limits": {"size": {"most": 1}}, "second_metric": SECOND}
    for objective, reports in ((silent, "it reports loss"), (returns, "it reports none")):
        with pytest.raises(ConfigError) as raised:
            hpo.optimize(objective, SPACE, **asked)
        said = str(raised.value)
        assert f"limits.size: 'size' is not a metric that the objective reports beside the value ({reports})" in said
        assert "second_metric: 'latency_ms' is not a metric" in said


def test_a_metric_that_is_not_a_finite_number_is_not_within_a_limit() -> None:
    def unsure(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
        yield hpo.Evaluation(params["width"], metrics={"size": float("nan") if params["width"] > 4 else 1.0})

    study = hpo.optimize(
        unsure,
        WIDTHS,
        sampler="grid",
        limits={"size": {"most": 1}},
        second_metric={"name": "size", "direction": "minimize"},
    )
    results = read(study)
    assert results.best is not None
    assert results.best.params == study.best_trial.params == {"width": 4}
    assert results.criteria.beyond(next(row for row in study.trials if row.params["width"] == 5)) == [
        "size unknown (at most 1)"
    ]


def test_the_cost_of_training_is_measured_for_every_objective() -> None:
    results = read(
        hpo.optimize(toy, WIDTHS, sampler="grid", limits={"device_seconds": 60}, second_metric="device_seconds")
    )
    assert len(results.within_limits) == results.counts["complete"]
    assert results.front[0] == results.best
    assert not any(map(violation, results.trials))


def test_a_target_is_reached_and_a_plateau_broken_within_the_limits_only() -> None:
    asked: dict[str, Any] = {"trials": 20, "sampler": "random", "pruner": "none", "stop": {"target": 1.5}}
    with pytest.warns(UserWarning, match="has reached"):
        study = hpo.optimize(toy, SPACE, **asked, limits=LIMITS)
    *before, last = widths(read(study).complete)
    assert 1.5 <= last <= 2
    assert any(width > 2 for width in before)
    assert not any(1.5 <= width <= 2 for width in before)


def test_limits_need_a_space() -> None:
    with pytest.raises(ConfigError, match=r"limits.*needs a space"):
        hpo.optimize(lambda trial: 1.0, limits=LIMITS)


KILLED = """
import os, signal, sys
from pathlib import Path
import hpo

def toy(params):
    for step in range(1, 5):
        score = 6.0 - abs(params["width"] - 6.0)
        yield hpo.Evaluation(score * step / 4, metrics={"latency_ms": 10.0 * params["width"]})
        deaths = Path("deaths")
        count = int(deaths.read_text()) if deaths.exists() else 0
        if step == 2 and KILLS and count < 3 and params["width"] > 3:
            deaths.write_text(str(count + 1))
            os.kill(os.getpid(), signal.SIGKILL)

KILLS = sys.argv[1] != "whole"
hpo.optimize(toy, {"width": {"low": 0.1, "high": 10.0}}, trials=16, sampler="tpe", pruner="asha", name=sys.argv[1],
    storage="sqlite:///a.db", limits={"latency_ms": {"most": 20}},
    second_metric={"name": "latency_ms", "direction": "minimize"}, same_objective=True)
"""


def test_a_study_that_is_killed_three_times_ends_with_the_same_constraints_and_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "killed.py").write_text(KILLED)

    def run(name: str) -> int:
        return subprocess.run([sys.executable, "killed.py", name], check=False, capture_output=True).returncode

    assert [run("parts") for _ in range(4)] == [-9, -9, -9, 0]
    assert run("whole") == 0
    found = {}
    for name in ("parts", "whole"):
        results = read(optuna.load_study(study_name=name, storage="sqlite:///a.db"))
        assert results.best is not None
        table = [(row.params, row.state, row.values, row.constraints) for row in results.trials]
        found[name] = (table, results.best.number, [row.number for row in results.front])
    assert found["parts"] == found["whole"]
