"""Say what each pruner saves of a search, and what it costs on the test split.

Trials of random search are trained to their ends, once, and each is scored on the test split. Searches of as many are
then drawn from them, with replacement (the bootstrap), and each pruner is replayed on each search, by `hpo` itself: an
objective that yields a trial's curve in place of training it. One pruned search beside one unpruned one would show
chance: which trial some hundred validation rows find best is worth a point or two on the test split. The mean over many
searches leaves that out.

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
from hpo.config import study_spec
from hpo.execution import run_study

Settings = dict[str, Any]
Array = np.ndarray[Any, Any]

PRUNERS: dict[str, dict[str, Any]] = {
    "median": {"pruner": "median"},
    "asha, 1 of 2": {"pruner": {"name": "asha", "reduction_factor": 2}},
    "asha, 1 of 3": {"pruner": {"name": "asha", "reduction_factor": 3}},
    "asha, 1 of 4": {"pruner": {"name": "asha", "reduction_factor": 4}},
    "asha, 1 of 4, rounds of 16": {"pruner": {"name": "asha", "reduction_factor": 4}, "round_size": 16},
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
    """Train all trials to their ends, or go on with them, and score each on the test split."""
    if not (folder / "test.csv").exists():
        search_in_one_run.prepare(settings, folder)
    whole = search_in_one_run.study(settings, folder, pruned=False)
    study = study_spec.build(whole | {"keep_best": settings["trials"]}, "the benchmark", folder)
    with chdir(folder):
        finished = run_study.run(study, "sqlite:///pruners.db")
        ended = finished.study.get_trials(states=(TrialState.COMPLETE,))
        array: Any = finished.array
        outputs = [array.outputs_of(finished.folder / "trials" / str(trial.number), "test") for trial in ended]
    right = np.array([found.logits.argmax(1) == found.targets for found in outputs])
    return Trained([list(trial.intermediate_values.values()) for trial in ended], right)


def replay(curves: Sequence[Sequence[float]], pruning: Mapping[str, Any]) -> tuple[float, int]:
    """Search among trials whose curves are known.

    Args:
        curves: Of each trial.
        pruning: Arguments of `hpo.optimize`.

    Returns:
        The share of all evaluations that was computed, and the index of the best trial.
    """

    def objective(params: Mapping[str, Any]) -> Iterator[float]:
        yield from curves[params["trial"]]

    numbers = list(range(len(curves)))
    study = hpo.optimize(objective, {"trial": numbers}, sampler="grid", trials=len(numbers), **pruning)
    ran = sum(len(trial.intermediate_values) for trial in study.trials)
    return ran / sum(map(len, curves)), study.best_params["trial"]


def compare(trained: Trained, searches: int) -> dict[str, Any]:
    """Replay every pruner on searches that are drawn from the trained trials.

    Returns:
        Name -> `work`, the share of the evaluations that the pruner left; `lost`, by how much the test score of what
        it found is below that of the same search unpruned, mean over the searches; `low` and `high`, 95 % interval of
        that for other test rows (the trained trials stay as they are).
    """
    trials = len(trained.curves)
    drawn = np.random.default_rng(0).integers(0, trials, (searches, trials))
    unpruned = trained.right[[max(search, key=lambda trial: max(trained.curves[trial])) for search in drawn]]
    results = {}
    for name, pruning in PRUNERS.items():
        found = [replay([trained.curves[trial] for trial in search], pruning) for search in drawn]
        best = [search[index] for search, (_, index) in zip(drawn, found, strict=True)]
        lost = unpruned.mean(axis=0) - trained.right[best].mean(axis=0)
        mean, margin = float(lost.mean()), 1.96 * float(lost.std()) / len(lost) ** 0.5
        work = statistics.mean(share for share, _ in found)
        results[name] = {"work": work, "lost": mean, "low": mean - margin, "high": mean + margin}
    return results


def table(results: Mapping[str, Any], trials: int) -> str:
    """Return the results as a Markdown table, with a line on how to read it."""
    lines = [f"| pruner | work, in whole trials of {trials} | points lost on the test split |", "| --- | --- | --- |"]
    for name, found in results.items():
        lost = f"{100 * found['lost']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
        lines.append(f"| {name} | {trials * found['work']:.1f} | {lost} |")
    read = "Means over searches; a negative number is a gain. In brackets, the 95 % interval for other test rows."
    return "\n".join([*lines, "", read])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = search_in_one_run.parser(__doc__ or "")
    parser.add_argument("--searches", type=int, default=50, help="that are drawn from the trained trials")
    parser.add_argument("--folder", type=Path, help="where the trials are kept, to go on with them; else nowhere")
    settings = vars(parser.parse_args(arguments))
    writes, folder = settings.pop("write"), settings.pop("folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(settings, Path(folder or scratch).absolute())
    pruners = compare(trained, settings["searches"])
    shown = table(pruners, settings["trials"])
    results = {"settings": settings, "circumstances": common._circumstances(settings["device"]), "pruners": pruners}
    print(shown)
    if writes:
        common.write(results, common.RESULTS, "pruners", "What pruners save and cost", shown)
    return results


if __name__ == "__main__":
    main()
