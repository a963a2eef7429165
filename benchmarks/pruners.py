"""Measure how much work of a search each pruner saves, and how much it loses on the test split.

Trials of a random search are trained completely, once, and each is scored on the test split. Searches of the same size
are drawn from them with replacement (the bootstrap), and each pruner is replayed on each search by `hpo` itself: its
objective yields the curve of a trial and trains nothing. One pair of a pruned and an unpruned search would show chance
only: which trial is best on a few hundred validation rows makes a point or two on the test split. The mean over many
searches averages that out.

Run it: python benchmarks/pruners.py [--folder FOLDER] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pages
import search_in_one_run
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
    """Trials that were trained completely.

    Attributes:
        curves: The scores of each trial on the validation split.
        right: [trials, rows] 1 where a trial's best weights predict a row of the test split right, else 0.
    """

    curves: Sequence[Sequence[float]]
    right: Array


def train(settings: Settings, folder: Path) -> Trained:
    """Train all trials completely, or resume them, and score each on the test split."""
    if not (folder / "test.csv").exists():
        search_in_one_run.prepare(settings, folder)
    whole = search_in_one_run.study(settings, folder, pruned=False)
    study = study_spec.build(whole | {"keep_best": settings["trials"]}, "the benchmark", folder)
    with chdir(folder):
        finished = run_study.run(study, "sqlite:///pruners.db")
        ended = finished.study.get_trials(states=(TrialState.COMPLETE,))
        array: Any = finished.array
        outputs = [array.predictions_of(finished.folder / "trials" / str(trial.number), "test") for trial in ended]
    right = np.array([found.logits.argmax(1) == found.targets for found in outputs])
    return Trained([list(trial.intermediate_values.values()) for trial in ended], right)


def replay(curves: Sequence[Sequence[float]], pruning: Mapping[str, Any]) -> tuple[float, int]:
    """Search among trials whose curves are known.

    Args:
        curves: The curve of each trial.
        pruning: Arguments of `hpo.optimize`.

    Returns:
        The share of all evaluations that ran, and the index of the best trial.
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
        Name -> `work`, the share of the evaluations that ran; `lost`, the test score of the same search without a
        pruner minus that with it, as a mean over the searches; `low` and `high`, its 95 % interval for other test rows
        (and the same trained trials).
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
    """Return the results as a Markdown table with an explanation."""
    lines = [f"| pruner | work, in whole trials of {trials} | points lost on the test split |", "| --- | --- | --- |"]
    for name, found in results.items():
        lost = f"{100 * found['lost']:+.2f} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"
        lines.append(f"| {name} | {trials * found['work']:.1f} | {lost} |")
    legend = "Means over searches; a negative number is a gain. In brackets, the 95 % interval for other test rows."
    return "\n".join([*lines, "", legend])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = search_in_one_run.parser(__doc__ or "")
    parser.add_argument("--searches", type=int, default=50, help="number of searches drawn from the trained trials")
    parser.add_argument(
        "--folder", type=Path, help="folder of the trained trials, which can be resumed; else they are deleted"
    )
    settings = vars(parser.parse_args(arguments))
    writes, folder = settings.pop("write"), settings.pop("folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(settings, Path(folder or scratch).absolute())
    pruners = compare(trained, settings["searches"])
    shown = table(pruners, settings["trials"])
    results = {"settings": settings, "circumstances": pages.circumstances(settings["device"]), "pruners": pruners}
    print(shown)
    if writes:
        pages.write(results, pages.RESULTS, "pruners", "What pruners save and cost", shown)
    return results


if __name__ == "__main__":
    main()
