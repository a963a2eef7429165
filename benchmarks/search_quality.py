"""Replay searches on recorded runs: how much work each saves, and how much it loses to a full random search.

The full search draws 64 points of the table's space at random and trains the recorded run nearest to each to its end.
Each method is paired with it: where it draws at random, it takes the same draws. A run is charged the examples up to
its first evaluation at or after the step that the method asks for. What is found is the run with the best last
validation score among those trained to their end; its loss is the test score of what the full search finds, minus its
own. The table is read, not copied.

Run it: python benchmarks/search_quality.py --table PATH [--seeds 1000] [--methods NAME...] [--halves N] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pages
import synthetic_table
from recorded import Array, Table
from search_methods import METHODS, Method, uniform, whole

FULL = 64  # trials of the full search


def compare(table: Table, methods: Mapping[str, Method], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Replay methods on a table.

    Args:
        table: The recorded runs.
        methods: Name -> search.
        seeds: Seeds of the searches.

    Returns:
        Name -> `work`, the share of the full search's examples; `gap`, the mean difference of the test score to what
        the full search finds; `low` and `high`, its 95 % interval for other seeds on the same runs; `fifth`, the 5th
        percentile of the difference. Under `full`, `deviation` is the standard deviation of what it finds.
    """
    draws = [drawn(table, seed) for seed in seeds]
    full = [whole(table, runs, seed) for runs, seed in zip(draws, seeds, strict=True)]
    found: dict[str, dict[str, float]] = {"full": {"deviation": float(np.std([table.tests[run] for run, _ in full]))}}
    for name, method in methods.items():
        results = [method(table, runs, seed) for runs, seed in zip(draws, seeds, strict=True)]
        gaps = np.array(
            [table.tests[run] - table.tests[best] for (run, _), (best, _) in zip(results, full, strict=True)]
        )
        work = np.mean([ours / theirs for (_, ours), (_, theirs) in zip(results, full, strict=True)])
        found[name] = {"work": float(work), **_summary(gaps)}
    return found


def drawn(table: Table, seed: int) -> Array:
    """Return the runs that the full search of a seed draws."""
    random = np.random.default_rng(seed)
    return table.nearest([uniform(table, random) for _ in range(FULL)])


def _summary(gaps: Array) -> dict[str, float]:
    mean, margin = float(gaps.mean()), 1.96 * float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    return {"gap": mean, "low": mean - margin, "high": mean + margin, "fifth": float(np.quantile(gaps, 0.05))}


def halves(table: Table, divisions: int) -> list[Table]:
    """Return both halves of a table for so many random divisions."""
    orders = [np.random.default_rng(seed).permutation(len(table.tests)) for seed in range(divisions)]
    return [table.part(half) for order in orders for half in np.array_split(order, 2)]


def shown(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the results as a Markdown table with an explanation."""
    lines = [
        "| method | work, of the full search | points to the full search (95 %) | 5th percentile |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in results.items():
        if name != "full":
            gap = f"{100 * found['gap']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
            lines.append(f"| {name} | {found['work']:.1%} | {gap} | {100 * found['fifth']:+.2f} |")
    deviation = (
        f"What the full search finds has a standard deviation of {100 * results['full']['deviation']:.2f} points."
    )
    return "\n".join([*lines, "", deviation])


def shown_halves(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return the results on parts of the runs as a Markdown table: the mean over the parts, and their range."""
    lines = ["| method | points to the full search, mean over the halves | lowest half | highest half |"]
    lines.append("| --- | --- | --- | --- |")
    for name in parts[0]:
        if name != "full":
            gaps = [100 * part[name]["gap"] for part in parts]
            lines.append(f"| {name} | {np.mean(gaps):+.2f} | {min(gaps):+.2f} | {max(gaps):+.2f} |")
    return "\n".join(lines)


def _write(results: dict[str, Any], text: str, name: str) -> None:
    settings, at = results["settings"], results["circumstances"]
    stem = pages.RESULTS / f"search_quality_{name}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    versions = ", ".join(f"{package} {at['versions'][package]}" for package in ("hpo", "optuna"))
    methods = " ".join(f'"{method}"' for method in settings["methods"])
    chosen = "" if settings["methods"] == list(METHODS) else f" --methods {methods}"
    asked = f"--table {settings['table']} --seeds {settings['seeds']}{chosen}"
    lines = [
        f"# What a search saves and costs: replayed on {settings['name']}",
        "",
        f"{at['date']}, {at['cpu']}, {at['cores']} cores; {versions}. {results['runs']} recorded runs, "
        f"{settings['seeds']} seeds.",
        "",
        text,
        "",
        f"`python benchmarks/search_quality.py {asked} --write` says in its docstring what is measured.",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help=f"file of recorded runs, or {synthetic_table.SYNTHETIC!r}")
    parser.add_argument("--seeds", type=int, default=1000, help="number of searches")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--halves", type=int, default=0, help="divisions of the runs into halves to replay on too")
    parser.add_argument("--write", action="store_true", help="write the results into benchmarks/results/")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    settings = vars(_parser().parse_args(arguments))
    writes = settings.pop("write")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, file = synthetic_table.read(settings["table"])
    name = file.split(".")[0]
    settings |= {"name": name, "table": file}
    methods = {method: METHODS[method] for method in settings["methods"]}
    found = compare(table, methods, range(settings["seeds"]))
    text = shown(found)
    results = {
        "settings": settings,
        "circumstances": pages.circumstances("cpu"),
        "runs": len(table.tests),
        "found": found,
    }
    if settings["halves"]:
        seeds = range(max(2, settings["seeds"] // 5))  # of each half
        parts = [compare(half, methods, seeds) for half in halves(table, settings["halves"])]
        text += f"\n\nOn halves of the runs, {len(seeds)} seeds each:\n\n{shown_halves(parts)}"
        results["halves"] = parts
    print(text)
    if writes:
        _write(results, text, name)
    return results


if __name__ == "__main__":
    main()
