"""A search on recorded runs, which are trained step by step: hpo decides at the rungs."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState
from recorded import Array, Table

from hpo.search.comparison import Comparison
from hpo.search.decisions import Decision
from hpo.search.halving import Field, Rungs

COMPARED = Comparison("maximize")
END = 2**62  # a step beyond every training


class Search:
    """Runs of a table that are trained step by step, each of them once.

    Args:
        table: The recorded runs.
        rungs: The steps at which runs are compared.
    """

    def __init__(self, table: Table, rungs: Rungs) -> None:
        self.table, self.rungs = table, rungs
        self.trials: list[FrozenTrial] = []
        self._runs: list[int] = []
        self._reached: list[int] = []  # the index of the last evaluation
        self.trace: list[tuple[float, int, float, bool]] = []  # see `equal_cost.Trace`

    def start(self, runs: Sequence[int] | Array) -> list[int]:
        """Train runs to the lowest rung, and return the numbers of those that are new."""
        new = [int(run) for run in dict.fromkeys(runs) if run not in self._runs]
        distributions = self.table.space.distributions()
        for run in new:
            params = {name: self.table.params[run][name] for name in distributions}
            trial = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
            trial.number = len(self.trials)
            self.trials.append(trial)
            self._runs.append(run)
            self._reached.append(-1)
            self.train(trial.number, self.rungs.first)
        return list(range(len(self.trials) - len(new), len(self.trials)))

    def train(self, number: int, step: int) -> None:
        """Train a run to its first evaluation at or after a step, or to its end."""
        run = self._runs[number]
        index = self._reached[number] = self.table.evaluation(run, step)
        trial = self.trials[number]
        value, ended = float(self.table.values[run, index]), bool(index == self.table.evaluations[run] - 1)
        trial.intermediate_values[int(self.table.at[run, index])] = value
        self.trace.append((self.examples, run, value, ended))
        if ended:
            self._end(number, TrialState.COMPLETE)

    def prune(self, number: int) -> None:
        """End a run at its last evaluation."""
        self._end(number, TrialState.PRUNED)

    def _end(self, number: int, state: TrialState) -> None:
        trial = self.trials[number]
        trial.state, trial.values, trial.datetime_complete = state, [last_value(trial)], trial.datetime_start

    def decision(self, number: int, round_size: int | None) -> Decision:
        """Return hpo's decision for a run at its last evaluation."""
        step = self.trials[number].last_step
        assert step is not None
        judged = Field(self.trials, self.rungs, COMPARED, round_size, number).judge(number, step)
        return Decision.GO_ON if judged is None else judged.decision

    def next_rung(self, number: int) -> int:
        """Return the step of the next rung; `END` after the last."""
        passed = len(self.rungs.values(self.trials[number].intermediate_values))
        return END if passed == self.rungs.count else self.rungs.first * self.rungs.factor**passed

    def running(self) -> list[int]:
        """Return the numbers of the runs that have not ended."""
        return [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    def halve(self) -> None:
        """Compare all runs at each rung, as one round, until every run has ended."""
        while numbers := self.running():
            size = len(self.trials)
            ended = [number for number in numbers if self.decision(number, size) is Decision.PRUNE]
            for number in numbers:
                if number in ended:
                    self.prune(number)
                else:
                    self.train(number, self.next_rung(number))

    def promote(self, more: bool) -> bool:
        """Train the best run that is promoted to its next rung, and prune those that cannot be any more.

        Args:
            more: Whether runs are still to be started.

        Returns:
            Whether a run was promoted.
        """
        field = Field(self.trials, self.rungs, COMPARED, more=more)
        promoted = []
        for number in self.running():
            step = self.trials[number].last_step
            judged = None if step is None else field.judge(number, step)
            if judged is None or judged.decision is Decision.GO_ON:
                promoted.append(number)
            elif judged.decision is Decision.PRUNE:
                self.prune(number)
        if promoted:
            best = min(promoted, key=field.rank)
            self.train(best, self.next_rung(best))
        return bool(promoted)

    def found(self) -> tuple[int, float]:
        """Return the completed run with the best last validation score, and the examples that all runs have seen."""
        states = [trial.state for trial in self.trials]
        completed = [run for run, state in zip(self._runs, states, strict=True) if state == TrialState.COMPLETE]
        best = max(completed, key=lambda run: self.table.finals[run])
        return best, self.examples

    @property
    def examples(self) -> float:
        """The examples that all runs have seen."""
        return float(self.table.at[self._runs, self._reached].sum())

    def number(self, run: int) -> int:
        """Return the number of a run that was started."""
        return self._runs.index(run)


def last_value(trial: FrozenTrial) -> float:
    """Return the score of a trial's last evaluation."""
    step = trial.last_step
    assert step is not None
    return trial.intermediate_values[step]
