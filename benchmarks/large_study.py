"""How long the commands take on a large study, and their memory: 5 parameters, up to 10 intermediate values a trial.

The study, whose trials have all ended, is written by hpo's own writers. Then it is resumed for a few trials, and each
command runs in a process of its own. The CPU time of a process includes its imports; that of resuming is measured until
the first new trial starts, and that of each later trial is measured apart. Memory is the most that was resident.

Run it: python benchmarks/large_study.py [--trials 10000] [--storage sqlite] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
STORAGES = {"sqlite": "sqlite:///hpo.db", "journal": "journal:///hpo.log"}
MORE = 5  # trials that are added when the study is resumed
STARTS = "starts.txt"  # file to which the objective writes the CPU time at the start of each trial
STEPS = range(100, 1001, 100)
COPIED = 1000  # trials of a journal that are written; it has a multiple of them

OBJECTIVE = '''
import time


def objective(params):
    """Write the CPU time, and yield ten scores that rise."""
    with open("starts.txt", "a") as file:
        print(time.process_time(), file=file)
    for tenths in range(1, 11):
        yield 0.09 * tenths - (params["dropout"] - 0.2) ** 2


objective.parameters = ["learning_rate", "weight_decay", "dropout", "epochs", "batch_size"]
'''

# Runs a command, and prints its CPU time and the most memory that was resident, in KB. It does so from a small process,
# because Linux counts the memory of the process that starts a command as the command's own.
MEASURED = """
import os, subprocess, sys

with subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL) as process:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(process.returncode)
"""

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


def make(folder: Path, trials: int, storage: str = "sqlite") -> optuna.Study:
    """Write a study file, its objective, and a study whose trials have ended: 70 % complete, 25 % pruned, 5 % failed.

    Args:
        folder: An empty folder.
        trials: Number of trials.
        storage: A key of `STORAGES`, whose file is made in the folder.

    Returns:
        The study, which `hpo run large.yaml --trials N` resumes.
    """
    from hpo.config import study_spec
    from hpo.execution import run_study, study_setup
    from hpo.storage import backends

    (folder / "large_objective.py").write_text(OBJECTIVE)
    (folder / "large.yaml").write_text(STUDY)
    few = min(trials, COPIED) if storage == "journal" else trials
    connected = backends.connect(STORAGES[storage].replace("///", f"///{folder}/"))
    spec = study_spec.load(folder / "large.yaml", {"trials": few})
    study = study_setup.open_study(spec, connected, run_study.open_array(spec).facts)
    study_setup.plan(study, spec)
    planned, rng = study.get_trials(deepcopy=False), np.random.default_rng(0)
    writer = writer_of(study._storage)
    writer.write({trial._trial_id: Change(state=TrialState.RUNNING) for trial in planned})
    writer.write({trial._trial_id: _ended(rng, spec.space, trial) for trial in planned})
    if few < trials:
        _repeat(folder / "hpo.log", few, trials // few)
    return study


def _repeat(journal: Path, trials: int, times: int) -> None:
    """Append the records of trials to a journal again, as those of further trials: its writer takes 15 ms a trial."""
    records = journal.read_text().replace('{"baseline":true}', "{}").splitlines(keepends=True)
    of_trials = [line for line in records if not line.startswith(('{"op_code":0', '{"op_code":2'))]
    divided = [re.split(r'(?<="trial_id":)(\d+)', line, maxsplit=1) for line in of_trials]
    with journal.open("a") as file:
        for first in range(trials, times * trials, trials):
            for before, *rest in divided:
                file.write(before + (f"{int(rest[0]) + first}{rest[1]}" if rest else ""))


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
    curve = {step: value for step, value in curve.items() if ended == TrialState.COMPLETE or step <= STEPS[4]}
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


@dataclass(frozen=True)
class Cost:
    """What a command takes.

    Attributes:
        seconds: CPU seconds.
        megabytes: The most memory that was resident.
    """

    seconds: float
    megabytes: float


def cost_of(folder: Path, *arguments: str) -> Cost:
    """Return what `hpo ...` takes in a process of its own."""
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "hpo.cli", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = done.stdout.split()
    return Cost(float(seconds), int(kilobytes) / 1000)


def measured(folder: Path, trials: int, storage: str = "sqlite") -> dict[str, Cost]:
    """Measure the commands on the study that `make` wrote to a folder.

    Returns:
        Command -> what it takes; `going on` is resuming until the first new trial starts, `a trial` each later trial.
    """
    stored = ("--storage", STORAGES[storage])
    resumed = cost_of(folder, "run", "large", "-q", "--trials", str(trials + MORE), *stored)
    first, *others = [float(line) for line in (folder / STARTS).read_text().split()]
    commands = {name: [name] if name == "list" else [name, "large"] for name in COMMANDS}
    found = {name: cost_of(folder, *command, *stored) for name, command in commands.items()}
    later = (others[-1] - first) / len(others)
    return {**found, "going on": Cost(first, resumed.megabytes), "a trial": Cost(later, resumed.megabytes)}


def table(found: Mapping[str, Cost]) -> str:
    """Return the costs as a Markdown table."""
    lines = ["| command | CPU seconds | memory, MB |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {c.seconds:.2f} | {c.megabytes:.0f} |" for name, c in found.items())])


def write(found: Mapping[str, Cost], trials: int, storage: str, size: float) -> None:
    """Write the costs as a page.

    Args:
        found: Command -> what it takes.
        trials: Number of trials of the study.
        storage: A key of `STORAGES`.
        size: Size of the report in megabytes.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("hpo", "optuna", "sqlalchemy", "plotly"))
    lines = [
        "# What the commands take on a large study",
        "",
        f"{datetime.date.today().isoformat()}, {_processor()}, {os.cpu_count()} cores; {versions}. "
        f"{trials:,} trials in {storage}, 5 parameters and up to {len(STEPS)} intermediate values each. "
        f"The report: {size:.1f} MB.",
        "",
        table(found),
        "",
        f"`python benchmarks/large_study.py --trials {trials} --storage {storage} --write` says in its docstring what "
        "is measured.",
    ]
    RESULTS.mkdir(exist_ok=True)
    name = "large_study.md" if storage == "sqlite" else f"large_study_{storage}.md"
    (RESULTS / name).write_text("\n".join(lines) + "\n")


def _processor() -> str:
    """Return the name of the processor, by Linux where possible."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> dict[str, Cost]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--storage", choices=STORAGES, default="sqlite")
    parser.add_argument("--write", action="store_true", help=f"write a page into {RESULTS}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.trials, given.storage)
        found = measured(folder, given.trials, given.storage)
        size = (folder / "runs" / "large" / "report.html").stat().st_size / 1e6
    print(table(found))
    if given.write:
        write(found, given.trials, given.storage, size)
    return found


if __name__ == "__main__":
    main()
