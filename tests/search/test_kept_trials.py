"""What is kept of ended trials is what a look at all trials finds, and it spares that look."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.kept_trials import BestAndRecent, ByParams, place
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import Rules
from hpo.space.parser import parse
from hpo.storage.study_cache import StudyCache

SPACE = parse({"x": {"low": 0.0, "high": 1.0}})
X = {"x": FloatDistribution(0.0, 1.0)}
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def ended(number: int, draw: random.Random, state: TrialState | None = None) -> FrozenTrial:
    """Return a trial that has ended, with one of few parameters and values."""
    state = state or draw.choice(ENDED)
    value = draw.randrange(20) / 20
    made = create_trial(
        state=state,
        value=None if state == TrialState.FAIL else value,
        params={"x": draw.randrange(50) / 50},
        distributions=X,
        intermediate_values={step: value * step / 10 for step in range(1, 11)},
    )
    made.number = number
    return made


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60), waiting=st.integers(0, 5), maximize=st.booleans())
def test_the_foremost_are_the_best_and_the_most_recent_others(
    seed: int, count: int, waiting: int, maximize: bool
) -> None:
    draw = random.Random(seed)
    trials = [ended(number, draw) for number in range(count)]
    seeming = draw.sample(trials, min(waiting, count))
    kept, others = BestAndRecent(4, 12, maximize), [trial for trial in seeming if trial.state != TrialState.FAIL]
    for trial in draw.sample(trials, count):  # they end in any order
        if trial not in seeming:
            kept.add(trial)
    tried = [trial for trial in trials if trial.state != TrialState.FAIL]
    assert kept.count + len(others) == len(tried)
    sign = -1 if maximize else 1
    best = [trial.number for trial in sorted(tried, key=lambda trial: (place(trial, sign), trial.number))[:4]]
    recent = [trial.number for trial in tried if trial.number not in best][-8:]
    assert [trial.number for trial in kept.chosen(others)] == sorted([*best, *recent])


@given(seed=st.integers(0, 10**6), count=st.integers(0, 80))
def test_trials_are_found_by_their_parameters(seed: int, count: int) -> None:
    draw, kept = random.Random(seed), ByParams()
    trials = [ended(number, draw) for number in range(count)]
    for trial in draw.sample(trials, count):
        kept.add(trial)
    for wanted in ({"x": 0.5}, {"x": 0.02}, {"x": 0.5, "y": 1}, {}):
        assert kept.alike(wanted) == [trial for trial in trials if trial.params == wanted]


# ---------------------------------------------------------------- what a later trial looks at


def objective(params: Mapping[str, Any]) -> Iterator[float]:
    for tenths in range(1, 11):
        yield 0.1 * tenths - params["x"] / 100


def calls_of_a_trial(count: int, sampler: str, pruner: str, arguments: Mapping[str, Any]) -> int:
    """Return how many functions are called for a trial after the first new one, in a study of `count` ended trials."""
    draw = random.Random(0)
    study = optuna.create_study(direction="maximize", sampler=TrialSeededSampler(sampler, {}, SPACE, 0))
    states = [TrialState.COMPLETE if number % 2 else TrialState.PRUNED for number in range(count)]
    made = [ended(number, draw, state) for number, state in enumerate(states)]
    for trial in made:
        trial.params = {"x": draw.random()}
    study.add_trials(made)
    for _ in range(3):
        study.enqueue_trial({})
    study.pruner = make(pruner, arguments)
    calls, at_start = 0, []

    def counted(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    def counting(params: Mapping[str, Any]) -> Iterator[float]:
        at_start.append(calls)
        yield from objective(params)

    sys.setprofile(counted)
    try:
        Runner(study, SPACE, GeneratorArray(counting), Rules(count + 3)).run()
    finally:
        sys.setprofile(None)
    return at_start[2] - at_start[1]


@pytest.mark.parametrize(
    ("sampler", "pruner", "arguments"),
    [
        ("random", "none", {}),
        ("random", "median", {}),
        ("random", "asha", {}),
        ("random", "asha", {"type": "promotion"}),
        ("tpe", "median", {}),
    ],
)
def test_a_later_trial_does_not_look_at_each_ended_one(sampler: str, pruner: str, arguments: Mapping[str, Any]) -> None:
    few, many = (calls_of_a_trial(count, sampler, pruner, arguments) for count in (1500, 3000))
    assert few > 100
    assert many < few + 1500 / 2  # one call for each ended trial would be 1,500 more


# ---------------------------------------------------------------- the cache


class Seen:
    """The numbers that were added."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def add(self, trial: FrozenTrial) -> None:
        assert trial.state.is_finished()
        self.numbers.append(trial.number)


def told(study: optuna.Study, number: int, draw: random.Random) -> None:
    study._storage.set_trial_state_values(number, TrialState.RUNNING)
    study._storage.set_trial_state_values(number, draw.choice(ENDED[:2]), [0.5])


def told_in_vain(cache: StudyCache, number: int) -> None:
    with cache.together():
        cache.set_trial_state_values(number, TrialState.COMPLETE, [0.5])
        assert number not in [row.number for row in cache.unfinished()]
        assert number not in cache.kept(Seen).numbers
        raise ZeroDivisionError


def odd(row: FrozenTrial) -> FrozenTrial | None:
    return row if row.number % 2 else None


@given(seed=st.integers(0, 10**6))
def test_each_ended_trial_is_added_once_whichever_process_has_told_it(seed: int) -> None:
    draw, study = random.Random(seed), optuna.create_study()
    cache = StudyCache(study)
    views = [cache, cache.before(3), cache.seen_as(odd, "minimize"), cache.before(5).seen_as(odd, "minimize")]
    views.append(cache.seen_as(odd, "minimize", settled=False))
    for _ in range(30):
        open_here = [row.number for row in cache.unfinished()]
        action = draw.choice(["add", "here", "elsewhere", "fails", "refresh"])
        if action == "add":
            study.enqueue_trial({})
        elif action == "here" and open_here and cache.take(number := draw.choice(open_here)):
            cache.set_trial_state_values(number, TrialState.COMPLETE, [0.5])
        elif action == "elsewhere" and (running := study.get_trials(states=(TrialState.WAITING,))):
            told(study, draw.choice(running).number, draw)
        elif action == "fails" and open_here and cache.take(number := draw.choice(open_here)):
            with pytest.raises(ZeroDivisionError):
                told_in_vain(cache, number)
            cache.put_back(number)
        else:
            cache.refresh()
        for view in draw.sample(views, 3):
            rows = view.get_all_trials(0, deepcopy=False)
            assert sorted(view.kept(Seen).numbers) == [row.number for row in rows if row.state.is_finished()]
            assert view.unfinished() == [row for row in rows if not row.state.is_finished()]
