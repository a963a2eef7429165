"""Samplers side by side on recorded runs, at equal cost: hpo's samplers, without a pruner and with ASHA.

A sampler proposes one point of the table's space after the other. The recorded run nearest to a point is trained in its
place, and the sampler is told its scores. `random` takes the draws of the full search. `grid` is a lattice of 64 points
in random order, shifted at random: two values of each parameter, more of those on a logarithmic scale. `qmc` is
scrambled, so that seeds differ; the other samplers have their defaults. `auto` is what `sampler: auto` and
`pruner: auto` stand for with so many trials; it has a pruner of its own, and ends. See `equal_cost.py` for how searches
are compared. The table is read, not copied.

Run it: python benchmarks/search_samplers.py --table PATH [--samplers NAME...] [--seeds 20] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equal_cost
import numpy as np
import optuna
import pages
import search_methods
import synthetic_table
from equal_cost import FULL, Search, Trace
from optuna.trial import TrialState
from recorded import Array, Table

from hpo.search.cross_entropy import value_at
from hpo.search.samplers import TrialSeededSampler

SHARES = (0.06, 0.13, 0.25)
SCRAMBLED = {"qmc": {"scramble": True}}
"""Arguments without which a sampler would draw the same points with every seed."""
MOST = 512
"""Points that a search proposes at most; with ASHA so many cost more than the largest share."""


# ---------------------------------------------------------------- searches


def of_points(points: Callable[[Table, int], Array], pruned: bool, table: Table, seed: int, limit: float) -> Trace:
    """Train runs that do not depend on any score, until they have seen `limit` examples."""
    search = search_methods.Search(table, search_methods.asha_rungs(table))
    for run in points(table, seed).tolist():
        _train(search, run, pruned)
        if search.examples >= limit:
            break
    return search.trace


def of_sampler(name: str, pruned: bool, table: Table, seed: int, limit: float) -> Trace:
    """Train the runs that a sampler of hpo proposes, until they have seen `limit` examples.

    Args:
        name: The sampler.
        pruned: Whether ASHA ends runs; else each is trained to its end.
        table: The recorded runs.
        seed: The search's seed.
        limit: Examples.
    """
    search = search_methods.Search(table, search_methods.asha_rungs(table))
    study = optuna.create_study(
        direction="maximize", sampler=TrialSeededSampler(name, SCRAMBLED.get(name, {}), table.space, seed)
    )
    idle = 0
    while search.examples < limit and idle < equal_cost.IDLE:
        trial, before = study.ask(), search.examples
        run = int(table.nearest([table.space.suggest(trial)])[0])
        _train(search, run, pruned)
        trained = search.trials[search.number(run)]
        for step, value in trained.intermediate_values.items():
            trial.report(value, step)
        completed = trained.state == TrialState.COMPLETE
        study.tell(trial, search_methods.last_value(trained) if completed else None, trained.state)
        idle = 0 if search.examples > before else idle + 1
    return search.trace


def of_auto(trials: int, table: Table, seed: int, limit: float) -> Trace:
    """Run the search that `auto` stands for, of so many trials, to its end."""
    return search_methods.run_waves(table, equal_cost.draws(table, seed), seed, trials).trace


def _train(search: search_methods.Search, run: int, pruned: bool) -> None:
    """Train a run, unless it was trained before: a run has one outcome."""
    if pruned:
        search_methods.race(search, run)
        return
    for number in search.start([run]):
        if number in search.running():
            search.train(number, search_methods.END)


def random_points(table: Table, seed: int) -> Array:
    """Return the draws of the full search, and further ones."""
    return equal_cost.draws(table, seed, MOST)


def lattice(table: Table, seed: int) -> Array:
    """Return the runs nearest to the points of a lattice that is shifted at random, in random order.

    One lattice for all seeds would be one set of runs, whose luck no interval over seeds covers.
    """
    random = np.random.default_rng(seed)
    distributions = table.space.distributions()
    counts = dict.fromkeys(distributions, 2)
    on_a_log_scale = itertools.cycle([name for name, each in distributions.items() if each.log] or list(distributions))
    while 2 * math.prod(counts.values()) <= FULL:
        counts[next(on_a_log_scale)] *= 2
    values = [
        [value_at(each, (place + shift) / counts[name]) for place in range(counts[name])]
        for (name, each), shift in zip(distributions.items(), random.random(len(distributions)), strict=True)
    ]
    points = [dict(zip(distributions, point, strict=True)) for point in itertools.product(*values)]
    return random.permutation(table.nearest(points))


SAMPLERS: dict[str, Callable[[bool], Search]] = {
    "random": lambda pruned: partial(of_points, random_points, pruned),
    "grid": lambda pruned: partial(of_points, lattice, pruned),
    **{
        name: lambda pruned, name=name: partial(of_sampler, name, pruned)  # type: ignore[misc]
        for name in ("qmc", "tpe", "gp", "cmaes")
    },
}
"""Name -> function that returns the search, with ASHA or without a pruner."""

AUTO: dict[str, Search] = {"auto, 24": partial(of_auto, 24), "auto, 64": partial(of_auto, 64)}


# ---------------------------------------------------------------- the benchmark


def searches(samplers: Sequence[str]) -> dict[str, Search]:
    """Return name -> search: each sampler without a pruner and with ASHA, and `auto` if it is among them."""
    found: dict[str, Search] = {}
    for pruner in ("", " + asha"):
        found |= {f"{name}{pruner}": SAMPLERS[name](bool(pruner)) for name in samplers if name != "auto"}
    return found | (AUTO if "auto" in samplers else {})


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser, names = equal_cost.parser(__doc__, seeds=20), [*SAMPLERS, "auto"]
    parser.add_argument("--samplers", nargs="+", choices=names, default=names, metavar="NAME")
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, name = synthetic_table.read(settings["table"])
    settings |= {"table": name, "shares": list(SHARES)}
    chosen = list(dict.fromkeys(["random", *settings["samplers"]]))  # the others are compared with it
    seeds, processes = range(settings["seeds"]), settings["processes"]
    found = equal_cost.compare(table, searches(chosen), seeds, SHARES, settings["patience"], processes)
    results = {"settings": settings, "circumstances": pages.circumstances("cpu"), "found": found}
    text = equal_cost.shown(found, SHARES, "random")
    print(text)
    if writes:
        asked = f"--table {name} --samplers {' '.join(settings['samplers'])} --seeds {settings['seeds']}"
        equal_cost.write(results, "search_samplers", "Samplers at equal cost", text, f"{asked} --write")
    return results


if __name__ == "__main__":
    main()
