"""Other libraries on recorded runs, at equal cost beside hpo: each in its documented default for such a problem.

A library proposes points of the table's space, which is the same for all, and says how far to train each: from 1 to 40
units, a unit being a fortieth of the longest training. The recorded run nearest to a point is trained in its place, to
its first evaluation at or after that, or to its own end if that comes first. A run is trained once: one that is resumed
or proposed again is charged only what is new, also where the library itself would start again. See `equal_cost.py` for
how searches are compared. The table is read, not copied.

The libraries are no dependencies of hpo. `benchmarks/peers.txt` has the versions, for an environment of its own:

    python -m venv peers
    peers/bin/pip install -c constraints.txt -e .
    peers/bin/pip install -r benchmarks/peers.txt

Run it: peers/bin/python benchmarks/search_peers.py --table PATH [--peers NAME...] [--seeds 100] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import datetime
import importlib.metadata
import itertools
import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equal_cost
import numpy as np
import optuna
import pages
import search_samplers
import synthetic_table
from equal_cost import Search, Trace
from optuna.trial import TrialState
from recorded import Table

from hpo.space.parameters import Float, Int

UNITS = 40
SHARES = (0.06, 0.13, 0.25)
MOST = 512  # points that a search draws at most
NOTE = (
    f"Each library has its documented default, and 1 to {UNITS} units of a fortieth of the longest training as its "
    f"resource. A search ends early when {equal_cost.IDLE} proposals in a row reach no run that is not trained so far. "
    "That is to the disadvantage of local search (FLAML), whose steps are often shorter than the distance between "
    "recorded runs. `auto` of 24 and of 64 trials has ended at about 6% and 13%, and keeps what it has found."
)
PACKAGES = ("ray", "syne-tune", "smac", "flaml", "neural-pipeline-search")


class SpentError(Exception):
    """Raised to end a library's search: the examples that it may train are used up."""


class Ledger:
    """Recorded runs that are trained for a library, and what they cost.

    Args:
        table: The recorded runs.
        limit: Examples after which the search ends.

    Attributes:
        table: As given.
        trace: Its evaluations, see `equal_cost.Trace`.
        examples: What all runs have trained.
    """

    def __init__(self, table: Table, limit: float) -> None:
        self.table, self._limit = table, limit
        self.trace: list[tuple[float, int, float, bool]] = []
        self.examples = 0.0
        self._seen: dict[int, float] = {}  # run -> examples
        self._idle = 0  # proposals since examples were trained

    def run(self, point: Mapping[str, Any]) -> int:
        """Return the recorded run nearest to a point.

        Raises:
            SpentError: No proposal has cost anything for long: the search has converged.
        """
        self._idle += 1
        if self._idle > equal_cost.IDLE:
            raise SpentError
        return int(self.table.nearest([point])[0])

    def train(self, run: int, units: float) -> tuple[float, bool]:
        """Train a run to its first evaluation at or after so many units.

        Returns:
            Its score then, and whether it has ended.

        Raises:
            SpentError: The limit was reached before.
        """
        if self.examples >= self._limit:
            raise SpentError
        index = self.table.evaluation(run, int(np.ceil(units * self.table.horizon / UNITS)))
        seen, score = float(self.table.at[run, index]), float(self.table.values[run, index])
        ended = bool(index == self.table.evaluations[run] - 1)
        before = self._seen.get(run, 0.0)
        if seen > before:
            self.examples += seen - before
            self._seen[run], self._idle = seen, 0
            self.trace.append((self.examples, run, score, ended))
        return score, ended

    def reports(self, run: int) -> Iterator[tuple[int, float, bool]]:
        """Train a run unit by unit: yield the units, the score, and whether it has ended."""
        for units in range(1, UNITS + 1):
            score, ended = self.train(run, units)
            yield units, score, ended
            if ended:
                return


Peer = Callable[[Ledger, int], None]
"""(ledger, seed): searches until the ledger is spent."""


def space(table: Table, kinds: Mapping[tuple[type, bool], Callable[[Any, Any], Any]]) -> dict[str, Any]:
    """Return the table's space as a library writes it.

    Args:
        table: The recorded runs.
        kinds: (kind of a parameter, whether it is on a logarithmic scale) -> function of the range's ends.
    """
    found = {}
    for name, parameter in table.space.parameters.items():
        assert isinstance(parameter, Float | Int)
        found[name] = kinds[type(parameter), parameter.log](parameter.low, parameter.high)
    return found


# ---------------------------------------------------------------- the libraries


def optuna_tpe(pruner: Callable[[], optuna.pruners.BasePruner], ledger: Ledger, seed: int) -> None:
    """Optuna's default sampler, with a pruner."""
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner())
    while True:
        trial = study.ask(ledger.table.space.distributions())
        for units, score, ended in ledger.reports(ledger.run(trial.params)):
            trial.report(score, units)
            if ended:
                study.tell(trial, score)
            elif trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break


def _hyperband() -> optuna.pruners.BasePruner:
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=UNITS)


def ray_asha(ledger: Ledger, seed: int) -> None:
    """Ray Tune's ASHAScheduler with random draws; its methods are called here in place of the cluster's controller."""
    from ray.tune.schedulers import ASHAScheduler

    scheduler: Any = ASHAScheduler(time_attr="units", metric="score", mode="max", max_t=UNITS, grace_period=1)
    for number, run in enumerate(equal_cost.draws(ledger.table, seed, MOST).tolist()):
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for units, score, ended in ledger.reports(run):
            result = {"units": units, "score": score}
            if ended:
                scheduler.on_trial_complete(None, trial, result)
            elif scheduler.on_trial_result(None, trial, result) == scheduler.STOP:
                break


def syne_tune(name: str, ledger: Ledger, seed: int) -> None:
    """A scheduler of Syne Tune, by its name; its methods are called here in place of the tuner."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import lograndint, loguniform, randint, uniform
    from syne_tune.optimizer import baselines
    from syne_tune.optimizer.scheduler import SchedulerDecision

    kinds = {(Float, False): uniform, (Float, True): loguniform, (Int, False): randint, (Int, True): lograndint}
    scheduler = getattr(baselines, name)(
        space(ledger.table, kinds), "score", time_attr="units", max_t=UNITS, do_minimize=False, random_seed=seed
    )
    np.random.seed(seed)
    for number in itertools.count():
        trial = Trial(number, scheduler.suggest().config, datetime.datetime(2026, 1, 1))
        scheduler.on_trial_add(trial)
        for units, score, ended in ledger.reports(ledger.run(trial.config)):
            result = {"units": units, "score": score}
            if ended:
                scheduler.on_trial_complete(trial, result)
            elif scheduler.on_trial_result(trial, result) == SchedulerDecision.STOP:
                scheduler.on_trial_remove(trial)
                break


def smac(ledger: Ledger, seed: int) -> None:
    """SMAC3's MultiFidelityFacade (Hyperband with a random forest), asked and told."""
    from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter, UniformIntegerHyperparameter
    from smac import MultiFidelityFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    written = ConfigurationSpace(seed=seed)
    for name, parameter in ledger.table.space.parameters.items():
        assert isinstance(parameter, Float | Int)
        kind = UniformFloatHyperparameter if isinstance(parameter, Float) else UniformIntegerHyperparameter
        written.add(kind(name, parameter.low, parameter.high, log=parameter.log))
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            written,
            output_directory=Path(folder),
            deterministic=True,
            n_trials=MOST,
            min_budget=1,
            max_budget=UNITS,
            seed=seed,
        )
        facade = MultiFidelityFacade(scenario, lambda config, seed, budget: 0.0, logging_level=False, overwrite=True)
        while True:
            asked = facade.ask()
            score, _ = ledger.train(ledger.run(dict(asked.config)), asked.budget)
            facade.tell(asked, TrialValue(cost=1 - score), save=False)


def flaml(ledger: Ledger, seed: int) -> None:
    """FLAML's BlendSearch with its own scheduler (`resource_attr`); it is told what each trial has cost."""
    from flaml import BlendSearch, tune

    kinds = {
        (Float, False): tune.uniform,
        (Float, True): tune.loguniform,
        (Int, False): lambda low, high: tune.randint(low, high + 1),
        (Int, True): lambda low, high: tune.lograndint(low, high + 1),
    }
    searcher = BlendSearch(
        metric="score",
        mode="max",
        space=space(ledger.table, kinds),
        resource_attr="units",
        min_resource=1,
        max_resource=UNITS,
        cost_attr="examples",
        seed=seed,
    )

    def evaluate(config: dict[str, Any]) -> dict[str, float]:
        before = ledger.examples
        score, _ = ledger.train(ledger.run(config), config["units"])
        return {"score": score, "examples": ledger.examples - before}

    tune.run(evaluate, search_alg=searcher, num_samples=MOST, use_ray=False, verbose=0)


def neps(ledger: Ledger, seed: int) -> None:
    """What NePS chooses for a space with a fidelity and no prior: Hyperband; asked and told."""
    import torch
    from neps import AskAndTell, HPOFloat, HPOInteger, SearchSpace, algorithms

    kinds = {
        (kind, log): partial(made, log=log)
        for kind, made in ((Float, HPOFloat), (Int, HPOInteger))
        for log in (False, True)
    }
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    written = SearchSpace({**space(ledger.table, kinds), "units": HPOInteger(1, UNITS, is_fidelity=True)})
    chosen = algorithms.determine_optimizer_automatically(written)
    optimizer = AskAndTell(algorithms.PredefinedOptimizers[chosen](written))
    while True:
        trial = optimizer.ask()
        point = {name: trial.config[name] for name in ledger.table.space.parameters}
        score, _ = ledger.train(ledger.run(point), trial.config["units"])
        optimizer.tell(trial, 1 - score)


PEERS: dict[str, Peer] = {
    "Optuna, TPE + median": partial(optuna_tpe, optuna.pruners.MedianPruner),
    "Optuna, TPE + Hyperband": partial(optuna_tpe, _hyperband),
    "Ray Tune, ASHA": ray_asha,
    "Syne Tune, ASHA": partial(syne_tune, "ASHA"),
    "SMAC3, multi-fidelity": smac,
    "FLAML, BlendSearch": flaml,
    "NePS, Hyperband": neps,
}

OURS: dict[str, Search] = {
    "hpo, auto of 24": search_samplers.AUTO["auto, 24"],
    "hpo, auto of 64": search_samplers.AUTO["auto, 64"],
    "hpo, TPE + ASHA": search_samplers.SAMPLERS["tpe"](True),
    "random": search_samplers.SAMPLERS["random"](False),
}


# ---------------------------------------------------------------- the benchmark


def search_of(peer: Peer, table: Table, seed: int, limit: float) -> Trace:
    """Run a library's search until it has trained `limit` examples."""
    ledger = Ledger(table, limit)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(SpentError):
            peer(ledger, seed)
    return ledger.trace


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = equal_cost.parser(__doc__, seeds=100)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="NAME")
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, name = synthetic_table.read(settings["table"])
    settings |= {"table": name, "shares": list(SHARES)}
    searches = {**OURS, **{peer: partial(search_of, PEERS[peer]) for peer in settings["peers"]}}
    seeds, processes = range(settings["seeds"]), settings["processes"]
    found = equal_cost.compare(table, searches, seeds, SHARES, settings["patience"], processes)
    text = f"{equal_cost.shown(found, SHARES, 'random')}\n\n{NOTE}"
    results = {"settings": settings, "circumstances": pages.circumstances("cpu"), "found": found}
    results["circumstances"]["versions"] |= versions()
    print(text)
    if writes:
        asked = f"--table {name} --seeds {settings['seeds']} --patience {settings['patience']:g} --write"
        equal_cost.write(results, "search_peers", "Other libraries at equal cost", text, asked, versions())
    return results


if __name__ == "__main__":
    main()
