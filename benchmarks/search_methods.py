"""Searches that are replayed on recorded runs: what they find, and how many examples they train on.

Promotion, drawing and the choices of `auto` are hpo's own code; the median pruner is Optuna's, written for arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from recorded import Array, Table

from hpo.search import auto, pruners
from hpo.search.comparison import Comparison
from hpo.search.cross_entropy import value_at
from hpo.search.halving import Decision, Rungs, TwoRungHalving, decide, rungs_of
from hpo.search.priors import draws_from_prior
from hpo.search.samplers import TrialSeededSampler
from hpo.space.parameters import Categorical, Float, Int, Near, Parameter
from hpo.space.search_space import SearchSpace

COMPARED = Comparison("maximize")
END = 2**62  # a step beyond every training


class _UnstoredTrials(optuna.storages.InMemoryStorage):
    """Holds the trials that samplers learn from; what a sampler writes of a proposal is not stored."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write nothing: a proposal is no trial of the study."""


def _study() -> optuna.Study:
    return optuna.create_study(storage=_UnstoredTrials(), direction="maximize")


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
        return decide(self.trials, number, step, self.rungs, round_size, COMPARED)

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


Method = Callable[[Table, Array, int], tuple[int, float]]
"""(table, the runs that the full search draws, seed) -> (the run that is found, examples trained on)."""


def whole(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
    """Train every run to its end."""
    runs = np.unique(drawn)
    return int(runs[table.finals[runs].argmax()]), float(table.lengths[runs].sum())


def median(trials: int) -> Method:
    """Return a search of so many runs, one after the other, with Optuna's median pruner and its defaults."""
    return lambda table, drawn, seed: _pruned_by_medians(table, drawn[:trials])


def _pruned_by_medians(table: Table, drawn: Array) -> tuple[int, float]:
    """Return what is found, and the examples; a run is reported at each fortieth of the longest training."""
    steps = np.arange(1, 1 + TwoRungHalving.FIRST) * _first(table)
    completed: list[int] = []
    charged = 0.0
    curves: dict[int, Array] = {}
    for run in dict.fromkeys(drawn.tolist()):
        reports = steps[steps < table.lengths[run]]
        evaluations = [table.evaluation(run, step) for step in (*reports, END)]
        curves[run] = np.append(table.values[run, evaluations], np.full(len(steps) + 1 - len(evaluations), np.nan))
        others = np.array([curves[other] for other in completed])
        ends = pruned_by_median(curves[run][: len(reports)], others) if len(completed) >= 5 else None
        if ends is None:
            completed.append(run)
        charged += table.at[run, evaluations[-1 if ends is None else ends]]
    return max(completed, key=lambda run: table.finals[run]), charged


def pruned_by_median(curve: Array, others: Array) -> int | None:
    """Return the report at which a run is pruned; None if it is not.

    Args:
        curve: [reports] the run's values.
        others: [runs, reports or more] the values of the completed runs; NaN after their ends.
    """
    for report, best in enumerate(np.maximum.accumulate(curve)):
        values = others[:, report][~np.isnan(others[:, report])]
        if len(values) and best < np.median(values):
            return report
    return None


def asha(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
    """Asynchronous halving, one run after the other."""
    search = Search(table, asha_rungs(table))
    for run in drawn:
        race(search, run)
    return search.found()


def halving(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
    """Synchronous halving with the rungs of ASHA, to the end."""
    search = Search(table, asha_rungs(table))
    search.start(drawn)
    search.halve()
    return search.found()


def tpe_asha(trials: int) -> Method:
    """Return a search of so many trials that TPE draws one after the other, with asynchronous halving."""

    def search_of(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
        search = Search(table, asha_rungs(table))
        study = _study()
        sampler = TrialSeededSampler("tpe", {}, table.space, seed)
        for _ in range(trials):
            before = len(search.trials)
            race(search, _proposals(table, sampler, study, [before])[0])
            for trial in search.trials[before:]:
                study.add_trial(trial)
        return search.found()

    return search_of


def sketch(first: int, second: int, promoted: int, finished: int) -> Method:
    """Return the sketch: random draws, further ones near the best learning rates, and two promotions."""

    def search_of(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
        random = np.random.default_rng([seed, 1])
        search = Search(table, TwoRungHalving(_first(table), table.horizon).rungs())
        search.start(drawn[:first])
        ordered = _ordered(search, [trial.number for trial in search.trials])
        rates = np.log10([search.trials[number].params["learning_rate"] for number in ordered[: max(1, first // 3)]])
        near = random.normal(np.average(rates, weights=range(len(rates), 0, -1)), 0.25, second)
        ends = table.space.parameters["learning_rate"]
        assert isinstance(ends, Float)
        points = [uniform(table, random) for _ in near]
        for point, rate in zip(points, 10**near, strict=True):
            point["learning_rate"] = float(np.clip(rate, ends.low, ends.high))
        search.start(table.nearest(points))
        for left in (promoted, finished):
            ordered = _ordered(search, search.running())
            for number in ordered[left:]:
                search.prune(number)
            for number in ordered[:left]:
                search.train(number, search.next_rung(number))
        return search.found()

    return search_of


Expected = Callable[[Table], Mapping[str, Near]]
"""A table -> its parameters with a prior."""


def two_waves(trials: int, expected: Expected | None = None) -> Method:
    """Return the search that `sampler: auto` and `pruner: auto` stand for, of so many trials, with a prior or without.

    Args:
        trials: Number of trials.
        expected: Returns the prior; None for none.
    """

    def search_of(table: Table, drawn: Array, seed: int) -> tuple[int, float]:
        space = with_prior(table.space, expected(table)) if expected else table.space
        return run_waves(table, drawn, seed, trials, space).found()

    return search_of


def run_waves(table: Table, drawn: Array, seed: int, trials: int, space: SearchSpace | None = None) -> Search:
    """Run a search of so many trials in two waves to its end.

    Args:
        table: The recorded runs.
        drawn: The runs that the full search draws.
        seed: The search's seed.
        trials: Number of trials.
        space: The table's space with priors and with configurations that are tried first; None for none.
    """
    wave = auto.wave_of("cross_entropy", trials)
    assert wave is not None
    space = space or table.space
    sampler = TrialSeededSampler("cross_entropy", {}, space, seed)
    study = _study()
    search = Search(table, TwoRungHalving(_first(table), table.horizon).rungs())
    started = drawn[:wave].copy()
    first = space.first_configurations()
    from_prior = [number for number in range(len(first), wave) if draws_from_prior(space, number, 0)]
    if from_prior:
        started[from_prior] = _proposals(table, sampler, study, from_prior)
    if first:
        started[: len(first)] = table.nearest(first)
    search.start(started)
    study.add_trials([_at_first_rung(trial) for trial in search.trials])
    search.start(_proposals(table, sampler, study, range(wave, trials)))
    search.halve()
    return search


def with_prior(space: SearchSpace, expected: Mapping[str, Near]) -> SearchSpace:
    """Return a space with priors for some of its parameters."""
    return replace(space, parameters={n: _with_prior(p, expected.get(n)) for n, p in space.parameters.items()})


def _with_prior(parameter: Parameter, prior: Near | None) -> Parameter:
    return parameter if isinstance(parameter, Categorical) else replace(parameter, prior=prior)


def published(table: Table) -> Mapping[str, Near]:
    """Return the prior that published configurations of DeBERTaV3-base give.

    MNLI: learning rate 1.5e-5, 3 epochs (DeBERTa, `experiments/glue/mnli.sh`); the learning rates of the base size are
    1e-5 to 3e-5. Their batch sizes, 16 to 64, are those of the table.
    """
    everything = {
        "learning_rate": Near(mean=3**0.5 * 1e-5, spread=3**0.5),
        "num_train_epochs": Near(mean=3, spread=0.5),
    }
    return {name: prior for name, prior in everything.items() if name in table.space.parameters}


def worst(table: Table) -> Mapping[str, Near]:
    """Return the prior that the worst tenth of the runs gives: a wrong one."""
    runs = table.finals.argsort()[: len(table.finals) // 10]
    found = {}
    for name, parameter in table.space.parameters.items():
        values = np.array([table.params[run][name] for run in runs], dtype=float)
        if isinstance(parameter, Float | Int) and parameter.log:
            mean, spread = np.exp(np.log(values).mean()), np.exp(np.log(values).std())
        else:
            mean, spread = values.mean(), values.std()
        found[name] = Near(mean=float(mean), spread=float(spread))
    return found


def _first(table: Table) -> int:
    """Return the step of the first rung."""
    return TwoRungHalving(1, table.horizon).rungs().first


def asha_rungs(table: Table) -> Rungs:
    pruner = pruners.make("asha", {"reduction_factor": 4}, _first(table), table.horizon)
    rungs = rungs_of(pruner, None, None, _first(table))  # type: ignore[arg-type]  # this pruner asks for neither
    assert rungs is not None
    return rungs


def race(search: Search, run: int) -> None:
    """Train a run rung by rung until it is pruned or ends."""
    for number in search.start([run]):
        while number in search.running():
            if search.decision(number, None) is Decision.PRUNE:
                search.prune(number)
            else:
                search.train(number, search.next_rung(number))


def _proposals(table: Table, sampler: TrialSeededSampler, study: optuna.Study, numbers: Sequence[int] | range) -> Array:
    """Return the runs nearest to what a sampler proposes for trials with these numbers."""
    points = []
    for number in numbers:
        trial = optuna.create_trial(state=TrialState.RUNNING)
        trial.number = number
        points.append(sampler.sample_relative(study, trial, {}))
    return table.nearest(points)


def uniform(table: Table, random: np.random.Generator) -> dict[str, Any]:
    """Return a point of a table's space, drawn at random."""
    distributions = table.space.distributions().items()
    return {name: value_at(distribution, random.random()) for name, distribution in distributions}  # type: ignore[arg-type]


def _at_first_rung(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as the second wave sees it."""
    value = next(iter(trial.intermediate_values.values()))
    return optuna.create_trial(value=value, params=trial.params, distributions=trial.distributions)


def _ordered(search: Search, numbers: Sequence[int]) -> list[int]:
    """Return the numbers of runs, the one with the best last score first."""
    return sorted(numbers, key=lambda number: -last_value(search.trials[number]))


def last_value(trial: FrozenTrial) -> float:
    """Return the score of a trial's last evaluation."""
    step = trial.last_step
    assert step is not None
    return trial.intermediate_values[step]


METHODS: dict[str, Method] = {
    "median, the same 64": median(64),
    "median, 16 of them": median(16),
    "asha, the same 64": asha,
    "halving, the same 64": halving,
    "16 tpe, asha": tpe_asha(16),
    "sketch, 16 + 16": sketch(16, 16, 6, 2),
    "sketch, 8 + 8": sketch(8, 8, 6, 2),
    "auto, 64": two_waves(64),
    "auto, 32": two_waves(32),
    "auto, 24": two_waves(24),
    "auto, 17": two_waves(17),
    "two waves, 16": two_waves(16),
    "two waves, 12": two_waves(12),
    "prior of published configurations, 24": two_waves(24, published),
    "prior of published configurations, 12": two_waves(12, published),
    "prior at the worst tenth, 24": two_waves(24, worst),
    "prior at the worst tenth, 12": two_waves(12, worst),
}
