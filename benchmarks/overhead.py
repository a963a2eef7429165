"""The CPU time of a study beside training, per trial and per evaluation, compared with plain Optuna.

Both sides run the same objective, which costs nothing, with TPE and the median pruner: Optuna's own loop
(`study.optimize` with a `TPESampler`, `report` and `should_prune`), and `hpo.optimize` with its locks, adoption,
planned trials, checks and attributes. Each run is a process of its own; the sides alternate. CPU time is divided as

    cost = trials x (a trial + evaluations x an evaluation)

from runs with few and with many evaluations a trial.

Run it: python benchmarks/overhead.py [--storage sqlite journal] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

RESULTS = Path(__file__).parent / "results"
SIDES = ("optuna", "hpo")
SPACE = {
    "x": {"low": 0.0, "high": 1.0},
    "y": {"low": 0.0, "high": 1.0},
    "rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "kind": ["a", "b"],
}


def seconds_of(side: str, url: str, trials: int, evaluations: int) -> float:
    """Run a study, and return its CPU time without imports and without the creation of the storage's tables."""
    import hpo
    from hpo.storage import backends

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    storage = backends.connect(url)  # both sides have the same settings of the storage

    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        for step in range(1, evaluations + 1):
            yield params["x"] * step + params["y"]

    def plain(trial: optuna.Trial) -> float:
        params = {name: trial.suggest_float(name, 0.0, 1.0) for name in ("x", "y")}
        trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_categorical("kind", ["a", "b"])
        value = 0.0
        for step in range(1, evaluations + 1):
            value = params["x"] * step + params["y"]
            trial.report(value, step)
            trial.should_prune()  # the answer is ignored, so that both sides have as many evaluations
        return value

    began = time.process_time()
    if side == "hpo":
        pruner = {"name": "median", "n_startup_trials": trials}
        hpo.optimize(objective, SPACE, trials=trials, storage=url, pruner=pruner, seed=1)
    else:
        median = optuna.pruners.MedianPruner(n_startup_trials=trials)
        study = optuna.create_study(
            storage=storage, direction="maximize", sampler=optuna.samplers.TPESampler(seed=1), pruner=median
        )
        study.optimize(plain, trials)
    return time.process_time() - began


def measured(side: str, kind: str, trials: int, evaluations: int) -> float:
    """Return the CPU time of a study in a process and a storage of its own."""
    with tempfile.TemporaryDirectory() as folder:
        url = {"sqlite": "sqlite:///a.db", "journal": "journal:///a.log"}[kind]
        command = [sys.executable, str(Path(__file__).resolve()), "--one", side, url, str(trials), str(evaluations)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return float(done.stdout)


def run(kinds: Sequence[str], trials: int, few: int, many: int, rounds: int) -> dict[str, Any]:
    """Measure the sides in turns; return milliseconds per trial and evaluation, and the ratios of whole runs."""
    found: dict[str, Any] = {}
    for kind in kinds:
        runs = [{(s, n): measured(s, kind, trials, n) for n in (few, many) for s in SIDES} for _ in range(rounds)]
        costs: dict[str, Any] = {}
        for side in SIDES:
            each = [1000 * (one[side, many] - one[side, few]) / trials / (many - few) for one in runs]
            trial = [1000 * one[side, few] / trials - few * cost for one, cost in zip(runs, each, strict=True)]
            costs[side] = {"trial_ms": statistics.median(trial), "evaluation_ms": statistics.median(each)}
        ratios = [one["hpo", many] / one["optuna", many] for one in runs]
        costs["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        found[kind] = costs
    return found


def table(results: Mapping[str, Any], many: int) -> str:
    """Return the costs as a Markdown table."""
    lines = [
        f"| storage | a trial: Optuna, hpo (ms) | an evaluation: Optuna, hpo (ms) | {many} evaluations: hpo / Optuna |",
        "| --- | --- | --- | --- |",
    ]
    for kind, costs in results.items():
        trial, each = ([f"{costs[side][name]:.1f}" for side in SIDES] for name in ("trial_ms", "evaluation_ms"))
        ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**costs["ratio"])
        lines.append(f"| {kind} | {', '.join(trial)} | {', '.join(each)} | {ratio} |")
    return "\n".join(lines)


def write(results: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write the results as JSON and as a page."""
    RESULTS.mkdir(exist_ok=True)
    versions = {name: version(name) for name in ("hpo", "optuna", "sqlalchemy")}
    circumstances = {"date": datetime.date.today().isoformat(), "cpu": platform.processor() or platform.machine()}
    everything = {"settings": settings, "circumstances": {**circumstances, "versions": versions}, "costs": results}
    (RESULTS / "overhead.json").write_text(json.dumps(everything, indent=1) + "\n")
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        "# What a study costs beside training",
        "",
        f"{circumstances['date']}, {circumstances['cpu']}, {os.cpu_count()} cores; {packages}. "
        f"CPU time of {settings['trials']} trials, "
        f"{settings['rounds']} rounds: median (min to max).",
        "",
        table(results, settings["many"]),
        "",
        "`python benchmarks/overhead.py --write` says in its docstring what is measured.",
    ]
    (RESULTS / "overhead.md").write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in {"trials": 64, "few": 2, "many": 10, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--storage", nargs="+", choices=["sqlite", "journal"], default=["sqlite", "journal"])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    given = vars(parser.parse_args(arguments))
    writes = given.pop("write")
    results = run(given["storage"], given["trials"], given["few"], given["many"], given["rounds"])
    print(table(results, given["many"]))
    if writes:
        write(results, given)
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(seconds_of(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
    else:
        main()
