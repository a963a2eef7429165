"""What follows from an outcome of training: the trial ends, pauses or goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import TrialState

from hpo.core.trainer import Evaluation
from hpo.execution.active_trial import ActiveTrial
from hpo.search.comparison import Comparison
from hpo.search.decisions import Decision, Judged
from hpo.search.stopping import STOP, STOPPED_BY_USER, Rules, out_of_patience
from hpo.search.trial_order import TrialOrder
from hpo.storage.study_cache import StudyCache

Ending = tuple[TrialState, dict[str, Any]]
"""The state that a trial ends with, and its attributes."""


class TrialDecisions:
    """Reports evaluations to the study, and decides with the pruner and the rules.

    Args:
        cache: The study.
        order: Asks the pruner.
        rules: The rules of patience.
        compared: What the pruner compares.
        direction: `maximize` or `minimize`.
        note: Told if a repeated evaluation has another value than the stored one.
    """

    def __init__(
        self,
        cache: StudyCache,
        order: TrialOrder,
        rules: Rules,
        compared: Comparison,
        direction: str,
        note: Callable[[str], None],
    ) -> None:
        self._cache, self._order, self._rules = cache, order, rules
        self._compared, self._direction, self._note = compared, direction, note

    def report(self, active: ActiveTrial) -> int:
        """Report the last evaluation, and return its step. After an adoption it may be in the study already."""
        value, step = active.values[-1], active.step()
        before = self._cache.row(active.number).intermediate_values.get(step)
        if before is not None and before != value:
            self._note(
                f"trial {active.number} was trained again and has {value!r} where it had {before!r} (at {step}): "
                "the objective is not a function of its parameters and seed alone"
            )
        with self._cache.together():
            self._cache.report(active.number, step, value, self._compared.stored(active.evaluations[-1].metrics))
            self._cache.note(active.number, active.unwritten)
        active.unwritten = {}
        return step

    def after(self, active: ActiveTrial, outcome: Evaluation | Exception | None) -> Ending | Decision | None:
        """Return what becomes of a trial after an outcome of its array.

        Args:
            active: The trial, with its evaluations.
            outcome: As `TrialArray.advance` returns it; None just after a checkpoint was loaded.

        Returns:
            How it ends; `Decision.WAIT` if it has to pause; None if it goes on.

        Raises:
            Exception: The outcome, if training raised it.
        """
        if isinstance(outcome, StopIteration):
            active.record_returned(outcome.value)
            if active.returned:
                self._rules.criteria.require(active.evaluations[-1].metrics)
            return TrialState.COMPLETE, {}
        if isinstance(outcome, Exception):
            raise outcome
        return self._after_evaluation(active) if active.evaluations else None

    def _after_evaluation(self, active: ActiveTrial) -> Ending | Decision | None:
        """Report the last evaluation if that has not been done, and return what follows from it."""
        last = active.evaluations[-1]
        step = self.report(active)
        if last.last:
            return TrialState.COMPLETE, {}
        if self._cache.row(active.number).system_attrs.get(STOP):
            return TrialState.PRUNED, {"reason": STOPPED_BY_USER}
        if out_of_patience(active.values, self._rules.patience, self._direction):
            return TrialState.COMPLETE, {"stopped_early_at": step}
        row = self._cache.row(active.number)
        judged = self._order.judged(row, step)
        noted = self._order.noted(row, step, judged)
        if judged is not None and judged.decision is Decision.PRUNE:
            return TrialState.PRUNED, {"reason": "pruner"} | noted
        active.unwritten = noted
        return Decision.WAIT if judged is not None and judged.decision is Decision.WAIT else None

    def resume(self, active: ActiveTrial, judged: Judged | None) -> None:
        """Store with a paused trial the decision that it goes on, or have it stored when the trial is told PRUNED."""
        row = self._cache.row(active.number)
        noted = self._order.noted(row, active.step(), judged)
        if judged is not None and judged.decision is Decision.PRUNE:
            active.unwritten = noted
        else:
            self._cache.note(active.number, noted)
