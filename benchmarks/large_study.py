"""How long the commands take on a study of 10,000 trials in SQLite: 5 parameters, 4 intermediate values a trial.

The study, whose trials have all ended, is written by hpo's own writer of Optuna's tables. Then it is resumed for a few
trials, and each command runs in a process of its own. The CPU time of a process includes its imports; that of resuming
is measured until the first new trial starts, and that of each later trial is measured apart.

Run it: python benchmarks/large_study.py [--trials 10000] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.space.search_space import SearchSpace
from hpo.storage.trial_changes import Change
from hpo.storage.trial_writers import writer_of

RESULTS = Path(__file__).parent / "results"
COMMANDS = ("best", "show", "list", "trials", "report")
MORE = 5  # trials that are added when the study is resumed
STARTS = "starts.txt"  # file to which the objective writes the CPU time at the start of each trial
STEPS = (250, 500, 750, 1000)

OBJECTIVE = '''
import time


def objective(params):
    """Write the CPU time, and yield four scores that rise."""
    with open("starts.txt", "a") as file:
        print(time.process_time(), file=file)
    for share in (0.25, 0.5, 0.75, 1.0):
        yield 0.9 * share - (params["dropout"] - 0.2) ** 2


objective.parameters = ["learning_rate", "weight_decay", "dropout", "epochs", "batch_size"]
'''

STUDY = """
name: large
objective: large_objective:objective
direction: maximize
space:
  parameters:
    learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}
    weight_decay: {low: 0.0, high: 0.3}
    dropout: {low: 0.0, high: 0.5}
    epochs: {low: 2, high: 10}
    batch_size: [16, 32, 64]
  baseline: {learning_rate: 5.0e-5, weight_decay: 0.0, dropout: 0.1, epochs: 3, batch_size: 32}
"""


def make(folder: Path, trials: int) -> optuna.Study:
    """Write a study file, its objective, and a study whose trials have ended: 70 % complete, 25 % pruned, 5 % failed.

    Args:
        folder: An empty folder.
        trials: Number of trials.

    Returns:
        The study, which `hpo run large.yaml --trials N` resumes.
    """
    from hpo.config import study_spec
    from hpo.execution import run_study, study_setup
    from hpo.storage import backends

    (folder / "large_objective.py").write_text(OBJECTIVE)
    (folder / "large.yaml").write_text(STUDY)
    spec = study_spec.load(folder / "large.yaml", {"trials": trials})
    storage, facts = backends.connect(f"sqlite:///{folder}/hpo.db"), run_study.open_array(spec).facts
    study = study_setup.open_study(spec, storage, facts)
    study_setup.plan(study, spec)
    planned = study.get_trials(deepcopy=False)
    writer, rng = writer_of(study._storage), np.random.default_rng(0)
    writer.write({trial._trial_id: Change(state=TrialState.RUNNING) for trial in planned})
    writer.write({trial._trial_id: _ended(rng, spec.space, trial) for trial in planned})
    return study


def _ended(rng: np.random.Generator, space: SearchSpace, trial: FrozenTrial) -> Change:
    """Return what is stored of a trial that has ended; scores are best at a dropout of 0.2 and a rate of 1e-3."""
    ranges = space.distributions()
    drawn = {name: _drawn(rng, distribution) for name, distribution in ranges.items()}
    params = {**drawn, **trial.system_attrs["fixed_params"]}
    height = 0.9 - (params["dropout"] - 0.2) ** 2 - 0.05 * (math.log10(params["learning_rate"]) + 3) ** 2
    curve = {step: height * (0.6 + 0.4 * step / STEPS[-1]) + rng.normal(0, 0.01) for step in STEPS}
    stored = {name: (ranges[name].to_internal_repr(params[name]), ranges[name]) for name in ranges}
    seconds = {"seconds": round(rng.uniform(5, 50), 3)}
    kind = rng.random() if trial.number else 1.0  # the published default completes
    if kind < 0.05:
        failed = {"reason": "ValueError", "detail": "the shapes differ", "traceback": "File x.py, line 1\n" * 20}
        return Change(stored, {}, seconds | failed, {}, TrialState.FAIL)
    ended = TrialState.PRUNED if kind < 0.3 else TrialState.COMPLETE
    curve = {step: value for step, value in curve.items() if ended == TrialState.COMPLETE or step <= STEPS[1]}
    last, best = max(curve), max(curve.values())
    facts = {"best_value": best, "best_at": last} | ({"reason": "pruner"} if ended == TrialState.PRUNED else {})
    return Change(stored, curve, seconds | facts, {}, ended, [best])


def _drawn(rng: np.random.Generator, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return int(rng.integers(distribution.low, distribution.high + 1))
    if distribution.log:
        return math.exp(rng.uniform(math.log(distribution.low), math.log(distribution.high)))
    return rng.uniform(distribution.low, distribution.high)


def seconds_of(folder: Path, *arguments: str) -> float:
    """Return the CPU seconds of `hpo ...` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hpo.cli", *arguments]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(folder: Path, trials: int) -> dict[str, float]:
    """Measure the commands on the study that `make` wrote to a folder.

    Returns:
        Command -> CPU seconds; `going on` is resuming until the first new trial starts, `a trial` each later trial.
    """
    seconds_of(folder, "run", "large", "-q", "--trials", str(trials + MORE))
    first, *others = [float(line) for line in (folder / STARTS).read_text().split()]
    commands = {name: [name] if name == "list" else [name, "large"] for name in COMMANDS}
    found = {name: seconds_of(folder, *command) for name, command in commands.items()}
    return {**found, "going on": first, "a trial": (others[-1] - first) / len(others)}


def table(found: Mapping[str, float]) -> str:
    """Return the CPU seconds as a Markdown table."""
    lines = ["| command | CPU seconds |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {command} | {seconds:.1f} |" for command, seconds in found.items())])


def write(found: Mapping[str, float], trials: int, size: float) -> None:
    """Write the CPU seconds as a page.

    Args:
        found: Command -> CPU seconds.
        trials: Number of trials of the study.
        size: Size of the report in megabytes.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("hpo", "optuna", "sqlalchemy", "plotly"))
    lines = [
        "# How long the commands take on a large study",
        "",
        f"{datetime.date.today().isoformat()}, {_processor()}, {os.cpu_count()} cores; {versions}. "
        f"{trials:,} trials in SQLite, 5 parameters and up to 4 intermediate values each. The report: {size:.1f} MB.",
        "",
        table(found),
        "",
        "`python benchmarks/large_study.py --write` says in its docstring what is measured.",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "large_study.md").write_text("\n".join(lines) + "\n")


def _processor() -> str:
    """Return the name of the processor, by Linux where possible."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS / 'large_study.md'}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.trials)
        found = measured(folder, given.trials)
        size = (folder / "runs" / "large" / "report.html").stat().st_size / 1e6
    print(table(found))
    if given.write:
        write(found, given.trials, size)
    return found


if __name__ == "__main__":
    main()
