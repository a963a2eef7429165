from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.findings import findings
from hpo.results import Results

LOG = FloatDistribution(1e-5, 1e-3, log=True)


def trial(
    number: int,
    value: float | None = 0.5,
    state: TrialState = TrialState.COMPLETE,
    x: Any = 1e-4,
    distribution: BaseDistribution = LOG,
    name: str = "x",
    **attrs: Any,
) -> FrozenTrial:
    made = create_trial(
        state=state, value=value, params={name: x}, distributions={name: distribution}, user_attrs=attrs
    )
    made.number = number
    return made


def study(*trials: FrozenTrial, direction: str = "maximize") -> Results:
    return Results("s", direction, trials, {"config": {"metric": "accuracy"}})


def enough(best: FrozenTrial) -> Results:
    """Return a study whose best trial is `best`, with nothing else to warn of."""
    return study(best, *(trial(n, 0.1) for n in range(1, 12)))


def test_a_sound_study_has_no_findings() -> None:
    assert findings(enough(trial(0, 0.9))) == []


@pytest.mark.parametrize(
    ("x", "distribution", "end"),
    [
        (1.05e-5, LOG, "lower"),
        (9.5e-4, LOG, "upper"),
        (3e-5, LOG, None),  # 2 % of the range on a linear scale, but not on its own
        (0.99, FloatDistribution(0.5, 1.0), "upper"),
        (0.52, FloatDistribution(0.5, 1.0), None),
        (5, IntDistribution(2, 5), "upper"),
        (4, IntDistribution(2, 5), None),
        (2, IntDistribution(1, 2), None),
        (16, CategoricalDistribution((64, 16, 32)), "lower"),
        (32, CategoricalDistribution((64, 16, 32)), None),
        (16, CategoricalDistribution((16, 32)), None),
        (True, CategoricalDistribution((False, True)), None),
        ("b", CategoricalDistribution(("a", "b", "c")), None),
        (None, CategoricalDistribution((None, 1, 2, 3)), None),
        (1.0, FloatDistribution(1.0, 1.0), None),
    ],
)
def test_a_best_value_at_a_boundary(x: Any, distribution: BaseDistribution, end: str | None) -> None:
    said = findings(enough(trial(0, 0.9, x=x, distribution=distribution)))
    assert [f"at the {end} end" in sentence for sentence in said] == ([True] if end else [])


def test_a_boundary_is_named_with_its_numbers() -> None:
    (sentence,) = findings(enough(trial(7, 0.9, x=9.9e-4)))
    assert "trial (7) has x = 0.00099" in sentence
    assert "(1e-05 to 0.001)" in sentence
    assert "search higher values" in sentence


def test_a_published_default_outside_the_range_is_at_its_end() -> None:
    best = trial(0, 0.9)
    best._params = {"x": 1e-6}
    assert "at the lower end" in findings(enough(best))[0]


def test_nothing_lies_beyond_a_natural_end() -> None:
    decay = FloatDistribution(0.0, 0.3)
    assert findings(enough(trial(0, 0.9, x=0.0, distribution=decay, name="weight_decay"))) == []
    assert findings(enough(trial(0, 0.9, x=0.0, distribution=decay, name="shift"))) != []


def test_trials_that_ended_early_are_counted() -> None:
    ended = [trial(n, None, TrialState.FAIL) for n in range(20, 23)]
    ended += [trial(n, 0.1, TrialState.PRUNED, reason="diverged") for n in range(23, 25)]
    ended += [trial(25, None, TrialState.PRUNED, reason="out_of_memory"), trial(26, None, TrialState.RUNNING)]
    said = findings(study(*(trial(n) for n in range(14)), *ended))
    assert any(s.startswith("3 of 20 (15%) trials failed") for s in said)
    assert any(s.startswith("2 of 20 (10%) trials diverged") for s in said)
    assert any(s.startswith("1 of 20 (5%) trials ran out of memory") for s in said)


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([], "No trial has completed"),
        ([trial(0, None, TrialState.FAIL)], "1 of 1 (100%) trials failed"),
        ([trial(0)], "Only 1 trial has completed"),
        ([trial(0), trial(1)], "Only 2 trials have completed"),
        ([trial(0), trial(1, duplicate_of=0)], "1 of 2 (50%) trials repeat"),
        ([trial(0, 0.9, collapsed=True), trial(1)], "best trial (0) has collapsed"),
        (
            [trial(0, 0.9), *(trial(n, collapsed=True) for n in (1, 2))],
            "2 of 3 (67%) completed trials collapsed",
        ),
        ([trial(0, 0.9, baseline=True), trial(1)], "default (trial 0) is the best of 2"),
    ],
)
def test_each_finding(trials: list[FrozenTrial], words: str) -> None:
    assert sum(words in sentence for sentence in findings(study(*trials))) == 1


def test_the_direction_decides_which_is_best() -> None:
    trials = [trial(0, 0.9, baseline=True), trial(1, 0.1)]
    assert any("published default" in s for s in findings(study(*trials)))
    assert not any("published default" in s for s in findings(study(*trials, direction="minimize")))


def test_each_is_one_sentence(sample_results: Callable[..., Results]) -> None:
    for count in (0, 1, 5, 30):
        assert all(s.endswith(".") and "\n" not in s for s in findings(sample_results(count)))


def test_a_baseline_that_the_space_moved_is_said(sample_results: Callable[..., Results]) -> None:
    results = sample_results(12)
    assert not [said for said in findings(results) if "is not a choice" in said]
    results.trials[0].user_attrs.update(baseline=True, moved={"batch_size": [32, 16]})
    moved = [said for said in findings(Results("s", "maximize", results.trials, {})) if "is not a choice" in said]
    assert len(moved) == 1
    assert "The published batch_size, 32, is not a choice of the space" in moved[0]
    assert "ran with 16" in moved[0]


def test_of_a_best_trial_that_has_collapsed_nothing_else_is_concluded() -> None:
    (said,) = findings(enough(trial(0, 0.9, x=1.05e-5, collapsed=True, baseline=True)))
    assert "has collapsed" in said


def test_a_gain_over_a_default_that_has_collapsed_is_put_in_doubt() -> None:
    (said,) = findings(study(trial(0, 0.5, collapsed=True, baseline=True), *(trial(n, 0.9) for n in range(1, 12))))
    assert "published default (trial 0) has collapsed" in said
