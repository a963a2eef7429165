"""What attributes say of a trial: that it waits at a rung, was added by a user, runs the published default."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from hpo.search.decisions import went_on

PAUSED = "hpo:paused_at"
"""System attribute of a trial that waits at a rung: the step of that rung's evaluation."""

TIES = "ties"
"""User attribute of a trial: step -> how a tie was decided in which the trial went on or was pruned."""

ADDED = "added"
"""User attribute of a trial that a user has added to those that the study file asks for."""


def paused_at(trial: FrozenTrial) -> int | None:
    """Return the step at which a trial waits for the decision at its rung; None if it does not."""
    step = trial.system_attrs.get(PAUSED)
    if step is None or step != trial.last_step or trial.state.is_finished() or went_on(trial, step):
        return None
    return trial.last_step


def is_added(trial: FrozenTrial) -> bool:
    """Return whether a user has added a trial to those that the study file asks for."""
    return trial.user_attrs.get(ADDED) is True


def is_baseline(trial: FrozenTrial) -> bool:
    """Return whether a trial runs the published default."""
    return trial.user_attrs.get("baseline") is True
