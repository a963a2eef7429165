"""Several tasks at once, as a task: one encoder, and a head for each.

A batch has rows of several tasks. All heads compute all rows, and the loss of a row is that of its own task's head; so
shapes do not depend on which rows a batch has, and engines need not know that there are several tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from hpo.core.errors import DataError
from hpo.data.keys import DataKeys
from hpo.tasks.dataset import Dataset
from hpo.tasks.metrics import WEIGHTED_MEAN, score
from hpo.tasks.multitask.dataset import MultiDataset, MultiSplit, Part, naming
from hpo.tasks.multitask.predictions import TASK, MultiPredictions, PartPredictions
from hpo.tasks.multitask.rows import OF_TASK, SHARE, joined, named
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Reference, Smoothing, Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpo.tasks.task import Marked, Outputs, Tensors

Array = np.ndarray[Any, Any]

HEADS = "heads"
"""The key of a model's configuration that names the tasks of its heads, with their labels."""
ARCHITECTURE = "MultiTaskModel"
"""The class of its models, which is hpo's own; see `hpo/finetune/models/multi_head.py`."""


class MultiTask(Task):
    """Several tasks on one encoder.

    Args:
        parts: Name of a task in the study -> the task with its data; none before the data is read.
    """

    name = TASK
    auto_model = ARCHITECTURE
    pipeline_tag = "any"
    peft_type = None
    metric = WEIGHTED_MEAN
    keys = DataKeys
    example = "example"
    cuts = False  # a length alone does not tell whether a row is cut or a window

    def __init__(self, parts: Mapping[str, Part] = MappingProxyType({})) -> None:
        self.parts = parts

    def for_data(self, data: Dataset) -> Task:
        """Return the task with the tasks of a study."""
        return MultiTask(cast(MultiDataset, data).parts)

    # ------------------------------------------------------------ reading, which `loading` does task by task

    def contents(self, table: pd.DataFrame, keys: DataKeys) -> Sequence[Hashable]:
        """Refuse: each task reads its own data."""
        _refuse()

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: DataKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Refuse: each task reads its own data."""
        _refuse()

    def input_columns(self, keys: DataKeys) -> tuple[str, ...]:
        """Refuse: one task at a time predicts."""
        _refuse()

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: DataKeys) -> Any:
        """Refuse: one task at a time predicts."""
        _refuse()

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return the doubts of each task about its data."""
        return [
            f"task {name}: {doubt}"
            for name, part in self.parts.items()
            for doubt in part.task.doubts(part.data, part.data.metric)
        ]

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return the metric, the weight and the rows of each task, and its own facts."""
        found = {}
        for name, part in self.parts.items():
            rows = ", ".join(f"{len(split)} {each}" for each, split in part.data.splits.items())
            found[f"task {name}"] = f"{part.data.task}, {part.data.metric}, weight {part.weight:g}; {rows}"
            found |= {f"{name}: {label}": fact for label, fact in part.task.facts(part.data).items()}
        return found

    # ------------------------------------------------------------ training and scoring

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase, keys: DataKeys) -> dict[str, Any]:
        """Return the options that any of the tasks needs."""
        found: dict[str, Any] = {}
        for part in self.parts.values():
            found |= part.task.tokenizer_options(tokenizer, part.data.keys)
        return found

    def configure(self, config: Any, labels: Sequence[str]) -> None:
        """Write the task and the labels of each head."""
        heads = {name: {"task": part.data.task, "labels": list(part.data.labels)} for name, part in self.parts.items()}
        setattr(config, HEADS, heads)

    def examples(self, rows: EncodedRows, labels: Sequence[str]) -> Iterator[tuple[Sequence[int], Marked]]:
        """Yield the first rows of each task, as its task marks them, with its name."""
        for name, part in self.parts.items():
            for ids, marked in part.task.examples(rows.alignment[name], part.data.labels):
                yield ids, partial(_named, name, marked)

    def encode(
        self, split: MultiSplit, keys: DataKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return the rows of all tasks, each as its task encodes them."""
        found: dict[str, EncodedRows] = {}
        idle: dict[str, int] = {}
        for name, part in self.parts.items():
            with naming(name):
                found[name] = part.task.encode(split.each[name], part.data.keys, tokenizer, max_length)
            idle.update(part.task.idle)
        return joined(found, idle)

    def row_facts(self, rows: Mapping[str, EncodedRows], max_length: int) -> dict[str, str]:
        """Return what each task says of its rows."""
        return {
            f"{name}: {label}": fact
            for name, part in self.parts.items()
            for label, fact in part.task.row_facts(_of(rows, name), max_length).items()
        }

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: DataKeys) -> list[str]:
        """Return the notes of each task on its rows."""
        return [
            f"task {name}: {note}"
            for name, part in self.parts.items()
            for note in part.task.row_notes(_of(rows, name), part.data.keys)
        ]

    def refuse_model(self, model: PreTrainedModel, rows: EncodedRows) -> None:
        """Refuse a model whose head cannot learn its task."""
        training = model.training
        model.train(False)  # the encoder too, which is not below a head
        heads: Any = model.heads
        for name, part in self.parts.items():
            part.task.refuse_model(heads[name], rows.alignment[name])
        model.train(training)

    def tasks_of(self, rows: EncodedRows) -> Array:
        """Return the number of the task that each row is of."""
        return rows.row_targets[OF_TASK]

    def outputs(self, result: Any) -> Outputs:
        """Return the outputs of each head that its task reads, one head after the other."""
        found: list[torch.Tensor] = []
        for name, part in self.parts.items():
            found += part.task.outputs(SimpleNamespace(**named(result, name)))
        return tuple(found)

    def _by_task(self, outputs: Outputs) -> dict[str, Outputs]:
        """Return the outputs of each head."""
        found, first = {}, 0
        for name, part in self.parts.items():
            found[name] = outputs[first : first + len(part.task.output_names)]
            first += len(part.task.output_names)
        return found

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each row [rows], by its own task's head, in units of which a row has one on average."""
        import torch

        total = torch.zeros((), device=outputs[0].device, dtype=outputs[0].dtype)
        for number, (name, own) in enumerate(self._by_task(outputs).items()):
            losses = self.parts[name].task.loss(own, named(targets, name), smoothing, None)
            total = total + torch.where(targets[OF_TASK] == number, losses, 0.0)
        return total * targets[SHARE].to(total.dtype)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return the answers of all heads about all rows, by task and name."""
        return {
            f"{name}.{answer}": tensor
            for name, own in self._by_task(outputs).items()
            for answer, tensor in self.parts[name].task.answers(own, named(targets, name)).items()
        }

    def predictions(
        self, split: MultiSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: DataKeys
    ) -> MultiPredictions:
        """Return the predictions of each task for its own examples."""
        found = {}
        for number, (name, part) in enumerate(self.parts.items()):
            own = rows.row_targets[OF_TASK] == number
            about = {answer: array[own] for answer, array in named(answers, name).items()}
            found[name] = part.task.predictions(split.each[name], rows.alignment[name], about, part.data.keys)
        return self._together(found)

    def _together(self, predictions: Mapping[str, Any]) -> MultiPredictions:
        whole = sum(part.weight for part in self.parts.values())
        return MultiPredictions(
            {
                name: PartPredictions(predictions[name], part.data.metric, part.weight / whole, part.data.labels)
                for name, part in self.parts.items()
            }
        )

    def fitted(self, predictions: MultiPredictions, metric: str, keys: DataKeys) -> dict[str, Any]:
        """Return what each task fits to its predictions."""
        return {
            f"{name}.{setting}": value
            for name, part in self.parts.items()
            for setting, value in part.task.fitted(
                predictions.parts[name].predictions, part.data.metric, part.data.keys
            ).items()
        }

    def with_fitted(self, predictions: MultiPredictions, settings: Mapping[str, Any]) -> MultiPredictions:
        """Return predictions with what was fitted for each task."""
        return predictions.with_parts(
            {
                name: part.task.with_fitted(predictions.parts[name].predictions, named(settings, name))
                for name, part in self.parts.items()
            }
        )

    def scores_beside(self, predictions: MultiPredictions) -> dict[str, float]:
        """Return the metric of each task, by `task.metric`."""
        return {
            f"{name}.{part.metric}": score(part.metric, part.predictions) for name, part in predictions.parts.items()
        }

    # ------------------------------------------------------------ results

    def collapse(self, predictions: MultiPredictions) -> str:
        """Return what a model does that has collapsed on every task."""
        return _said(
            {name: part.task.collapse(predictions.parts[name].predictions) for name, part in self.parts.items()}
        )

    def references(self, data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
        """Return the baselines that every task has, together."""
        found = {
            name: part.task.references(part.data, part.data.metric, folder / name) for name, part in self.parts.items()
        }
        together: dict[str, Reference | None] = {}
        for kind in next(iter(found.values())):
            each = {name: references.get(kind) for name, references in found.items()}
            known = {name: reference for name, reference in each.items() if reference is not None}
            if len(known) == len(each):
                together[kind] = Reference(
                    _said({name: reference.says for name, reference in known.items()}),
                    self._together({name: reference.predictions for name, reference in known.items()}),
                    "; ".join(f"{name}: {each.bounded}" for name, each in known.items() if each.bounded),
                )
        return together

    def predicted_rows(self, predictions: MultiPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the predictions of each task for its examples."""
        return [
            row
            for name, part in self.parts.items()
            for row in part.task.predicted_rows(predictions.parts[name].predictions, part.data.labels)
        ]


def _of(rows: Mapping[str, EncodedRows], task: str) -> dict[str, EncodedRows]:
    """Return the rows of one task in each split."""
    return {split: each.alignment[task] for split, each in rows.items()}


def _named(name: str, marked: Marked, tokens: Sequence[str]) -> str:
    return f"{name}: {marked(tokens)}"


def _said(by_task: Mapping[str, str]) -> str:
    """Return what is said of each task, as one; of all alike, once."""
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return "; ".join(f"{said} ({name})" for name, said in by_task.items())


def _refuse() -> NoReturn:
    raise DataError(
        "these weights are of several tasks, of which one at a time predicts: write a folder for each task with "
        "hpo export STUDY -o FOLDER, then hpo predict FOLDER/TASK"
    )
