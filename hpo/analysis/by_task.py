"""Several tasks apart: their scores on the test split with paired intervals, and the metric of each in a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hpo.analysis.bootstrap import CONFIDENCE
from hpo.analysis.generated import Table, compared, ends
from hpo.core.formatting import number, plain
from hpo.storage.snapshot import Results
from hpo.tasks.multitask.predictions import MultiPredictions
from hpo.tasks.task import Predictions

Array = np.ndarray[Any, Any]


def of_models(models: Sequence[Predictions], groups: Array) -> dict[str, Any] | None:
    """Return the scores of two models, or of one, on the test split of each task, as JSON values.

    Args:
        models: Predictions of the best trial, and of the published default if it is another one.
        groups: As in `hpo.analysis.bootstrap.intervals`.

    Returns:
        Name of a task -> `metric`, its `share` in the weighted mean, `examples`, `collapsed` (whether the best trial
        gives all of them the same answer), `scores` of the models, and of two of them `difference`, with `low` and
        `high` or `untold`; None if there is one task only.
    """
    several = [model for model in models if isinstance(model, MultiPredictions)]
    if not several:
        return None
    found = {}
    for name, place in several[0].places.items():
        part = several[0].parts[name]
        each = [model.parts[name].predictions for model in several]
        facts = {"metric": part.metric, "share": part.share, "examples": len(part.predictions)}
        facts["collapsed"] = each[0].collapsed
        found[name] = facts | compared(part.metric, each, groups[place], part.labels)
    return found


def sentences(look: Mapping[str, Any]) -> list[str]:
    """Return the tasks on which the best trial has collapsed, in a sentence; nothing if there are none."""
    names = [plain(name) for name, each in (look.get("tasks") or {}).items() if each["collapsed"]]
    return [f"The best trial gives every test example of {', '.join(names)} the same answer"] if names else []


def tables(look: Mapping[str, Any]) -> list[Table]:
    """Return (title, heads, rows) of the scores by task in a look; nothing if there is one task only."""
    tasks = look.get("tasks")
    if not tasks:
        return []
    heads = ["task", "metric", "share", "test examples", "best trial"]
    rows = [
        [plain(name), each["metric"], f"{each['share']:.0%}", str(each["examples"]), number(each["scores"][0], 4)]
        for name, each in tasks.items()
    ]
    title = "By task, on the test split"
    if any("difference" in each for each in tasks.values()):
        heads += ["published default", "difference", f"{CONFIDENCE:.0%} interval", "best trial is"]
        rows = [
            [*row, number(each["scores"][1], 4), f"{each['difference']:+.4g}", *ends(each)]
            for row, each in zip(rows, tasks.values(), strict=True)
        ]
        title += "; each interval by itself, for other test examples of the task"
    return [(title, heads, rows)]


def measured(results: Results, trial: FrozenTrial) -> dict[str, float]:
    """Return `task.metric` -> validation score of a trial; nothing if there is one task only."""
    tasks = results.attrs.get("config", {}).get("tasks") or {}
    metrics = trial.user_attrs.get("metrics") or {}
    return {name: value for name, value in metrics.items() if name.partition(".")[0] in tasks}
