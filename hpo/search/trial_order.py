"""Whose turn it is: which rows of a study may start, and which have to wait for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.search.comparison import Comparison
from hpo.search.halving import Decision, Rungs, decide, rungs_of, tie
from hpo.space.search_space import SearchSpace
from hpo.storage.study_cache import StudyCache

PAUSED = "hpo:paused_at"
"""System attribute of a trial that waits for a rung: the step at which it does."""

TIES = "ties"
"""Attribute of a trial: the steps at which it was let go on or pruned in a tie, and how that was decided."""


class TrialOrder:
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
        compared: What the pruner compares; None is the values.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        budget: int,
        size: int | None = None,
        segment: int = 1,
        compared: Comparison | None = None,
    ) -> None:
        assert isinstance(study._storage, StudyCache)
        self._study, self._ledger = study, study._storage
        self._space, self._budget, self._size, self._segment = space, budget, size, segment
        self._compared = compared or Comparison(study.direction.name.lower())

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
        """Return the study as the proposals of a trial may see it."""
        return self._study_of(self._visible(number))

    def _visible(self, number: int) -> StudyCache:
        return self._ledger if self._size is None else self._ledger.before(self._begin(number))

    def _study_of(self, seen: StudyCache) -> optuna.Study:
        # A study of its own: Optuna's keep the rows from the first question to the next tell.
        return optuna.Study(self._study.study_name, seen, sampler=self._study.sampler, pruner=self._study.pruner)

    # ------------------------------------------------------------ duplicates

    def original(self, row: FrozenTrial, rows: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Return the unfinished trial with the same parameters that this one has to wait for.

        The published default waits for none: its own training is what gains are measured against.
        """
        params = {} if is_baseline(row) else self.params_of(row)
        for other in rows if params else ():
            same = other.number != row.number and not other.state.is_finished() and self.params_of(other) == params
            if same and self._goes_first(other, row):
                return other
        return None

    def _goes_first(self, other: FrozenTrial, row: FrozenTrial) -> bool:
        if is_baseline(other):
            return True
        if self._size is not None or row.state == other.state == TrialState.RUNNING:
            return other.number < row.number
        return other.state == TrialState.RUNNING

    def earlier(self, row: FrozenTrial) -> FrozenTrial | None:
        """Return the trial with the same parameters whose result counts for this one too; not a failed one.

        The published default is always trained itself.
        """
        for other in [] if is_baseline(row) else self.rows():
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
        """Return what the pruner makes of a trial that has just been evaluated at a step.

        The published default always goes on; what it reports counts for the others.
        """
        again = row.last_step is not None and step < row.last_step  # trained again: it went on from here before
        decision = self._at_rung(row, step) if self.in_rounds or not again else Decision.GO_ON
        if decision is None:
            decision = Decision.GO_ON if again else self._by_optuna(row)
        return Decision.GO_ON if is_baseline(row) else decision

    def paused(self, row: FrozenTrial) -> Decision:
        """Return what becomes of a trial that has paused at a rung, now that others may have reached it."""
        if is_baseline(row):
            return Decision.GO_ON
        return self._at_rung(row, row.system_attrs[PAUSED]) or Decision.GO_ON

    def is_paused(self, row: FrozenTrial) -> bool:
        """Return whether a trial waits for a rung."""
        return self._size is not None and row.last_step is not None and row.system_attrs.get(PAUSED) == row.last_step

    def tied(self, row: FrozenTrial, step: int) -> dict[str, Any]:
        """Return what to keep with a trial that has just been let go on or pruned at a step, if that was a tie.

        Returns:
            The attribute `ties`: step -> `loss` or `all`, see `hpo.search.halving.tie`; nothing if it was none.
        """
        rungs = None if is_baseline(row) else self._rungs(row)
        how = rungs and tie(self.rows(), row.number, step, rungs, self._size, self._compared)
        return {TIES: {**row.user_attrs.get(TIES, {}), str(step): how}} if how else {}

    def _may_go_on(self, row: FrozenTrial) -> bool:
        return not self.is_paused(row) or self.paused(row) is not Decision.WAIT

    def _at_rung(self, row: FrozenTrial, step: int) -> Decision | None:
        """Return what a rung means for a trial; None if the pruner has no rungs, or none yet."""
        rungs = self._rungs(row)
        if rungs is None:
            return None
        rows = self.rows()
        if self.in_rounds and self._begin(len(rows)) == self._begin(row.number) and self.lacks_rows():
            return Decision.WAIT  # for those that somebody adds to this round
        if self.in_rounds and not self._compared.lacks_metrics(row):
            rows = [self._whole(other) for other in rows]
        return decide(rows, row.number, step, rungs, self._size, self._compared)

    def _whole(self, row: FrozenTrial) -> FrozenTrial:
        """Return a row of another process, read again where its last evaluation may have been read by half."""
        foreign = not row.state.is_finished() and row.number not in self._ledger.owned
        if foreign and self._compared.lacks_metrics(row):
            self._ledger.read_again(row.number)
        return self._ledger.row(row.number)

    def _rungs(self, row: FrozenTrial) -> Rungs | None:
        """Return the rungs of a trial's bracket, as they were when the first round with a completed trial had ended."""
        seen = self._ledger
        if (size := self._size) is not None:
            told = (r for r in self.rows() if r.state == TrialState.COMPLETE and r.last_step is not None)
            first = next((r.number // size + 1 for r in told), 0)
            seen = seen.before(min(first, row.number // size) * size)
        return rungs_of(self._study.pruner, self._study_of(seen), row, self._segment)

    def _by_optuna(self, row: FrozenTrial) -> Decision:
        """Return what a pruner without rungs of ours says, of what it is to compare."""
        seen = self._visible(row.number).seen_as(self._compared.seen, self._compared.direction)
        as_seen = self._compared.seen(row)
        assert as_seen is not None  # it has not ended
        return Decision.PRUNE if self._study.pruner.prune(self._study_of(seen), as_seen) else Decision.GO_ON


def is_baseline(row: FrozenTrial) -> bool:
    """Return whether a trial runs the published default."""
    return row.user_attrs.get("baseline") is True


def _key(params: Mapping[str, Any]) -> Any:
    return tuple(sorted(params.items()))
