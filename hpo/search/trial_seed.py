"""The seed of a trial's training: from its number, or from a name that several trials share."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from hpo.core.seeds import derived_seed

SEED = "hpo:seed"
"""System attribute of a trial: the name that its seed derives from in place of its number.

Trials of equal parameters and different names are repetitions, not duplicates. Trials of equal names start from the
same head and see the rows in the same order.
"""


def seed_of(study_seed: int, trial: FrozenTrial) -> int:
    """Return the seed of all random draws of a trial's training."""
    return derived_seed(study_seed, trial.system_attrs.get(SEED, trial.number), "trial")


def same_seed(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Return whether two trials do not differ in the name of their seeds; most trials have none."""
    return bool(one.system_attrs.get(SEED) == other.system_attrs.get(SEED))
