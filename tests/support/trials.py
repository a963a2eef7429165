"""Trials of a tiny model, run through an array outside of any study."""

import math

import pytest
import tiny
import torch

from hpo.config import study_spec
from hpo.core.errors import DivergedError
from hpo.core.trainer import Evaluation, TrialSpec
from hpo.execution import trial_arrays

# Trials that differ in everything: batch sizes that share micro-batches of 8 or do not, lengths, masks, rates.
MIXED = [
    {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16},
    {"learning_rate": 1e-3, "epochs": 1, "batch_size": 17, "schedule": "cosine", "dropout": 0.3, "layer_decay": 0.8},
    {"learning_rate": 2e-3, "epochs": 2, "batch_size": 8, "warmup_ratio": 0.3, "label_smoothing": 0.1},
    {"learning_rate": 5e-3, "epochs": 1, "batch_size": 64, "weight_decay": 0.1, "max_grad_norm": 0.1, "dropout": 0.0},
    {"learning_rate": 4e-3, "epochs": 2, "batch_size": 32, "schedule": "constant", "dropout": 0.0},
]
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [8, 16, 17, 32, 64], "epochs": [1, 2]}
NARROW = dict(SPACE)  # of tasks and adapters without layer_decay
SPACE |= {"layer_decay": [1.0, 0.8]}
ADAPTERS = NARROW | {"lora_rank": [2, 4]}
TRIALS = [{name: value for name, value in each.items() if name != "layer_decay"} for each in MIXED]
EXACT = [{**each, "dropout": 0.0} for each in TRIALS]


def open_array(folder, study=tiny.study, **overrides):
    """Return an array; `study` writes the data and the model, and returns a study file's content."""
    raw = study(folder, **{"fold": True, "space": SPACE, **overrides})
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


def curves(array, trials=MIXED, order=None):
    """Run trials through the array, refilling slots.

    Returns:
        Trial -> its evaluations, and then its best weights and its last weights.
    """
    waiting = list(order if order is not None else range(len(trials)))
    found = {number: [] for number in waiting}
    occupied = {}
    while waiting or occupied:
        for slot in range(array.slots):
            if slot not in occupied and waiting:
                number = waiting.pop(0)
                array.load(slot, TrialSpec(number, trials[number], 100 + number))
                occupied[slot] = number
        for slot, outcome in array.advance().items():
            number = occupied[slot]
            ended = isinstance(outcome, Exception) or outcome.last
            found[number].append(
                (outcome.at, outcome.value, dict(outcome.metrics)) if isinstance(outcome, Evaluation) else outcome
            )
            if ended:
                if isinstance(outcome, Evaluation):
                    held = array.engine.occupied[slot]
                    best = {f"best.{name}": weight.clone() for name, weight in held.best_weights.items()}
                    found[number].append(best | {name: weight.clone() for name, weight in held.weights.items()})
                array.unload(slot)
                del occupied[slot]
    return found


def same(one, other):
    """Return whether two trials have the same curve and the same weights, to the bit."""
    return one[:-1] == other[:-1] and all(torch.equal(w, other[-1][name]) for name, w in one[-1].items())


def assert_separate(together, expected, rounding=("key.bias",), tolerance=1e-9, scores=1e-9):
    """Folded trials in float64 have the scores and the weights of separate ones.

    Args:
        together: Their curves.
        expected: The curves of separate trials.
        rounding: Ends of the names of parameters whose gradient is only rounding, which AdamW turns into whole steps.
        tolerance: Of a weight, in units of its norm, or of 1 if that is more.
        scores: Of the values and the metrics, relative.
    """
    for number, (*curve, weights) in expected.items():
        *found, found_weights = together[number]
        for (at, value, metrics), (own_at, own, own_metrics) in zip(curve, found, strict=True):
            assert own_at == at
            assert own == pytest.approx(value, rel=scores)
            assert own_metrics == pytest.approx(metrics, rel=scores)
        for name, weight in weights.items():
            if not name.endswith(rounding):
                off = (found_weights[name] - weight).norm() / weight.norm().clamp(min=1.0)
                assert off <= tolerance, (number, name, off)


def assert_side_by_side(opened):
    """Trials that train in two threads are those that train one after the other.

    Args:
        opened: Opens an array with such settings.
    """
    alone = curves(opened(fold=False), TRIALS[:3])
    together = curves(opened(fold=False, slots=2, threads=2), TRIALS[:3])
    assert all(same(alone[number], together[number]) for number in alone)


def assert_goes_on_from_its_checkpoint(opened, params=MIXED[1], before=1):
    """A trial that goes on in another array has the evaluations of one that runs through.

    Args:
        opened: Opens an array.
        params: The trial's hyperparameters.
        before: Evaluations before it goes on elsewhere.
    """
    array = opened()
    whole = run(array, params, seed=5)
    array.unload(0)
    array.load(0, TrialSpec(0, params, 5))
    found, kept = [array.advance()[0] for _ in range(before)], array.save(0)
    other = opened()
    other.load(0, TrialSpec(0, params, 5, kept))
    while not found[-1].last:
        found.append(other.advance()[0])
    assert len(found) > before
    assert [(each.value, each.metrics) for each in found] == [(each.value, each.metrics) for each in whole]


def assert_adapters_of_one_slot(opened, **settings):
    """Adapters that train in three slots have the losses that they have in one.

    Args:
        opened: Opens an array with such settings.
        settings: Of the study.
    """
    trials = [{**each, "lora_rank": 2 + 2 * (number % 2)} for number, each in enumerate(TRIALS)]
    alone, together = (curves(opened(slots=slots, space=ADAPTERS, fold=None, **settings), trials) for slots in (1, 3))
    for number, curve in alone.items():
        losses = [[point[2]["loss"] for point in each[:-1]] for each in (curve, together[number])]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def advanced_beside_nan(array):
    """Return the outcomes of the first segment of three trials, the second of which has NaN weights."""
    for number in range(3):
        array.load(number, TrialSpec(number, MIXED[number], 100 + number))
    with torch.no_grad():
        for parameter in array.engine.program.model.parameters():
            parameter[1] = math.nan
    outcomes = array.advance()
    assert isinstance(outcomes[1], DivergedError)
    return outcomes


def run(array, params=None, seed=1, slot=0):
    """Run one trial to its end and return its evaluations, or the exception that ended it."""
    array.load(slot, TrialSpec(0, {"learning_rate": 3e-3, "epochs": 2, "batch_size": 16, **(params or {})}, seed))
    evaluations = []
    while True:
        outcome = array.advance()[slot]
        if isinstance(outcome, Exception):
            array.unload(slot)
            raise outcome
        evaluations.append(outcome)
        if outcome.last:
            return evaluations
