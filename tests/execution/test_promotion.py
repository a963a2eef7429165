"""Trials that pause at rungs without rounds: who is promoted when, and what a pause and a kill leave unchanged."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

import hpo
from hpo.config import study_spec
from hpo.core.errors import ConfigError
from hpo.core.trainer import Evaluation, TrialCheckpoint, TrialSpec
from hpo.execution import run_study
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.decisions import Decision, decisions_of
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import Rules
from hpo.space.parser import parse

SPACE = parse({"x": list(range(40))})
STEPS = 9  # evaluations of a trial; with a factor of 2, rungs are at 1, 2, 4, 8
Event = tuple[str, int, int]  # what happened, to which trial, at which step


def value(seed: int, number: int, step: int) -> float:
    """Return a score that looks random; no two are equal."""
    return zlib.crc32(f"{seed} {number} {step}".encode()) / 2**32


class Recording:
    """An array that holds trials in its slots only, and records what happens in it."""

    def __init__(self, slots: int, seed: int, halt_at: int | None = None) -> None:
        self.slots, self.segment, self.horizon, self.notes, self.stop_request = slots, 1, None, (), SimpleNamespace()
        self.events: list[Event] = []
        self._seed, self._halt_at = seed, halt_at
        self._held: dict[int, list[int]] = {}

    def load(self, slot: int, trial: TrialSpec) -> None:
        step = trial.checkpoint.state["step"] if trial.checkpoint else 0
        self._held[slot] = [trial.number, step]
        self.events.append(("loaded", trial.number, step))

    def advance(self) -> dict[int, Evaluation | Exception]:
        outcomes: dict[int, Evaluation | Exception] = {}
        for slot, held in self._held.items():
            held[1] += 1
            number, step = held
            self.events.append(("evaluated", number, step))
            outcomes[slot] = Evaluation(value(self._seed, number, step), at=step, last=step == STEPS)
        self.events.append(("segment", -1, 0))
        if self._halt_at is not None and len(self.evaluated) >= self._halt_at:
            self.stop_request.set()
        return outcomes

    @property
    def evaluated(self) -> list[tuple[int, int]]:
        return [(number, step) for what, number, step in self.events if what == "evaluated"]

    def save(self, slot: int) -> TrialCheckpoint:
        number, step = self._held[slot]
        return TrialCheckpoint(number, {"step": step})

    def seen(self, slot: int) -> None:
        return None

    def pause(self, slot: int) -> bool:
        return False

    def save_weights(self, slot: int, folder: Path) -> bool:
        return False

    def unload(self, slot: int) -> None:
        self._held.pop(slot, None)


def study_of(count: int) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", direction="maximize", sampler=TrialSeededSampler("random", {}, SPACE, 0)
    )
    for number in range(count):
        study.enqueue_trial({"x": number})
    return study


def run(study: optuna.Study, array: Any, folder: Path, factor: int, budget: int | None = None) -> None:
    study.pruner = make("asha", {"type": "promotion", "reduction_factor": factor, "min_resource": 1})
    checkpoints = Checkpoints(folder, "s")
    Runner(study, SPACE, array, Rules(budget or len(study.trials)), checkpoints=checkpoints).run()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.execution.checkpoint_writer.FIRST", 0)


# ---------------------------------------------------------------- the rule, replayed


def promotions(events: Sequence[Event], rungs: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (trial, rung, index of the event by which it was decided) of the trials that went on beyond a rung."""
    ends = [index for index, (what, *_) in enumerate(events) if what == "segment"]
    for index, (what, number, step) in enumerate(events):
        if what != "evaluated" or step not in rungs or (("evaluated", number, step + 1) not in events):
            continue
        loads = [at for at, event in enumerate(events) if event == ("loaded", number, step) and at > index]
        yield number, step, loads[-1] if loads else next(end for end in ends if end > index)


def better_at(events: Sequence[Event], number: int, rung: int, seed: int) -> tuple[int, int]:
    """Return how many trials are better at a rung than a trial, and how many have reached it."""
    reached = {other for what, other, step in events if what == "evaluated" and step == rung}
    return sum(value(seed, other, rung) > value(seed, number, rung) for other in reached), len(reached)


def assert_the_rule_holds(study: optuna.Study, events: Sequence[Event], factor: int, seed: int) -> None:
    """Replay what happened: each promotion was among the best at its time, and nobody who is in the end was left."""
    rungs = [factor**n for n in range(4) if factor**n < STEPS]
    for number, rung, at in promotions(events, rungs):
        better, reached = better_at(events[:at], number, rung, seed)
        in_all = better_at(events, number, rung, seed)[1]
        places = reached // factor if reached < in_all else max(1, reached // factor)
        assert better < places, (number, rung, reached)
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            better, reached = better_at(events, trial.number, trial.last_step or 0, seed)
            assert better >= max(1, reached // factor), trial.number
        else:
            assert trial.state == TrialState.COMPLETE
        curve = {step: value(seed, trial.number, step) for step in range(1, (trial.last_step or 0) + 1)}
        assert trial.intermediate_values == curve


@pytest.mark.parametrize(("slots", "factor", "count"), [(1, 2, 16), (3, 2, 17), (4, 3, 20), (1, 4, 3), (2, 4, 9)])
def test_each_promotion_was_among_the_best_at_its_time_and_nobody_is_left(
    slots: int, factor: int, count: int, tmp_path: Path
) -> None:
    for seed in range(3):
        study, array = study_of(count), Recording(slots, seed)
        run(study, array, tmp_path / str(seed), factor)
        assert_the_rule_holds(study, array.events, factor, seed)
        assert len(array.evaluated) == len(set(array.evaluated))  # nothing is trained twice
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
        assert not list((tmp_path / str(seed)).glob("trial-*"))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(2, 4), st.integers(1, 14))
def test_the_rule_holds_for_objectives_that_are_held_in_memory(seed: int, slots: int, factor: int, count: int) -> None:
    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        for step in range(1, STEPS + 1):
            events.append(("evaluated", params["x"], step))
            yield value(seed, params["x"], step)

    events: list[Event] = []
    study = study_of(count)
    study.pruner = make("asha", {"type": "promotion", "reduction_factor": factor})
    Runner(study, SPACE, GeneratorArray(objective, slots), Rules(count)).run()
    assert len(events) == len(set(events))
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            better, reached = better_at(events, trial.number, trial.last_step or 0, seed)
            assert better >= max(1, reached // factor)
        for _, judged in decisions_of(trial):
            if judged.needed is not None and judged.value is not None:
                assert (judged.decision is Decision.GO_ON) == (judged.value >= judged.needed)


def test_trials_that_are_promoted_go_on_before_others_start(tmp_path: Path) -> None:
    study, array = study_of(8), Recording(1, 5)
    run(study, array, tmp_path, 2)
    numbers = [number for what, number, _ in array.events if what == "loaded"]
    first = numbers.index(7)  # the last one that starts
    resumed = [number for at, number in enumerate(numbers[:first]) if number in numbers[:at]]
    assert resumed
    assert decisions_of(study.trials[resumed[0]])[0][1].decision is Decision.WAIT
    assert decisions_of(study.trials[resumed[0]])[1][1].decision is Decision.GO_ON


def test_more_trials_join_those_that_have_ended(tmp_path: Path) -> None:
    study, array = study_of(12), Recording(2, 7)
    run(study, array, tmp_path, 2, budget=6)
    assert [trial.state.is_finished() for trial in study.trials] == [True] * 6 + [False] * 6
    run(study, array, tmp_path, 2)
    assert all(trial.state.is_finished() for trial in study.trials)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("slots", [1, 3])
def test_halted_at_any_evaluation_nothing_is_trained_twice(slots: int, tmp_path: Path) -> None:
    whole = Recording(slots, 1)
    run(study_of(6), whole, tmp_path / "whole", 2)
    for at in range(1, len(whole.evaluated)):
        study, first, second = study_of(6), Recording(slots, 1, halt_at=at), Recording(slots, 1)
        with pytest.raises(KeyboardInterrupt):
            run(study, first, tmp_path / str(at), 2)
        run(study, second, tmp_path / str(at), 2)
        assert_the_rule_holds(study, [*first.events, *second.events], 2, 1)
        both = first.evaluated + second.evaluated
        assert len(both) == len(set(both)), at
        assert (slots > 1) or sorted(both) == sorted(whole.evaluated)


def test_a_paused_trial_whose_checkpoint_is_gone_begins_anew(tmp_path: Path) -> None:
    study, first, second = study_of(6), Recording(1, 1, halt_at=5), Recording(1, 1)
    with pytest.raises(KeyboardInterrupt):
        run(study, first, tmp_path, 2)
    for place in tmp_path.iterdir():
        (place / "manifest.json").write_text("{")
    run(study, second, tmp_path, 2)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in study.trials:
        curve = {step: value(1, trial.number, step) for step in range(1, (trial.last_step or 0) + 1)}
        assert trial.intermediate_values == curve


def test_a_promotion_that_is_stored_is_not_taken_back(tmp_path: Path) -> None:
    """A trial that was promoted, and whose process ended before its next evaluation, goes on whatever came since."""
    study, array = study_of(4), Recording(1, 1)
    with pytest.raises(KeyboardInterrupt):
        run(study, Recording(1, 1, halt_at=1), tmp_path, 2)
    first = study.trials[0]
    assert first.state == TrialState.WAITING
    assert first.system_attrs["hpo:paused_at"] == 1
    study._storage.set_trial_user_attr(first._trial_id, "decisions", [[1, "wait", 0.5], [1, "go on", 0.5, 1, 0.4]])
    run(study, array, tmp_path, 2)
    assert array.evaluated[0] == (0, 2)


# ---------------------------------------------------------------- what samplers see, real models, refusals


def test_the_sampler_learns_from_trials_that_are_paused() -> None:
    seen: list[int] = []

    class Looking(TrialSeededSampler):
        def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
            seen.append(len(study.get_trials(states=(TrialState.PRUNED,))))
            return super().sample_relative(study, trial, search_space)

    space = parse({"x": {"low": 0.0, "high": 1.0}})
    study = optuna.create_study(study_name="s", direction="maximize", sampler=Looking("random", {}, space, 0))
    for _ in range(6):
        study.enqueue_trial({})
    study.pruner = make("asha", {"type": "promotion", "reduction_factor": 4, "min_resource": 1})

    def falling(params: Mapping[str, Any]) -> Iterator[float]:
        yield from (params["x"] - step for step in range(3))

    Runner(study, space, GeneratorArray(falling), Rules(6)).run()
    assert seen[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [{"slots": 2}, {"slots": 2, "fold": True}], ids=["side by side", "folded"])
def test_curves_of_a_real_model_are_those_of_trials_that_ran_through(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def curves(name: str, pruner: Any) -> dict[int, Any]:
        asked = {"evaluations_per_epoch": 4, "trials": 6, "sampler": "random", "name": name, "pruner": pruner}
        study = study_spec.build(tiny.study(tmp_path, **asked, **changes), "test", tmp_path)
        ran = run_study.run(study, "sqlite:///s.db").study
        return {trial.number: (trial.params, trial.state, trial.intermediate_values) for trial in ran.trials}

    whole = curves("whole", "none")
    found = curves("paused", {"name": "asha", "type": "promotion", "reduction_factor": 2})
    assert {state for _, state, _ in found.values()} == {TrialState.COMPLETE, TrialState.PRUNED}
    for number, (params, _, curve) in found.items():
        assert params == whole[number][0]
        assert curve == {step: whole[number][2][step] for step in curve}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round_size": 4, "pruner": {"name": "asha", "type": "promotion"}}, "pruner.type: in rounds trials pause"),
        ({"pruner": {"name": "asha", "type": "pausing"}}, "pruner.type: must be stopping or promotion, not 'pausing'"),
        ({"pruner": {"name": "hyperband", "type": "promotion"}}, "pruner.type: is not an argument of hyperband"),
        (
            {"pruner": {"name": "patient", "wrapped": {"name": "asha", "type": "promotion"}}},
            "patient ends trials, and type: promotion pauses them",
        ),
    ],
)
def test_what_pausing_does_not_go_together_with_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study_spec.build({"name": "s", "objective": "m:f", "space": {"x": [1, 2]}, **changes}, "s.yaml", Path())


def test_an_objective_that_suggests_by_itself_cannot_pause() -> None:
    with pytest.raises(ConfigError, match=r"pruner\.type: needs a space"):
        hpo.optimize(lambda trial: 0.0, pruner={"name": "asha", "type": "promotion"})


def test_decisions_are_plain_json() -> None:
    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        yield from (params["x"] + step for step in range(4))

    study = hpo.optimize(objective, {"x": {"low": 0.0, "high": 1.0}}, trials=5, pruner="asha")
    stored = [trial.user_attrs["decisions"] for trial in study.trials]
    assert json.loads(json.dumps(stored)) == stored
