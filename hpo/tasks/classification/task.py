"""Classification and regression of texts and of pairs of texts, as tasks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.data.keys import Place
from hpo.recipe.class_weights import CLASS_WEIGHTS
from hpo.tasks.classification import checks
from hpo.tasks.classification.benchmarks import BENCHMARKS
from hpo.tasks.classification.keys import TextKeys
from hpo.tasks.classification.predictions import KINDS, LabelPredictions
from hpo.tasks.classification.rereading import reread
from hpo.tasks.classification.texts import TextSplit, empty_texts, refuse_unlearnable, shares
from hpo.tasks.dataset import SPLITS, Dataset
from hpo.tasks.metrics import METRICS
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Reference, Reread, Smoothing, Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedTokenizerBase

    from hpo.tasks.task import Outputs, Tensors

Array = np.ndarray[Any, Any]


class Classification(Task):
    """A label, several labels, or a number for a text or a pair of texts.

    Args:
        name: Name in `KINDS`.
    """

    auto_model = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    peft_type = "SEQ_CLS"
    keys = TextKeys
    row = "text"

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, KINDS[name]
        self.metric, self.problem_type = self.kind.metric, self.kind.problem_type

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: TextKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each column with two uses: a label that is read as a text would give the answer away."""
        uses = [("text_pair", keys.text_pair, [keys.text])] if keys.text_pair else []
        uses += [("label", label, [keys.text, keys.text_pair or keys.text]) for label in keys.labels()]
        for key, column, others in uses:
            if column in others:
                yield (key,), f"is column {column!r}, which is a text already; name a column of its own"
        if keys.group in keys.labels():
            yield ("group",), f"is column {keys.group!r}, which is a label; name another column"
        if keys.normalize_labels and not isinstance(keys.label, str):
            yield ("normalize_labels",), "is not for label columns of 0 and 1; leave it out"

    def table(self, keys: TextKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the rows of one split, texts as strings."""
        from hpo.data.tables import is_missing

        table = super().table(keys, split, source, folder)
        for column in keys.texts():
            table[column] = ["" if is_missing(text) else str(text) for text in table[column]]
        return table

    def prepared(self, frames: dict[str, pd.DataFrame], keys: TextKeys) -> list[str]:
        """Normalise the labels and drop rows without one, as the study's options say."""
        from hpo.tasks.classification import labels

        return labels.prepared(frames, keys)

    def resolved(self, train: pd.DataFrame, keys: TextKeys, auto: bool) -> Task:
        """Return the task that the labels are of, or the task itself; refuse labels that must be numbers."""
        from hpo.tasks.classification import labels

        task = Classification(labels.task_of(train, keys)) if auto else self
        if task.name == "single_label" and isinstance(keys.label, str):
            labels.refuse_numbers(train[keys.label])
        return task

    def contents(self, table: pd.DataFrame, keys: TextKeys) -> list[tuple[str, ...]]:
        """Return the text of each row, or its pair of texts."""
        return list(zip(*(table[column] for column in keys.texts()), strict=True))

    def strata(self, table: pd.DataFrame, keys: TextKeys) -> Sequence[Hashable] | None:
        """Return the label of each row, if it has one."""
        return list(table[keys.label]) if self.name == "single_label" else None

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: TextKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the names of the labels, and the splits."""
        from hpo.tasks.classification import labels

        names, encode = labels.encoder(frames["train"], keys, self.name)
        return names, {name: self._split(frames[name], keys, encode(name, frames[name])) for name in SPLITS}

    def _split(self, table: pd.DataFrame, keys: TextKeys, targets: Array) -> TextSplit:
        texts, *pairs = (list(table[column]) for column in keys.texts())
        return TextSplit(
            texts, pairs[0] if pairs else None, targets, members=self.groups(table, keys), places=table.index
        )

    def refuse_unlearnable(self, data: Dataset) -> None:
        """Refuse data whose texts, or whose labels, are all equal."""
        refuse_unlearnable(data.splits["train"])

    def notes(self, data: Dataset) -> list[str]:
        """Return a note on empty texts."""
        return empty_texts(data.splits)

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on data that may make the result of a study useless."""
        from hpo.tasks.classification.quality import doubts

        return doubts(data, metric)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return the shares of the labels."""
        if self.name != "single_label":
            return {}
        shown = list(shares(data.splits["train"], data.labels).items())[:12]
        return {"labels": ", ".join(f"{name} {share:.0%}" for name, share in shown)}

    def label_shares(self, data: Dataset) -> dict[str, float]:
        """Return label -> its share of train; nothing unless a text has one label."""
        return shares(data.splits["train"], data.labels) if self.name == "single_label" else {}

    def input_columns(self, keys: TextKeys) -> tuple[str, ...]:
        """Return the columns of texts."""
        return keys.texts()

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: TextKeys) -> TextSplit:
        """Return rows as texts whose targets are zeros."""
        from hpo.data.tables import is_missing

        texts, *pairs = (["" if is_missing(row[key]) else str(row[key]) for row in rows] for key in keys.texts())
        return TextSplit(texts, pairs[0] if pairs else None, np.zeros(len(rows), dtype=np.int64))

    # ------------------------------------------------------------ training and scoring

    def configure(self, config: Any, labels: Sequence[str]) -> None:
        """Write the labels and the kind of the problem."""
        super().configure(config, labels)
        config.num_labels = len(labels) or 1
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens, and the label, the labels or the number that they are trained to give."""
        target = rows.row_targets["labels"][row]
        if self.name == "multi_label":
            expected = ", ".join(repr(name) for name, yes in zip(labels, target, strict=True) if yes) or "no label"
        else:
            expected = f"{target:g}" if self.name == "regression" else repr(labels[int(target)])
        return f"{' '.join(tokens)} -> {expected}"

    def labels_of(self, config: Any) -> tuple[str, ...]:
        """Return the labels; none for regression."""
        if self.name == "regression":
            return ()
        return tuple(str(config.id2label[i]) for i in range(config.num_labels))

    def encode(
        self, split: TextSplit, keys: TextKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return a row for each text, cut after `max_length` tokens."""
        types = "token_type_ids" in tokenizer.model_input_names
        encoded = tokenizer(
            split.texts,
            split.pairs,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=types,
        )
        count = len(split)
        return EncodedRows(dict(encoded), {"labels": split.targets}, {}, np.ones(count), np.arange(count))

    def class_weights(self, data: Dataset) -> Mapping[str, Array]:
        """Return setting of `class_weights` -> weights [labels], if a text has one label."""
        if self.name != "single_label":
            return {}
        counts = np.bincount(data.splits["train"].targets, minlength=len(data.labels))
        return {name: weights(counts) for name, weights in CLASS_WEIGHTS.items()}

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each text [rows], times the weight of its class."""
        return self.kind.loss(outputs[0], targets["labels"], smoothing, weights)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return the logits [rows, outputs]."""
        return {"logits": outputs[0]}

    def predictions(
        self, split: TextSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: TextKeys
    ) -> LabelPredictions:
        """Return the logits together with the targets."""
        return LabelPredictions(self.name, split.targets, answers["logits"])

    # ------------------------------------------------------------ results

    def default_metric(self, data: Dataset) -> str:
        """Return the metric of the benchmark, if the data is one; else that of the task."""
        name = data.keys.benchmark if isinstance(data.keys, TextKeys) else None
        metric = BENCHMARKS[name].metric if name else self.metric
        return metric if self.name in METRICS[metric].tasks else self.metric

    def refuse_metric(self, metric: str, data: Dataset) -> None:
        """Refuse a metric that is not defined on a split, or is 0 there even for perfect predictions."""
        checks.refuse_metric(metric, self.name, data)

    def too_few(self, metric: str, predictions: LabelPredictions, labels: Sequence[str]) -> str | None:
        """Return why there are too few rows of a class to compare models by this metric, or None."""
        return checks.too_few(metric, predictions, labels)

    def references(self, data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
        """Return the most frequent answer, and TF-IDF with a linear model."""
        from hpo.tasks.classification.baselines import references

        return references(data, metric, folder)

    def breakdown(self, predictions: LabelPredictions, labels: Sequence[str]) -> dict[str, Any] | None:
        """Return precision, recall and F1 of each class, and the confusion matrix; None for regression."""
        from hpo.tasks.classification.breakdown import by_class

        return by_class(predictions, labels)

    def predicted_rows(self, predictions: LabelPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the predicted label or labels with their probabilities, or the predicted number."""
        if self.name == "regression":
            return [{"predicted": float(value)} for value in predictions.predicted]
        rows: list[dict[str, Any]] = []
        for probabilities, predicted in zip(predictions.probabilities.tolist(), predictions.predicted, strict=True):
            each = dict(zip(labels, probabilities, strict=True))
            if self.name == "multi_label":
                chosen = [label for label, yes in zip(labels, predicted, strict=True) if yes]
                rows.append({"predicted": chosen, "probabilities": each})
            else:
                label = labels[int(predicted)]
                rows.append({"predicted": label, "probability": each[label], "probabilities": each})
        return rows

    @property
    def reread(self) -> Reread:
        """What reads the predictions and the labels from the rows of a file."""
        return partial(reread, self.name)
