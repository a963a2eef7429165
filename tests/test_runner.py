import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hpo.errors import DivergedError, OutOfMemoryError, StudyError
from hpo.objective import Evaluation, GeneratorArray
from hpo.pruners import make
from hpo.runner import Rules, Runner
from hpo.samplers import TrialSeededSampler
from hpo.space import parse
from hpo.watcher import Silent
from hpo.weights import Weights

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
    monkeypatch.setattr("hpo.samplers.MAX_REDRAWS", 0)
    study = study_of(rows=4)
    run(study, lambda params: float(params["x"]), budget=6)
    assert len(study.trials) <= 6
    assert any("duplicate_of" in trial.user_attrs for trial in study.trials)


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_slots_are_refilled_and_results_do_not_depend_on_them(slots):
    most = 0

    class Counting(GeneratorArray):
        def advance(self):
            nonlocal most
            most = max(most, len(self._running))
            return super().advance()

    def objective(params):
        for step in range(params["x"] + 1):
            yield params["x"] + step / 10

    study = study_of(points(3, 0, 2, 1))
    run(study, Counting(objective, slots))
    assert [trial.value for trial in study.trials] == [3.3, 0.0, 2.2, 1.1]
    assert most == min(slots, 4)


# ---------------------------------------------------------------- weights


class Keeping(GeneratorArray):
    """An array that has weights to keep."""

    def keep(self, slot, folder: Path):
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w")
        return True


def test_the_weights_of_the_best_and_of_the_published_default_are_kept(tmp_path):
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


def test_of_equal_trials_the_weights_of_the_lowest_number_are_kept_whoever_ends_first(tmp_path):
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
