"""Trials that generate at their last evaluation: through every engine, with the weights that are saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paired
import prompted
import pytest
import torch

from hpo.config import study_spec
from hpo.config.schema import Decoding
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.plain import PlainEngine
from hpo.tasks.metrics import of_generated_text

SPACE = {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}, "batch_size": 16, "epochs": 2}
LORA = {"lora_rank": 4, "lora_targets": "all_linear"}
TRIALS = [{"learning_rate": rate, "batch_size": 16, "epochs": 2, "dropout": 0.0} for rate in (1e-4, 2e-2)]
STUDIES: dict[str, Callable[..., dict[str, Any]]] = {"causal_lm": prompted.study, "seq2seq": paired.study}


def open_array(folder: Path, task: str, **overrides: Any) -> Any:
    generate = {"rows": 7, "max_new_tokens": 6, **overrides.pop("generate", {})}
    raw = STUDIES[task](folder, **{"space": SPACE, "generate": generate, "slots": 2, "fold": True, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


def run(array: Any, trials: list[dict[str, Any]]) -> dict[int, list[Evaluation]]:
    """Run trials side by side, and return their evaluations."""
    for number, params in enumerate(trials):
        array.load(number, TrialSpec(number, params, 100 + number))
    found: dict[int, list[Evaluation]] = {number: [] for number in range(len(trials))}
    while not all(each and each[-1].last for each in found.values()):
        for number, outcome in array.advance().items():
            if isinstance(outcome, Exception):
                raise outcome
            found[number].append(outcome)
    return found


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, list[str]]]:
    """Record what engines generate."""
    calls: list[dict[int, list[str]]] = []
    for engine in (FoldedEngine, PlainEngine):

        def generate(self: Any, *args: Any, code: Any = engine.generate) -> Any:
            calls.append(code(self, *args))
            return calls[-1]

        monkeypatch.setattr(engine, "generate", generate)
    return calls


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("task", STUDIES)
def test_trials_of_every_engine_generate_the_same(
    tmp_path: Path, task: str, beams: int, written: list[dict[int, list[str]]]
) -> None:
    found = {}
    for fold in (True, False):
        array = open_array(tmp_path, task, fold=fold, generate={"num_beams": beams})
        array.engine.window = FoldedEngine.window
        found[fold] = run(array, TRIALS)
    folded, plain = written  # one call each, for both trials
    assert folded == plain
    assert [len(texts) for texts in folded.values()] == [7, 7]
    assert folded[0] != folded[1]
    for one, other in zip(found[True].values(), found[False].values(), strict=True):
        assert one[-1].of_best == other[-1].of_best
        assert list(one[-1].of_best) == of_generated_text(task)
        assert one[-1].at_end["generation_seconds"] > 0
        assert all(not each.of_best and not each.at_end for each in one[:-1])


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("task", STUDIES)
def test_what_a_slot_generates_depends_on_no_other(
    tmp_path: Path, task: str, lora: bool, written: list[dict[int, list[str]]]
) -> None:
    space = {**SPACE, "epochs": [1, 2], **(LORA if lora else {})}
    trials = [each | (LORA if lora else {}) | {"epochs": epochs} for each, epochs in zip(TRIALS, (2, 1), strict=True)]
    trials.append(trials[0] | {"learning_rate": 1e-2})
    array = open_array(tmp_path, task, space=space, slots=3)
    for number, params in enumerate(trials):
        array.load(number, TrialSpec(number, params, 100 + number))
    for _ in range(4):  # the second trial ends before the others
        for number, outcome in array.advance().items():
            if outcome.last:
                array.unload(number)
    assert [list(texts) for texts in written] == [[1], [0, 2]]
    together = written[0] | written[1]
    written.clear()
    for number, params in enumerate(trials):
        array = open_array(tmp_path, task, space=space, slots=1)
        array.load(0, TrialSpec(number, params, 100 + number))
        while not array.advance()[0].last:
            pass
    assert [together[number] for number in range(3)] == [each[0] for each in written]


@pytest.mark.parametrize("fold", [True, False])
def test_the_weights_that_are_saved_are_those_that_generate(
    tmp_path: Path, fold: bool, written: list[dict[int, list[str]]]
) -> None:
    array = open_array(tmp_path, "seq2seq", fold=fold, generate={"rows": 100})
    array.load(1, TrialSpec(1, TRIALS[1], 7))
    array.advance()
    slot = array.engine.occupied[1]
    slot.best = -math.inf  # no later loss is lower
    best = {name: weight.clone() for name, weight in slot.best_weights.items()}
    while not array.advance()[1].last:
        pass
    assert all(torch.equal(weight, best[name]) for name, weight in slot.best_weights.items())
    assert not all(torch.equal(weight, best[name]) for name, weight in slot.weights.items())  # it can go on training
    assert array.save_weights(1, tmp_path / "saved")
    predictions = array.predictions_of(tmp_path / "saved", "validation", decoding=Decoding(1, 1.0))
    assert predictions.generated == written[0][1]
    assert len(set(predictions.generated)) > 1
    assert array.predictions_of(tmp_path / "saved", "test").generated is None


class After(StopRequest):
    """A stop that is due after so many tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.left = tokens

    def is_due(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("task", "fold"), [("seq2seq", True), ("causal_lm", False)], ids=["folded", "side by side"])
def test_a_stop_ends_generation_before_the_next_token_and_the_trial_goes_on_from_its_checkpoint(
    tmp_path: Path, task: str, fold: bool
) -> None:
    def array() -> Any:
        return open_array(tmp_path, task, fold=fold, generate={"num_beams": 2})

    whole = run(array(), TRIALS)
    stopped = array()
    for number, params in enumerate(TRIALS):
        stopped.load(number, TrialSpec(number, params, 100 + number))
    stopped.stop_request = After(3)
    found: dict[int, list[Evaluation]] = {0: [], 1: []}
    while advanced := stopped.advance():
        for number, outcome in advanced.items():
            found[number].append(outcome)
    assert -3 <= stopped.stop_request.left < 0  # one look of each thread, and no token more
    assert not stopped.stop_request.is_set()  # of one trial's stop, no other one hears
    assert all(not each.last for each in (*found[0], *found[1]))
    other = array()
    for number, params in enumerate(TRIALS):
        other.load(number, TrialSpec(number, params, 100 + number, stopped.save(number)))
    last = other.advance()
    for number, evaluations in whole.items():
        assert [each.value for each in (*found[number], last[number])] == [each.value for each in evaluations]
        assert last[number].of_best == evaluations[-1].of_best
        assert last[number].last


def test_a_timeout_ends_generation_and_not_training(tmp_path: Path) -> None:
    array = open_array(tmp_path, "seq2seq", slots=1)
    array.load(0, TrialSpec(0, TRIALS[0], 7))
    array.stop_request.deadline = 0.0
    outcomes = []
    while advanced := array.advance():
        outcomes.append(advanced[0])
    assert [outcome.last for outcome in outcomes] == [False] * 3
    array.stop_request.deadline = math.inf
    assert array.advance()[0].last


def test_a_model_with_frozen_layers_generates(tmp_path: Path, written: list[dict[int, list[str]]]) -> None:
    space = {**SPACE, "frozen_layers": 1}
    array = open_array(tmp_path, "causal_lm", space=space, slots=1, generate={"rows": 100})
    array.load(0, TrialSpec(0, TRIALS[1] | {"frozen_layers": 1}, 7))
    while not array.advance()[0].last:
        pass
    array.save_weights(0, tmp_path / "saved")
    assert array.predictions_of(tmp_path / "saved", "validation", decoding=Decoding(1, 1.0)).generated == written[0][0]


def test_nothing_is_generated_unless_the_study_asks_for_it(tmp_path: Path) -> None:
    raw = paired.study(tmp_path, space=SPACE)
    array = trial_arrays.open_array(study_spec.build(raw, "test", tmp_path))
    (evaluations,) = run(array, TRIALS[:1]).values()
    assert not evaluations[-1].of_best
    assert not evaluations[-1].at_end
