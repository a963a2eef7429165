"""The decisions of a pruner about a trial, with what the trial was compared to, as they are stored with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner, PercentilePruner
from optuna.pruners._percentile import (
    _get_best_intermediate_result_over_steps as best_so_far,
)
from optuna.pruners._percentile import (
    _is_first_in_interval_step as is_checked,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.search.kept_trials import IntermediateValues, ended_trials

DECISIONS = "decisions"
"""User attribute of a trial: the pruner's decisions, the newest last, each as `Judged.row` returns it."""

MOST = 32
"""Decisions that are stored with a trial; of more, the newest."""


class Decision(Enum):
    """What a pruner decides about a trial."""

    GO_ON = "go on"
    PRUNE = "prune"
    WAIT = "wait"


REASONS = {
    "loss": "equal values: the lower losses go on",
    "all": "equal in value and loss: all go on",
    "limit": "beyond a limit",
    "few": "too few trials to compare with",
    "early": "the pruner does not compare here",
}
"""What decides beside the value: a word that is stored -> in words."""

TIED = ("loss", "all")
"""Those of them that say how a tie was decided."""


@dataclass(frozen=True)
class Judged:
    """A decision about a trial, with what the trial was compared to.

    Attributes:
        decision: The decision.
        value: What was compared: the trial's value at the step, or the metric that `prune_on` names; with a percentile,
            the best so far; None if the pruner does not say.
        among: How many other trials it was compared with; None if the pruner does not say.
        needed: The value that had to be reached to go on; None if there was none.
        why: What decided beside the value, a key of `REASONS`; None if the value alone did.
    """

    decision: Decision
    value: float | None = None
    among: int | None = None
    needed: float | None = None
    why: str | None = None

    def row(self, step: int) -> list[Any]:
        """Return the decision as JSON values: step, decision, value, among, needed, why; without the last None."""
        row = [step, self.decision.value, self.value, self.among, self.needed, self.why]
        while row[-1] is None:
            row.pop()
        return row


def with_decision(trial: FrozenTrial, step: int, judged: Judged) -> dict[str, Any]:
    """Return the attribute of a trial with one more decision; nothing if it has that one."""
    stored, row = trial.user_attrs.get(DECISIONS), judged.row(step)
    before = stored if isinstance(stored, list) else []
    return {} if row in before else {DECISIONS: [*before, row][-MOST:]}


def decisions_of(trial: FrozenTrial) -> list[tuple[int, Judged]]:
    """Return the stored decisions, each with its step; without rows that are not as hpo writes them."""
    stored = trial.user_attrs.get(DECISIONS)
    rows = [_read(row) for row in stored] if isinstance(stored, list) else []
    return [row for row in rows if row is not None]


def went_on(trial: FrozenTrial, step: int) -> bool:
    """Return whether the last decision about a trial is that it goes on from a step."""
    stored = trial.user_attrs.get(DECISIONS)
    last = _read(stored[-1]) if isinstance(stored, list) and stored else None
    return last is not None and last[0] == step and last[1].decision is Decision.GO_ON


def _read(row: Any) -> tuple[int, Judged] | None:
    try:
        padded: list[Any] = list(row) + [None] * (6 - len(row))
        step, decision, value, among, needed, why = padded
        numbers = [None if number is None else float(number) for number in (value, needed)]
        judged = Judged(Decision(decision), numbers[0], None if among is None else int(among), numbers[1], why)
        return (int(step), judged) if why is None or why in REASONS else None
    except (TypeError, ValueError):
        return None


def judged_by(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> Judged | None:
    """Return the decision of a pruner without rungs, with what was compared if the pruner is a percentile's.

    Args:
        pruner: The pruner.
        study: The study as the pruner sees it.
        trial: The trial as the pruner sees it.

    Returns:
        The decision; None of a pruner that decides nothing.
    """
    if isinstance(pruner, NopPruner):
        return None
    if isinstance(pruner, PercentilePruner):
        return _judged_by_percentile(pruner, study, trial)
    return Judged(Decision.PRUNE if pruner.prune(study, trial) else Decision.GO_ON)


def _judged_by_percentile(pruner: PercentilePruner, study: optuna.Study, trial: FrozenTrial) -> Judged:
    """Return the decision that `PercentilePruner.prune` takes, which lists the values of all trials each time."""
    step = trial.last_step
    if step is None:
        return Judged(Decision.GO_ON)
    value = float(best_so_far(trial, study.direction))
    completed, _ = ended_trials(study, IntermediateValues)
    if completed.count < max(1, pruner._n_startup_trials):
        return Judged(Decision.GO_ON, value, 0, None, "few")
    if not _compares(pruner, trial, step):
        return Judged(Decision.GO_ON, value, 0, None, "early")
    if math.isnan(value):
        return Judged(Decision.PRUNE, value)
    values = completed.at.get(step, ())
    if len(values) < pruner._n_min_trials:
        return Judged(Decision.GO_ON, value, len(values), None, "few")
    needed = _percentile(values, study.direction, pruner._percentile)
    worse = value < needed if study.direction == StudyDirection.MAXIMIZE else value > needed
    return Judged(Decision.PRUNE if worse else Decision.GO_ON, value, len(values), needed)


def _percentile(values: Sequence[float], direction: StudyDirection, percentile: float) -> float:
    """Return the value that has to be reached: Optuna's `_get_percentile_intermediate_result_over_trials`."""
    share = 100 - percentile if direction == StudyDirection.MAXIMIZE else percentile
    return float(np.nanpercentile(np.array(values, dtype=float), share))


def _compares(pruner: PercentilePruner, trial: FrozenTrial, step: int) -> bool:
    """Return whether a pruner compares at a step: after its warm-up, once in an interval."""
    warmup, steps = pruner._n_warmup_steps, trial.intermediate_values.keys()
    return step >= warmup and is_checked(step, steps, warmup, pruner._interval_steps)
