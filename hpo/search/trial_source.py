"""The next trial to run: owned by this process, with its parameters drawn, and not a duplicate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import suppress

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo.core.errors import HpoError, LostTrialError, StudyError
from hpo.core.trainer import TrialSpec
from hpo.search.decisions import Decision
from hpo.search.trial_marks import PAUSED
from hpo.search.trial_order import TrialOrder
from hpo.search.trial_seed import seed_of
from hpo.space.search_space import Params, SearchSpace
from hpo.storage.study_cache import StudyCache
from hpo.storage.trial_ownership import fruitless

SUSPECT, MOST_DEATHS = 3, 10
"""Processes that died in one trial, one after the other: from `SUSPECT` on it runs alone; at `MOST_DEATHS` it fails."""


class TrialSource:
    """Returns trials that may run, and tells those that need no training.

    Args:
        study: The study, with a `StudyCache` as its storage.
        order: The order of its trials.
        space: The search space.
        seed: The study's seed.
        tell: Ends a trial: (trial, state, attributes, value).
    """

    def __init__(
        self, study: optuna.Study, order: TrialOrder, space: SearchSpace, seed: int, tell: Callable[..., None]
    ) -> None:
        assert isinstance(study._storage, StudyCache)
        self._cache, self._order, self._space, self._seed, self._tell = study._storage, order, space, seed, tell

    def draw_round(self) -> None:
        """Draw the parameters that a round lacks, in order, and add the trials that it lacks.

        If another process owns one of the trials, it does this work, and this process stops.
        """
        while True:
            for frozen in self._order.to_draw():
                if self._cache.take(frozen.number, run=False) is None:
                    return
                with suppress(LostTrialError):
                    self._draw(Trial(self._order.seen_by(frozen.number), frozen._trial_id))
                    self._cache.release(frozen.number)
            if not self._order.in_rounds or not self._order.lacks_trials():
                return
            self._cache.add_row()

    def next(self, running: Collection[int]) -> tuple[Trial, TrialSpec] | None:
        """Return the next trial to run, owned by this process; None if there is none now.

        Args:
            running: Numbers of the trials that this process runs now.
        """
        if any(fruitless(self._cache.row(number)) >= SUSPECT for number in running):
            return None  # a suspect trial runs alone
        while (frozen := self._take(running)) is not None:
            with suppress(LostTrialError):
                if (prepared := self._prepare(frozen)) is not None:
                    return prepared
        return None

    def _take(self, running: Collection[int]) -> FrozenTrial | None:
        """Take ownership of the first trial that is ready and has no owner, and set it running."""
        if not self._order.in_rounds and self._order.lacks_trials():
            self._cache.add_row()
        for frozen in self._order.ready():
            alone = fruitless(frozen) + (frozen.state == TrialState.RUNNING) >= SUSPECT
            if frozen.number in self._cache.owned or (alone and running):
                continue
            if (taken := self._cache.take(frozen.number)) is not None:
                return taken
        return None

    def _prepare(self, frozen: FrozenTrial) -> tuple[Trial, TrialSpec] | None:
        """Draw the parameters that an owned trial lacks, and return it.

        Returns:
            None if the trial was told without training, or returned to waiting because its original is unfinished.
        """
        trial = Trial(self._order.seen_by(frozen.number), frozen._trial_id)
        if self._told_untrained(trial, frozen):
            return None
        params = self._draw(trial)
        frozen = self._cache.row(frozen.number)
        if (original := self._order.finished_original(frozen)) is not None:
            self._tell_duplicate(trial, original)
            return None
        if self._order.unfinished_original(frozen, self._order.unfinished()) is not None:
            self._cache.put_back(frozen.number)
            return None
        return trial, TrialSpec(frozen.number, params, seed_of(self._seed, frozen))

    def _told_untrained(self, trial: Trial, frozen: FrozenTrial) -> bool:
        """Tell a trial in which too many processes died, or that its rung prunes; return whether it was told."""
        if fruitless(frozen) >= MOST_DEATHS:
            detail = f"{MOST_DEATHS} processes in a row died in this trial"
            self._tell(trial, TrialState.FAIL, {"reason": "killed", "detail": detail})
            return True
        return self._order.is_paused(frozen) and self._told_at_rung(trial, frozen)

    def _told_at_rung(self, trial: Trial, frozen: FrozenTrial) -> bool:
        """Tell a paused trial that its rung prunes, put it back if it has still to wait, or return False.

        Of a trial that goes on, the decision is stored: no other process takes it again.
        """
        judged = self._order.paused(frozen)
        noted = self._order.noted(frozen, frozen.system_attrs[PAUSED], judged)
        if judged is None or judged.decision is Decision.GO_ON:
            self._cache.note(frozen.number, noted)
            return False
        if judged.decision is Decision.PRUNE:
            self._tell(trial, TrialState.PRUNED, {"reason": "pruner"} | noted)
        else:
            self._cache.put_back(frozen.number)
        return True

    def _draw(self, trial: Trial) -> Params:
        try:
            with warnings.catch_warnings(), self._cache.together():
                warnings.filterwarnings("ignore", "Fixed parameter")  # the published default may be outside the space
                return self._space.suggest(trial)
        except (HpoError, LostTrialError, OSError):
            raise
        except Exception as error:  # from a sampler that cannot work with its arguments or the space
            kind = type(error).__name__
            raise StudyError(
                f"the sampler cannot draw trial {trial.number} ({kind}: {error}); see `sampler`"
            ) from error

    def _tell_duplicate(self, trial: Trial, original: FrozenTrial) -> None:
        """Tell a duplicate its original's value; if the original was pruned, tell it PRUNED with the last report."""
        attrs = {"duplicate_of": original.user_attrs.get("duplicate_of", original.number)}
        if "metrics" in original.user_attrs:  # limits may be on them
            attrs["metrics"] = original.user_attrs["metrics"]
        if original.state == TrialState.COMPLETE:
            self._tell(trial, TrialState.COMPLETE, attrs, original.value)
            return
        if original.value is not None and original.last_step is not None:
            trial.report(original.value, original.last_step)
        self._tell(trial, TrialState.PRUNED, attrs)
