"""Searches on recorded runs at equal cost: what each has found when its runs have trained so many examples.

The cost is a share of what the full search of the same seed trains: 64 random draws, each to its end. A search has
found the run with the best last validation score among those that it has trained to their end by then. Where there is
none, it is the run with the best score so far, which is then trained to its end without charge. A search that has ended
before keeps what it has found, although it has cost less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pages
import scipy.stats
from recorded import Array, Table
from search_methods import uniform, whole
from synthetic_table import SYNTHETIC

FULL = 64
"""Trials of the full search."""

IDLE = 32
"""Proposals in a row, of runs that are already trained so far, after which a search ends: it has converged."""

Trace = Sequence[tuple[float, int, float, bool]]
"""Evaluations in order: (examples that all runs had trained, the run, its score, whether it had ended)."""

Search = Callable[[Table, int, float], Trace]
"""(table, seed, examples that it may train, at least) -> what it does."""


def draws(table: Table, seed: int, count: int = FULL) -> Array:
    """Return runs drawn at random; the first of them are those of the full search of the seed."""
    random = np.random.default_rng(seed)
    return table.nearest([uniform(table, random) for _ in range(count)])


def found(table: Table, trace: Trace, cost: float) -> tuple[int, bool]:
    """Return the run that a search has found for a cost, and whether it was trained to its end by then."""
    seen = [(run, score, ended) for at, run, score, ended in trace if at <= cost]
    whole = [run for run, _, ended in seen if ended]
    if whole:
        return max(whole, key=lambda run: table.finals[run]), True
    return max(seen, key=lambda each: each[1])[0], False


def compare(
    table: Table,
    searches: Mapping[str, Search],
    seeds: Sequence[int],
    shares: Sequence[float],
    patience: float,
    processes: int,
) -> dict[str, Any]:
    """Run searches on a table, several at once in processes of their own.

    Args:
        table: The recorded runs.
        searches: Name -> search.
        seeds: Seeds of the searches.
        shares: Costs at which they are compared, of the full search's; in ascending order.
        patience: Seconds after which a search begins no further seed.
        processes: Searches that run at once.

    Returns:
        Name -> what `measured` returns.
    """
    full = [whole(table, draws(table, seed), seed) for seed in seeds]
    # A forked process has what is imported. A copy of the table lacks its cached space, which cannot be sent.
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        ran = {
            name: pool.submit(measured, replace(table), search, list(zip(seeds, full, strict=True)), shares, patience)
            for name, search in searches.items()
        }
        return {name: each.result() for name, each in ran.items()}


def measured(
    table: Table,
    search: Search,
    full: Sequence[tuple[int, tuple[int, float]]],
    shares: Sequence[float],
    patience: float,
) -> dict[str, Any]:
    """Run a search with several seeds.

    Args:
        table: The recorded runs.
        search: The search.
        full: Of each seed, it and what the full search finds: the run, and the examples.
        shares: As `compare` takes them.
        patience: As `compare` takes it.

    Returns:
        `seeds` (that were run), `seconds` (of the processor, for one search), `gaps`: for each cost, seed by seed, the
        test score of what the search has found minus that of what the full search finds; `unfinished`: for each cost
        the number of seeds of which no run was trained to its end by then; `problem`: why it does not run, or None.
    """
    began, used = time.perf_counter(), None
    gaps: list[list[float]] = []
    ended: list[list[bool]] = []
    problem = None
    for seed, (best, cost) in full:
        try:
            trace = search(table, seed, shares[-1] * cost)
        except Exception as error:  # another library's: an import that fails, or versions that do not go together
            problem = f"{type(error).__name__}: {error}"
            break
        runs = [found(table, trace, share * cost) for share in shares]
        gaps.append([float(table.tests[run] - table.tests[best]) for run, _ in runs])
        ended.append([whole for _, whole in runs])
        used = used or time.process_time()  # the first search imports the library
        if time.perf_counter() - began > patience:
            break
    return {
        "seeds": len(gaps),
        "seconds": (time.process_time() - used) / (len(gaps) - 1) if used and len(gaps) > 1 else None,
        "gaps": [list(each) for each in zip(*gaps, strict=True)],
        "unfinished": [each.count(False) for each in zip(*ended, strict=True)],
        "problem": problem,
    }


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % interval: a t interval over seeds."""
    array = np.array(values)
    margin = float(scipy.stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1)) / len(array) ** 0.5
    return float(array.mean()), float(array.mean()) - margin, float(array.mean()) + margin


def shown(results: Mapping[str, Any], shares: Sequence[float], reference: str) -> str:
    """Return the results as a Markdown table with an explanation."""
    columns = [f"at {share:.0%}" for share in shares]
    last = f"at {shares[-1]:.0%}"
    heads = ["search", "seeds", "CPU s a search", *columns, f"5th percentile {last}", f"minus {reference} {last}"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, each in results.items():
        if each["seeds"] < FEWEST:
            continue
        cells = [_cell(gaps, count) for gaps, count in zip(each["gaps"], each["unfinished"], strict=True)]
        # One of the two may have run fewer seeds.
        pairs = zip(each["gaps"][-1], results[reference]["gaps"][-1], strict=False)
        against = "" if name == reference else _cell([one - other for one, other in pairs])
        fifth = f"{100 * np.quantile(each['gaps'][-1], 0.05):+.2f}" if each["seeds"] >= 20 else "too few seeds"
        row = [name, str(each["seeds"]), f"{each['seconds']:.2g}", *cells, fifth, against]
        lines.append(f"| {' | '.join(row)} |")
    unknown = [name for name, each in results.items() if each["seeds"] < FEWEST and not each["problem"]]
    few = [f"{name}: {results[name]['seeds']}" for name in unknown]
    left_out = [f"Left out, with too few seeds in the time: {', '.join(few)}."] if few else []
    failed = [f"{name} does not run here: {each['problem']}." for name, each in results.items() if each["problem"]]
    return "\n\n".join(["\n".join(lines), LEGEND, *left_out, *failed])


FEWEST = 5
"""Seeds below which nothing is said of a search."""

LEGEND = (
    "Points of the test score above what the full search finds (64 random draws, each to its end) at shares of its "
    "cost: means over seeds with their 95 % interval, which covers other seeds on the same runs; higher is better. "
    "`n open`: of so many seeds no run was trained to its end by then; the best one so far counts as if it had been. "
    "Intervals of different searches are not corrected for their number."
)


def _cell(gaps: Sequence[float], unfinished: int = 0) -> str:
    center, low, high = (100 * value for value in mean(gaps))
    return f"{center:+.2f} ({low:+.2f} to {high:+.2f})" + (f", {unfinished} open" if unfinished else "")


def parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """Return the command line of a benchmark, without the option that names its searches."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--table", required=True, help=f"file of recorded runs, or {SYNTHETIC!r}")
    made.add_argument("--seeds", type=int, default=seeds, help="number of searches")
    made.add_argument("--patience", type=float, default=600.0, help="seconds after which a search begins no more seeds")
    made.add_argument("--processes", type=int, default=2, help="searches that run at once")
    made.add_argument("--write", action="store_true", help="write the results into benchmarks/results/")
    return made


def write(
    results: Mapping[str, Any], benchmark: str, title: str, text: str, asked: str, packages: Iterable[str] = ()
) -> None:
    """Write the results of a benchmark as JSON and as a page.

    Args:
        results: With `settings` (of them `table` and `seeds`), `circumstances` and `found`.
        benchmark: Name of the benchmark.
        title: Title of the page.
        text: The results in Markdown.
        asked: The arguments of the command line.
        packages: Packages whose versions matter, beside hpo and Optuna.
    """
    settings, at = results["settings"], results["circumstances"]
    name = settings["table"].split(".")[0]
    stem = pages.RESULTS / f"{benchmark}_{name}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    versions = ", ".join(f"{package} {at['versions'][package]}" for package in ("hpo", "optuna", *packages))
    lines = [
        f"# {title}: replayed on {name}",
        "",
        f"{at['date']}, {at['cpu']}, {at['cores']} cores; Python {at['python']}, {versions}.",
        "",
        text,
        "",
        f"`python benchmarks/{benchmark}.py {asked}` says in its docstring what is measured.",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
