"""The order of trials: which may start, which have to wait for others, and which are pruned."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import optuna
from optuna.pruners import HyperbandPruner
from optuna.trial import FrozenTrial, TrialState

from hpo.search.comparison import Comparison
from hpo.search.decisions import TIED, Decision, Judged, judged_by, went_on, with_decision
from hpo.search.halving import EndedKeys, Field, PromotionPruner, Rungs, every_trial, is_duplicate, rungs_of
from hpo.search.kept_trials import ByParams
from hpo.search.trial_marks import PAUSED, TIES, is_added, is_baseline, paused_at
from hpo.search.trial_seed import same_seed
from hpo.space.search_space import SearchSpace
from hpo.storage.criteria import is_constrained
from hpo.storage.study_cache import StudyCache


class TrialOrder:
    """The order of a study's trials.

    Without rounds, every trial may start at any time. In rounds (`size` is given) the results must not depend on which
    trial is faster. A round therefore begins when the previous one has ended; its trials are drawn in the order of
    their numbers, from the results of earlier rounds; and a rung is decided when every trial of the round has reached
    it or has ended.

    In waves (`wave` is given too), only the first `wave` trials of a round are drawn when it begins, the next ones when
    those have reached the lowest rung or have ended, and so on. The sampler sees their values at that rung, whatever
    they have reached since.

    Where trials pause at rungs without rounds (`PromotionPruner`), those that are promoted go on before others start.

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
        self._pauses = size is None and isinstance(study.pruner, PromotionPruner)
        self._compared = compared or Comparison(study.direction.name.lower())
        before = self._cache.get_all_trials(0, deepcopy=False)  # perhaps under limits that are not in force any more
        self._constrained = bool(self._compared.criteria.limits) or any(map(is_constrained, before))
        self._settled: dict[int, FrozenTrial | None] = {}  # ended trials as waves see them

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

    def unfinished(self) -> Sequence[FrozenTrial]:
        """Return those of `rows` that have not ended."""
        if self._cache.count <= self._budget and self._space.size > self._cache.count:
            return self._cache.unfinished()
        return [trial for trial in self.rows() if not trial.state.is_finished()]

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
        """Yield the trials that may start or go on: first those that are promoted, then by number."""
        trials = self._current()
        alike, decided = self._alike(trials), self.resumable([t.number for t in trials if self.is_paused(t)])
        if self._pauses:
            promoted = [n for n, judged in decided.items() if judged is None or judged.decision is Decision.GO_ON]
            trials = [*map(self._cache.row, promoted), *(t for t in trials if t.number not in promoted)]
        for trial in trials:
            if self._size is not None and not self._is_drawn(trial):
                return  # it may become a duplicate of another trial, or the original of a later one
            original = self.unfinished_original(trial, alike[_key(self.params_of(trial))])
            if original is None and (trial.number in decided or not self.is_paused(trial)):
                yield trial

    def _alike(self, trials: Sequence[FrozenTrial]) -> Mapping[Any, Sequence[FrozenTrial]]:
        """Return the trials by their parameters."""
        alike: dict[Any, list[FrozenTrial]] = {}
        for trial in trials:
            alike.setdefault(_key(self.params_of(trial)), []).append(trial)
        return alike

    def _current(self) -> Sequence[FrozenTrial]:
        """Return the unfinished trials; in rounds, those of the first round that has not ended."""
        trials = self.unfinished()
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
            if self._constrained or self._pauses:
                view = view.seen_as(self._as_ended, self._study.direction.name)
            return self._study_of(view)
        view = self._cache.before(self._drawn_from(number))
        return self._study_of(view.seen_as(self._at_first_rung, self._study.direction.name, settled=False))

    def _as_ended(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial with its constraints; if it is paused, as if it had been pruned where it waits."""
        seen = self._compared.criteria.seen(trial) if self._constrained else trial
        if self._pauses and self.is_paused(trial):
            seen = copy.copy(seen)
            seen.state, seen.values = TrialState.PRUNED, [trial.intermediate_values[trial.system_attrs[PAUSED]]]
        return seen

    def _at_first_rung(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return a trial as if it had ended at the lowest rung; None if it has no value there, or is a duplicate."""
        if trial.number in self._settled:
            return self._settled[trial.number]
        rungs = self._rungs(trial)
        seen = self._cut_at_rung(trial, rungs)
        if trial.state.is_finished() and rungs is not None:  # all trials before it are drawn: it stays as it is
            self._settled[trial.number] = seen
        return seen

    def _cut_at_rung(self, trial: FrozenTrial, rungs: Rungs | None) -> FrozenTrial | None:
        """Return what `_at_first_rung` returns, of the trial's rungs."""
        values = rungs.values(trial.intermediate_values) if rungs else []
        if (not values and trial.state != TrialState.COMPLETE) or self._is_duplicate(trial):
            return None
        seen = copy.copy(trial)
        seen.state, seen.values = TrialState.COMPLETE, values[:1] or trial.values
        steps = rungs.values({step: step for step in trial.intermediate_values}) if rungs and values else []
        return self._compared.criteria.seen_at(seen, steps[0]) if steps else self._compared.criteria.seen(seen)

    def _keeps_waiting(self, trial: FrozenTrial) -> bool:
        """Return whether the next wave has to wait for a trial; a duplicate waits for its original itself."""
        ended = trial.state.is_finished() or self._is_duplicate(trial)
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

    def _ended_alike(self, params: Mapping[str, Any]) -> Sequence[FrozenTrial]:
        """Return those of `rows` that have ended and have the given parameters, which are drawn, by number."""
        if self._cache.count <= self._budget:
            return self._cache.kept(ByParams).alike(params)
        return [trial for trial in self.rows() if trial.state.is_finished() and trial.params == params]

    def _is_duplicate(self, trial: FrozenTrial) -> bool:
        """Return whether an earlier trial has the same parameters."""
        return is_duplicate(trial, [*self._ended_alike(trial.params), *self.unfinished()])

    def finished_original(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return the completed or pruned trial with the same parameters, whose result a trial is told.

        The published default has none: it is always trained.
        """
        for other in [] if is_baseline(trial) else self._ended_alike(trial.params):
            ended = other.state in (TrialState.COMPLETE, TrialState.PRUNED)
            before = other.number < trial.number or (self._size is None and other.number != trial.number)
            if ended and before and same_seed(other, trial):
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

    def judged(self, trial: FrozenTrial, step: int) -> Judged | None:
        """Return the pruner's decision for a trial that has just been evaluated at a step; None if there is none.

        The published default always goes on; its reports count in the decisions for other trials. A trial that has been
        promoted at a step, or is trained again up to one at which it went on before, goes on.
        """
        again = trial.last_step is not None and step < trial.last_step
        rungs = None if again and not self.in_rounds else self._rungs(trial)
        if rungs is None:
            judged = None if again else self._by_optuna(trial)
        else:
            judged = None if self._pauses and went_on(trial, step) else self._at_rung(trial, step, rungs)
        return None if is_baseline(trial) else judged

    def resumable(self, numbers: Sequence[int]) -> Mapping[int, Judged | None]:
        """Return which of the paused trials wait no longer, in the order in which they go on.

        Args:
            numbers: Numbers of paused trials.

        Returns:
            Number -> the decision, to go on or to prune; None for a trial for which there is none any more.
        """
        rows = [self._cache.row(number) for number in sorted(numbers)]
        judged: dict[int, Judged | None] = {row.number: None for row in rows if is_baseline(row)}
        rows = [row for row in rows if not is_baseline(row)]
        rungs = self._rungs(rows[0]) if rows and self._pauses else None
        if rungs is None:
            judged |= {row.number: self.paused(row) for row in rows}
        else:
            field = self._field(rows[0], rungs)
            rows = [row for row in rows if not field.waits(row.number)]
            for row in sorted(rows, key=lambda row: field.rank(row.number)):
                judged[row.number] = field.judge(row.number, row.system_attrs[PAUSED])
        return {number: each for number, each in judged.items() if each is None or each.decision is not Decision.WAIT}

    def paused(self, trial: FrozenTrial) -> Judged | None:
        """Return the decision for a trial that is paused at a rung, now that others may have reached it."""
        rungs = None if is_baseline(trial) else self._rungs(trial)
        return None if rungs is None else self._at_rung(trial, trial.system_attrs[PAUSED], rungs)

    def is_paused(self, trial: FrozenTrial) -> bool:
        """Return whether a trial waits at a rung."""
        return (self._pauses or self._size is not None) and paused_at(trial) is not None

    def noted(self, trial: FrozenTrial, step: int, judged: Judged | None) -> dict[str, Any]:
        """Return the attributes to store with a trial after a decision at a step.

        Returns:
            The attribute `decisions`, and after a tie the attribute `ties`: step -> `loss` or `all`.
        """
        if judged is None or (judged.decision is Decision.WAIT and not self._pauses):
            return {}
        noted = with_decision(trial, step, judged)
        if judged.why in TIED and judged.decision is not Decision.WAIT:
            noted[TIES] = {**trial.user_attrs.get(TIES, {}), str(step): judged.why}
        return noted

    def _at_rung(self, trial: FrozenTrial, step: int, rungs: Rungs) -> Judged | None:
        """Return the decision at a rung; None if the step has reached none."""
        if self.in_rounds and self._begin(len(self.rows())) == self._begin(trial.number) and self.lacks_trials():
            return Judged(Decision.WAIT)  # for the trials that are to be added to this round
        if not rungs.reached(self._compared.curve(trial), step):
            return None
        return self._field(trial, rungs).judge(trial.number, step)

    def _field(self, trial: FrozenTrial, rungs: Rungs) -> Field:
        """Return the trials among which a trial is judged."""
        ended, trials = self._among(trial, rungs)
        if self.in_rounds and not self._compared.lacks_metrics(trial):
            trials = [other if other.state.is_finished() else self._with_metrics(other) for other in trials]
        waiting: set[int] = set()
        if self._pauses:
            unfinished = [other for other in trials if not other.state.is_finished()]
            alike = self._alike(unfinished)
            pairs = ((other, alike[_key(self.params_of(other))]) for other in unfinished)
            waiting = {other.number for other, same in pairs if self.unfinished_original(other, same) is not None}
        more = self._pauses and self.lacks_trials()
        return Field(trials, rungs, self._compared, self._size, trial.number, waiting, more, ended)

    def _among(self, trial: FrozenTrial, rungs: Rungs) -> tuple[EndedKeys | None, Sequence[FrozenTrial]]:
        """Return what is kept of ended trials, in rounds of those before a trial's round, and the other trials."""
        if rungs.in_bracket is not every_trial or self._cache.count > self._budget:
            return None, self.rows()
        if self._size is None:
            return self._cache.kept(EndedKeys, rungs, self._compared), self.unfinished()
        begin = self._begin(trial.number)
        before = self._cache.before(begin)
        ended = before.kept(EndedKeys, rungs, self._compared)
        rows = self.rows()
        start = bisect_left(rows, begin, key=attrgetter("number"))
        return ended, [*before.unfinished(), *rows[start : start + self._size]]

    def _with_metrics(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial that has not ended, read again if another process's evaluation was read incompletely."""
        if trial.number not in self._cache.owned and self._compared.lacks_metrics(trial):
            self._cache.read_again(trial.number)
        return self._cache.row(trial.number)

    def _rungs(self, trial: FrozenTrial) -> Rungs | None:
        """Return the rungs of a trial's bracket.

        In rounds, the pruner sees the trials up to the end of the first round with a completed trial.
        """
        seen = self._cache
        if (size := self._size) is not None and isinstance(self._study.pruner, HyperbandPruner):
            completed = (t for t in self.rows() if t.state == TrialState.COMPLETE and t.last_step is not None)
            first = next((t.number // size + 1 for t in completed), 0)
            seen = seen.before(min(first, trial.number // size) * size)
        return rungs_of(self._study.pruner, self._study_of(seen), trial, self._segment)

    def _by_optuna(self, trial: FrozenTrial) -> Judged | None:
        """Return the decision of a pruner without rungs, on what it is to compare."""
        cache = self._visible(trial.number).seen_as(self._compared.seen, self._compared.direction)
        as_seen = self._compared.seen(trial)
        assert as_seen is not None  # the trial has not ended
        return judged_by(self._study.pruner, self._study_of(cache), as_seen)


def _key(params: Mapping[str, Any]) -> Any:
    return tuple(sorted(params.items()))
