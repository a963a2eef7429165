"""Read the data of several tasks, each as a study of its own would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from hpo.core.errors import DataError
from hpo.tasks import loading
from hpo.tasks.dataset import SPLITS
from hpo.tasks.metrics import METRICS
from hpo.tasks.multitask.dataset import MultiDataset, MultiSplit, Part, naming
from hpo.tasks.multitask.keys import TaskKeys
from hpo.tasks.multitask.predictions import TASK
from hpo.tasks.registry import TASKS


def load(tasks: Mapping[str, TaskKeys], seed: int, folder: Path) -> MultiDataset:
    """Read the data of several tasks.

    Args:
        tasks: Name of a task in the study -> its keys.
        seed: As of `hpo.tasks.loading.load`.
        folder: As of `hpo.tasks.loading.load`.

    Raises:
        DataError: The data of a task does not fit it, or less is better in its metric.
    """
    parts = {}
    for name, keys in tasks.items():
        with naming(name):
            parts[name] = _part(keys, seed, folder)
    splits = {split: MultiSplit(name=split, parts=parts) for split in SPLITS}
    digest = hashlib.sha256("\n".join(f"{name} {part.data.digest}" for name, part in parts.items()).encode())
    notes = tuple(f"task {name}: {note}" for name, part in parts.items() for note in part.data.notes)
    return MultiDataset(TASK, (), splits, notes, digest.hexdigest(), parts=parts)


def _part(keys: TaskKeys, seed: int, folder: Path) -> Part:
    data = loading.with_metric(loading.load(keys.data, keys.task, seed, folder), keys.metric)
    if METRICS[data.metric].direction == "minimize":
        raise DataError(
            f"less is better in its metric {data.metric!r}, and in the mean of several tasks more is better; name "
            "another one under metric"
        )
    return Part(TASKS[data.task], data, keys.weight)
