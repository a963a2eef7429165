"""The record of a pruner's decisions, and what Optuna's percentile pruners compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.decisions import (
    DECISIONS,
    MOST,
    REASONS,
    Decision,
    Judged,
    decisions_of,
    judged_by,
    went_on,
    with_decision,
)
from hpo.search.pruners import make

NUMBERS = st.one_of(st.none(), st.floats(-9, 9))
JUDGED = st.builds(
    Judged,
    st.sampled_from(Decision),
    NUMBERS,
    st.one_of(st.none(), st.integers(0, 99)),
    NUMBERS,
    st.one_of(st.none(), st.sampled_from(sorted(REASONS))),
)


def trial_with(attr: Any) -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING, user_attrs={} if attr is None else {DECISIONS: attr})


# ---------------------------------------------------------------- what is stored


@given(st.lists(st.tuples(st.integers(1, 10**9), JUDGED), unique_by=lambda each: each[0], max_size=40))
def test_decisions_are_read_as_they_were_taken_the_newest_last(taken: list[tuple[int, Judged]]) -> None:
    trial = trial_with(None)
    for step, judged in taken:
        trial = trial_with(with_decision(trial, step, judged)[DECISIONS])
    assert decisions_of(trial) == taken[-MOST:]
    assert len(trial.user_attrs.get(DECISIONS, [])) <= MOST
    assert [went_on(trial, step) for step, _ in taken[-1:]] == [j.decision is Decision.GO_ON for _, j in taken[-1:]]
    assert not any(went_on(trial, step) for step, _ in taken[:-1])


def test_a_decision_that_is_stored_is_not_stored_again() -> None:
    judged = Judged(Decision.GO_ON, 0.5, 3, 0.4)
    trial = trial_with([[1, "go on", 0.5, 3, 0.4]])
    assert with_decision(trial, 1, judged) == {}
    assert with_decision(trial, 2, judged) == {DECISIONS: [[1, "go on", 0.5, 3, 0.4], [2, "go on", 0.5, 3, 0.4]]}


@pytest.mark.parametrize(
    "row", [5, [], [1], ["a", "go on"], [1, "jump"], [1, "go on", "x"], [1, "go on", 1.0, 2, 3.0, "because"], [1] * 7]
)
def test_rows_of_other_programs_are_left_out(row: Any) -> None:
    assert decisions_of(trial_with([row, [2, "prune"]])) == [(2, Judged(Decision.PRUNE))]
    assert decisions_of(trial_with(row)) == []


# ---------------------------------------------------------------- what a percentile compares


def judged_of(
    pruner: str, arguments: dict[str, Any], completed: Sequence[Sequence[float]], own: Sequence[float]
) -> Any:
    """Return the decision about a trial with the values `own` and what was compared, among completed trials."""
    study = optuna.create_study(direction="maximize", pruner=make(pruner, arguments))
    for curve in completed:
        values = dict(enumerate(curve, 1))
        study.add_trial(create_trial(value=max(curve), intermediate_values=values))
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(own, 1)))
    trial.number = len(completed)
    judged = judged_by(study.pruner, study, trial)
    assert (judged is not None and judged.decision is Decision.PRUNE) == study.pruner.prune(study, trial)
    return judged


CURVES = st.lists(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5), max_size=8)


@given(
    completed=CURVES,
    own=st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5),
    startup=st.integers(0, 4),
    fewest=st.integers(1, 3),
    warmup=st.integers(0, 3),
    percentile=st.sampled_from([10.0, 50.0, 80.0]),
)
def test_a_percentile_prunes_what_is_below_the_value_that_is_stored(
    completed: list[list[float]], own: list[float], startup: int, fewest: int, warmup: int, percentile: float
) -> None:
    arguments = {"n_startup_trials": startup, "n_min_trials": fewest, "n_warmup_steps": warmup}
    found = judged_of("percentile", {**arguments, "percentile": percentile}, completed, own)
    assert found.value == max(own)
    if found.why is None:
        assert found.among == sum(len(curve) >= len(own) for curve in completed) >= fewest
        assert (found.decision is Decision.PRUNE) == (found.value < found.needed)
    else:
        assert (found.decision, found.needed) == (Decision.GO_ON, None)
        assert (found.why == "early") == (len(own) < warmup and len(completed) >= max(1, startup))


def test_the_median_is_that_of_the_completed_trials() -> None:
    found = judged_of("median", {"n_startup_trials": 3}, [[0.1, 0.2], [0.5], [0.9]], [0.4])
    assert found == Judged(Decision.PRUNE, 0.4, 3, 0.5)
    assert judged_of("median", {}, [[0.1, 0.2], [0.5], [0.9]], [0.4]) == Judged(Decision.GO_ON, 0.4, 0, None, "few")


def test_of_pruners_that_cannot_be_asked_the_decision_alone_is_known() -> None:
    assert judged_of("threshold", {"lower": 0.5}, [], [0.4]) == Judged(Decision.PRUNE)
    assert judged_of("patient", {"patience": 1}, [], [0.4]) == Judged(Decision.GO_ON)
    assert judged_of("none", {}, [], [0.4]) is None
