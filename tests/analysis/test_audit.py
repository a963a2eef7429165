"""What an audit tells: counts, an exact bound, and sentences that say no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import beta

from hpo.analysis.audit import at_most, sentences, take_audit
from hpo.execution.audit import AUDITS
from hpo.storage.snapshot import AUDIT, Results, attrs_of


def trial(number: int, value: float | None, state: TrialState = TrialState.COMPLETE, **attrs: Any) -> FrozenTrial:
    made = optuna.create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    return made


def audited(
    number: int, value: float | None = None, state: TrialState = TrialState.COMPLETE, **attrs: Any
) -> FrozenTrial:
    return trial(number, value, state, **{AUDITS: number, **attrs})


def results(pruned: int, direction: Any = "maximize") -> Results:
    values = [0.7, 0.9, 0.8]
    ended = [trial(number, value) for number, value in enumerate(values)]
    out = [trial(3 + n, None, TrialState.PRUNED, reason="pruner") for n in range(pruned)]
    return Results("s", direction, (*ended, *out), {})


def taken(runs: list[FrozenTrial], pruned: int, direction: Any = "maximize") -> dict[str, Any]:
    study = optuna.create_study()
    found = take_audit(study, results(pruned, direction), "s.audit", runs)
    assert attrs_of(study)[AUDIT] == found  # it has the types that readers rely on
    return found


def test_what_is_counted() -> None:
    runs = [audited(3, 0.95), audited(4, 0.75), audited(5, 0.1), audited(6, None, TrialState.PRUNED, reason="diverged")]
    found = taken(runs, 9)
    assert (found["best"], found["best_trial"], found["pruned"], found["completed"]) == (0.9, 1, 9, 3)
    assert (found["beaten"], found["untold"], found["best_audited"]) == (1, 0, 3)
    assert found["passed"] == pytest.approx((3 + 1 + 0) / 3)
    assert found["gain"] == pytest.approx(0.05)
    assert [each["value"] for each in found["audited"]] == [0.95, 0.75, 0.1, None]
    assert found["at_most"] == at_most(9, 4, 1)
    assert found["repeated"] == 4


def test_runs_that_do_not_repeat_the_search_are_counted() -> None:
    searched = results(2)
    for number, value in ((3, 0.5), (4, 0.6)):
        searched.trials[number].intermediate_values = {10: value}
    runs = [audited(3, 0.8), audited(4, 0.8)]
    runs[0].intermediate_values = {10: 0.5, 20: 0.8}
    runs[1].intermediate_values = {10: 0.61, 20: 0.8}
    found = take_audit(optuna.create_study(), searched, "s.audit", runs)
    assert found["repeated"] == 1
    assert any(
        said.startswith("1 of them scored otherwise than when the search pruned them") for said in sentences(found)
    )


def test_lower_is_better_where_it_is_minimized() -> None:
    found = taken([audited(3, 0.6), audited(4, 0.75)], 5, "minimize")
    assert (found["best"], found["beaten"], found["best_audited"]) == (0.7, 1, 3)
    assert found["passed"] == pytest.approx((3 + 2) / 2)
    assert found["gain"] == pytest.approx(0.1)


def test_a_value_equal_to_the_best_does_not_beat_it() -> None:
    assert taken([audited(3, 0.9)], 1)["beaten"] == 0


def test_runs_without_a_value_count_as_better_in_the_bound_unless_they_diverged() -> None:
    failed = [audited(3, None, TrialState.FAIL, reason="ValueError"), audited(4, 0.1)]
    found = taken(failed, 20)
    assert (found["beaten"], found["untold"], found["at_most"]) == (0, 1, at_most(20, 2, 1))
    assert any("1 of them did not complete. Whether they would be better cannot be told" in s for s in sentences(found))
    assert taken([audited(3, None, TrialState.PRUNED, reason="diverged")], 20)["untold"] == 0


@given(st.integers(1, 60), st.data())
def test_the_bound_holds_the_truth_as_often_as_it_says(population: int, data: Any) -> None:
    from scipy.stats import hypergeom

    sample = data.draw(st.integers(1, population))
    truth = data.draw(st.integers(0, population))
    seen = np.arange(max(0, sample - (population - truth)), min(sample, truth) + 1)
    holds = np.array([at_most(population, sample, int(x)) >= truth for x in seen])
    assert hypergeom.pmf(seen, population, truth, sample)[holds].sum() >= 0.95 - 1e-9


@given(st.integers(1, 40), st.data())
def test_the_bound_is_exact_for_all_and_that_of_clopper_and_pearson_for_an_endless_population(
    sample: int, data: Any
) -> None:
    seen = data.draw(st.integers(0, sample))
    assert at_most(sample, sample, seen) == seen
    endless = 1.0 if seen == sample else float(beta.ppf(0.95, seen + 1, sample - seen))
    assert at_most(100_000, sample, seen) / 100_000 == pytest.approx(endless, abs=2e-3)


def test_a_sample_is_told_with_its_bound() -> None:
    texts = sentences(taken([audited(3, 0.85), audited(4, 0.75)], 12))
    assert texts == [
        "Audit of the pruner, when 15 trials had ended: 2 of the 12 trials, drawn at random, that it had ended were "
        "trained to their end. None is better than the best (trial 1, value 0.9); of all 12, at most 8 (67%) would be, "
        "with 95% confidence",
        "In the mean, one of them is better than 1.5 of the 3 trials that the search trained to the end. The best of "
        "them, trial 3, is 0.05 worse than the search's best",
        "What the sampler would have drawn, had it seen these values, cannot be told",
    ]


def test_all_pruned_trials_need_no_bound_and_a_gain_may_be_chance() -> None:
    first, second, _ = sentences(taken([audited(3, 0.95), audited(4, 0.75)], 2))
    assert "all 2 trials that it had ended were trained to their end. 1 is better than the best" in first
    assert "confidence" not in first
    assert second.endswith("trial 3, is 0.05 better than the search's best; of two single runs that may be chance")


def test_nothing_is_said_of_ranks_where_no_run_completed() -> None:
    found = taken([audited(3, None, TrialState.PRUNED, reason="diverged")], 4)
    assert found["passed"] is None
    assert len(sentences(found)) == 2
