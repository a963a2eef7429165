"""How long the commands take on a study of 10,000 trials in SQLite: 5 parameters, 4 intermediate values a trial.

Makes the study, all of its trials ended, by writing rows through hpo's own writer of Optuna's tables. Then each
command runs in a process of its own: `best`, `show`, `list`, `trials`, `report`, and `run` with a few trials more,
of which the last figure is the mean. Reported is the CPU time of the process, imports included.

Run it: python benchmarks/large_study.py [--trials 10000] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.changes import Change, pen_of
from hpo.space import SearchSpace

RESULTS = Path(__file__).parent / "results"
COMMANDS = ("best", "show", "list", "trials", "report")
MORE = 5  # trials that going on adds
STEPS = (250, 500, 750, 1000)

OBJECTIVE = '''
def objective(params):
    """Yield four scores that rise."""
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


def make(folder: Path, trials: int, url: str | None = None) -> optuna.Study:
    """Write a study file, its objective, and a study whose trials have ended: 70 % complete, 25 % pruned, 5 % failed.

    Args:
        folder: An empty folder.
        trials: How many.
        url: The storage; `hpo.db` in the folder if None.

    Returns:
        The study, which `hpo run large.yaml --trials N` goes on with.
    """
    from hpo import config, tune

    (folder / "large_objective.py").write_text(OBJECTIVE)
    (folder / "large.yaml").write_text(STUDY)
    file = config.load(folder / "large.yaml", {"trials": trials})
    opened = tune.run(file, url or f"sqlite:///{folder}/hpo.db", train=False).study
    rows = opened.get_trials(deepcopy=False)
    pen, draw = pen_of(opened._storage), np.random.default_rng(0)
    pen.write({row._trial_id: Change(state=TrialState.RUNNING) for row in rows})
    pen.write({row._trial_id: _ended(draw, file.space, row) for row in rows})
    return opened


def _ended(draw: np.random.Generator, space: SearchSpace, row: FrozenTrial) -> Change:
    """Return what a trial has when it has ended; better ones have a dropout near 0.2 and a rate near 1e-3."""
    drawn = {name: _drawn(draw, distribution) for name, distribution in space.distributions().items()}
    params = {**drawn, **row.system_attrs["fixed_params"]}
    height = 0.9 - (params["dropout"] - 0.2) ** 2 - 0.05 * (math.log10(params["learning_rate"]) + 3) ** 2
    curve = {step: height * (0.6 + 0.4 * step / STEPS[-1]) + draw.normal(0, 0.01) for step in STEPS}
    stored = {
        name: (distribution.to_internal_repr(params[name]), distribution)
        for name, distribution in space.distributions().items()
    }
    facts = {"seconds": round(draw.uniform(5, 50), 3), "best_value": curve[STEPS[-1]], "best_at": STEPS[-1]}
    if row.number and draw.random() < 0.25:
        return Change(
            stored,
            dict(list(curve.items())[:2]),
            facts | {"reason": "pruner"},
            {},
            TrialState.PRUNED,
            [curve[STEPS[1]]],
        )
    if row.number and draw.random() < 0.067:
        failed = {"reason": "ValueError", "detail": "the shapes differ", "traceback": "File x.py, line 1\n" * 20}
        return Change(stored, {}, failed, {}, TrialState.FAIL)
    return Change(stored, curve, facts, {}, TrialState.COMPLETE, [curve[STEPS[-1]]])


def _drawn(draw: np.random.Generator, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(draw.integers(len(distribution.choices)))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return int(draw.integers(distribution.low, distribution.high + 1))
    if distribution.log:
        return math.exp(draw.uniform(math.log(distribution.low), math.log(distribution.high)))
    return draw.uniform(distribution.low, distribution.high)


def seconds_of(folder: Path, *arguments: str) -> float:
    """Return the CPU seconds of `hpo ...` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hpo.cli", *arguments]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(trials: int, more: int = MORE) -> dict[str, float]:
    """Measure the commands.

    Returns:
        Command -> CPU seconds; of `run`, until the study is open with nothing to do, and of one more trial; and the
        size of the report in megabytes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, trials)
        arguments = {"list": []}
        found = {command: seconds_of(folder, command, *arguments.get(command, ["large"])) for command in COMMANDS}
        found["run, nothing to do"] = seconds_of(folder, "run", "large", "-q", "--trials", str(trials))
        several = seconds_of(folder, "run", "large", "-q", "--trials", str(trials + more))
        found["a trial more"] = (several - found["run, nothing to do"]) / more
        found["report, MB"] = (folder / "runs" / "large" / "report.html").stat().st_size / 1e6
    return found
