"""Replay searches with a warm start on recorded runs: what earlier studies save, and what a wrong one costs.

The recorded runs are divided into halves at random. One half is searched, as in `search_quality.py`; what is learned is
learned from the other one, which has no run in common with it:
- `from the other half`: all of its runs, as a finished study without a pruner;
- `from a search of 24 in it`: the 24 trials that `sampler: auto` and `pruner: auto` run there, most of them pruned;
- `from its worst tenth`: only its worst runs, ranked among themselves: a wrong prior and a wrong first configuration.

Every other trial of the first wave is drawn from the prior, and the best configuration of the earlier study is tried
first. Differences are to a full search of 64 random points of the searched half, as means over the halves.

Run it: python benchmarks/warm_start.py --table PATH [--divisions 5] [--seeds 200] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
import pages
import search_methods
import search_quality
import synthetic_table
from optuna.trial import FrozenTrial, TrialState
from recorded import Array, Table
from search_methods import Method, two_waves

from hpo.search.warm_start import WarmStart, learn, ranked

TRIALS = (24, 12)
Learned = Callable[[Table, Table, int], WarmStart]
"""(the half that is searched, the other one, seed of the search) -> what is learned."""


def from_whole(table: Table, other: Table, seed: int) -> WarmStart:
    """Learn from all runs of the other half."""
    return _learned(table, other, range(len(other.finals)))


def from_worst(table: Table, other: Table, seed: int) -> WarmStart:
    """Learn from the worst tenth of the other half."""
    return _learned(table, other, other.finals.argsort()[: len(other.finals) // 10].tolist())


def from_search(table: Table, other: Table, seed: int) -> WarmStart:
    """Learn from the trials of a search of 24 in the other half."""
    search = search_methods.run_waves(other, search_quality.drawn(other, seed + 1), seed + 1, 24)
    trials = [_told(trial) for trial in search.trials]
    return learn(table.space, {"earlier": ranked(trials, "maximize")})


LEARNED: dict[str, Learned] = {
    "a warm start from the other half": from_whole,
    "a warm start from a search of 24 in it": from_search,
    "a warm start from its worst tenth": from_worst,
}


def _learned(table: Table, other: Table, runs: Sequence[int] | range) -> WarmStart:
    trials = [_trial(other, run) for run in runs]
    return learn(table.space, {"earlier": ranked(trials, "maximize")})


def _trial(table: Table, run: int) -> FrozenTrial:
    params = {name: table.params[run][name] for name in table.space.parameters}
    trial = optuna.create_trial(
        value=float(table.finals[run]), params=params, distributions=table.space.distributions()
    )
    trial.number = run
    return trial


def _told(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial of a replay as a study stores it."""
    if trial.state == TrialState.PRUNED:
        trial.user_attrs = {"reason": "pruner"}
    return trial


def searches(other: Table, trials: int) -> dict[str, Method]:
    """Return the searches that are compared, each of so many trials, which may learn from `other`."""
    found: dict[str, Method] = {f"no prior, {trials}": two_waves(trials)}
    for name, learned in LEARNED.items():
        found[f"{name}, {trials}"] = partial(_warm, other, learned, trials)
    return found


def _warm(other: Table, learned: Learned, trials: int, table: Table, drawn: Array, seed: int) -> tuple[int, float]:
    return search_methods.run_waves(
        table, drawn, seed, trials, learned(table, other, seed).applied(table.space)
    ).found()


def compare(table: Table, divisions: int, seeds: Sequence[int]) -> list[dict[str, dict[str, float]]]:
    """Return for each half of each division what `search_quality.compare` returns."""
    parts = search_quality.halves(table, divisions)
    found = []
    for index, half in enumerate(parts):
        methods = {name: each for trials in TRIALS for name, each in searches(parts[index ^ 1], trials).items()}
        found.append(search_quality.compare(half, methods, seeds))
    return found


def shown(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return the results as a Markdown table: means over the halves, their 95 % intervals, and the range of halves."""
    heads = ("search", "work, of the full search", "points to the full search (95 %)", "lowest half", "highest half")
    lines = [f"| {' | '.join([*heads, '5th percentile'])} |", "|" + " --- |" * (1 + len(heads))]
    for name in parts[0]:
        if name != "full":
            lines.append(f"| {' | '.join([name, *_cells([part[name] for part in parts])])} |")
    return "\n".join([*lines, "", "The intervals are for other searches of the same halves."])


def _cells(parts: Sequence[Mapping[str, float]]) -> list[str]:
    gaps = 100 * np.array([part["gap"] for part in parts])
    margin = 100 * float(np.sqrt(sum((part["high"] - part["gap"]) ** 2 for part in parts))) / len(parts)
    work, fifth = np.mean([part["work"] for part in parts]), 100 * np.mean([part["fifth"] for part in parts])
    gap = f"{gaps.mean():+.2f} ({gaps.mean() - margin:+.2f} to {gaps.mean() + margin:+.2f})"
    return [f"{work:.1%}", gap, f"{gaps.min():+.2f}", f"{gaps.max():+.2f}", f"{fifth:+.2f}"]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help=f"file of recorded runs, or {synthetic_table.SYNTHETIC!r}")
    parser.add_argument("--divisions", type=int, default=5, help="random divisions of the runs into halves")
    parser.add_argument("--seeds", type=int, default=200, help="number of searches in each half")
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results/")
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, settings["table"] = synthetic_table.read(settings["table"])
    parts = compare(table, settings["divisions"], range(settings["seeds"]))
    text = shown(parts)
    results = {
        "settings": settings,
        "circumstances": pages.circumstances("cpu"),
        "runs": len(table.tests),
        "parts": parts,
    }
    print(text)
    if writes:
        _write(results, text)
    return results


def _write(results: Mapping[str, Any], text: str) -> None:
    settings, at = results["settings"], results["circumstances"]
    stem = pages.RESULTS / f"warm_start_{settings['table'].split('.')[0]}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    versions = ", ".join(f"{package} {at['versions'][package]}" for package in ("hpo", "optuna"))
    asked = " ".join(f"--{key} {settings[key]}" for key in ("table", "divisions", "seeds"))
    lines = [
        f"# What a warm start saves, and what a wrong one costs: replayed on {settings['table'].split('.')[0]}",
        "",
        f"{at['date']}, {at['cpu']}, {at['cores']} cores; {versions}. {results['runs']} recorded runs, divided into "
        f"halves {settings['divisions']} times; {settings['seeds']} seeds in each half. One half is searched, the "
        "other one is learned from.",
        "",
        text,
        "",
        f"`python benchmarks/warm_start.py {asked} --write` says in its docstring what is measured.",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
