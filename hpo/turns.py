"""Whose turn it is: which rows of a study may start, and which have to wait for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.ledger import Ledger
from hpo.rungs import Decision, decide, rungs_of
from hpo.space import SearchSpace

PAUSED = "hpo:paused_at"
"""System attribute of a trial that waits for a rung: the step at which it does."""


class Turns:
    """The order of the rows of a study.

    Free-running, every row may start at any time. In rounds (`size` is given) it must not matter who is faster:
    a round begins when the one before has ended, its trials are drawn in the order of their numbers from what
    earlier rounds found, and a rung is decided when every trial of the round has reached it or has ended.

    Args:
        study: The study, over a ledger.
        space: What trials are made of.
        budget: Rows that may run.
        size: Trials of a round; None runs free.
        segment: Steps between two evaluations.
    """

    def __init__(
        self, study: optuna.Study, space: SearchSpace, budget: int, size: int | None = None, segment: int = 1
    ) -> None:
        assert isinstance(study._storage, Ledger)
        self._study, self._ledger = study, study._storage
        self._space, self._budget, self._size, self._segment = space, budget, size, segment
        self._sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1

    @property
    def in_rounds(self) -> bool:
        """Whether trials run in rounds."""
        return self._size is not None

    def rows(self) -> Sequence[FrozenTrial]:
        """Return the rows that run, ran or will run."""
        rows = self._ledger.get_all_trials(0, deepcopy=False)[: self._budget]
        if self.used_up(rows):
            rows = [row for row in rows if row.state != TrialState.WAITING or self.params_of(row)]
        return rows

    def unfinished(self) -> bool:
        """Return whether a row has still to run, or to end."""
        return any(not row.state.is_finished() for row in self.rows())

    def lacks_rows(self) -> bool:
        """Return whether duplicates have used up rows that a finite space would have needed."""
        rows = self.rows()
        return len(rows) < self._budget and all(map(self._drawn, rows)) and not self.used_up(rows)

    def used_up(self, rows: Sequence[FrozenTrial]) -> bool:
        """Return whether every point of a finite space has its trial."""
        if self._space.size > len(rows):
            return False
        drawn = [self.params_of(row) for row in rows if self._drawn(row)]
        return len({_key(params) for params in drawn if params and self._space.contains(params)}) >= self._space.size

    def to_draw(self) -> Sequence[FrozenTrial]:
        """Return the trials of the current round that lack parameters, in the order in which they get them."""
        return [] if self._size is None else [row for row in self._current() if not self._drawn(row)]

    def ready(self) -> Iterator[FrozenTrial]:
        """Yield the rows that may start or go on, in their order, as far as the rows known say."""
        rows = self._current()
        alike: dict[Any, list[FrozenTrial]] = {}
        for row in rows:
            alike.setdefault(_key(self.params_of(row)), []).append(row)
        for row in rows:
            if self._size is not None and not self._drawn(row):
                return  # it may turn out to repeat another, or to be what a later one repeats
            if self.original(row, alike[_key(self.params_of(row))]) is None and self._may_go_on(row):
                yield row

    def _current(self) -> Sequence[FrozenTrial]:
        """Return the unfinished rows, in rounds those of the first round that has not ended."""
        rows = [row for row in self.rows() if not row.state.is_finished()]
        return [row for row in rows if self._begin(row.number) == self._begin(rows[0].number)]

    def _begin(self, number: int) -> int:
        """Return the first trial of a trial's round; all are of one where there are none."""
        return 0 if self._size is None else number // self._size * self._size

    def seen_by(self, number: int) -> optuna.Study:
        """Return the study as the proposals and the pruning of a trial may see it."""
        seen = self._ledger if self._size is None else self._ledger.before(self._begin(number))
        # A study of its own: Optuna's keep the rows from the first question to the next tell.
        return optuna.Study(self._study.study_name, seen, sampler=self._study.sampler, pruner=self._study.pruner)

    # ------------------------------------------------------------ duplicates

    def original(self, row: FrozenTrial, rows: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Return the unfinished trial with the same parameters that this one has to wait for."""
        params = self.params_of(row)
        for other in rows if params else ():
            same = other.number != row.number and not other.state.is_finished() and self.params_of(other) == params
            if same and self._goes_first(other, row):
                return other
        return None

    def _goes_first(self, other: FrozenTrial, row: FrozenTrial) -> bool:
        if self._size is not None or row.state == other.state == TrialState.RUNNING:
            return other.number < row.number
        return other.state == TrialState.RUNNING

    def earlier(self, row: FrozenTrial) -> FrozenTrial | None:
        """Return the trial with the same parameters whose result counts for this one too; not a failed one."""
        for other in self.rows():
            ended = other.state in (TrialState.COMPLETE, TrialState.PRUNED)
            before = other.number < row.number or (self._size is None and other.number != row.number)
            if ended and before and other.params == row.params:
                return other
        return None

    def params_of(self, row: FrozenTrial) -> Mapping[str, Any]:
        """Return what is decided of a trial's parameters."""
        return {**row.system_attrs.get("fixed_params", {}), **row.params}

    def _drawn(self, row: FrozenTrial) -> bool:
        """Return whether all of a trial's parameters are decided; one that was killed may have some."""
        if row.state.is_finished():
            return True
        params = self.params_of(row)
        return all(name in params for name in self._space.parameters if self._space.active(name, params))

    # ------------------------------------------------------------ pruning

    def pruned(self, row: FrozenTrial, step: int) -> Decision:
        """Return what the pruner makes of a trial that has just been evaluated at a step."""
        if self._size is not None and (found := self._at_rung(row, step)) is not None:
            return found
        curve = {s: v for s, v in row.intermediate_values.items() if s <= step}
        if len(curve) < len(row.intermediate_values):  # trained again: it went on from here before
            return Decision.GO_ON
        return Decision.PRUNE if self._study.pruner.prune(self.seen_by(row.number), row) else Decision.GO_ON

    def paused(self, row: FrozenTrial) -> Decision:
        """Return what becomes of a trial that has paused at a rung, now that others may have reached it."""
        return self._at_rung(row, row.system_attrs[PAUSED]) or Decision.GO_ON

    def is_paused(self, row: FrozenTrial) -> bool:
        """Return whether a trial waits for a rung."""
        return self._size is not None and row.last_step is not None and row.system_attrs.get(PAUSED) == row.last_step

    def _may_go_on(self, row: FrozenTrial) -> bool:
        return not self.is_paused(row) or self.paused(row) is not Decision.WAIT

    def _at_rung(self, row: FrozenTrial, step: int) -> Decision | None:
        rows, size = self.rows(), self._size
        assert size is not None
        told = [other for other in rows if other.state == TrialState.COMPLETE and other.last_step is not None]
        began = min([told[0].number // size + 1 if told else 0, row.number // size])
        rungs = rungs_of(self._study.pruner, self.seen_by(began * size), row, self._segment)
        if rungs is None:
            return None
        if self._begin(len(rows)) == self._begin(row.number) and self.lacks_rows():
            return Decision.WAIT  # for those that somebody adds to this round
        return decide(rows, row.number, step, rungs, size, self._sign)


def _key(params: Mapping[str, Any]) -> Any:
    return tuple(sorted(params.items()))
