from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from hpo.search.comparison import Comparison
from hpo.search.decisions import TIED, Decision
from hpo.search.halving import EndedKeys, Field, Rungs, every_trial, rungs_of
from hpo.search.pruners import make
from hpo.storage.step_metrics import METRICS_AT

HIGHER, LOWER = Comparison("maximize"), Comparison("minimize")
GO_ON, PRUNE, WAIT = Decision.GO_ON, Decision.PRUNE, Decision.WAIT
STATES = {"R": TrialState.RUNNING, "W": TrialState.WAITING, "P": TrialState.PRUNED, "F": TrialState.FAIL}
X = CategoricalDistribution(tuple(range(-1, 100)))


def decide(trials, number, step, rungs, round_size, compared):
    """Return the decision for a trial after its evaluation at a step."""
    judged = Field(trials, rungs, compared, round_size, number).judge(number, step)
    return Decision.GO_ON if judged is None else judged.decision


def row(number, state, curve, x=None, **attrs):
    """Return a trial. Its parameter is `x`, or its number if that is None; -1 is a trial without parameters."""
    x = number if x is None else x
    made = create_trial(
        state=STATES.get(state, TrialState.COMPLETE),
        value=None if state in STATES else max(curve.values(), default=0.0),
        params={} if x == -1 else {"x": x},
        distributions={} if x == -1 else {"x": X},
        intermediate_values=curve,
        user_attrs=attrs,
    )
    made.number = number
    return made


def rungs(first=1, factor=2, bootstrap=0, in_bracket=lambda row: True):
    return Rungs(first, factor, bootstrap, in_bracket)


def at(*values):
    """Return a curve with one value at each step."""
    return dict(enumerate(values, 1))


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        ({}, []),
        ({1: 0.1}, []),
        ({1: 0.1, 2: 0.2}, [0.2]),
        ({2: 0.2, 3: 0.3, 4: 0.4}, [0.2, 0.4]),
        ({3: 0.3, 5: 0.5}, [0.3, 0.5]),  # the first evaluation at a rung or beyond it
        ({9: 0.9}, [0.9, 0.9, 0.9]),  # an evaluation that skips rungs counts at each
        ({8: 0.8, 2: 0.2}, [0.2, 0.8, 0.8]),
    ],
)
def test_the_values_at_the_rungs_of_a_curve(curve, values):
    assert rungs(first=2).values(curve) == values


ALONE = [row(0, "R", at(0.5))]
REACHED = [row(n, "R", at(value)) for n, value in enumerate((0.4, 0.1, 0.3, 0.2))]


@pytest.mark.parametrize(
    ("what", "rows", "expected"),
    [
        ("a trial alone is promoted", ALONE, [GO_ON]),
        ("waits for a trial of the round that has not reached the rung", [*ALONE, row(1, "R", {})], [WAIT]),
        ("waits for one that has not started", [*ALONE, row(1, "W", {}, -1)], [WAIT]),
        ("does not wait for one that has ended", [*ALONE, row(1, "F", {}), row(2, "P", {})], [GO_ON]),
        ("one that completed after the rung counts", [*ALONE, row(1, "C", at(0.6, 0.1))], [PRUNE]),
        ("one that failed after the rung counts", [*ALONE, row(1, "F", at(0.6))], [PRUNE]),
        ("one that returned to waiting counts with its report", [*ALONE, row(1, "W", at(0.6))], [PRUNE]),
        ("the best half is promoted", REACHED, [GO_ON, PRUNE, GO_ON, PRUNE]),
        ("equal trials are all promoted", [row(n, "R", at(0.5)) for n in range(4)], [GO_ON] * 4),
        (
            "equal second trials are promoted too",
            [row(n, "R", at(v)) for n, v in enumerate((0.9, 0.5, 0.5, 0.4))],
            [GO_ON] * 3 + [PRUNE],
        ),
        ("of three trials one is promoted", REACHED[:3], [GO_ON, PRUNE, PRUNE]),
        ("does not wait for the next round", [*REACHED, row(4, "W", {}, -1)], [GO_ON, PRUNE, GO_ON, PRUNE]),
        (
            "a told duplicate does not count",
            [*REACHED[:3], row(3, "C", at(0.9), 0, duplicate_of=0)],
            [GO_ON, PRUNE, PRUNE],
        ),
        ("does not wait for a duplicate", [*REACHED[:3], row(3, "W", {}, 0)], [GO_ON, PRUNE, PRUNE]),
        (
            "a duplicate whose original failed trains, and counts in its own decision only",
            [row(0, "F", at(0.4)), *REACHED[1:3], row(3, "R", at(0.5), 0)],
            [None, PRUNE, PRUNE, GO_ON],
        ),
        (
            "its original may have failed before the rung",
            [row(0, "F", {}), *REACHED[1:3], row(3, "R", at(0.5), 0)],
            [None, PRUNE, GO_ON, GO_ON],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decisions_at_a_rung(what, rows, expected):
    for number, decision in enumerate(expected):
        if decision is not None:
            assert decide(rows, number, 1, rungs(), 4, HIGHER) is decision, number


def test_with_minimize_lower_values_are_promoted():
    assert [decide(REACHED, n, 1, rungs(), 4, LOWER) for n in range(4)] == [PRUNE, GO_ON, PRUNE, GO_ON]


def test_a_value_between_rungs_decides_nothing():
    rows = [row(0, "R", at(0.1, 0.1, 0.0)), row(1, "R", at(0.0, 0.2))]
    assert decide(rows, 0, 3, rungs(), 2, HIGHER) is GO_ON  # the rung at 2 was decided at step 2
    assert decide(rows, 0, 2, rungs(), 2, HIGHER) is PRUNE
    assert decide(rows, 0, 1, rungs(), 2, HIGHER) is GO_ON  # later reports do not count


def test_an_evaluation_that_skips_rungs_is_decided_at_each():
    best = row(0, "R", {4: 0.5})
    for other, expected in (
        (at(0.4), WAIT),  # has not reached the second rung
        (at(0.6), PRUNE),
        (at(0.4, 0.4), WAIT),
        (at(0.4, 0.6), PRUNE),
        (at(0.4, 0.4, 0.4, 0.4), GO_ON),
    ):
        assert decide([best, row(1, "R", other)], 0, 4, rungs(), 2, HIGHER) is expected


def test_no_trial_is_promoted_from_a_rung_with_at_most_bootstrap_trials():
    assert {decide(REACHED, n, 1, rungs(bootstrap=4), 4, HIGHER) for n in range(4)} == {PRUNE}
    assert decide(REACHED, 0, 1, rungs(bootstrap=3), 4, HIGHER) is GO_ON


def test_earlier_rounds_count_with_their_duplicates_that_trained():
    earlier = [row(0, "P", at(0.8)), row(1, "F", at(0.7), 0), row(2, "C", at(0.9), 5, duplicate_of=0)]
    later = [row(3, "R", at(0.5)), row(4, "R", at(0.6)), row(5, "R", at(0.9))]
    assert [decide([*earlier, *later], n, 1, rungs(), 3, HIGHER) for n in (3, 4, 5)] == [PRUNE, PRUNE, GO_ON]
    assert [decide(later, n, 1, rungs(factor=3), 3, HIGHER) for n in (3, 4, 5)] == [PRUNE, PRUNE, GO_ON]


def test_brackets_decide_and_wait_independently():
    mine = rungs(in_bracket=lambda row: row.number % 2 == 0)
    rows = [row(0, "R", at(0.5)), row(1, "R", {}), row(2, "R", at(0.4)), row(3, "C", at(0.9))]
    assert [decide(rows, n, 1, mine, 4, HIGHER) for n in (0, 2)] == [GO_ON, PRUNE]


# ---------------------------------------------------------------- independence of the order of reports


def simulated(trials, size, factor, bootstrap, brackets, order):
    """Run trials (parameter, curve, whether it fails after it) in rounds; `order` chooses the next one."""
    rows = [row(n, "W", {}, x) for n, (x, _, _) in enumerate(trials)]
    paused = {}

    def decision(number):
        bracket = rungs(
            2 ** brackets[number % len(brackets)], factor, bootstrap, lambda r: share(r) == share(rows[number])
        )
        return decide(rows, number, rows[number].last_step, bracket, size, HIGHER)

    def share(of):
        return brackets[of.number % len(brackets)]

    def end(number, state, **attrs):
        old = rows[number]
        rows[number] = row(number, state, old.intermediate_values, old.params["x"], **attrs)
        paused.pop(number, None)

    for begin in range(0, len(rows), size):
        mates = range(begin, min(begin + size, len(rows)))
        while running := [n for n in mates if not rows[n].state.is_finished()]:
            alike = {n: [m for m in range(n) if rows[m].params == rows[n].params] for n in running}
            free = [n for n in running if all(rows[m].state.is_finished() for m in alike[n])]
            free = [n for n in free if n not in paused or decision(n) is not WAIT]
            assert free, "all trials wait"
            number = order.choice(free)
            told = [m for m in alike[number] if rows[m].state != TrialState.FAIL]
            _, curve, fails = trials[number]
            if told:
                end(number, "C" if rows[told[0]].state == TrialState.COMPLETE else "P", duplicate_of=told[0])
                continue
            if number in paused:
                became = decision(number)
                del paused[number]
            else:
                step = (rows[number].last_step or 0) + 1
                values = {**rows[number].intermediate_values, step: curve[step - 1]}
                rows[number] = row(number, "R", values, rows[number].params["x"])
                became = decision(number)
            if became is PRUNE:
                end(number, "P")
            elif became is WAIT:
                paused[number] = True
            elif len(rows[number].intermediate_values) == len(curve):
                end(number, "F" if fails else "C")
    return [(r.state, r.intermediate_values, r.user_attrs) for r in rows]


VALUES = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=6)


@given(
    trials=st.lists(st.tuples(st.integers(0, 5), VALUES, st.booleans()), min_size=1, max_size=9),
    size=st.integers(1, 6),
    factor=st.integers(2, 3),
    bootstrap=st.integers(0, 2),
    brackets=st.lists(st.integers(0, 1), min_size=1, max_size=5),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
@example(  # the original of a duplicate fails in another bracket
    trials=[(0, [1.0], True), (0, [4.0] * 3, False), (2, [1.0], False), (3, [2.0] * 3, False)],
    size=4,
    factor=2,
    bootstrap=0,
    brackets=[0, 1],
    seeds=(0, 3),
)
def test_the_results_of_a_round_do_not_depend_on_the_order_of_reports(trials, size, factor, bootstrap, brackets, seeds):
    one, other = (simulated(trials, size, factor, bootstrap, brackets, random.Random(seed)) for seed in seeds)
    assert one == other


# ---------------------------------------------------------------- the rungs of a pruner


def study_of(*rows, name="s"):
    study = optuna.create_study(study_name=name, direction="maximize")
    study.add_trials(rows)
    return study


def test_pruners_without_rungs_have_none():
    for name in ("none", "median", "threshold"):
        arguments = {"lower": 0.0} if name == "threshold" else {}
        assert rungs_of(make(name, arguments), study_of(), row(0, "R", {}), 1) is None


def test_the_rungs_of_successive_halving_have_the_arguments_of_the_pruner():
    asha = make("asha", {"min_resource": 3, "reduction_factor": 5, "min_early_stopping_rate": 1, "bootstrap_count": 2})
    found = rungs_of(asha, study_of(), row(0, "R", {}), 7)
    assert (found.first, found.factor, found.bootstrap) == (15, 5, 2)
    assert found.in_bracket(row(9, "R", {}))
    guessed = rungs_of(make("asha", {"min_resource": "auto"}), study_of(), row(0, "R", {}), 7)
    assert (guessed.first, guessed.factor) == (7, 4)


def test_the_rungs_of_hyperband_are_those_of_the_trials_bracket():
    pruner, study = make("hyperband", {"max_resource": 9, "reduction_factor": 3}), study_of()
    rows = [row(n, "R", {}) for n in range(40)]
    found = [rungs_of(pruner, study, one, 1) for one in rows]
    firsts = [one.first for one in found]
    assert set(firsts) == {1, 3, 9}
    for one, first in zip(found, firsts, strict=True):
        assert [one.in_bracket(other) for other in rows] == [first == another for another in firsts]
        assert one.factor == 3


def test_hyperband_knows_its_brackets_once_a_trial_has_completed():
    pruner = make("hyperband", {"reduction_factor": 2})
    assert rungs_of(pruner, study_of(row(0, "P", at(0.1, 0.2))), row(1, "R", {}), 1) is None
    found = {rungs_of(pruner, study_of(row(0, "C", at(*range(7)))), row(n, "R", {}), 1).first for n in range(40)}
    assert found == {1, 2, 4, 8}


# ---------------------------------------------------------------- ties


def reporting(number, state, value, loss, at=1):
    """Return a trial with a loss stored beside its value."""
    made = row(number, state, {at: value})
    made.system_attrs[METRICS_AT] = {"loss": {str(at): loss}}
    return made


def decisions(rows, compared=HIGHER, size=4, factor=2):
    judged = [Field(rows, rungs(factor=factor), compared, size, n).judge(n, 1) for n in range(len(rows))]
    return [(each.decision, each.why if each.why in TIED else None) for each in judged]


def test_among_equal_values_the_lower_losses_are_promoted_in_any_order_of_numbers():
    rows = [reporting(n, "R", 0.9, loss) for n, loss in enumerate((0.4, 0.3, 0.2, 0.1))]
    assert decisions(rows) == [(PRUNE, "loss"), (PRUNE, "loss"), (GO_ON, "loss"), (GO_ON, "loss")]
    assert decisions(rows, LOWER) == decisions(rows)  # a lower loss is better in both directions


def test_only_trials_at_the_limit_are_part_of_a_tie():
    rows = [reporting(n, "R", *pair) for n, pair in enumerate([(0.9, 0.9), (0.5, 0.2), (0.5, 0.1), (0.4, 0.1)])]
    assert decisions(rows) == [(GO_ON, None), (PRUNE, "loss"), (GO_ON, "loss"), (PRUNE, None)]


def test_trials_equal_in_value_and_loss_are_all_promoted_as_a_tie():
    rows = [reporting(n, "R", 0.9, 0.1) for n in range(4)]
    assert decisions(rows) == [(GO_ON, "all")] * 4
    rows[3] = reporting(3, "R", 0.9, 0.2)
    assert decisions(rows) == [(GO_ON, "all")] * 3 + [(PRUNE, "loss")]
    assert decisions([row(n, "R", at(0.9)) for n in range(4)]) == [(GO_ON, "all")] * 4  # no stored loss


def test_equal_trials_on_one_side_of_the_limit_are_no_tie():
    rows = [row(n, "R", at(value)) for n, value in enumerate((0.9, 0.9, 0.1, 0.1))]
    assert decisions(rows) == [(GO_ON, None), (GO_ON, None), (PRUNE, None), (PRUNE, None)]


def test_the_metric_of_prune_on_orders_trials_in_place_of_the_value():
    rows = [reporting(n, "R", *pair) for n, pair in enumerate([(0.9, 0.9), (0.8, 0.1), (0.7, 0.1), (0.6, 0.2)])]
    found = decisions(rows, Comparison("minimize", "loss"))
    assert found == [(PRUNE, None), (GO_ON, None), (GO_ON, None), (PRUNE, None)]
    rows[3] = reporting(3, "R", 0.6, 0.1)
    assert decisions(rows, Comparison("minimize", "loss"))[1:] == [(GO_ON, "all")] * 3


# ---------------------------------------------------------------- without rounds, as Optuna's pruner


@given(
    curves=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=10),
    factor=st.integers(2, 4),
    first=st.integers(1, 3),
    bootstrap=st.integers(0, 2),
    direction=st.sampled_from(["maximize", "minimize"]),
)
def test_without_rounds_decisions_are_those_of_optunas_pruner(curves, factor, first, bootstrap, direction):
    """The trials run one after the other. Among equal values all are promoted, as by Optuna."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(first, factor, bootstrap_count=bootstrap)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for curve in curves:
        trial, pruned = study.ask(), False
        for step, value in enumerate(curve, 1):
            trial.report(value, step)
            found = decide(
                study.get_trials(deepcopy=False), trial.number, step, rungs(first, factor, bootstrap), None,
                Comparison(direction),
            )  # fmt: skip
            pruned = trial.should_prune()
            assert found is (PRUNE if pruned else GO_ON)
            if pruned:
                break
        study.tell(trial, None if pruned else value, TrialState.PRUNED if pruned else TrialState.COMPLETE)


# ---------------------------------------------------------------- two rungs


@pytest.mark.parametrize(
    ("segment", "horizon", "first"),
    [(1, 4000, 100), (1, 4001, 101), (250, 4000, 250), (1, None, 1), (7, None, 7)],
)
def test_the_first_of_two_rungs_is_at_a_fortieth_of_the_longest_training(segment, horizon, first):
    study = optuna.create_study()
    found = rungs_of(make("auto", {}, segment, horizon), study, row(0, "R", {}), segment)
    assert (found.first, found.factor, found.count) == (first, 4, 2)
    assert found.values({first: 0.1, 4 * first: 0.4, 16 * first: 0.9}) == [0.1, 0.4]


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=70, unique=True))
def test_one_trial_in_four_rounded_up_goes_on_from_each_of_two_rungs(scores):
    two = make("two_rungs", {}).rungs()
    trials = [row(n, "R", {}) for n in range(len(scores))]
    for step in (1, 4, 16):
        alive = [trial for trial in trials if trial.state == STATES["R"]]
        for trial in alive:
            trial.intermediate_values[step] = scores[trial.number]
        decisions = [decide(trials, trial.number, step, two, len(scores), HIGHER) for trial in alive]
        for trial, decision in zip(alive, decisions, strict=True):
            trial.state = {GO_ON: STATES["R"], PRUNE: STATES["P"]}[decision]
    best = sorted(range(len(scores)), key=lambda n: -scores[n])[: -(-len(scores) // 16)]
    assert sorted(best) == [trial.number for trial in trials if trial.state == STATES["R"]]


# ---------------------------------------------------------------- what is kept of ended trials


@given(
    values=st.lists(
        st.tuples(st.sampled_from("RCPF"), st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=20
    ),
    factor=st.integers(2, 4),
    pauses=st.booleans(),
)
def test_decisions_are_the_same_with_what_is_kept_of_ended_trials(values, factor, pauses):
    rows = [row(n, state, at(*map(float, curve))) for n, (state, curve) in enumerate(values)]
    one = Rungs(1, factor, 0, every_trial, pauses=pauses)
    kept = EndedKeys(one, HIGHER)
    for each in reversed(rows):
        if each.state.is_finished():
            kept.add(each)
    late = [each for each in rows if not each.state.is_finished()]
    whole, apart = Field(rows, one, HIGHER), Field(late, one, HIGHER, ended=kept)
    for each in late:
        for step in each.intermediate_values:
            assert apart.judge(each.number, step) == whole.judge(each.number, step)
        assert apart.waits(each.number) == whole.waits(each.number)
