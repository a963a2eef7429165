"""Limits, constraints and Pareto fronts of trials."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.storage.criteria import CONSTRAINTS, NO_CRITERIA, UNKNOWN, Criteria, Limit, Second, front, violation
from hpo.storage.snapshot import read
from hpo.storage.step_metrics import METRICS_AT

POINTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda p: (float(p[0]), float(p[1]))), max_size=12
)
LATENCY = Criteria((Limit("latency_ms", most=20.0),))


def trial(value: float | None = 0.5, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    return create_trial(state=state, value=value, user_attrs=attrs)


def measured(value: float, **metrics: float) -> FrozenTrial:
    return trial(value, metrics=metrics)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limit", "value", "excess"),
    [
        (Limit("m", most=20.0), 20.0, 0.0),
        (Limit("m", most=20.0), 30.0, 0.5),
        (Limit("m", most=20.0), 10.0, -0.5),
        (Limit("m", least=0.8), 0.8, 0.0),
        (Limit("m", least=0.8), 0.6, 0.25),
        (Limit("m", least=1.0, most=4.0), 2.0, -0.5),
        (Limit("m", least=1.0, most=4.0), 0.5, 0.5),
        (Limit("m", most=-2.0), -1.0, 0.5),
        (Limit("m", most=0.0), 0.3, 0.3),
        (Limit("m", most=20.0), None, UNKNOWN),
        (Limit("m", most=20.0), math.nan, UNKNOWN),
        (Limit("m", least=20.0), math.inf, UNKNOWN),
    ],
)
def test_the_excess_is_a_share_of_the_limit(limit: Limit, value: float | None, excess: float) -> None:
    assert limit.excess(value) == pytest.approx(excess)


def test_a_trial_is_seen_with_the_constraints_of_the_limits_in_force() -> None:
    given_before = measured(0.5, latency_ms=30.0)
    given_before.set_constraint("of an earlier limit", 3.0)
    seen = LATENCY.seen(given_before)
    assert seen.constraints == {"latency_ms": 0.5}
    assert violation(seen) == 0.5
    assert given_before.constraints == {"of an earlier limit": 3.0}
    assert NO_CRITERIA.seen(given_before).constraints == {}
    waiting = trial(None, TrialState.WAITING)
    assert LATENCY.seen(waiting) is waiting


def test_a_step_is_judged_by_what_was_reported_there_without_costs() -> None:
    criteria = Criteria((*LATENCY.limits, Limit("device_seconds", most=1.0)))
    row = measured(0.5, latency_ms=10.0)
    row.system_attrs = {METRICS_AT: {"latency_ms": {"1": 40.0, "2": 10.0}}}
    assert [violation(criteria.seen_at(row, step)) for step in (1, 2)] == [1.0, 0.0]
    at_end = Criteria(criteria.limits, at_end=("latency_ms",))
    assert [violation(at_end.seen_at(row, step)) for step in (1, 2)] == [0.0, 0.0]
    assert criteria.seen(row).constraints == {"latency_ms": -0.5, "device_seconds": UNKNOWN}


@given(
    limits=st.dictionaries(st.text(max_size=3), st.tuples(st.none() | st.floats(-9, 9), st.floats(-9, 9)), max_size=3),
    second=st.none() | st.builds(Second, st.text(), st.sampled_from(["minimize", "maximize"])),
)
def test_criteria_are_read_as_they_were_stored(limits: dict[str, Any], second: Second | None) -> None:
    criteria = Criteria(tuple(Limit(name, *ends) for name, ends in limits.items()), second)
    assert Criteria.stored(criteria.to_dict()) == criteria


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"limits": None, "second_metric": None},
        {"limits": 3, "second_metric": "latency"},
        {"limits": {"a": "b", "c": {"most": "d"}, "e": {"most": True}, "f": {}}, "second_metric": {"direction": 1}},
    ],
)
def test_what_another_program_wrote_there_is_left_out(config: dict[str, Any]) -> None:
    assert Criteria.stored(config) == NO_CRITERIA


def test_constraints_that_are_not_numbers_count_as_none() -> None:
    row = measured(0.5)
    row.system_attrs = {f"{CONSTRAINTS}a": "x", f"{CONSTRAINTS}b": None, f"{CONSTRAINTS}c": [1]}
    assert violation(row) == 0


# ---------------------------------------------------------------- fronts


@given(POINTS)
def test_the_front_is_what_no_point_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    found = front(list(range(len(points))), lambda index: points[index])
    assert set(found) == {index for index, point in enumerate(points) if not dominated(point)}
    assert found == sorted(found, key=lambda index: (points[index], index))


@given(POINTS, st.sampled_from(["minimize", "maximize"]), st.sampled_from(["minimize", "maximize"]))
def test_the_front_of_trials_is_optunas(points: list[tuple[float, float]], first: Any, second: Any) -> None:
    trials = [measured(value, cost=cost) for value, cost in points]
    for number, row in enumerate(trials):
        row.number = number
    study = optuna.create_study(directions=[first, second])
    study.add_trials([create_trial(values=list(point)) for point in points])
    found = Criteria(second=Second("cost", second)).front(trials, 1 if first == "minimize" else -1)
    assert {row.number for row in found} == {row.number for row in study.best_trials}


def test_what_has_not_measured_the_second_metric_is_not_on_the_front() -> None:
    rows = [measured(0.9), measured(0.5, cost=1.0), measured(0.4, cost=math.nan), measured(0.3, cost=0.5)]
    for number, row in enumerate(rows):
        row.number = number
    assert [row.number for row in Criteria(second=Second("cost", "minimize")).front(rows, -1)] == [1, 3]
    assert NO_CRITERIA.front(rows, -1) == []


# ---------------------------------------------------------------- the best trial of a study


def study(*rows: FrozenTrial, **config: Any) -> optuna.Study:
    made = optuna.create_study(study_name="s", direction="maximize")
    made.set_user_attr("config", {"name": "s", "space": {}, "metric": "accuracy", **config})
    made.add_trials(rows)
    return made


LIMITED = {"limits": {"latency_ms": {"most": 20}}, "second_metric": {"name": "latency_ms", "direction": "minimize"}}


def test_the_best_trial_is_within_the_limits_and_the_front_too() -> None:
    rows = [measured(value, latency_ms=latency) for value, latency in [(0.9, 30), (0.5, 20), (0.4, 5), (0.3, 7)]]
    results = read(study(*rows, **LIMITED))
    assert results.best is not None
    assert (results.best.number, results.nearest) == (1, None)
    assert [row.number for row in results.front] == [1, 2]


def test_of_equal_values_the_one_with_the_better_second_metric_is_the_best() -> None:
    rows = [measured(0.5, latency_ms=9), measured(0.5, latency_ms=5), measured(0.5), measured(0.5, latency_ms=5)]
    results = read(study(*rows, **{**LIMITED, "limits": None}))
    assert [row.number for row in results.ranked] == [1, 3, 0, 2]
    assert [row.number for row in results.front] == [1, 3]


def test_the_nearest_is_shown_where_none_is_within_the_limits() -> None:
    rows = [measured(0.9, latency_ms=60), measured(0.5, latency_ms=25), measured(0.6, latency_ms=25), measured(0.1)]
    results = read(study(*rows, **LIMITED))
    assert (results.best, results.front) == (None, ())
    assert results.nearest is not None
    assert results.nearest.number == 2
    assert results.why_no_best.startswith(
        "none of 4 completed trials is within the limits of s, so none is the best. The nearest is trial 2, with "
        "accuracy 0.6: latency_ms 25 (at most 20)."
    )


def test_the_limits_in_force_count_and_not_those_when_a_trial_ended() -> None:
    row = measured(0.9, latency_ms=25)
    row.set_constraint("latency_ms", 0.25)
    kept = study(row, measured(0.5, latency_ms=5), limits={"latency_ms": {"most": 30}})
    assert read(kept).best.number == 0  # type: ignore[union-attr]
    assert kept.best_trial.number == 1  # Optuna knows the stored constraints only


def test_constraints_of_a_plain_optuna_study_count() -> None:
    row = trial(0.9)
    row.set_constraint("size", 1.0)
    made = optuna.create_study(direction="maximize")
    made.add_trials([row, trial(0.5)])
    assert read(made).best.number == 1  # type: ignore[union-attr]
