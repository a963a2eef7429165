"""Training a trial again because its weights are missing: run elsewhere, deleted, or of a pruned published default."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, TrialArray, TrialSpec
from hpo.search.stopping import out_of_patience
from hpo.search.trial_seed import seed_of

log = logging.getLogger(__name__)


def lacks_weights(trial: FrozenTrial, folder: Path) -> bool:
    """Return whether a trial has to be trained again for its weights, which belong in `folder`.

    Of the pruned trials, this is the published default: earlier versions pruned it, and gains are measured against it.
    """
    pruned_default = trial.user_attrs.get("baseline") is True and trial.user_attrs.get("reason") == "pruner"
    return (trial.state == TrialState.COMPLETE or pruned_default) and not folder.is_dir()


def retrain(study: StudySpec, array: TrialArray, trial: FrozenTrial, folder: Path, note: Callable[[str], None]) -> None:
    """Train a trial from its parameters and seed to its last evaluation, and write its weights.

    A pruned trial is trained as far as it would have been without the pruner.

    Args:
        study: The trial's study.
        array: An open array whose slots are empty.
        trial: A trial that has completed or was pruned by the pruner.
        folder: Where its weights are written.
        note: Told that the trial is trained again, and of every score that differs from the stored one, as it may on
            other hardware.

    Raises:
        StudyError: A completed trial fails or is interrupted here.
    """
    if trial.state == TrialState.COMPLETE:
        note(f"the weights of trial {trial.number} are not in {folder}: it is trained again")
    else:
        note(f"trial {trial.number}, the published default, was pruned: it is trained again, to its end")
    array.stop_request = StopRequest()  # a run whose time was up has left one that is due
    array.load(0, _spec(study, trial))
    try:
        if _trained(study, array, trial, note):
            array.save_weights(0, folder)
    finally:
        array.unload(0)


def _spec(study: StudySpec, trial: FrozenTrial) -> TrialSpec:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The value")  # the published default may lie outside the space
        params = study.space.suggest(cast(Trial, FixedTrial(trial.params, trial.number)))
    return TrialSpec(trial.number, params, seed_of(study.config.seed, trial))


def _trained(study: StudySpec, array: TrialArray, trial: FrozenTrial, note: Callable[[str], None]) -> bool:
    """Train the trial in slot 0 to its last evaluation; False if a pruned one fails before."""
    values: list[float] = []
    while not _ended(study, trial, values):
        log.info("training trial %d again, evaluation %d", trial.number, len(values) + 1)
        outcome = array.advance().get(0)
        if isinstance(outcome, Exception) and trial.state != TrialState.COMPLETE:
            note(f"trial {trial.number} does not come to its end ({outcome})")
            return False
        if not isinstance(outcome, Evaluation):
            raise StudyError(f"trial {trial.number} cannot be trained again here: {outcome or 'it was interrupted'}")
        values.append(outcome.value)
        before = trial.intermediate_values.get(outcome.at or len(values), outcome.value)
        if outcome.value != before:
            note(f"trial {trial.number} has {outcome.value} where it had {before} (at {outcome.at})")
        if outcome.last:
            break
    return True


def _ended(study: StudySpec, trial: FrozenTrial, values: list[float]) -> bool:
    """Return whether a completed trial has all its evaluations again, or a pruned one is out of patience."""
    if trial.state == TrialState.COMPLETE:
        return len(values) == len(trial.intermediate_values)
    return out_of_patience(values, study.config.patience, study.direction)
