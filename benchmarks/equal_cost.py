"""Searches on recorded runs at equal cost: what each has found when its runs have trained so many examples.

The cost is a share of what the full search of the same seed trains: 64 random draws, each to its end. A search has
found the run with the best last validation score among those that it has trained to their end by then. A search that
has ended before keeps what it has found, although it has cost less.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pages
from recorded import Array, Table
from search_methods import uniform, whole

FULL = 64
"""Trials of the full search."""

IDLE = 32
"""Proposals in a row, of runs that are already trained so far, after which a search ends: it has converged."""

Trace = Sequence[tuple[float, int]]
"""(examples that all runs had trained, the run that was trained to its end then), in order."""

Search = Callable[[Table, int, float], Trace]
"""(table, seed, examples that it may train, at least) -> what it does."""


def draws(table: Table, seed: int, count: int = FULL) -> Array:
    """Return runs drawn at random; the first of them are those of the full search of the seed."""
    random = np.random.default_rng(seed)
    return table.nearest([uniform(table, random) for _ in range(count)])


def found(table: Table, trace: Trace, cost: float) -> int | None:
    """Return the run that a search has found for a cost; None if it has trained none to its end."""
    runs = [run for at, run in trace if at <= cost]
    return max(runs, key=lambda run: table.finals[run]) if runs else None


def compare(
    table: Table, searches: Mapping[str, Search], seeds: Sequence[int], shares: Sequence[float], patience: float
) -> dict[str, Any]:
    """Run searches on a table.

    Args:
        table: The recorded runs.
        searches: Name -> search.
        seeds: Seeds of the searches.
        shares: Costs at which they are compared, of the full search's; in ascending order.
        patience: Seconds after which a search begins no further seed.

    Returns:
        Name -> `seeds` (that were run), `seconds` (of the processor for one search, in the mean), `gaps`: for each
        cost, seed by seed, the test score of what the search has found minus that of what the full search finds, None
        if it has found nothing.
    """
    full = [whole(table, draws(table, seed), seed) for seed in seeds]
    results = {}
    for name, search in searches.items():
        began, used, gaps = time.perf_counter(), time.process_time(), []
        for seed, (best, cost) in zip(seeds, full, strict=True):
            if time.perf_counter() - began > patience:
                break
            trace = search(table, seed, shares[-1] * cost)
            runs = [found(table, trace, share * cost) for share in shares]
            gaps.append([None if run is None else float(table.tests[run] - table.tests[best]) for run in runs])
        seconds = (time.process_time() - used) / max(1, len(gaps))
        results[name] = {
            "seeds": len(gaps),
            "seconds": seconds,
            "gaps": [list(each) for each in zip(*gaps, strict=True)],
        }
    return results


def mean(values: Iterable[float | None]) -> dict[str, float]:
    """Return `mean`, its 95 % interval `low` and `high`, `fifth` (percentile), and `lacking`: values that are None."""
    every = list(values)
    known = np.array([value for value in every if value is not None])
    if len(known) < 2:
        return {
            "mean": math.nan,
            "low": math.nan,
            "high": math.nan,
            "fifth": math.nan,
            "lacking": len(every) - len(known),
        }
    center, margin = float(known.mean()), 1.96 * float(known.std(ddof=1)) / len(known) ** 0.5
    ends = {"mean": center, "low": center - margin, "high": center + margin}
    return {**ends, "fifth": float(np.quantile(known, 0.05)), "lacking": len(every) - len(known)}


def paired(one: Sequence[float | None], other: Sequence[float | None]) -> dict[str, float]:
    """Return the mean of one - other over the seeds that both have, as `mean` does."""
    pairs = zip(one, other, strict=False)  # one of them may have run fewer seeds
    return mean(None if a is None or b is None else a - b for a, b in pairs)


def shown(results: Mapping[str, Any], shares: Sequence[float], reference: str) -> str:
    """Return the results as a Markdown table with an explanation."""
    columns = [f"at {share:.0%}" for share in shares]
    heads = ["search", "seeds", "CPU s a search", *columns, f"5th percentile at {shares[-1]:.0%}"]
    heads.append(f"to {reference}, at {shares[-1]:.0%}")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, each in results.items():
        if not each["seeds"]:
            continue
        cells = [_cell(mean(gaps)) for gaps in each["gaps"]]
        fifth = 100 * mean(each["gaps"][-1])["fifth"]
        gain = paired(each["gaps"][-1], results[reference]["gaps"][-1])
        against = "" if name == reference else _cell(gain)
        row = [name, str(each["seeds"]), f"{each['seconds']:.3g}", *cells, f"{fifth:+.2f}", against]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", LEGEND])


LEGEND = (
    "Points of the test score above what the full search finds: means over seeds, with their 95 % interval for other "
    "seeds on the same runs; higher is better. `n lack` counts seeds of which the search had trained no run to its end "
    "by then. They are left out of the mean, which flatters it."
)


def _cell(found: Mapping[str, float]) -> str:
    lacking = f", {found['lacking']} lack" if found["lacking"] else ""
    if math.isnan(found["mean"]):
        return f"-{lacking}"
    return f"{100 * found['mean']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f}{lacking})"


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
