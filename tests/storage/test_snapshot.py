from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hpo.storage import backends
from hpo.storage.snapshot import STATES, Results, read
from hpo.storage.snapshot_json import study_json, trial_json

FLOAT = optuna.distributions.FloatDistribution(0, 1)


def trial(state: str = "complete", value: float | None = 0.5, **params: float) -> Any:
    return create_trial(
        state=STATES[state],
        value=value,
        params=params,
        distributions=dict.fromkeys(params, FLOAT),
        intermediate_values={20: 0.2, 10: 0.1},
    )


def study(*trials: Any, direction: str = "maximize") -> optuna.Study:
    made = optuna.create_study(study_name="sst2", direction=direction)
    made.add_trials(trials)
    return made


def test_a_snapshot_does_not_follow_the_study() -> None:
    live = study(trial(value=0.5, x=0.1))
    live.set_user_attr("config", {"name": "sst2", "space": {}, "metric": "accuracy"})
    results = read(live)
    live.add_trial(trial(value=0.9, x=0.2))
    live.set_user_attr("config", {"name": "sst2", "space": {}, "metric": "other"})
    assert len(results.trials) == 1
    assert (results.name, results.direction, results.metric) == ("sst2", "maximize", "accuracy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        results.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("url", [None, "sqlite:///{}/a.db", "journal:///{}/a.log"])
def test_a_snapshot_of_a_trial_that_runs_does_not_follow_it(url: str | None, tmp_path: Path) -> None:
    live = optuna.create_study(storage=url and backends.connect(url.format(tmp_path)))
    running = live.ask({"x": FLOAT})
    running.set_user_attr("a", 1)
    running.report(0.5, 1)
    results = read(live)
    (before,) = results.trials
    fields = copy.deepcopy(vars(before))
    running.suggest_float("y", 0, 1)
    running.set_user_attr("a", 2)
    running.report(0.7, 2)
    live.tell(running, 0.7)
    assert read(live).trials[0].state == TrialState.COMPLETE
    assert vars(results.trials[0]) == fields


@hypothesis.given(
    count=st.integers(0, 60), most=st.integers(2, 30), best=st.integers(0, 59), baseline=st.integers(0, 59)
)
def test_a_sample_has_the_best_and_the_default_and_others_of_every_part(
    count: int, most: int, best: int, baseline: int
) -> None:
    rows = [trial(value=float(number == best)) for number in range(count)]
    for number, row in enumerate(rows):
        row.number = number
        row.user_attrs = {"baseline": True} if number == baseline else {}
    results = Results("s", "maximize", tuple(rows), {})
    numbers = [row.number for row in results.sample(results.trials, most)]
    assert len(numbers) == min(count, most)
    assert numbers == sorted(set(numbers))
    assert {n for n in (best, baseline) if n < count and (count > most or n in numbers)} <= set(numbers)
    gaps = [after - before for before, after in itertools.pairwise([-1, *numbers, count])]
    assert max(gaps) <= -(-count // max(most - 2, 1)) + 3


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [
        ("maximize", [0.1, 0.7, 0.7, 0.2], 1),
        ("minimize", [0.3, 0.1, 0.1, 0.2], 1),
        ("maximize", [-0.5, 0.0, -0.1], 1),
        ("minimize", [math.inf, 0.4], 1),
        ("maximize", [], None),
    ],
)
def test_the_best_is_the_first_of_equals_among_finite_values(
    direction: str, values: list[float], best: int | None
) -> None:
    results = read(study(*(trial(value=value) for value in values), direction=direction))
    found = results.best
    assert (None if found is None else found.number) == best


def test_a_duplicate_is_never_the_best_though_it_has_the_lower_number() -> None:
    twin = trial(value=0.9)
    twin.user_attrs = {"duplicate_of": 1}
    results = read(study(twin, trial(value=0.9)))
    assert results.best is not None
    assert results.best.number == 1


def test_only_complete_trials_can_be_the_best() -> None:
    results = read(study(trial("pruned", 0.9), trial("fail", None), trial("running", None), trial(value=0.1)))
    assert results.best is not None
    assert results.best.number == 3
    assert results.counts == {"complete": 1, "pruned": 1, "fail": 1, "running": 1, "waiting": 0}
    assert set(STATES.values()) == set(TrialState)


def test_the_baseline_is_the_trial_marked_so() -> None:
    live = study(trial(value=0.1))
    assert read(live).baseline is None
    live.enqueue_trial({"x": 0.5}, user_attrs={"baseline": True})
    found = read(live).baseline
    assert found is not None
    assert found.number == 1


def test_the_parameters_of_a_trial_include_the_fixed_ones() -> None:
    space = {"parameters": {"x": {"low": 0, "high": 1}, "epochs": 3, "schedule": "linear", "dropout": None}}
    results = Results("s", "maximize", (), {"config": {"space": space}})
    assert results.params(trial(x=0.25)) == {"epochs": 3, "schedule": "linear", "dropout": None, "x": 0.25}
    assert Results("s", "maximize", (), {}).params(trial(x=0.25)) == {"x": 0.25}


def test_a_snapshot_without_a_config_measures_a_value() -> None:
    assert Results("s", "maximize", (), {}).metric == "value"
    assert Results("s", "maximize", (), {"config": {"metric": None}}).metric == "value"


def test_as_an_optuna_study_every_trial_keeps_its_number(sample_results: Callable[..., Results]) -> None:
    results = sample_results()
    again = results.as_study()
    assert again.direction.name.lower() == results.direction
    assert results.best is not None
    assert again.best_trial.params == results.best.params
    assert [(t.number, t.state, t.value) for t in again.trials] == [
        (t.number, t.state, t.value) for t in results.trials
    ]


def test_as_an_optuna_study_trials_may_lie_outside_their_ranges_and_be_some_of_all() -> None:
    rows = [trial(value=float(n), x=n / 2) for n in range(3)]
    for number, row in enumerate(rows):
        row.number = number
    rows[2].params = {"x": 7.0}
    again = Results("s", "maximize", tuple(rows), {}).as_study(rows[1:])
    assert [(t.number, t.params["x"]) for t in again.trials] == [(1, 0.5), (2, 7.0)]
    assert again.best_trial.number == 2
    assert [t.number for t in again.get_trials(states=(TrialState.PRUNED,))] == []


def test_json_has_only_numbers_that_json_allows() -> None:
    live = study(trial("pruned", math.nan, x=0.1), trial(value=math.inf), trial("running", None), trial(value=0.5))
    results = read(live)
    shown = [trial_json(t, curve=True) for t in results.trials]
    json.dumps([shown, study_json(results)], allow_nan=False)
    assert [t["value"] for t in shown] == [None, None, None, 0.5]
    assert shown[0] == {
        "number": 0,
        "state": "PRUNED",
        "value": None,
        "params": {"x": 0.1},
        "user_attrs": {},
        "intermediate_values": {"10": 0.1, "20": 0.2},
    }
    assert list(shown[0]["intermediate_values"]) == ["10", "20"]
    assert "intermediate_values" not in trial_json(results.trials[0])


def test_a_study_as_json_names_its_best() -> None:
    results = read(study(trial(value=0.5, x=0.1)))
    assert study_json(results) == {
        "name": "sst2",
        "direction": "maximize",
        "counts": results.counts,
        "best": trial_json(results.trials[0]),
    }
    assert study_json(read(study()))["best"] is None
