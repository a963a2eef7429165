"""The order of trials: which may start, which have to wait for others, and which are pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.search.comparison import Comparison
from hpo.search.halving import Decision, Rungs, decide, is_duplicate, rungs_of, tie
from hpo.search.trial_seed import same_seed
from hpo.space.search_space import SearchSpace
from hpo.storage.criteria import is_constrained
from hpo.storage.study_cache import StudyCache

PAUSED = "hpo:paused_at"
"""System attribute of a trial that waits at a rung: the step of that rung's evaluation."""

TIES = "ties"
"""User attribute of a trial: step -> how a tie was decided in which the trial went on or was pruned."""


ADDED = "added"
"""User attribute of a trial that a user has added to those that the study file asks for."""


class TrialOrder:
    """The order of a study's trials.

    Without rounds, every trial may start at any time. In rounds (`size` is given) the results must not depend on which
    trial is faster. A round therefore begins when the previous one has ended; its trials are drawn in the order of
    their numbers, from the results of earlier rounds; and a rung is decided when every trial of the round has reached
    it or has ended.

    In waves (`wave` is given too), only the first `wave` trials of a round are drawn when it begins, the next ones when
    those have reached the lowest rung or have ended, and so on. The sampler sees their values at that rung, whatever
    they have reached since.

    Args:
        study: The study, with a `StudyCache` as its storage.
        space: The search space.
        budget: Trials that may run.
        size: Trials of a round; None runs without rounds.
        segment: Steps between two evaluations.
        compared: What the pruner compares; None compares the values.
        wave: Trials of a wave; None draws a round at once.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        budget: int,
        size: int | None = None,
        segment: int = 1,
        compared: Comparison | None = None,
        wave: int | None = None,
    ) -> None:
        assert isinstance(study._storage, StudyCache)
        self._study, self._cache = study, study._storage
        self._space, self._budget, self._size, self._segment = space, budget, size, segment
        self._wave = wave if size is not None else None
        self._compared = compared or Comparison(study.direction.name.lower())
        before = self._cache.get_all_trials(0, deepcopy=False)  # perhaps under limits that are not in force any more
        self._constrained = bool(self._compared.criteria.limits) or any(map(is_constrained, before))

    @property
    def in_rounds(self) -> bool:
        """Whether trials run in rounds."""
        return self._size is not None

    def rows(self) -> Sequence[FrozenTrial]:
        """Return the trials that may run or have run: those within the budget, and those that a user has added."""
        trials = self._cache.get_all_trials(0, deepcopy=False)
        if len(trials) > self._budget:
            planned = {trial.number for trial in [row for row in trials if not is_added(row)][: self._budget]}
            trials = [trial for trial in trials if is_added(trial) or trial.number in planned]
        if self.used_up(trials):
            trials = [trial for trial in trials if trial.state != TrialState.WAITING or self.params_of(trial)]
        return trials

    def unfinished(self) -> bool:
        """Return whether a trial is not finished."""
        return any(not trial.state.is_finished() for trial in self.rows())

    def decided(self) -> Sequence[FrozenTrial]:
        """Return the trials that a decision to stop the study may rest on.

        These are all trials; in rounds, those of the rounds that have ended; none before the published default ended.
        They have the constraints of the study's limits.
        """
        trials = list(map(self._compared.criteria.seen, self.rows()))
        if any(is_baseline(trial) and not trial.state.is_finished() for trial in trials):
            return []
        if self._size is None:
            return trials
        return trials[: next((self._begin(t.number) for t in trials if not t.state.is_finished()), None)]

    def lacks_trials(self) -> bool:
        """Return whether trials have to be added, because duplicates have used trials that a finite space needs."""
        trials = self.rows()
        return len(trials) < self._budget and all(map(self._is_drawn, trials)) and not self.used_up(trials)

    def used_up(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether every point of a finite space has its trial."""
        if self._space.size > len(trials):
            return False
        drawn = [self.params_of(trial) for trial in trials if self._is_drawn(trial)]
        return len({_key(params) for params in drawn if params and self._space.contains(params)}) >= self._space.size

    def to_draw(self) -> Sequence[FrozenTrial]:
        """Return the trials that lack parameters and may be drawn now, in the order in which they are drawn."""
        lacking = [] if self._size is None else [trial for trial in self._current() if not self._is_drawn(trial)]
        if self._wave is None or not lacking:
            return lacking
        begin = self._drawn_from(lacking[0].number)
        if any(self._keeps_waiting(trial) for trial in self.rows()[:begin]):
            return []
        return [trial for trial in lacking if self._drawn_from(trial.number) == begin]

    def ready(self) -> Iterator[FrozenTrial]:
        """Yield the trials that may start or go on, in the order of their numbers."""
        trials = self._current()
        alike: dict[Any, list[FrozenTrial]] = {}
        for trial in trials:
            alike.setdefault(_key(self.params_of(trial)), []).append(trial)
        for trial in trials:
            if self._size is not None and not self._is_drawn(trial):
                return  # it may become a duplicate of another trial, or the original of a later one
            original = self.unfinished_original(trial, alike[_key(self.params_of(trial))])
            if original is None and self._may_go_on(trial):
                yield trial

    def _current(self) -> Sequence[FrozenTrial]:
        """Return the unfinished trials; in rounds, those of the first round that has not ended."""
        trials = [trial for trial in self.rows() if not trial.state.is_finished()]
        return [trial for trial in trials if self._begin(trial.number) == self._begin(trials[0].number)]

    def _begin(self, number: int) -> int:
        """Return the number of the first trial in a trial's round; without rounds, 0."""
        return 0 if self._size is None else number // self._size * self._size

    def _drawn_from(self, number: int) -> int:
        """Return how many trials, the first ones, a trial of a round is drawn from."""
        begin = self._begin(number)
        return begin if self._wave is None else begin + (number - begin) // self._wave * self._wave

    def seen_by(self, number: int) -> optuna.Study:
        """Return the study with the trials from which a trial may be drawn."""
        if self._wave is None:
            view = self._visible(number)
            if self._constrained:
                view = view.seen_as(self._compared.criteria.seen, self._study.direction.name)
            return self._study_of(view)
        view = self._cache.before(self._drawn_from(number))
        return self._study_of(view.seen_as(self._at_first_rung, self._study.direction.name))

    def _at_first_rung(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return a trial as if it had ended at the lowest rung; None if it has no value there, or is a duplicate."""
        rungs = self._rungs(trial)
        values = rungs.values(trial.intermediate_values) if rungs else []
        if (not values and trial.state != TrialState.COMPLETE) or is_duplicate(trial, self.rows()):
            return None
        seen = copy.copy(trial)
        seen.state, seen.values = TrialState.COMPLETE, values[:1] or trial.values
        steps = rungs.values({step: step for step in trial.intermediate_values}) if rungs and values else []
        return self._compared.criteria.seen_at(seen, steps[0]) if steps else self._compared.criteria.seen(seen)

    def _keeps_waiting(self, trial: FrozenTrial) -> bool:
        """Return whether the next wave has to wait for a trial; a duplicate waits for its original itself."""
        ended = trial.state.is_finished() or is_duplicate(trial, self.rows())
        return not ended and self._at_first_rung(trial) is None

    def _visible(self, number: int) -> StudyCache:
        return self._cache if self._size is None else self._cache.before(self._begin(number))

    def _study_of(self, cache: StudyCache) -> optuna.Study:
        # A new study each time: an Optuna study caches its trials from the first read to the next tell.
        return optuna.Study(self._study.study_name, cache, sampler=self._study.sampler, pruner=self._study.pruner)

    # ------------------------------------------------------------ duplicates

    def unfinished_original(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Return the unfinished trial with the same parameters that a trial has to wait for.

        The published default waits for none: gains are measured against its own training.
        """
        params = {} if is_baseline(trial) else self.params_of(trial)
        for other in trials if params else ():
            same = other.number != trial.number and not other.state.is_finished() and self.params_of(other) == params
            if same and same_seed(other, trial) and self._goes_first(other, trial):
                return other
        return None

    def _goes_first(self, other: FrozenTrial, trial: FrozenTrial) -> bool:
        if is_baseline(other):
            return True
        if self._size is not None or trial.state == other.state == TrialState.RUNNING:
            return other.number < trial.number
        return other.state == TrialState.RUNNING

    def finished_original(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return the completed or pruned trial with the same parameters, whose result a trial is told.

        The published default has none: it is always trained.
        """
        for other in [] if is_baseline(trial) else self.rows():
            ended = other.state in (TrialState.COMPLETE, TrialState.PRUNED)
            before = other.number < trial.number or (self._size is None and other.number != trial.number)
            if ended and before and other.params == trial.params and same_seed(other, trial):
                return other
        return None

    def params_of(self, trial: FrozenTrial) -> Mapping[str, Any]:
        """Return the parameters of a trial that are drawn or planned."""
        return {**trial.system_attrs.get("fixed_params", {}), **trial.params}

    def _is_drawn(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has all its parameters; one whose process was killed may have a part of them."""
        if trial.state.is_finished():
            return True
        params = self.params_of(trial)
        return all(name in params for name in self._space.parameters if self._space.active(name, params))

    # ------------------------------------------------------------ pruning

    def pruned(self, trial: FrozenTrial, step: int) -> Decision:
        """Return the pruner's decision for a trial that has just been evaluated at a step.

        The published default always goes on; its reports count in the decisions for other trials.
        """
        again = trial.last_step is not None and step < trial.last_step  # trained again: it went on at this step before
        decision = self._at_rung(trial, step) if self.in_rounds or not again else Decision.GO_ON
        if decision is None:
            decision = Decision.GO_ON if again else self._by_optuna(trial)
        return Decision.GO_ON if is_baseline(trial) else decision

    def paused(self, trial: FrozenTrial) -> Decision:
        """Return the decision for a trial that is paused at a rung, now that others may have reached it."""
        if is_baseline(trial):
            return Decision.GO_ON
        return self._at_rung(trial, trial.system_attrs[PAUSED]) or Decision.GO_ON

    def is_paused(self, trial: FrozenTrial) -> bool:
        """Return whether a trial waits at a rung."""
        step = trial.last_step
        return self._size is not None and step is not None and trial.system_attrs.get(PAUSED) == step

    def tied(self, trial: FrozenTrial, step: int) -> dict[str, Any]:
        """Return the attribute to store with a trial after a decision at a step, if the decision was a tie.

        Returns:
            The attribute `ties`: step -> `loss` or `all`, see `hpo.search.halving.tie`; empty if there was no tie.
        """
        rungs = None if is_baseline(trial) else self._rungs(trial)
        how = rungs and tie(self.rows(), trial.number, step, rungs, self._size, self._compared)
        return {TIES: {**trial.user_attrs.get(TIES, {}), str(step): how}} if how else {}

    def _may_go_on(self, trial: FrozenTrial) -> bool:
        return not self.is_paused(trial) or self.paused(trial) is not Decision.WAIT

    def _at_rung(self, trial: FrozenTrial, step: int) -> Decision | None:
        """Return the decision at a rung; None if the pruner has no rungs, or none yet."""
        rungs = self._rungs(trial)
        if rungs is None:
            return None
        trials = self.rows()
        if self.in_rounds and self._begin(len(trials)) == self._begin(trial.number) and self.lacks_trials():
            return Decision.WAIT  # for the trials that are to be added to this round
        if self.in_rounds and not self._compared.lacks_metrics(trial):
            trials = [self._with_metrics(other) for other in trials]
        return decide(trials, trial.number, step, rungs, self._size, self._compared)

    def _with_metrics(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial, read again if another process owns it and its last evaluation was read incompletely."""
        foreign = not trial.state.is_finished() and trial.number not in self._cache.owned
        if foreign and self._compared.lacks_metrics(trial):
            self._cache.read_again(trial.number)
        return self._cache.row(trial.number)

    def _rungs(self, trial: FrozenTrial) -> Rungs | None:
        """Return the rungs of a trial's bracket.

        In rounds, the pruner sees the trials up to the end of the first round with a completed trial.
        """
        seen = self._cache
        if (size := self._size) is not None:
            completed = (t for t in self.rows() if t.state == TrialState.COMPLETE and t.last_step is not None)
            first = next((t.number // size + 1 for t in completed), 0)
            seen = seen.before(min(first, trial.number // size) * size)
        return rungs_of(self._study.pruner, self._study_of(seen), trial, self._segment)

    def _by_optuna(self, trial: FrozenTrial) -> Decision:
        """Return the decision of a pruner without rungs, on what it is to compare."""
        cache = self._visible(trial.number).seen_as(self._compared.seen, self._compared.direction)
        as_seen = self._compared.seen(trial)
        assert as_seen is not None  # the trial has not ended
        return Decision.PRUNE if self._study.pruner.prune(self._study_of(cache), as_seen) else Decision.GO_ON


def is_added(trial: FrozenTrial) -> bool:
    """Return whether a user has added a trial to those that the study file asks for."""
    return trial.user_attrs.get(ADDED) is True


def is_baseline(trial: FrozenTrial) -> bool:
    """Return whether a trial runs the published default."""
    return trial.user_attrs.get("baseline") is True


def _key(params: Mapping[str, Any]) -> Any:
    return tuple(sorted(params.items()))
