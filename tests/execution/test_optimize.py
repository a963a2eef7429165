from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import hpo
from hpo.core.errors import ConfigError, StudyError
from hpo.core.events import Silent
from hpo.execution import optuna_arguments

SPACE = {"x": {"low": 0.0, "high": 1.0}}


class Log(Silent):
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def opened(self, name: str, metric: str, direction: str, total: int, finished: Any) -> None:
        self.lines.append(("opened", name, direction, total, len(finished)))

    def ended(self, trial: FrozenTrial) -> None:
        self.lines.append(("ended", trial.number))

    def closed(self) -> None:
        self.lines.append("closed")


def double(params: Mapping[str, Any]) -> float:
    return 2.0 * params["x"]


def plain(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


# ---------------------------------------------------------------- with a space


def test_a_function_of_params_gives_a_study_of_the_budget() -> None:
    study = hpo.optimize(double, SPACE, trials=5)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert all(trial.value == 2.0 * trial.params["x"] for trial in study.trials)


def test_the_same_call_goes_on_with_the_study_in_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = hpo.optimize(double, SPACE, trials=5, storage="sqlite:///whole.db", seed=3)
    hpo.optimize(double, SPACE, trials=2, storage="sqlite:///parts.db", seed=3)
    parts = hpo.optimize(double, SPACE, trials=5, storage="sqlite:///parts.db", seed=3)
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]
    with pytest.raises(StudyError, match="seed: was 3, is 4"):
        hpo.optimize(double, SPACE, trials=5, storage="sqlite:///parts.db", seed=4)


def test_the_best_evaluation_counts_and_patience_ends_a_trial() -> None:
    def rises_and_falls(params: Mapping[str, Any]) -> Iterator[float]:
        yield from (params["x"], params["x"] + 1, params["x"], params["x"], params["x"] + 9)

    study = hpo.optimize(rises_and_falls, SPACE, trials=1, pruner="none", patience=2)
    assert study.best_value == study.trials[0].params["x"] + 1
    assert study.trials[0].user_attrs["stopped_early_at"] == 4


def test_an_objective_that_exits_fails_its_trial_only() -> None:
    def leaves(params: Mapping[str, Any]) -> float:
        if params["x"] == 1:
            sys.exit(3)
        return float(params["x"])

    study = hpo.optimize(leaves, {"x": [0, 1, 2]}, sampler="grid")
    by_x = {trial.params["x"]: trial for trial in study.trials}
    assert by_x[1].state == TrialState.FAIL
    assert by_x[1].user_attrs["detail"] == "the objective called sys.exit(3)"
    assert [by_x[x].value for x in (0, 2)] == [0.0, 2.0]


def test_too_many_failures_in_a_row_stop_the_study_and_leave_the_rest() -> None:
    def fails(params: Mapping[str, Any]) -> float:
        raise OSError("no such disk")

    with pytest.warns(UserWarning, match="2 trials failed in a row, the last with OSError: no such disk"):
        study = hpo.optimize(fails, SPACE, trials=6, max_consecutive_failures=2)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2 + [TrialState.WAITING] * 4


def test_a_study_of_which_no_trial_completes_says_so() -> None:
    with pytest.warns(UserWarning, match="no trial of study has completed; the last ended with diverged"):
        hpo.optimize(lambda params: float("nan"), SPACE, trials=3)


def test_another_sampler_from_here_on_is_said_and_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    hpo.optimize(double, SPACE, trials=3, storage=url)
    log = Noting()
    study = hpo.optimize(double, SPACE, trials=4, storage=url, sampler="random", watch=log)
    assert log.notes == ['sampler: was "tpe" for the 3 trials that have ended, is now "random"']
    assert study.user_attrs["config"]["sampler"] == "random"


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_what_the_objective_declares_is_checked_against_the_space() -> None:
    def declares(params: Mapping[str, Any]) -> float:
        return 0.0

    declares.parameters = ["learning_rate"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"learning_rte: is not read by .*; did you mean learning_rate"):
        hpo.optimize(declares, {"learning_rte": [1, 2]})


# ---------------------------------------------------------------- without one


def test_an_optuna_objective_runs_unchanged_and_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    log = Log()
    assert len(hpo.optimize(plain, trials=3, storage=url, direction="minimize", watch=log).trials) == 3
    again = hpo.optimize(plain, trials=5, storage=url, direction="minimize", watch=log)
    drawn = [trial.params["x"] for trial in again.trials]
    assert len(set(drawn)) == 5  # the second run did not repeat the first one's draws
    assert again.best_value == min(drawn)
    ends = [("ended", number) for number in range(5)]
    assert log.lines == [
        ("opened", "study", "minimize", 3, 0), *ends[:3], "closed",
        ("opened", "study", "minimize", 5, 3), *ends[3:], "closed",
    ]  # fmt: skip


def test_failures_of_an_optuna_objective_are_bounded_too() -> None:
    def fails(trial: optuna.Trial) -> float:
        raise ValueError

    with pytest.warns(UserWarning, match="2 trials failed in a row; the study stops"):
        study = hpo.optimize(fails, trials=6, max_consecutive_failures=2)
    assert len(study.trials) == 2


def test_patience_without_a_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="patience: needs a space"):
        hpo.optimize(plain, patience=2)


def test_what_is_no_objective_and_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective: must be a function of params, not 5"):
        hpo.optimize(5, SPACE)  # type: ignore[arg-type]


class OwnSampler(optuna.samplers.RandomSampler):
    pass


class OwnPruner(optuna.pruners.NopPruner):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler": optuna.samplers.TPESampler()}, "sampler: is a TPESampler object.* write sampler='tpe' or {'name'"),
        ({"sampler": optuna.samplers.CmaEsSampler}, "write sampler='cmaes'"),
        ({"sampler": optuna.samplers.GridSampler({"x": [1]})}, "write sampler='grid'"),
        ({"sampler": optuna.samplers.NSGAIISampler()}, "write sampler='NSGAIISampler'"),
        ({"sampler": OwnSampler()}, "add its class to hpo.search.samplers.SAMPLERS under a name, and write sampler="),
        ({"pruner": optuna.pruners.HyperbandPruner()}, "write pruner='hyperband'"),
        ({"pruner": OwnPruner()}, "add its class to hpo.search.pruners.PRUNERS under a name"),
        ({"pruner": None}, "pruner: must be a name or a mapping, e.g. pruner='none', not None"),
        ({"n_trials": 3, "sampler": 5}, "(?s)n_trials: write trials=N.*sampler: must be a name"),
        ({"callbacks": []}, "callbacks: write watch=W, a subclass of hpo.core.events.Observer"),
        ({"trails": 3}, "trails: is not an argument of optimize; did you mean trials"),
    ],
)
def test_what_optuna_takes_is_refused_with_what_takes_its_place(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        hpo.optimize(double, SPACE, **given)


def test_every_replaced_argument_is_one_of_optunas_and_none_of_ours() -> None:
    of_optuna = {
        *inspect.signature(optuna.create_study).parameters,
        *inspect.signature(optuna.Study.optimize).parameters,
    }
    assert set(optuna_arguments.REPLACED) <= of_optuna
    ours = set(inspect.signature(hpo.optimize).parameters)
    assert not ours & set(optuna_arguments.REPLACED)
    assert of_optuna - set(optuna_arguments.REPLACED) - {"self", "func"} <= ours  # each has a place here, or words


def test_the_second_wave_of_auto_is_drawn_near_the_better_third_of_the_first() -> None:
    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        for step in range(1, 31):
            yield step / 100 - abs(params["x"] - 0.7)

    space = {"x": {"low": 0.0, "high": 1.0}, "other": {"low": 0.0, "high": 1.0}}
    study = hpo.optimize(objective, space, sampler="auto", pruner="auto", trials=40)
    away = [abs(trial.params["x"] - 0.7) for trial in study.trials]
    assert sum(away[20:]) < sum(away[:20]) / 2
    assert max(abs(trial.params["other"] - 0.5) for trial in study.trials[20:]) > 0.3  # it does not matter
    reached = [len(trial.intermediate_values) for trial in study.trials]
    assert sorted(reached) == [1] * 30 + [4] * 7 + [30] * 3  # 40, then 10, then 3
    assert study.best_trial.number in {number for number, count in enumerate(reached) if count == 30}
