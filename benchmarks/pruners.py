"""Say what each pruner saves of a search, and what it costs on the test split.

64 trials of random search are trained to their ends, once, and each is scored on the test split. Pruners are then
replayed on their curves in many orders, by `hpo` itself: an objective that yields a curve's values in place of
training. A single pruned search beside a single unpruned one would show chance: which trial is best by some hundred
validation rows is worth a point or two of test score; the mean over the orders leaves that out.

Run it: python benchmarks/pruners.py [--folder FOLDER] [--write]
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import search_in_one_run
import trials_per_hour as common
from optuna.trial import TrialState

import hpo
from hpo import config, tune

Settings = dict[str, Any]
Array = np.ndarray[Any, Any]

PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"pruner": "none"},
    "median": {"pruner": "median"},
    "asha, 1 of 2": {"pruner": {"name": "asha", "reduction_factor": 2}},
    "asha, 1 of 3": {"pruner": {"name": "asha", "reduction_factor": 3}},
    "asha, 1 of 4": {"pruner": {"name": "asha", "reduction_factor": 4}},
    "asha, 1 of 4, rounds of 16": {"pruner": {"name": "asha", "reduction_factor": 4}, "round_size": 16},
    "hyperband": {"pruner": "hyperband"},
}


@dataclass(frozen=True)
class Trained:
    """Trials that were trained to their ends.

    Attributes:
        curves: The scores of each on the validation split.
        right: [trials, rows] 1 where a trial's best weights are right about a row of the test split, else 0.
    """

    curves: Sequence[Sequence[float]]
    right: Array


def train(settings: Settings, folder: Path) -> Trained:
    """Train all trials, or go on with them, and score each on the test split."""
    if not (folder / "test.csv").exists():
        search_in_one_run.prepare(settings, folder)
    whole = search_in_one_run.study(settings, folder, pruned=False)
    study = config.build(whole | {"keep_best": settings["trials"]}, "the benchmark", folder)
    with chdir(folder):
        finished = tune.run(study, "sqlite:///pruners.db")
        trials = finished.study.get_trials(states=(TrialState.COMPLETE,))
        kept: Any = finished.array
        outputs = [kept.outputs_of(finished.folder / "trials" / str(trial.number), "test") for trial in trials]
    right = np.array([found.logits.argmax(1) == found.targets for found in outputs])
    return Trained([list(trial.intermediate_values.values()) for trial in trials], right)


def replay(trained: Trained, pruning: Mapping[str, Any], order: int) -> tuple[float, int]:
    """Search among the trained trials.

    Args:
        trained: The trials.
        pruning: Arguments of `hpo.optimize`.
        order: Seeds the order in which the trials run.

    Returns:
        The share of all evaluations that was computed, and the best trial.
    """

    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        yield from trained.curves[params["trial"]]

    numbers = list(range(len(trained.curves)))
    study = hpo.optimize(objective, {"trial": numbers}, sampler="grid", trials=len(numbers), seed=order, **pruning)
    ran = sum(len(trial.intermediate_values) for trial in study.trials)
    return ran / sum(map(len, trained.curves)), study.best_params["trial"]


def compare(trained: Trained, orders: int) -> dict[str, Any]:
    """Replay every pruner in every order.

    Returns:
        Name -> `work`, the share of the evaluations that the pruner left; `lost`, by how much the test score of what
        it found is below that of the unpruned search, mean over the orders; `low` and `high`, 95 % interval of that
        for other test rows (the trials and orders stay as they are).
    """
    found = {name: [replay(trained, pruning, order) for order in range(orders)] for name, pruning in PRUNERS.items()}
    right = {name: trained.right[[best for _, best in ran]].mean(axis=0) for name, ran in found.items()}
    results = {}
    for name, ran in found.items():
        lost = right["none"] - right[name]
        margin = 1.96 * lost.std() / len(lost) ** 0.5
        mean = float(lost.mean())
        work = statistics.mean(work for work, _ in ran)
        results[name] = {"work": work, "lost": mean, "low": mean - margin, "high": mean + margin}
    return results


def table(results: Mapping[str, Any], trials: int) -> str:
    """Return the results as a Markdown table."""
    lines = ["| pruner | whole trials' worth of work | points lost on the test split |", "| --- | --- | --- |"]
    for name, found in results.items():
        lost = f"{100 * found['lost']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
        lines.append(f"| {name} | {trials * found['work']:.1f} of {trials} | {'' if name == 'none' else lost} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = search_in_one_run.parser(__doc__ or "")
    parser.set_defaults(sampler="random")
    parser.add_argument("--orders", type=int, default=100, help="in which the trials are searched")
    parser.add_argument("--folder", type=Path, help="where the trials are kept, to go on with them; else nowhere")
    settings = vars(parser.parse_args(arguments)) | {"pairs": 1}
    writes, folder = settings.pop("write"), settings.pop("folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(settings, Path(folder or scratch).absolute())
    pruners = compare(trained, settings["orders"])
    shown = table(pruners, settings["trials"])
    results = {"settings": settings, "circumstances": common._circumstances(settings["device"]), "pruners": pruners}
    print(shown)
    if writes:
        common.write(results, common.RESULTS, "pruners", "What pruners save and cost", shown)
    return results


if __name__ == "__main__":
    main()
