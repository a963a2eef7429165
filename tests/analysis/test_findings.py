from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.analysis.findings import findings
from hpo.storage.snapshot import Results

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


def test_a_published_default_outside_the_range_is_said_to_be_outside() -> None:
    best = trial(0, 0.9)
    best._params = {"x": 1e-6}
    assert "x = 1e-06, below what was searched (1e-05 to 0.001): search lower" in findings(enough(best))[0]


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


def test_what_a_trial_collapsed_to_is_named_where_it_is_known() -> None:
    to = {"collapsed": True, "collapse": "gives every word the tag 'O'"}
    (said,) = findings(enough(trial(0, 0.9, x=1.05e-5, baseline=True, **to)))
    assert "has collapsed: it gives every word the tag 'O'. Do not use it, whatever its accuracy of 0.9 says" in said
    rows = [trial(0, 0.9), *(trial(n, **to) for n in (1, 2))]
    assert any("trials collapsed (each gives every word the tag 'O'): " in said for said in findings(study(*rows)))


def test_a_gain_over_a_default_that_has_collapsed_is_put_in_doubt() -> None:
    (said,) = findings(study(trial(0, 0.5, collapsed=True, baseline=True), *(trial(n, 0.9) for n in range(1, 12))))
    assert "published default (trial 0) has collapsed" in said


# ---------------------------------------------------------------- which way to search

RATES = FloatDistribution(1e-5, 2e-3, log=True)


def of_rates(good: list[float], bad: list[float], best: float = 1e-4, **attrs: Any) -> Results:
    """Return a study of trials that learned, the best one first, and of others that did not."""
    rates = [best, *good, *bad]
    marks: list[dict[str, Any]] = [*({} for _ in (best, *good)), *(dict(attrs) for _ in bad)]
    rows = []
    for n, (rate, marked) in enumerate(zip(rates, marks, strict=True)):
        ended = TrialState.PRUNED if "reason" in marked else TrialState.COMPLETE
        value = 0.9 if n == 0 else 0.6 if not marked else 0.5
        rows.append(trial(n, value, ended, rate, RATES, "learning_rate", **marked))
    return study(*rows)


HIGH, LOW = [4e-4, 5e-4, 6e-4, 7e-4], [2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5, 9e-5]


@pytest.mark.parametrize(
    ("mark", "says"),
    [({"collapsed": True}, "trials collapsed"), ({"reason": "diverged"}, "trials diverged")],
    ids=["collapsed", "diverged"],
)
def test_the_direction_is_that_of_those_that_learned(mark: dict[str, Any], says: str) -> None:
    for good, bad, way, others in ((LOW, HIGH, "lower", "6e-05"), (HIGH * 2, LOW[:4], "higher", "0.0006")):
        best = 1e-4 if way == "lower" else 1e-3
        (said,) = [s for s in findings(of_rates(good, bad, best, **mark)) if says in s]
        assert f"search {way} values" in said
        assert f"that of the others {others}" in said


def test_of_groups_that_do_not_differ_nothing_is_concluded() -> None:
    mixed = of_rates([1e-5, 4e-5, 7e-5, 2e-4], [2e-5, 3e-5, 9e-5, 1.5e-4], collapsed=True)
    (said,) = [s for s in findings(mixed) if "trials collapsed" in s]
    assert "is unknown" in said
    assert "search" in said
    assert not re.search("search (lower|higher)", said)


def test_two_findings_that_point_apart_give_no_direction() -> None:
    """Low rates collapse, and high ones diverge."""
    middle = [1e-4, 1.1e-4, 1.2e-4, 1.3e-4] * 2
    collapsed, diverged = of_rates(middle, LOW, collapsed=True).trials, of_rates([], HIGH, reason="diverged").trials
    for number, row in enumerate(together := (*collapsed, *diverged)):
        row.number = number
    said = findings(study(*together))
    assert sum("the direction to search in is unknown, as another finding points the other way" in s for s in said) == 2
    assert not [s for s in said if re.search("search (lower|higher)", s)]


def test_a_best_trial_beyond_those_that_collapsed_contradicts_their_direction() -> None:
    """Most that learned lie below those that collapsed, and the best far above."""
    (said,) = [s for s in findings(of_rates(LOW, HIGH, 1.64e-3, collapsed=True)) if "trials collapsed" in s]
    assert "the direction to search in is unknown" in said


def test_a_few_that_collapsed_do_not_silence_a_boundary() -> None:
    few = of_rates(LOW * 3, [4e-4, 5e-4, 6e-4], 2e-3, collapsed=True)
    assert not [s for s in findings(few) if "trials collapsed" in s]  # 3 of 28
    assert [s for s in findings(few) if "search higher values" in s]


def test_skewed_labels_are_named_beside_collapse() -> None:
    results = of_rates(LOW, HIGH, collapsed=True)
    for shares, skewed in (({"no": 0.93, "yes": 0.07}, True), ({"no": 0.6, "yes": 0.4}, False), ({}, False)):
        told = Results("s", "maximize", results.trials, {**results.attrs, "label_shares": shares})
        said = [s for s in findings(told) if "skewed" in s]
        assert ["93.0% of the training rows are 'no', 7.0% 'yes'" in s for s in said] == [True] * skewed
    sound = Results("s", "maximize", of_rates(LOW * 2, []).trials, {"label_shares": {"no": 0.93, "yes": 0.07}})
    assert not any("skewed" in s for s in findings(sound))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([1e-5, 2e-5, 1e-4, 1e-3, 2e-3]),
        st.sampled_from([8, 16, 32, 64]),
        st.sampled_from(["learned", "collapsed", "diverged", "out_of_memory", "pruner", "fail"]),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(ROWS, st.sampled_from(["maximize", "minimize"]))
@example([(2e-3, 8, "learned", 9)] + [(1e-5, 8, "learned", 1)] * 8 + [(1e-3, 8, "collapsed", 0)] * 8, "maximize")
@example([(1e-4, 8, "learned", 9)] * 8 + [(1e-5, 8, "collapsed", 0)] * 8 + [(2e-3, 8, "diverged", 0)] * 8, "maximize")
def test_no_two_findings_of_a_study_contradict_each_other(rows: list[tuple[Any, ...]], direction: str) -> None:
    trials = []
    for n, (rate, size, became, value) in enumerate(rows):
        state = {"learned": TrialState.COMPLETE, "collapsed": TrialState.COMPLETE, "fail": TrialState.FAIL}
        attrs = {"collapsed": True} if became == "collapsed" else {} if became == "learned" else {"reason": became}
        made = create_trial(
            state=state.get(became, TrialState.PRUNED),
            value=value / 10 if state.get(became) == TrialState.COMPLETE else None,
            params={"learning_rate": rate, "size": size},
            distributions={"learning_rate": RATES, "size": CategoricalDistribution((8, 16, 32, 64))},
            user_attrs=attrs,
        )
        made.number = n
        trials.append(made)
    said = findings(study(*trials, direction=direction))
    for name in ("learning_rate", "size"):
        ways = {way for s in said if name in s for way in re.findall("(?:search|towards|to) (lower|higher)", s)}
        assert len(ways) < 2
    assert not any("warm-up" in s or "learning rates" in s for s in said)  # advice that is computed from nothing


# ---------------------------------------------------------------- ties, and a default without a value


def test_ties_are_counted_with_how_they_were_decided() -> None:
    rows = [trial(n, ties={"1": "loss", "2": "all"} if n < 3 else {"1": "loss"}) for n in range(12)]
    (said,) = [s for s in findings(study(*rows)) if "ties" in s]
    assert said.startswith("15 decisions of the pruner were ties")
    assert "12 of them were decided by the loss, and in 3 all equal trials went on" in said
    assert not [s for s in findings(study(*(trial(n) for n in range(12)))) if "ties" in s]


@pytest.mark.parametrize(
    ("reason", "config", "words"),
    [
        ("diverged", {}, "fix what ended it (diverged)"),
        ("pruner", {}, "run the study again, which trains it to its end"),
        ("pruner", {"objective": "m:f"}, "begin a new study, in which it is not pruned"),
    ],
)
def test_a_default_without_a_value_is_said(reason: str, config: dict[str, Any], words: str) -> None:
    baseline = trial(0, None, TrialState.PRUNED, baseline=True, reason=reason)
    attrs = {"config": {"metric": "accuracy", **config}}
    results = Results("s", "maximize", (baseline, *(trial(n) for n in range(1, 12))), attrs)
    (said,) = [s for s in findings(results) if "the gain over it is unknown" in s]
    assert words in said
    scored = {"best": {"number": 1}, "baseline": {"number": 0, "score": 0.5}}
    trained_since = Results("s", "maximize", results.trials, {**attrs, "test": scored})
    assert any("the gain over it" in s for s in findings(trained_since)) is (reason == "diverged" or bool(config))
    running = trial(0, None, TrialState.RUNNING, baseline=True)
    assert not [s for s in findings(study(running, *results.trials[1:])) if "the gain over it" in s]
