"""An audit: a random sample of the trials that the pruner has ended, trained to their end.

It is a side study, `<study>.audit`. A trial of it has the parameters and the seed of the pruned one, so that it is what
that one would have become.
"""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study_spec import StudySpec
from hpo.core.errors import StudyError
from hpo.core.events import Observer
from hpo.core.seeds import derived_seed
from hpo.execution import side_study
from hpo.execution.side_study import Ran
from hpo.search.trial_seed import SEED
from hpo.storage.snapshot import Results

COMMAND = "audit"
AUDITS = "audits"
"""User attribute of a trial of an audit: the number of the pruned trial."""


def prunable(results: Results) -> list[FrozenTrial]:
    """Return the trials that the pruner has ended; duplicates of such a trial are none."""
    return [
        trial
        for trial in results.trials
        if trial.state == TrialState.PRUNED and trial.user_attrs.get("reason") == "pruner"
    ]


def sample(results: Results, seed: int, count: int) -> list[FrozenTrial]:
    """Return a random sample of the trials that the pruner has ended; all of them if there are no more than `count`.

    Each trial has a place in a random order, which depends on the study's seed and the trial's number alone. So a
    larger sample has all trials of a smaller one, also when the study has gone on in between.

    Raises:
        StudyError: There is none, or no best trial to compare with.
    """
    name, pruned = results.name, prunable(results)
    if results.best is None:
        raise StudyError(f"study {name!r} has no completed trial to compare with; run it on: hpo run {name}")
    if not pruned:
        raise StudyError(f"study {name!r} has no trial that the pruner ended: there is nothing to audit")
    return sorted(pruned, key=lambda trial: derived_seed(seed, "audit", trial.number))[:count]


def run(study: StudySpec, pruned: list[FrozenTrial], url: str, watch: Observer, name: str) -> Ran:
    """Train pruned trials from their seeds to their ends, as far as that has not been done.

    Args:
        study: The file of the study that is audited.
        pruned: The sample.
        url: URL of the storage.
        watch: Told of all events.
        name: Name of the audit.

    Raises:
        HpoError: The data, the model or the objective is not that of the study; nothing has been written.
    """
    wanted = [
        side_study.planned(trial.params, trial.system_attrs.get(SEED, trial.number), {AUDITS: trial.number})
        for trial in pruned
    ]
    return side_study.run(study, wanted, url, watch, name)
