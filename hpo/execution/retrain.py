"""Training a trial once more, where its weights are not: on another machine, deleted, or of a pruned default."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.seeds import derived_seed
from hpo.core.trainer import Evaluation, TrialArray, TrialSpec
from hpo.search.stopping import out_of_patience

log = logging.getLogger(__name__)


def lacks_weights(trial: FrozenTrial, folder: Path) -> bool:
    """Return whether a trial has to be trained again for its weights, which belong in `folder`.

    Of pruned trials the published default: earlier versions pruned it, and gains are measured against it.
    """
    pruned_default = trial.user_attrs.get("baseline") is True and trial.user_attrs.get("reason") == "pruner"
    return (trial.state == TrialState.COMPLETE or pruned_default) and not folder.is_dir()


def retrain(study: StudySpec, array: TrialArray, trial: FrozenTrial, folder: Path, note: Callable[[str], None]) -> None:
    """Train a trial from its parameters and seed to where it ended, and write its weights.

    A pruned trial is trained to its end, as it would have been without the pruner.

    Args:
        study: The study that it is of.
        array: An open array whose slots are empty.
        trial: A trial that has completed or was pruned by the pruner.
        folder: Where its weights go.
        note: Told that it is trained, and if its scores are not to the bit what they were, as on other hardware.

    Raises:
        StudyError: It does not come to its end here.
    """
    if trial.state == TrialState.COMPLETE:
        note(f"the weights of trial {trial.number} are not in {folder}: it is trained again")
    else:
        note(f"trial {trial.number}, the published default, was pruned: it is trained again, to its end")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The value")  # the published default may lie outside
        params = study.space.suggest(cast(Trial, FixedTrial(trial.params, trial.number)))
    array.load(0, TrialSpec(trial.number, params, derived_seed(study.config.seed, trial.number, "trial")))
    values: list[float] = []
    try:
        while not _ended(study, trial, values):
            log.info("training trial %d again, evaluation %d", trial.number, len(values) + 1)
            outcome = array.advance().get(0)
            if isinstance(outcome, Exception) and trial.state != TrialState.COMPLETE:
                note(f"trial {trial.number} does not come to its end ({outcome})")
                return
            if not isinstance(outcome, Evaluation):
                raise StudyError(
                    f"trial {trial.number} cannot be trained again here: {outcome or 'it was interrupted'}"
                )
            values.append(outcome.value)
            before = trial.intermediate_values.get(outcome.at or len(values), outcome.value)
            if outcome.value != before:
                note(f"trial {trial.number} has {outcome.value} where it had {before} (at {outcome.at})")
            if outcome.last:
                break
        array.keep(0, folder)
    finally:
        array.unload(0)


def _ended(study: StudySpec, trial: FrozenTrial, values: list[float]) -> bool:
    """Return whether a trial has come to where it ended, or would have ended by patience."""
    if trial.state == TrialState.COMPLETE:
        return len(values) == len(trial.intermediate_values)
    return out_of_patience(values, study.config.patience, study.direction)
