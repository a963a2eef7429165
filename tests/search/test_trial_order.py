from __future__ import annotations

import copy

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from hpo.search.decisions import Decision
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.trial_marks import PAUSED, TIES, is_baseline
from hpo.search.trial_order import TrialOrder
from hpo.space.parser import parse
from hpo.storage.study_cache import StudyCache

SPACE = parse({"x": [0, 1, 2, 3]})
TWO = parse({"x": [0, 1], "y": [0, 1]})
OPEN = parse({"x": {"low": 0.0, "high": 100.0}})
R, W, C, P, F = (getattr(TrialState, name) for name in ("RUNNING", "WAITING", "COMPLETE", "PRUNED", "FAIL"))


def order_of(rows, size=None, budget=None, space=OPEN, pruner="none", wave=None, **arguments):
    """Return the order of a study with trials of (state, params, curve, system attributes), the last ones optional."""
    study = optuna.create_study(storage=InMemoryStorage(), direction="maximize", pruner=make(pruner, arguments))
    study.sampler = TrialSeededSampler("random", {}, space, 0)
    distributions = space.distributions() if space is not OPEN else {"x": FloatDistribution(0.0, 100.0)}
    for given_row in rows:
        state, params, curve, attrs = (*given_row, *({}, {}, {})[len(given_row) - 1 :])
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=max(curve.values(), default=0.0) if state == C else None,
                params=params,
                distributions={name: distributions[name] for name in params},
                intermediate_values=curve,
                system_attrs=attrs,
            )
        )
    cache = StudyCache(study)
    study = optuna.Study(study.study_name, cache, sampler=study.sampler, pruner=study.pruner)
    return TrialOrder(study, space, budget or len(rows), size, wave=wave)


def x(value):
    return {"x": value}


def fixed(value):
    """Return the attributes of a trial that was planned with its parameters."""
    return {"fixed_params": x(value)}


def numbers(rows):
    return [row.number for row in rows]


# ---------------------------------------------------------------- which trials are ready


def test_without_rounds_every_unfinished_trial_may_start():
    order = order_of([(C, x(1.0)), (W,), (R, x(2.0)), (F, x(3.0)), (W,)])
    assert numbers(order.ready()) == [1, 2, 4]
    assert list(order.to_draw()) == []
    assert order.unfinished()


@pytest.mark.parametrize(
    ("rows", "ready", "to_draw"),
    [
        ([(W,)] * 6, [], [0, 1]),
        ([(W, x(1.0)), (W,), (W,)], [0], [1]),  # the first depends on no other
        ([(W,), (W, x(1.0)), (W,)], [], [0]),  # it may become the second's original
        ([(W, x(1.0)), (W, x(2.0)), (W,)], [0, 1], []),
        ([(W, {}, {}, fixed(1.0)), (W, {}, {}, fixed(2.0)), (W,)], [0, 1], []),
        ([(C, x(1.0)), (R, x(2.0)), (W,)], [1], []),
        ([(C, x(1.0)), (P, x(2.0)), (W,), (W,), (W,)], [], [2, 3]),
        ([(C, x(1.0)), (F, x(2.0)), (R, x(3.0)), (W, x(4.0)), (W,)], [2, 3], []),
        ([(C, x(1.0)), (C, x(2.0))], [], []),
    ],
)
def test_a_round_begins_when_the_previous_has_ended_and_is_drawn_in_order(rows, ready, to_draw):
    order = order_of(rows, size=2)
    assert numbers(order.ready()) == ready
    assert numbers(order.to_draw()) == to_draw


def test_a_partly_drawn_trial_is_completed():
    order = order_of([(W, x(0)), (W,)], size=2, space=TWO, budget=2)
    assert numbers(order.to_draw()) == [0, 1]
    assert list(order.ready()) == []


def test_trials_beyond_the_budget_neither_run_nor_count():
    rows = [(C, x(1.0)), (W, x(2.0)), (W, x(2.0)), (C, x(2.0)), (W,)]
    order = order_of(rows, budget=2)
    assert numbers(order.rows()) == [0, 1]
    assert numbers(order.ready()) == [1]
    assert order.finished_original(order.rows()[1]) is None
    assert not order_of(rows, budget=1).unfinished()
    assert numbers(order_of([(W,)] * 3, budget=2, size=3).to_draw()) == [0, 1]


@given(states=st.lists(st.sampled_from([R, W, C, P, F]), min_size=1, max_size=8), size=st.integers(1, 4))
def test_in_rounds_only_trials_of_the_first_unfinished_round_run(states, size):
    rows = [(state, {} if state == W else x(float(n))) for n, state in enumerate(states)]
    order = order_of(rows, size=size)
    first = next((n for n, state in enumerate(states) if not state.is_finished()), None)
    moving = numbers([*order.ready(), *order.to_draw()])
    assert bool(order.unfinished()) == (first is not None) == bool(moving)
    assert {n // size for n in moving} <= {first // size if moving else None}
    assert all(not states[n].is_finished() for n in moving)


# ---------------------------------------------------------------- waves

PAUSED_AT_1 = {PAUSED: 1}


@pytest.mark.parametrize(
    ("rows", "ready", "to_draw"),
    [
        ([(W,)] * 4, [], [0, 1]),
        ([(R, x(1.0)), (W, x(2.0)), (W,), (W,)], [0, 1], []),
        ([(W, x(1.0), {1: 0.5}, PAUSED_AT_1), (R, x(2.0)), (W,), (W,)], [1], []),
        ([(W, x(1.0), {1: 0.5}, PAUSED_AT_1), (R, x(2.0), {1: 0.4}), (W,), (W,)], [1], [2, 3]),
        ([(C, x(1.0)), (F, x(2.0)), (W,), (W,)], [], [2, 3]),
        ([(W, x(1.0), {1: 0.5}, PAUSED_AT_1), (W, x(1.0)), (W,), (W,)], [], [2, 3]),  # a duplicate is not waited for
        ([(W, x(1.0), {1: 0.5}, PAUSED_AT_1)] * 2 + [(W, x(2.0)), (W,)], [2], [3]),
        ([(C, x(1.0))] * 4 + [(W,)] * 4, [], [4, 5]),
    ],
)
def test_a_wave_is_drawn_when_the_one_before_has_reached_the_lowest_rung(rows, ready, to_draw):
    order = order_of(rows, size=4, wave=2, pruner="two_rungs")
    assert numbers(order.ready()) == ready
    assert numbers(order.to_draw()) == to_draw


def test_without_rungs_a_wave_waits_for_the_ends_of_the_one_before():
    rows = [(C, x(1.0)), (R, x(2.0), {1: 0.5}), (W,), (W,)]
    assert numbers(order_of(rows, size=4, wave=2).to_draw()) == []
    assert numbers(order_of([(C, x(1.0)), (P, x(2.0)), (W,), (W,)], size=4, wave=2).to_draw()) == [2, 3]


def test_a_wave_sees_the_values_at_the_lowest_rung_whatever_was_reached_since():
    first = [(R, x(1.0), {1: 0.5, 4: 0.9}), (W, x(2.0), {2: 0.4}), (C, x(3.0), {1: 0.3, 2: 0.8}), (F, x(4.0))]
    rows = [*first, (W, x(1.0)), (W,), (W,), (W, x(5.0), {1: 0.1})]
    order = order_of(rows, size=8, wave=5, pruner="two_rungs")
    seen = order.seen_by(6).get_trials(deepcopy=False, states=(C,))
    assert [(row.number, row.state, row.value) for row in seen] == [(0, C, 0.5), (1, C, 0.4), (2, C, 0.3)]
    assert order.seen_by(4).get_trials() == []
    assert order.rows()[0].state == R


# ---------------------------------------------------------------- what a proposal sees


def test_a_proposal_sees_only_earlier_rounds():
    order = order_of([(C, x(1.0)), (P, x(2.0)), (R, x(3.0)), (W,)], size=2)
    assert numbers(order.seen_by(3).get_trials()) == numbers(order.seen_by(2).get_trials()) == [0, 1]
    assert order.seen_by(1).get_trials() == []


def test_without_rounds_a_proposal_sees_parameters_drawn_since_the_last_one():
    order = order_of([(R, x(1.0)), (R,)])
    seen = order.seen_by(0)
    assert [row.params for row in seen._get_trials(deepcopy=False, use_cache=True)] == [x(1.0), {}]
    cache = seen._storage
    cache.take(1)
    cache.set_trial_param(cache.row(1)._trial_id, "x", 2.0, FloatDistribution(0.0, 100.0))
    assert [row.params for row in order.seen_by(1)._get_trials(use_cache=True)] == [x(1.0), x(2.0)]


# ---------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    ("states", "free", "rounds"),
    [  # trials of equal parameters: the one that each has to wait for
        ([W, W], [None, None], [None, 0]),
        ([R, W], [None, 0], [None, 0]),
        ([W, R], [1, None], [None, 0]),
        ([R, R], [None, 0], [None, 0]),
        ([C, W], [None, None], [None, None]),
        ([F, R, R], [None, None, 1], [None, None, 1]),
    ],
)
def test_of_trials_with_equal_parameters_one_goes_first(states, free, rounds):
    for size, expected in ((None, free), (9, rounds)):
        order = order_of([(state, x(1.0)) for state in states], size=size)
        rows = order.rows()
        found = [order.unfinished_original(row, rows) for row in rows if not row.state.is_finished()]
        assert [other and other.number for other in found] == expected[-len(found) :]
        waits = {row.number for row in rows if not row.state.is_finished() and order.unfinished_original(row, rows)}
        assert numbers(order.ready()) == [r.number for r in rows if not r.state.is_finished() and r.number not in waits]


def test_trials_without_parameters_wait_for_none():
    order = order_of([(R,), (R,), (W,)])
    assert [order.unfinished_original(row, order.rows()) for row in order.rows()] == [None] * 3


def test_a_planned_trial_waits_for_its_running_original():
    order = order_of([(R, x(1.0)), (W, {}, {}, fixed(1.0)), (W, {}, {}, fixed(2.0))])
    assert numbers(order.ready()) == [0, 2]


@pytest.mark.parametrize(
    ("states", "free", "rounds"),
    [  # the original of the middle one of three trials of equal parameters
        ([C, R, W], 0, 0),
        ([P, R, C], 0, 0),
        ([F, R, W], None, None),
        ([F, R, C], 2, None),
        ([R, R, P], 2, None),
        ([W, R, F], None, None),
    ],
)
def test_the_original_whose_result_a_duplicate_is_told(states, free, rounds):
    for size, expected in ((None, free), (3, rounds)):
        order = order_of([(state, x(1.0)) for state in states], size=size)
        found = order.finished_original(order.rows()[1])
        assert (found and found.number) == expected
        assert order_of([(C, x(2.0)), (R, x(1.0))], size=size).finished_original(order.rows()[1]) is None


# ---------------------------------------------------------------- finite spaces


def test_a_finite_space_is_used_up_when_every_point_has_its_trial():
    whole = [(C, x(0)), (F, x(1)), (R, x(2)), (W, {}, {}, fixed(3))]
    order = order_of([*whole, (W,), (W,)], space=SPACE)
    assert order.used_up(order.rows())
    assert numbers(order.rows()) == [0, 1, 2, 3]  # a trial without a point left does not run
    assert not order.lacks_trials()
    assert not order_of([*whole[:3], (C, x(2)), (W,)], space=SPACE).used_up(order.rows()[:3])


@pytest.mark.parametrize("size", [None, 2])
def test_a_partly_drawn_trial_is_not_a_point_of_the_space(size):
    full = [(C, {"x": 0, "y": 0}), (C, {"x": 0, "y": 1}), (C, {"x": 1, "y": 0})]
    order = order_of([*full, (W, {"x": 1}), (W,)], space=TWO, size=size)
    assert numbers(order.rows()) == [0, 1, 2, 3, 4]
    assert not order.used_up(order.rows())


def test_a_published_default_outside_the_space_is_not_one_of_its_points():
    rows = [(C, {}, {}, fixed(9)), *[(C, x(n)) for n in range(3)]]
    order = order_of([*rows, (W,)], space=SPACE, budget=9)
    assert not order.used_up(order.rows())


@pytest.mark.parametrize(
    ("rows", "budget", "lacks"),
    [
        ([(C, x(0)), (C, x(0)), (C, x(1)), (C, x(2))], 9, True),
        ([(C, x(0)), (C, x(0)), (C, x(1)), (C, x(2))], 4, False),
        ([(C, x(0)), (C, x(0)), (C, x(1)), (W,)], 9, False),  # it may still be drawn as a new point
        ([(C, x(0)), (C, x(3)), (C, x(1)), (C, x(2))], 9, False),
        ([(W, {}, {}, fixed(n)) for n in range(4)], 9, False),  # a completely planned grid
    ],
)
def test_trials_are_lacking_when_duplicates_used_those_that_the_space_needs(rows, budget, lacks):
    assert order_of(rows, space=SPACE, budget=budget).lacks_trials() is lacks


# ---------------------------------------------------------------- pruning


def pruned(order, row, step):
    """Return the decision after an evaluation; a trial for which there is none goes on."""
    judged = order.judged(row, step)
    return Decision.GO_ON if judged is None else judged.decision


def paused(order, row):
    judged = order.paused(row)
    return Decision.GO_ON if judged is None else judged.decision


def tied(order, row, step):
    judged = None if is_baseline(row) or order._rungs(row) is None else order._at_rung(row, step, order._rungs(row))
    return {name: value for name, value in order.noted(row, step, judged).items() if name == TIES}


def asha(rows, size=2, **arguments):
    return order_of(rows, size, pruner="asha", reduction_factor=2, **arguments)


def test_a_paused_trial_is_ready_when_its_rung_is_decided():
    here = {PAUSED: 1}
    waiting = asha([(R, x(0.0), {1: 0.5}, here), (R, x(1.0))])
    assert numbers(waiting.ready()) == [1]
    assert paused(waiting, waiting.rows()[0]) is Decision.WAIT
    for mate, decision in ((0.4, Decision.GO_ON), (0.6, Decision.PRUNE)):
        order = asha([(W, x(0.0), {1: 0.5}, here), (R, x(1.0), {1: mate})])
        assert order.is_paused(order.rows()[0])
        assert paused(order, order.rows()[0]) is decision
        assert 0 in numbers(order.ready())  # to go on or to be told


def test_a_trial_that_went_on_is_not_paused():
    order = asha([(R, x(0.0), {1: 0.5, 2: 0.5}, {PAUSED: 1}), (R, x(1.0))])
    assert not order.is_paused(order.rows()[0])
    assert not order_of([(R, x(0.0), {1: 0.5}, {PAUSED: 1})]).is_paused(order.rows()[0])  # without rounds


def test_a_trial_that_is_trained_again_gets_the_same_decisions():
    order = asha([(R, x(0.0), {1: 0.5, 2: 0.1, 3: 0.9}), (C, x(1.0), {1: 0.4, 2: 0.3})])
    row = order.rows()[0]
    assert [pruned(order, row, step) for step in (1, 2)] == [Decision.GO_ON, Decision.PRUNE]
    free = order_of([(C, x(1.0), {1: 1.0}), (R, x(0.0), {1: 0.0, 2: 0.0})], pruner="median", n_startup_trials=1)
    assert pruned(free, free.rows()[1], 1) is Decision.GO_ON  # it went on at this step before


def test_a_rung_waits_for_trials_that_are_still_to_be_added_to_the_round():
    rows = [(R, x(0), {1: 0.5}), (R, x(1), {1: 0.1}), (W, x(0))]
    order = asha(rows, size=4, space=SPACE, budget=9)
    assert order.lacks_trials()
    assert pruned(order, order.rows()[0], 1) is Decision.WAIT
    assert pruned(asha(rows, size=3, space=SPACE, budget=9), order.rows()[0], 1) is Decision.GO_ON
    assert pruned(asha(rows, size=4, space=SPACE, budget=3), order.rows()[0], 1) is Decision.GO_ON


def test_the_median_is_that_of_earlier_rounds_only():
    earlier = [(C, x(0.0), {1: 0.5}), (C, x(1.0), {1: 0.7})]
    order = order_of([*earlier, (R, x(2.0), {1: 0.4}), (C, x(3.0), {1: 0.0})], 2, pruner="median", n_startup_trials=1)
    assert pruned(order, order.rows()[2], 1) is Decision.PRUNE
    first = order_of([(R, x(0.0), {1: 0.4}), (C, x(1.0), {1: 0.7})], 2, pruner="median", n_startup_trials=1)
    assert pruned(first, first.rows()[0], 1) is Decision.GO_ON


def test_hyperband_has_its_brackets_from_the_first_round_in_which_a_trial_completed_with_a_curve():
    rows = [(C, x(0.0)), (C, x(1.0), {1: 0.5, 8: 0.6}), (C, x(2.0), {64: 0.6}), (R, x(3.0), {1: 0.1})]
    order = order_of(rows, 1, pruner="hyperband", reduction_factor=2)
    pruned(order, order.rows()[3], 1)
    assert order._study.pruner._max_resource == 9


# ---------------------------------------------------------------- the published default


def with_baseline(order):
    """Make the first trial the published default."""
    cache = order._cache
    cache.take(0, run=False)
    cache.set_trial_user_attr(cache.row(0)._trial_id, "baseline", True)
    return order


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize(
    ("pruner", "arguments"),
    [
        ("median", {"n_startup_trials": 1}),
        ("asha", {"reduction_factor": 2}),
        ("hyperband", {"reduction_factor": 2, "max_resource": 4}),
        ("threshold", {"lower": 1.0}),
        ("patient", {"patience": 0, "wrapped": {"name": "asha", "reduction_factor": 2}}),
    ],
)
def test_the_published_default_is_never_pruned_and_never_waits(pruner, arguments, size):
    falling = {1: 0.2, 2: 0.1}
    rows = [(R, x(0.0), falling), *[(C, x(float(n)), {1: 0.9, 2: 0.9}) for n in (1, 2)], (R, x(3.0), {})]
    order = with_baseline(order_of(rows, size, pruner=pruner, **arguments))
    assert [pruned(order, order.rows()[0], step) for step in (1, 2)] == [Decision.GO_ON] * 2
    assert tied(order, order.rows()[0], 2) == {}


def test_reports_of_the_published_default_count_at_a_rung():
    rows = [(R, x(0.0), {1: 0.9}), (R, x(1.0), {1: 0.5})]
    for size in (None, 2):
        order = with_baseline(asha(rows, size))
        assert pruned(order, order.rows()[1], 1) is Decision.PRUNE
        worse = with_baseline(asha([(R, x(0.0), {1: 0.1}), rows[1]], size))
        assert pruned(worse, worse.rows()[1], 1) is Decision.GO_ON


def test_a_rung_waits_for_the_published_default_which_itself_goes_on():
    order = with_baseline(asha([(R, x(0.0)), (R, x(1.0), {1: 0.5})]))
    assert pruned(order, order.rows()[1], 1) is Decision.WAIT
    earlier = with_baseline(asha([(W, x(0.0), {1: 0.1}, {PAUSED: 1}), (R, x(1.0))]))  # as an earlier version stored it
    assert paused(earlier, earlier.rows()[0]) is Decision.GO_ON


@pytest.mark.parametrize("size", [None, 9])
def test_the_published_default_is_always_trained_and_its_duplicates_wait(size):
    order = with_baseline(order_of([(W, {}, {}, fixed(1.0)), (R, x(1.0)), (P, x(1.0), {1: 0.1})], size))
    assert order.unfinished_original(order.rows()[0], order.rows()) is None
    assert order.finished_original(order.rows()[0]) is None
    assert order.unfinished_original(order.rows()[1], order.rows()).number == 0


# ---------------------------------------------------------------- ties


@pytest.mark.parametrize("size", [None, 2])
def test_ties_are_added_to_those_of_earlier_steps(size):
    rows = [(R, x(0.0), {1: 0.5, 2: 0.5}), (R, x(1.0), {1: 0.5, 2: 0.4})]
    order = asha(rows, size)
    assert tied(order, order.rows()[0], 1) == {TIES: {"1": "all"}}
    assert tied(order, order.rows()[0], 2) == {}
    order._cache.take(0)
    order._cache.note(0, {TIES: {"0": "loss"}})
    assert tied(order, order.rows()[0], 1) == {TIES: {"0": "loss", "1": "all"}}
    assert tied(order_of(rows, size, pruner="median"), order.rows()[0], 1) == {}


def test_an_evaluation_that_was_read_incompletely_is_read_again():
    order = asha([(R, x(0.0), {1: 0.5}), (R, x(1.0), {1: 0.5})])
    for number, loss in enumerate((0.2, 0.1)):
        order._cache.take(number)
        order._cache.report(number, 1, 0.5, {"loss": loss})
    order._cache.release(1)
    whole = order._cache.row(1)
    order._cache._rows[1] = half = copy.copy(whole)
    half.system_attrs = {}  # as if another process wrote between Optuna's reads of attributes and of values
    assert pruned(order, order.rows()[0], 1) is Decision.PRUNE
