"""Pruning from end to end: ties, what is pruned on, the published default, notes of evaluations that count no more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import hpo
from hpo.analysis.trial_summary import remarks
from hpo.config import study_spec
from hpo.core.errors import ConfigError
from hpo.core.trainer import Evaluation, TrialCheckpoint
from hpo.execution.checkpoint_store import Checkpoints
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.runner import Runner
from hpo.search.comparison import Comparison
from hpo.search.pruners import make
from hpo.search.samplers import TrialSeededSampler
from hpo.search.stopping import Rules
from hpo.space.parser import parse
from hpo.storage.step_metrics import METRICS_AT

SPACE = parse({"x": list(range(8))})
HALVING = {"reduction_factor": 4}
Curve = list[tuple[float, float]]  # (value, loss) of each evaluation

PRUNERS: list[tuple[str, dict[str, Any]]] = [
    ("median", {"n_startup_trials": 1}),
    ("percentile", {"percentile": 50.0, "n_startup_trials": 1}),
    ("asha", {"reduction_factor": 2}),
    ("hyperband", {"reduction_factor": 2, "max_resource": 4}),
    ("patient", {"patience": 1, "wrapped": {"name": "median", "n_startup_trials": 1}}),
    ("wilcoxon", {"p_threshold": 0.3}),
    ("threshold", {"upper": 0.75}),
]


def study_of(count: int, baseline: bool = False, direction: str = "maximize") -> optuna.Study:
    study = optuna.create_study(study_name="s", direction=direction, sampler=TrialSeededSampler("random", {}, SPACE, 0))
    for number in range(count):
        study.enqueue_trial({"x": number}, user_attrs={"baseline": True} if baseline and number == 0 else {})
    return study


def run(study: optuna.Study, objective: Any, pruner: str = "asha", slots: int = 1, **rules: Any) -> None:
    study.pruner = make(pruner, rules.pop("arguments", HALVING))
    Runner(study, SPACE, GeneratorArray(objective, slots), Rules(len(study.trials), **rules)).run()


def telling(curves: Mapping[int, Curve], name: str = "loss") -> Any:
    """Return an objective with a curve for each x."""

    def objective(params: Mapping[str, Any]) -> Iterator[Evaluation]:
        for value, loss in curves[params["x"]]:
            yield Evaluation(value, metrics={name: loss})

    return objective


def steps(study: optuna.Study) -> list[int]:
    return [len(trial.intermediate_values) for trial in study.trials]


# ---------------------------------------------------------------- ties

# At first all give the most frequent answer; the third learns, which its loss shows before its score does.
SKEWED = {x: [(0.93, 0.3 - 0.1 * (x == 2)), (0.93 + 0.05 * (x == 2), 0.1)] for x in range(8)}


@pytest.mark.parametrize("slots", [1, 3, 4])
def test_in_a_round_a_tie_is_decided_by_the_loss_and_not_by_the_number(slots: int) -> None:
    study = study_of(4)
    run(study, telling(SKEWED), slots=slots, round_size=4)
    assert steps(study) == [1, 1, 2, 1]
    assert [trial.user_attrs["ties"] for trial in study.trials] == [{"1": "loss"}] * 4
    assert all(set(trial.intermediate_values.values()) <= {0.93, 0.93 + 0.05} for trial in study.trials)  # as they were


def test_free_running_too() -> None:
    study = study_of(4)
    run(study, telling(SKEWED))
    assert steps(study)[2:] == [2, 1]  # the first has nobody to compare with
    assert study.trials[3].user_attrs["ties"] == {"1": "loss"}


@pytest.mark.parametrize("size", [None, 4])
def test_a_tie_that_the_loss_does_not_decide_lets_all_go_on_and_is_counted(size: int | None) -> None:
    study = study_of(4)
    run(study, lambda params: iter([0.93, 0.93]), round_size=size)
    assert steps(study) == [2] * 4
    assert study.trials[3].user_attrs["ties"] == {"1": "all"}


# ---------------------------------------------------------------- what is pruned on

# The score says nothing of the loss, which falls and then rises, from another height for each.
LOSSES = {
    x: [(x / 10 + step / 100, 0.9 - 0.1 * (x * 5 % 8) + (0.02 * step - 0.03) ** 2 * (x + 1)) for step in range(6)]
    for x in range(8)
}


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize(("pruner", "arguments"), PRUNERS)
def test_pruned_on_the_loss_a_study_ends_as_one_whose_value_is_the_loss(
    pruner: str, arguments: dict[str, Any], size: int | None
) -> None:
    def loss_alone(params: Mapping[str, Any]) -> Iterator[float]:
        yield from (loss for _, loss in LOSSES[params["x"]])

    expected, found = study_of(8, direction="minimize"), study_of(8)
    run(expected, loss_alone, pruner, round_size=size, arguments=arguments)
    rules = {"round_size": size, "compared": Comparison("minimize", "loss")}
    run(found, telling(LOSSES), pruner, arguments=arguments, **rules)
    assert steps(found) == steps(expected)
    assert len(set(steps(expected))) > 1  # some were pruned, and some were not
    assert [trial.intermediate_values[1] for trial in found.trials] == [x / 10 for x in range(8)]


def test_what_was_reported_before_pruning_on_the_loss_counts_too() -> None:
    study = study_of(8)
    for budget, compared in ((4, None), (8, Comparison("minimize", "loss"))):
        study.pruner = make("median", {"n_startup_trials": 4} if compared else {"n_startup_trials": 99})
        Runner(study, SPACE, GeneratorArray(telling(LOSSES)), Rules(budget, compared=compared)).run()
    assert steps(study)[:4] == [6] * 4
    assert steps(study)[4:] != [6] * 4
    assert set(study.trials[0].system_attrs[METRICS_AT]["loss"]) == set("123456")


def test_a_metric_that_is_not_reported_stops_the_study_with_the_way_on() -> None:
    study = study_of(2)
    with pytest.raises(ConfigError, match=r"prune_on: 'error' is not a metric .* \(it reports loss\)"):
        run(study, telling(LOSSES), compared=Comparison("minimize", "error"))
    assert {trial.state for trial in study.trials} == {TrialState.WAITING}


def test_a_metric_that_is_not_finite_is_a_diverged_trial() -> None:
    study = study_of(1)
    run(study, telling({0: [(0.5, math.nan), (0.6, 0.1)]}), compared=Comparison("minimize", "loss"))
    assert study.trials[0].user_attrs["reason"] == "diverged"
    assert "loss, which prune_on names, is nan" in study.trials[0].user_attrs["detail"]


def test_the_python_api_prunes_on_a_metric() -> None:
    def objective(params: Mapping[str, Any]) -> Iterator[Evaluation]:
        for value, loss in LOSSES[params["x"]]:
            yield Evaluation(value, metrics={"error": loss})

    given = {"trials": 8, "sampler": "grid", "pruner": {"name": "median", "n_startup_trials": 1}}
    study = hpo.optimize(objective, {"x": list(range(8))}, prune_on={"name": "error", "direction": "minimize"}, **given)
    again = hpo.optimize(objective, {"x": list(range(8))}, **given)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert steps(study) != steps(again)
    pruned = {trial.params["x"] for trial in study.trials if trial.state == TrialState.PRUNED}
    assert pruned
    assert 3 not in pruned  # of the lowest loss
    with pytest.raises(ConfigError, match="prune_on: needs a space"):
        hpo.optimize(lambda trial: 0.0, prune_on="loss")


CUSTOM = {"name": "s", "objective": "m:f", "space": {"x": [1, 2]}}
OURS = {"name": "s", "model": "m", "data": {}}


@pytest.mark.parametrize(
    ("file", "prune_on", "compared"),
    [
        (OURS, None, Comparison("maximize")),
        (OURS, "loss", Comparison("minimize", "loss")),
        ({**OURS, "metric": "loss"}, None, Comparison("minimize")),
        (CUSTOM, "loss", Comparison("minimize", "loss")),
        (CUSTOM, "accuracy", Comparison("maximize", "accuracy")),
        (CUSTOM, {"name": "error", "direction": "minimize"}, Comparison("minimize", "error")),
        ({**CUSTOM, "direction": "minimize"}, None, Comparison("minimize")),
    ],
)
def test_what_a_study_file_prunes_on(file: dict[str, Any], prune_on: Any, compared: Comparison) -> None:
    assert study_spec.build({**file, "prune_on": prune_on}, "s.yaml", Path()).compared == compared


@pytest.mark.parametrize(
    ("file", "prune_on", "said"),
    [
        (OURS, "accuracy", "prune_on: must be loss, the one metric that is reported beside the study's own"),
        (OURS, {"name": "loss", "direction": "maximize"}, "prune_on: must be loss"),
        (OURS, 5, "prune_on: .* not 5"),
        (CUSTOM, "error", r"say which way 'error' is better: \{name: error, direction: minimize\}, or maximize"),
        (CUSTOM, {"direction": "minimize"}, "prune_on.name: is missing"),
        (CUSTOM, {"name": "error", "direction": "down"}, "must be 'minimize' or 'maximize', not 'down'"),
        (CUSTOM, {"name": "loss", "sign": 1}, "prune_on.sign: is not a key"),
    ],
)
def test_what_cannot_be_pruned_on_is_refused(file: dict[str, Any], prune_on: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study_spec.build({**file, "prune_on": prune_on}, "s.yaml", Path())


# ---------------------------------------------------------------- the published default


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("size", [None, 2, 8])
@pytest.mark.parametrize(("pruner", "arguments"), [*PRUNERS, ("asha", {"reduction_factor": 2, "bootstrap_count": 3})])
def test_the_published_default_is_trained_whole(
    pruner: str, arguments: dict[str, Any], size: int | None, slots: int
) -> None:
    worst = {x: [(0.1 * x - 0.01 * step, 0.9 - 0.1 * x) for step in range(6)] for x in range(8)}
    study = study_of(8, baseline=True)
    compared = Comparison("minimize", "loss")
    run(study, telling(worst), pruner, slots, round_size=size, compared=compared, arguments=arguments)
    assert (study.trials[0].state, steps(study)[0]) == (TrialState.COMPLETE, 6)
    assert "ties" not in study.trials[0].user_attrs


def test_patience_may_end_the_published_default() -> None:
    study = study_of(1, baseline=True)
    run(study, lambda params: iter([0.5, 0.4, 0.4, 0.9]), patience=2)
    assert study.trials[0].user_attrs["stopped_early_at"] == 3
    assert remarks(study.trials[0]) == "published default, stopped by patience at 3"


# ---------------------------------------------------------------- notes of the evaluation that counts


def recovers(params: Mapping[str, Any]) -> Iterator[Evaluation]:
    """Collapse first; trial 1 learns."""
    yield Evaluation(0.5 + params["x"] / 10, metrics={"loss": 1.0}, notes={"collapsed": True, "early": "yes"})
    yield Evaluation(0.5 + params["x"] / 5, notes={} if params["x"] else {"collapsed": True})


@pytest.mark.parametrize("slots", [1, 2])
def test_a_note_of_an_evaluation_that_counts_no_more_is_cleared(slots: int) -> None:
    study = study_of(2)
    run(study, recovers, slots=slots, round_size=2, arguments={"reduction_factor": 2})
    pruned, best = study.trials
    assert (pruned.state, pruned.user_attrs["collapsed"]) == (TrialState.PRUNED, True)
    assert best.user_attrs["best_at"] == 2
    assert best.user_attrs.get("collapsed") is not True
    assert best.user_attrs.get("early") is None
    assert best.user_attrs.get("metrics", {}) == {}


class Recovering:
    """An array whose trials go on from checkpoints, after each of which they leave their slot."""

    def __init__(self) -> None:
        self.slots, self.segment, self.horizon, self.facts, self.notes = 1, 1, None, {}, ()
        self.stop_request: Any = None
        self._held: dict[int, list[int]] = {}

    def load(self, slot: int, trial: Any) -> None:
        self._held[slot] = [trial.number, trial.checkpoint.state["step"] if trial.checkpoint else 0]

    def advance(self) -> dict[int, Evaluation]:
        (number, step) = self._held[0] = [self._held[0][0], self._held[0][1] + 1]
        return {0: Evaluation(number + step / 10, at=step, last=step == 4, notes={"collapsed": step == 1})}

    def save(self, slot: int) -> TrialCheckpoint:
        return TrialCheckpoint(self._held[slot][0], {"step": self._held[slot][1]})

    def pause(self, slot: int) -> bool:
        return False

    def unload(self, slot: int) -> None:
        self._held.pop(slot, None)


def test_a_trial_that_recovers_after_a_checkpoint_is_not_called_collapsed(tmp_path: Path) -> None:
    study = study_of(2)
    study.pruner = make("asha", {"reduction_factor": 2})
    array: Any = Recovering()
    Runner(study, SPACE, array, Rules(2, round_size=2), checkpoints=Checkpoints(tmp_path, "s")).run()
    assert steps(study) == [1, 4]
    assert [trial.user_attrs["collapsed"] for trial in study.trials] == [True, False]
