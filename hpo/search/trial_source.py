"""Which trial is run next: taken, drawn, and not the repetition of another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import suppress

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.core.errors import HpoError, LostTrialError, StudyError
from hpo.core.seeds import derived_seed
from hpo.core.trainer import TrialSpec
from hpo.search.halving import Decision
from hpo.search.trial_order import PAUSED, TrialOrder
from hpo.space.search_space import Params, SearchSpace
from hpo.storage.study_cache import StudyCache
from hpo.storage.trial_ownership import fruitless

SUSPECT, MOST_DEATHS = 3, 10
"""Processes in a row that died in a trial: when it is run alone, and when it has failed."""


class TrialSource:
    """Gives out trials that may run; those that need no training it tells.

    Args:
        study: The study, over a ledger.
        turns: Whose turn it is.
        space: What trials are made of.
        seed: The study's seed.
        tell: Ends a trial: (trial, state, attributes, value).
    """

    def __init__(
        self, study: optuna.Study, turns: TrialOrder, space: SearchSpace, seed: int, tell: Callable[..., None]
    ) -> None:
        assert isinstance(study._storage, StudyCache)
        self._ledger, self._turns, self._space, self._seed, self._tell = study._storage, turns, space, seed, tell

    def draw_round(self) -> None:
        """Draw all that a round lacks, in order, and add the rows it lacks, unless somebody else is doing it."""
        while True:
            for row in self._turns.to_draw():
                if self._ledger.take(row.number, run=False) is None:
                    return
                with suppress(LostTrialError):
                    self._drawn(Trial(self._turns.seen_by(row.number), row._trial_id))
                    self._ledger.release(row.number)
            if not self._turns.in_rounds or not self._turns.lacks_rows():
                return
            self._ledger.add_row()

    def next(self, running: Collection[int]) -> tuple[Trial, TrialSpec] | None:
        """Return the next trial to run, owned by this process; None if there is none now.

        Args:
            running: Numbers of the trials beside which it would run.
        """
        if any(fruitless(self._ledger.row(number)) >= SUSPECT for number in running):
            return None  # it runs alone
        while (row := self._taken(running)) is not None:
            with suppress(LostTrialError):
                if (given := self._given(row)) is not None:
                    return given
        return None

    def _taken(self, running: Collection[int]) -> FrozenTrial | None:
        """Return the first row whose turn it is and that has no owner, taken and set running."""
        if not self._turns.in_rounds and self._turns.lacks_rows():
            self._ledger.add_row()
        for row in self._turns.ready():
            alone = fruitless(row) + (row.state == TrialState.RUNNING) >= SUSPECT
            if row.number in self._ledger.owned or (alone and running):
                continue
            if (taken := self._ledger.take(row.number)) is not None:
                return taken
        return None

    def _given(self, row: FrozenTrial) -> tuple[Trial, TrialSpec] | None:
        """Draw what a taken trial lacks, and return it; None if it was told, or given back until another has ended."""
        trial = Trial(self._turns.seen_by(row.number), row._trial_id)
        if fruitless(row) >= MOST_DEATHS:
            detail = f"{MOST_DEATHS} processes in a row died in this trial"
            self._tell(trial, TrialState.FAIL, {"reason": "killed", "detail": detail})
            return None
        if self._turns.is_paused(row) and (decision := self._turns.paused(row)) is not Decision.WAIT:
            tied = self._turns.tied(row, row.system_attrs[PAUSED])
            if decision is Decision.PRUNE:
                self._tell(trial, TrialState.PRUNED, {"reason": "pruner"} | tied)
                return None
            self._ledger.note(row.number, tied)
        params = self._drawn(trial)
        row = self._ledger.row(row.number)
        if (earlier := self._turns.earlier(row)) is not None:
            self._tell_duplicate(trial, earlier)
            return None
        if self._turns.original(row, self._turns.rows()) is not None:
            self._ledger.put_back(row.number)
            return None
        return trial, TrialSpec(row.number, params, derived_seed(self._seed, row.number, "trial"))

    def _drawn(self, trial: Trial) -> Params:
        try:
            with warnings.catch_warnings(), self._ledger.together():
                warnings.filterwarnings("ignore", "Fixed parameter")  # the published default may lie outside
                return self._space.suggest(trial)
        except (HpoError, LostTrialError, OSError):
            raise
        except Exception as error:  # of a sampler with arguments or a space that it cannot work with
            kind = type(error).__name__
            raise StudyError(
                f"the sampler cannot draw trial {trial.number} ({kind}: {error}); see `sampler`"
            ) from error

    def _tell_duplicate(self, trial: Trial, earlier: FrozenTrial) -> None:
        """Tell a duplicate its original's value; one of a pruned trial is pruned too, or it would look complete."""
        attrs = {"duplicate_of": earlier.user_attrs.get("duplicate_of", earlier.number)}
        if earlier.state == TrialState.COMPLETE:
            self._tell(trial, TrialState.COMPLETE, attrs, earlier.value)
            return
        if earlier.value is not None and earlier.last_step is not None:
            trial.report(earlier.value, earlier.last_step)
        self._tell(trial, TrialState.PRUNED, attrs)
