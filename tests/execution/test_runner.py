import errno
import json
import math
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpo.core.errors import DivergedError, OutOfMemoryError, StorageError, StudyError
from hpo.core.events import Silent
from hpo.core.trainer import Evaluation, TrialCheckpoint
from hpo.execution.best_weights import Weights
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import Rules
from hpo.search.trial_source import MOST_DEATHS, SUSPECT
from hpo.space.parser import parse
from hpo.storage.trial_ownership import ATTEMPT

SPACE = parse({"x": [0, 1, 2, 3]})
STATES = TrialState


def study_of(points=None, direction="maximize", pruner="none", space=SPACE, rows=0, **arguments):
    """Return a study in memory with its rows planned."""
    study = optuna.create_study(
        direction=direction, sampler=TrialSeededSampler("random", {}, space, 0), pruner=make(pruner, arguments)
    )
    for point in points or [{}] * rows:
        study.enqueue_trial(point)
    return study


def run(study, objective, space=SPACE, slots=1, budget=None, watch=None, **rules):
    budget = budget or len(study.trials)
    array = objective if isinstance(objective, GeneratorArray) else GeneratorArray(objective, slots)
    return Runner(study, space, array, Rules(budget, **rules), watch).run()


def points(*xs):
    return [{"x": x} for x in xs]


def states(study):
    return [trial.state.name for trial in study.trials]


class Log(Silent):
    def __init__(self):
        self.lines = []

    def started(self, number, params):
        self.lines.append(("started", number, dict(params)))

    def ended(self, trial):
        self.lines.append(("ended", trial.number, trial.state.name))

    def note(self, message):
        self.lines.append(("note", message))


def test_how_far_trials_are_is_told_by_their_numbers():
    class Following(Silent):
        def __init__(self):
            self.found = []

        def follow(self, seen):
            self.seen = seen
            assert seen() == {}

        def evaluated(self, number, evaluation):
            self.found.append(self.seen())

    def objective(params):
        yield Evaluation(1.0, at=10 + params["x"], of=100)
        yield 2.0

    study, watch = study_of(points(1, 2, 3)), Following()
    run(study, objective, slots=2, watch=watch)
    both, second = {0: (11, 100), 1: (12, 100)}, {0: (0, None), 1: (0, None)}
    assert watch.found[:4] == [both, both, second, second]
    assert watch.found[4:] == [{2: (13, 100)}, {2: (0, None)}]
    assert watch.seen() == {}


# ---------------------------------------------------------------- values


def test_the_best_evaluation_counts_and_is_named():
    def objective(params):
        yield Evaluation(0.5, at=10, metrics={"loss": 3.0})
        yield Evaluation(0.9, at=20, metrics={"loss": 1.0}, notes={"collapsed": True})
        yield Evaluation(0.7, at=30)

    study = study_of(points(0))
    run(study, objective)
    (trial,) = study.trials
    assert trial.value == 0.9
    assert trial.intermediate_values == {10: 0.5, 20: 0.9, 30: 0.7}
    assert trial.user_attrs["best_at"] == 20
    assert trial.user_attrs["metrics"] == {"loss": 1.0}
    assert trial.user_attrs["collapsed"] is True
    assert trial.user_attrs["seconds"] >= 0


def test_what_is_measured_at_the_end_is_stored_whichever_evaluation_is_the_best():
    def objective(params):
        yield Evaluation(0.9, at=10, metrics={"loss": 1.0}, notes={"collapsed": False})
        yield Evaluation(0.5, at=20, metrics={"loss": 3.0}, of_best={"bleu": np.float32(2)}, at_end={"spent": 4.5})

    study = study_of([{"x": 1}])
    run(study, objective)
    attrs = study.trials[0].user_attrs
    assert (attrs["metrics"], attrs["spent"], attrs["collapsed"]) == ({"loss": 1.0, "bleu": 2.0}, 4.5, False)


def test_the_best_of_a_loss_is_the_smallest():
    study = study_of(points(0), "minimize")
    run(study, lambda params: iter_of(3.0, 1.0, 2.0))
    assert study.trials[0].value == 1.0


def iter_of(*values):
    yield from values


def test_what_a_generator_returns_is_its_value():
    def objective(params):
        yield 0.9
        return 0.4

    study = study_of(points(0))
    run(study, objective)
    assert study.trials[0].value == 0.4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_a_diverged_trial(value):
    study = study_of(points(0), "minimize")
    run(study, lambda params: value)
    (trial,) = study.trials
    assert trial.state == STATES.PRUNED
    assert trial.user_attrs["reason"] == "diverged"


@pytest.mark.parametrize("value", ["0.5", None, [1], True])
def test_a_score_that_is_no_number_is_a_failure_with_its_reason(value):
    study = study_of(points(0))
    run(study, lambda params: value)
    (trial,) = study.trials
    assert trial.state == STATES.FAIL
    assert trial.user_attrs["reason"] == "TypeError"
    assert repr(value) in trial.user_attrs["detail"]
    assert "Traceback" in trial.user_attrs["traceback"]


def test_an_objective_without_a_score_fails():
    study = study_of(points(0))
    run(study, lambda params: iter_of())
    assert "without yielding" in study.trials[0].user_attrs["detail"]


# ---------------------------------------------------------------- how trials end


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (DivergedError("loss"), STATES.PRUNED, "diverged"),
        (OutOfMemoryError("big"), STATES.PRUNED, "out_of_memory"),
        (optuna.TrialPruned(), STATES.PRUNED, "pruner"),
        (KeyError("text"), STATES.FAIL, "KeyError"),
    ],
)
def test_exceptions_become_states_in_one_place(error, state, reason):
    def objective(params):
        yield 0.5
        raise error

    study = study_of(points(0))
    run(study, objective)
    (trial,) = study.trials
    assert (trial.state, trial.user_attrs["reason"]) == (state, reason)
    assert trial.user_attrs["best_value"] == 0.5


def test_the_pruner_ends_a_trial_and_its_finally_runs():
    closed = []

    def objective(params):
        try:
            for step in range(1, 5):
                yield Evaluation(params["x"] * step, at=step * 100)
        finally:
            closed.append(params["x"])

    study = study_of(points(3, 2, 0), pruner="median", n_startup_trials=1)
    run(study, objective)
    assert states(study) == ["COMPLETE", "PRUNED", "PRUNED"]
    assert list(study.trials[2].intermediate_values) == [100]
    assert study.trials[2].user_attrs["reason"] == "pruner"
    assert closed == [3, 2, 0]


def test_patience_ends_a_trial_complete_with_its_best():
    study = study_of(points(0))
    run(study, lambda params: iter_of(0.1, 0.5, 0.4, 0.4, 0.9), patience=2)
    (trial,) = study.trials
    assert trial.state == STATES.COMPLETE
    assert trial.value == 0.5
    assert trial.user_attrs["stopped_early_at"] == 4


# ---------------------------------------------------------------- how studies end


def test_failures_in_a_row_stop_the_study_and_leave_the_rest_waiting():
    study = study_of(points(1, 0, 0, 0, 1))

    def objective(params):
        if params["x"] == 0:
            raise RuntimeError("no")
        return 1.0

    # The same parameters failed before; a failure is no duplicate and is tried again.
    assert "2 trials failed in a row" in run(study, objective, max_consecutive_failures=2)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "WAITING", "WAITING"]


def test_a_success_in_between_starts_the_count_anew():
    study = study_of(points(0, 1, 0, 2, 0))

    def objective(params):
        return 1.0 / params["x"]

    assert run(study, objective, max_consecutive_failures=2) is None
    assert states(study) == ["FAIL", "COMPLETE", "FAIL", "COMPLETE", "FAIL"]


def test_when_the_time_is_up_a_running_trial_goes_back_with_its_parameters():
    study = study_of(points(3, 2))
    assert "time is up" in run(study, lambda params: iter_of(*range(10**6)), timeout=0.05)
    assert states(study) == ["WAITING", "WAITING"]
    assert study.trials[0].params == {"x": 3}


def test_an_interrupt_puts_the_trial_back_and_a_second_run_ends_the_study():
    calls = []

    def objective(params):
        calls.append(params["x"])
        yield 0.1
        if len(calls) == 2:
            raise KeyboardInterrupt
        yield params["x"]

    study = study_of(points(3, 2, 1))
    with pytest.raises(KeyboardInterrupt):
        run(study, objective)
    assert states(study) == ["COMPLETE", "WAITING", "WAITING"]
    run(study, objective)
    assert states(study) == ["COMPLETE"] * 3
    assert calls == [3, 2, 2, 1]
    assert [trial.value for trial in study.trials] == [3, 2, 1]
    assert [len(trial.intermediate_values) for trial in study.trials] == [2, 2, 2]


def test_the_budget_counts_rows_of_every_state():
    def objective(params):
        if params["x"] == 0:
            raise RuntimeError("no")
        if params["x"] == 1:
            raise DivergedError("yes")
        return 1.0

    study = study_of(points(0, 1, 2, 3))
    run(study, objective, budget=3)
    assert states(study) == ["FAIL", "PRUNED", "COMPLETE", "WAITING"]


# ---------------------------------------------------------------- duplicates and small spaces


def test_a_duplicate_is_told_the_earlier_value_untrained():
    trained, study, log = [], study_of(points(2, 3, 2)), Log()

    def objective(params):
        trained.append(params["x"])
        return params["x"]

    run(study, objective, watch=log)
    assert trained == [2, 3]
    assert study.trials[2].value == 2
    assert study.trials[2].state == STATES.COMPLETE
    assert study.trials[2].user_attrs["duplicate_of"] == 0
    assert log.lines[-1] == ("ended", 2, "COMPLETE")


def test_a_duplicate_of_a_pruned_trial_is_pruned_at_its_value():
    def objective(params):
        yield Evaluation(0.25, at=50)
        raise optuna.TrialPruned

    study = study_of(points(2, 2))
    run(study, objective)
    assert states(study) == ["PRUNED", "PRUNED"]
    assert study.trials[1].value == 0.25
    assert study.trials[1].user_attrs["duplicate_of"] == 0


def test_a_duplicate_of_a_trial_in_another_slot_waits_for_its_value():
    trained, study = [], study_of(points(2, 2, 1))

    def objective(params):
        trained.append(params["x"])
        yield params["x"]
        yield params["x"] + 10

    run(study, objective, slots=3)
    assert trained == [2, 1]
    assert [trial.value for trial in study.trials] == [12, 12, 11]
    assert study.trials[1].user_attrs["duplicate_of"] == 0


def test_an_exhausted_space_ends_the_study_and_says_so():
    study, log = study_of(rows=4), Log()
    run(study, lambda params: float(params["x"]), budget=50, watch=log)
    assert {trial.params["x"] for trial in study.trials} == {0, 1, 2, 3}
    assert len(study.trials) < 15
    assert log.lines[-1] == ("note", "the search space is exhausted: all of its 4 points have been tried")


def test_rows_that_duplicates_used_up_are_planned_again_up_to_the_budget(monkeypatch):
    monkeypatch.setattr("hpo.search.samplers.MAX_REDRAWS", 0)
    study = study_of(rows=4)
    run(study, lambda params: float(params["x"]), budget=6)
    assert len(study.trials) <= 6
    assert any("duplicate_of" in trial.user_attrs for trial in study.trials)


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_slots_are_refilled_and_results_do_not_depend_on_them(slots):
    together = []

    class Watched(GeneratorArray):
        def advance(self):
            waiting = [trial for trial in study.trials if trial.state == TrialState.WAITING]
            assert len(self._running) == self.slots or not waiting
            together.append(len(self._running))
            return super().advance()

    def objective(params):
        for step in range(params["x"] + 1):
            yield params["x"] + step / 10

    study = study_of(points(3, 0, 2, 1))
    run(study, Watched(objective, slots))
    assert [trial.value for trial in study.trials] == [3.3, 0.0, 2.2, 1.1]
    assert max(together) == min(slots, 4)


# ---------------------------------------------------------------- weights


class Keeping(GeneratorArray):
    """An array that has weights to keep."""

    def save_weights(self, slot, folder: Path):
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w")
        return True


def test_the_weights_of_the_best_and_of_the_published_default_are_saved(tmp_path):
    study = study_of()
    study.enqueue_trial({"x": 1}, user_attrs={"baseline": True})
    for x in (0, 2, 3):
        study.enqueue_trial({"x": x})
    array = Keeping(lambda params: params["x"])
    Runner(study, SPACE, array, Rules(4), weights=Weights(tmp_path, 1, -1)).run()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "3"]


def test_a_trial_that_cannot_be_loaded_fails_alone():
    class Refusing(GeneratorArray):
        def load(self, slot, trial):
            if trial.params["x"] == 2:
                raise ValueError("no such thing")
            super().load(slot, trial)

    study = study_of(points(1, 2, 3))
    run(study, Refusing(lambda params: params["x"]))
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_of_equal_trials_the_weights_of_the_lowest_number_are_saved_in_any_order(tmp_path):
    def objective(params):
        for _ in range(4 - params["x"]):  # the later trial ends first
            yield 0.5

    study = study_of(points(0, 3))
    Runner(study, SPACE, Keeping(objective, slots=2), Rules(2), weights=Weights(tmp_path, 1, -1)).run()
    assert [folder.name for folder in tmp_path.iterdir()] == ["0"]


def test_an_objective_whose_finally_raises_ends_its_trial_and_not_the_study():
    def objective(params):
        try:
            yield params["x"]
            yield params["x"]
        finally:
            if params["x"] == 1:
                raise OSError("disk")

    study, log = study_of(points(3, 1, 2), pruner="median", n_startup_trials=1), Log()
    run(study, objective, watch=log)
    assert states(study) == ["COMPLETE", "PRUNED", "PRUNED"]
    assert any("cleaning up after a trial raised OSError: disk" in str(line) for line in log.lines)


def test_numbers_of_numpy_are_kept():
    study = study_of(points(0))
    value = np.float32(0.5)
    run(study, lambda params: Evaluation(value, metrics={"loss": np.float32(0.25)}))
    assert study.trials[0].value == 0.5
    assert study.trials[0].user_attrs["metrics"] == {"loss": 0.25}


def test_a_sampler_that_cannot_draw_is_an_error_that_names_it():
    study = study_of(rows=2)
    study.sampler = TrialSeededSampler("tpe", {"n_startup_trials": "8"}, SPACE, 0)
    with pytest.raises(StudyError, match="the sampler cannot draw trial 0"):
        run(study, lambda params: 1.0)
    assert states(study) == ["WAITING", "WAITING"]


# ---------------------------------------------------------------- rounds: the same results at any speed

INFINITE = parse({"x": {"low": 0.0, "high": 1.0}, "kind": ["a", "b"]})
FINITE = parse({"x": [0, 1, 2, 3], "kind": ["a", "b"]})
CONDITIONAL = parse(
    {"kind": ["a", "b"], "x": {"low": 1, "high": 3, "when": {"kind": ["a"]}}}
)  # four points: duplicates
PRUNING = {
    "none": {},
    "median": {"n_startup_trials": 2},
    "asha": {"reduction_factor": 2},
    "hyperband": {"reduction_factor": 2},
}


def drawn_of(params):
    """Return a number in [0, 1) that looks random and depends on the parameters alone."""
    return zlib.crc32(json.dumps(params, sort_keys=True).encode()) % 1000 / 1000


def curves(params):
    """Yield a curve that differs in length and height; one trial in four fails on its way."""
    base = drawn_of(params)
    for step in range(1, 3 + int(base * 5)):
        if int(base * 1000) % 4 == 0 and step == 3:
            raise RuntimeError("no")
        value = round(base + (int(base * 7919) * step % 17) / 17, 1)  # rounded: there are ties
        # Some of them the loss decides, some it does not, and some trials report none.
        yield Evaluation(value, metrics={"loss": round(base * 7 % 1, 1)} if int(base * 1000) % 3 else {})


class Stuck(Exception):
    """All rows wait for each other."""


class Rounds:
    """A study in rounds, made and run again and again."""

    def __init__(self, space=INFINITE, sampler="random", pruner="asha", size=4, budget=10, seed=0, baseline=True):
        self.space, self.sampler, self.pruner, self.seed, self.baseline = space, sampler, pruner, seed, baseline
        self.rules = Rules(budget, seed, max_consecutive_failures=99, round_size=size)
        grid = space.grid() if sampler == "grid" else None
        self.rows = grid or [{}] * int(min(budget, space.size))

    def study(self):
        study = optuna.create_study(study_name="s", direction="maximize")
        for number, point in enumerate(self.rows):
            study.enqueue_trial(point, user_attrs={"baseline": True} if number == 0 and self.baseline else {})
        return study

    def runner(self, study, objective=curves, slots=1, watch=None):
        study.sampler = TrialSeededSampler(self.sampler, {}, self.space, self.seed)
        study.pruner = make(self.pruner, PRUNING[self.pruner])  # which keeps what it has seen
        return Runner(study, self.space, GeneratorArray(objective, slots), self.rules, watch)

    def table(self, slots=1):
        study = self.study()
        self.runner(study, slots=slots).run()
        return table(study)


class Halting:
    """Asks its runner to halt in one of its evaluations."""

    def __init__(self, at):
        self._left = at

    def __call__(self, params):
        for value in curves(params):
            self._left -= 1
            if self._left == 0:
                self.runner.stop_request.set()
            yield value


def table(study):
    return [
        (
            row.number,
            row.state.name,
            row.params,
            row.value,
            row.intermediate_values,
            row.user_attrs.get("duplicate_of"),
            row.user_attrs.get("ties"),
        )
        for row in study.trials
    ]


@pytest.fixture
def impatient(monkeypatch):
    """Refuse to wait, for other processes (there are none) or for the first checkpoint."""

    def sleep(seconds):
        raise Stuck

    monkeypatch.setattr("hpo.execution.runner.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr("hpo.execution.checkpoint_writer.FIRST", 0)


@pytest.mark.parametrize("pruner", PRUNING)
@pytest.mark.parametrize(
    ("space", "sampler"),
    [
        (INFINITE, "random"),
        (INFINITE, "tpe"),
        (FINITE, "random"),
        (FINITE, "tpe"),
        (FINITE, "grid"),
        (CONDITIONAL, "random"),
        (CONDITIONAL, "grid"),
    ],
)
def test_in_rounds_a_study_is_the_same_whatever_the_slots(impatient, space, sampler, pruner):
    rounds = Rounds(space, sampler, pruner, size=4, budget=10 if space is INFINITE else 14)
    alone = rounds.table(slots=1)
    assert {row[1] for row in alone} <= {"COMPLETE", "PRUNED", "FAIL", "WAITING"}
    for slots in (2, 3, 5):
        assert rounds.table(slots) == alone


@settings(max_examples=15)
@given(
    space=st.sampled_from([INFINITE, FINITE, CONDITIONAL]),
    sampler=st.sampled_from(["random", "qmc"]),
    pruner=st.sampled_from(sorted(PRUNING)),
    size=st.integers(2, 8),
    seed=st.integers(0, 999),
    slots=st.integers(2, 6),
    baseline=st.booleans(),
)
def test_in_rounds_any_study_is_the_same_whatever_the_slots(space, sampler, pruner, size, seed, slots, baseline):
    rounds = Rounds(space, sampler, pruner, size, 8, seed, baseline)
    assert rounds.table(1) == rounds.table(slots)


def test_these_studies_have_duplicates_failures_and_pruned_trials():
    rows = Rounds(CONDITIONAL, size=4, budget=14).table() + Rounds(FINITE, size=4, budget=14).table()
    assert {row[1] for row in rows} >= {"COMPLETE", "PRUNED", "FAIL"}
    assert any(row[5] is not None for row in rows)
    assert {how for row in rows for how in (row[6] or {}).values()} == {"loss", "all"}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("space", "sampler", "pruner"),
    [
        (INFINITE, "tpe", "asha"),
        (FINITE, "random", "hyperband"),
        (CONDITIONAL, "qmc", "median"),
        (FINITE, "grid", "asha"),
    ],
)
def test_halted_at_any_evaluation_and_resumed_a_study_in_rounds_is_the_same(impatient, space, sampler, pruner, slots):
    rounds = Rounds(space, sampler, pruner, size=3, budget=6)
    whole = rounds.table()
    evaluations = sum(len(row[4]) for row in whole if row[5] is None)
    for at in range(1, evaluations + 1):
        study, objective = rounds.study(), Halting(at)
        objective.runner = rounds.runner(study, objective, slots)
        with pytest.raises(KeyboardInterrupt):
            objective.runner.run()
        assert TrialState.RUNNING not in {row.state for row in study.trials}
        rounds.runner(study, slots=slots).run()
        assert table(study) == whole, at


class Killed(BaseException):
    """The end of a process; not even a `finally` of its has an effect afterwards."""


class Mortal:
    """A storage that is out of its process's reach after some writes, as if that one had been killed."""

    def __init__(self, kept, writes):
        self._kept, self._left = kept, writes

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self._left -= name.startswith(("set_", "create_"))
            if self._left < 0:
                raise Killed
            return getattr(self._kept, name)(*args, **kwargs)

        return call


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("space", "sampler", "pruner"), [(INFINITE, "tpe", "asha"), (CONDITIONAL, "random", "hyperband")]
)
def test_killed_before_any_write_and_resumed_a_study_in_rounds_is_the_same(impatient, space, sampler, pruner, slots):
    rounds = Rounds(space, sampler, pruner, size=3, budget=6)
    whole, writes, dead = rounds.table(), 0, True
    while dead:
        study = rounds.study()
        kept, study._storage = study._storage, Mortal(study._storage, writes)
        try:
            rounds.runner(study, slots=slots).run()
            dead = False
        except Killed:
            study._storage = kept
            rounds.runner(study, slots=slots).run()
            assert table(study) == whole, writes
        writes += 2
    assert writes > 40


def test_in_one_slot_a_free_running_study_goes_on_as_if_nothing_had_been(impatient):
    rounds = Rounds(INFINITE, "tpe", "median", size=None, budget=6)
    whole = rounds.table()
    for at in range(1, sum(len(row[4]) for row in whole) + 1):
        study, objective = rounds.study(), Halting(at)
        objective.runner = rounds.runner(study, objective)
        with pytest.raises(KeyboardInterrupt):
            objective.runner.run()
        rounds.runner(study).run()
        assert table(study) == whole, at


@pytest.mark.parametrize("seed", range(5))
def test_what_runs_in_another_slot_is_not_drawn_again(seed):
    space = parse({"x": list(range(8))})
    study = study_of(rows=5, space=space)
    study.sampler = TrialSeededSampler("random", {}, space, seed)
    run(study, lambda params: iter_of(*range(3)), space, slots=5)
    assert len({trial.params["x"] for trial in study.trials}) == 5


# ---------------------------------------------------------------- trained again


def test_a_trial_that_was_trained_again_and_differs_is_noted():
    values, log = iter([0.1, 0.2, 0.1, 0.3, 0.4]), Log()

    def objective(params):
        yield next(values)
        yield next(values)
        if params["x"] == 3 and study.trials[0].intermediate_values[2] == 0.2:
            raise KeyboardInterrupt
        yield next(values)

    study = study_of(points(3))
    with pytest.raises(KeyboardInterrupt):
        run(study, objective, watch=log)
    assert not [line for line in log.lines if line[0] == "note"]
    run(study, objective, watch=log)
    (note,) = [line[1] for line in log.lines if line[0] == "note"]
    assert "trial 0 was trained again and has 0.3 where it had 0.2 (at 2)" in note
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4}


@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError, ConnectionResetError])
@pytest.mark.parametrize("where", ["load", "advance"])
def test_a_cause_that_may_pass_is_met_three_times_more(kind, where):
    calls, log = [], Log()

    def met(number):
        calls.append(number)
        if number == 0:
            raise kind("unreachable")

    class Loading(GeneratorArray):
        def load(self, slot, trial):
            if where == "load":
                met(trial.number)
            super().load(slot, trial)

    def objective(params):
        if where == "advance":
            met(params["x"])
        yield 1.0

    study = study_of(points(0, 1))
    run(study, Loading(objective), watch=log)
    assert calls.count(0) == 4
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs["reason"] == kind.__name__
    assert sum("trial 0 is run again" in str(line) for line in log.lines) == 3


def test_a_cause_that_passes_leaves_no_trace_in_the_results():
    left = [2]

    def objective(params):
        yield 0.5
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("unreachable")
        yield 0.7

    study = study_of(points(0))
    run(study, objective)
    assert (states(study), study.trials[0].value) == (["COMPLETE"], 0.7)
    assert "reason" not in study.trials[0].user_attrs


# ---------------------------------------------------------------- trials in which processes die


def died_in(study, number, deaths, evaluations=0):
    """Leave a row as so many processes leave it that died in it, one after the other."""
    trial = study._storage.get_all_trials(study._study_id)[number]._trial_id
    for step in range(1, evaluations + 1):
        study._storage.set_trial_intermediate_value(trial, step, 0.0)
    if deaths > 1:
        study._storage.set_trial_system_attr(trial, ATTEMPT, [deaths - 1, deaths - 1, evaluations])
    study._storage.set_trial_state_values(trial, TrialState.RUNNING)


class Company(GeneratorArray):
    """An array that knows with how many others each trial has been trained."""

    def __init__(self, objective, slots):
        super().__init__(objective, slots)
        self.met = {}

    def advance(self):
        for number in self._numbers.values():
            self.met[number] = max(self.met.get(number, 0), len(self._numbers))
        return super().advance()


@pytest.mark.parametrize(("deaths", "alone"), [(1, False), (SUSPECT - 1, False), (SUSPECT, True), (SUSPECT + 1, True)])
def test_a_trial_in_which_processes_die_is_suspected_and_runs_alone(deaths, alone):
    study = study_of(points(0, 1, 2, 3))
    died_in(study, 2, deaths)
    array = Company(lambda params: iter_of(*range(params["x"] + 1)), 3)
    run(study, array)
    assert states(study) == ["COMPLETE"] * 4
    assert (array.met[2] == 1) is alone
    assert array.met[0] > 1


def test_a_trial_in_which_ten_processes_died_in_a_row_has_failed():
    study = study_of(points(0, 1))
    died_in(study, 0, MOST_DEATHS)
    run(study, lambda params: 1.0)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs["reason"] == "killed"
    study = study_of(points(0, 1))
    died_in(study, 0, MOST_DEATHS - 1)
    run(study, lambda params: 1.0)
    assert states(study) == ["COMPLETE"] * 2


def test_processes_that_died_further_and_further_are_no_suspicion():
    study = study_of(points(0, 1))
    died_in(study, 0, MOST_DEATHS, evaluations=2)
    study._storage.set_trial_intermediate_value(study.trials[0]._trial_id, 3, 0.0)  # the last one got further
    array = Company(lambda params: iter_of(0.0, 0.0, 0.0, 1.0), 2)
    run(study, array)
    assert states(study) == ["COMPLETE"] * 2


# ---------------------------------------------------------------- pausing at rungs


class Saving:
    """An array that holds nothing outside its slots, and can say where a trial is."""

    def __init__(self, slots=1, steps=4, halt_at=None):
        self.slots, self.segment, self.horizon, self.facts, self.notes = slots, 1, None, {}, ()
        self.stop_request, self.trained, self._steps, self._halt_at = None, [], steps, halt_at
        self._held = {}

    def load(self, slot, trial):
        if trial.checkpoint is not None and trial.checkpoint.trial != trial.number:
            raise ValueError("another's")
        self._held[slot] = [trial.number, trial.checkpoint.state["step"] if trial.checkpoint else 0]

    def advance(self):
        outcomes = {}
        for slot, held in self._held.items():
            held[1] += 1
            assert held[1] <= self._steps
            self.trained.append(tuple(held))
            if len(self.trained) == self._halt_at:
                self.stop_request.set()
            outcomes[slot] = Evaluation(held[0] + held[1] / 10, at=held[1], last=held[1] == self._steps)
        return outcomes

    def save(self, slot):
        number, step = self._held[slot]
        return TrialCheckpoint(number, {"step": step})

    def pause(self, slot):
        return False

    def save_weights(self, slot, folder):
        return False

    def unload(self, slot):
        self._held.pop(slot, None)


def saving_run(study, array, folder, budget=4):
    study.pruner = make("asha", {"reduction_factor": 2})
    rules = Rules(budget, round_size=budget)
    Runner(study, SPACE, array, rules, Log(), checkpoints=Checkpoints(folder, "s")).run()


ROUND = [[1], [1], [1, 2], [1, 2, 3, 4]]  # steps of the trials of a round with a factor of 2


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_trial_that_paused_goes_on_from_its_checkpoint(impatient, tmp_path, slots):
    study, array = study_of(points(0, 1, 2, 3)), Saving(slots)
    saving_run(study, array, tmp_path)
    assert states(study) == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    assert [list(trial.intermediate_values) for trial in study.trials] == ROUND
    assert sorted(array.trained) == [(n, step) for n, steps in enumerate(ROUND) for step in steps]  # each once
    assert all(trial.user_attrs["best_value"] == max(trial.intermediate_values.values()) for trial in study.trials)
    assert not list(tmp_path.glob("trial-*"))


@pytest.mark.parametrize("slots", [1, 3])
def test_halted_at_any_step_a_round_goes_on_from_its_checkpoints(impatient, tmp_path, slots):
    for at in range(1, 8):
        study, first, second = study_of(points(0, 1, 2, 3)), Saving(slots, halt_at=at), Saving(slots)
        with pytest.raises(KeyboardInterrupt):
            saving_run(study, first, tmp_path / str(at))
        saving_run(study, second, tmp_path / str(at))
        assert [list(trial.intermediate_values) for trial in study.trials] == ROUND
        assert sorted(first.trained + second.trained) == [(n, s) for n, steps in enumerate(ROUND) for s in steps]


def test_a_checkpoint_of_no_use_is_none(impatient, tmp_path):
    study, first, second = study_of(points(0, 1, 2, 3)), Saving(halt_at=4), Saving()
    with pytest.raises(KeyboardInterrupt):
        saving_run(study, first, tmp_path)
    for place in tmp_path.iterdir():
        (place / "manifest.json").write_text("{")
    saving_run(study, second, tmp_path)
    assert [list(trial.intermediate_values) for trial in study.trials] == ROUND
    assert (3, 1) in second.trained


def test_a_paused_trial_that_another_process_has_adopted_is_dropped():
    log = Log()

    def objective(params):
        if params["x"] == 3:  # trial 0 has paused by now; its owner has been overtaken
            trial = study.trials[0]._trial_id
            runner.cache._ownership._locks.release(0)
            study._storage.set_trial_system_attr(trial, ATTEMPT, [1, 1, 1])
        yield params["x"]
        yield params["x"]

    study = study_of(points(2, 3), pruner="asha", reduction_factor=2)
    runner = Runner(study, SPACE, GeneratorArray(objective), Rules(2, round_size=2), log)
    runner.run()
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert ("note", "trial 0 belongs to another process, and is dropped here") in log.lines
    assert study.trials[0].system_attrs[ATTEMPT][0] == 2  # adopted back


def test_a_trial_that_another_process_has_told_is_dropped_and_keeps_its_value():
    log = Log()

    def objective(params):
        yield params["x"]
        if params["x"] == 2:  # its owner is overtaken, and reads the rows again before it tells
            study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.COMPLETE, [7.0])
            runner.cache.refresh()

    study = study_of(points(2, 3))
    runner = Runner(study, SPACE, GeneratorArray(objective), Rules(2), log)
    runner.run()
    assert [trial.value for trial in study.trials] == [7.0, 3.0]
    assert ("note", "trial 0 belongs to another process, and is dropped here") in log.lines


def test_a_trial_that_is_lost_in_a_segment_is_dropped_and_its_neighbours_are_reported():
    log, left = Log(), []

    def objective(params):
        try:
            yield 1.0
            if params["x"] == 2 and not left:  # its owner is overtaken
                runner.cache._ownership._locks.release(1)
                study._storage.set_trial_system_attr(study.trials[1]._trial_id, ATTEMPT, [1, 1, 1])
            yield 2.0
            assert 2.0 in study.trials[0].intermediate_values.values()  # in the storage
            yield 3.0
        finally:
            left.append(params["x"])

    study = study_of(points(1, 2, 3))
    runner = Runner(study, SPACE, GeneratorArray(objective, 3), Rules(3), log)
    runner.run()
    assert left[0] == 2
    assert log.lines.count(("note", "trial 1 belongs to another process, and is dropped here")) == 1
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.intermediate_values for trial in study.trials] == [{1: 1.0, 2: 2.0, 3: 3.0}] * 3


@pytest.mark.parametrize("slots", [1, 3])
def test_killed_before_any_write_a_round_goes_on_from_its_checkpoints(impatient, tmp_path, slots):
    writes, dead = 0, True
    while dead:
        study = study_of(points(0, 1, 2, 3))
        kept, study._storage = study._storage, Mortal(study._storage, writes)
        try:
            saving_run(study, Saving(slots), tmp_path / str(writes))
            dead = False
        except Killed:
            study._storage = kept
            saving_run(study, Saving(slots), tmp_path / str(writes))
        assert [list(trial.intermediate_values) for trial in study.trials] == ROUND, writes
        assert states(study) == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
        writes += 2
    assert writes > 40


@pytest.mark.parametrize("at", range(1, 9, 2))
def test_a_disk_that_was_full_for_a_moment_leaves_no_gap_in_a_curve(impatient, tmp_path, monkeypatch, at):
    study, left = study_of(points(0, 1, 2, 3)), [at]
    report = study._storage.set_trial_intermediate_value

    def full(*args):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        report(*args)

    monkeypatch.setattr(study._storage, "set_trial_intermediate_value", full)
    with pytest.raises(StorageError, match="No space left"):
        saving_run(study, Saving(4), tmp_path)
    assert TrialState.RUNNING not in {row.state for row in study.trials}
    saving_run(study, Saving(4), tmp_path)
    assert [list(trial.intermediate_values) for trial in study.trials] == ROUND
