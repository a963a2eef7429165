"""Training a completed trial once more, where its weights are not: on another machine, or deleted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

from optuna.trial import FixedTrial, FrozenTrial, Trial

from hpo.config import Study
from hpo.errors import StudyError
from hpo.objective import Evaluation, TrialArray, TrialSpec
from hpo.samplers import derived_seed

log = logging.getLogger(__name__)


def train_again(study: Study, array: TrialArray, trial: FrozenTrial, folder: Path, note: Callable[[str], None]) -> None:
    """Train a trial from its parameters and seed to where it ended, and write its weights.

    Args:
        study: The study that it is of.
        array: An open array whose slots are empty.
        trial: A completed trial.
        folder: Where its weights go.
        note: Told that it is trained, and if its scores are not to the bit what they were, as on other hardware.

    Raises:
        StudyError: It does not come to its end here.
    """
    note(f"the weights of trial {trial.number} are not in {folder}: it is trained again")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The value")  # the published default may lie outside
        params = study.space.suggest(cast(Trial, FixedTrial(trial.params, trial.number)))
    array.load(0, TrialSpec(trial.number, params, derived_seed(study.config.seed, trial.number, "trial")))
    try:
        last = trial.last_step
        for step in sorted(trial.intermediate_values):
            log.info("training trial %d again, up to %d of %d examples", trial.number, step, last)
            outcome = array.advance().get(0)
            if not isinstance(outcome, Evaluation):
                raise StudyError(
                    f"trial {trial.number} cannot be trained again here: {outcome or 'it was interrupted'}"
                )
            if outcome.value != (before := trial.intermediate_values[step]):
                note(f"trial {trial.number} has {outcome.value} where it had {before} (at {step})")
        array.keep(0, folder)
    finally:
        array.unload(0)
