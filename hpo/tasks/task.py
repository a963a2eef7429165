"""The task seam: what all other packages know of a task.

A task says what the rows of a file mean, how they become tokens, what the loss of a row is, what a model answers, and
how answers become predictions that metrics score. Engines, search, verdict, report and export know tasks through this
class only. No module of `hpo.tasks` loads torch, transformers or pandas when it is imported.

    files -> table -> prepared -> splits -> encoded rows        (once)
    rows -> outputs -> loss                                     (training)
    rows -> outputs -> answers -> predictions -> metrics        (scoring)

An *example* is what the user counts: a text, a sentence, a question. A *row* is what the model gets: an example, or one
of the windows of a long example. A *unit* is what a loss is the mean of: a row, or a token that has a label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Union

import numpy as np

from hpo.core.errors import DataError
from hpo.data.keys import DataKeys, Place
from hpo.tasks.dataset import Dataset
from hpo.tasks.predictions import Predictions as Predictions
from hpo.tasks.predictions import Reference as Reference
from hpo.tasks.rows import EncodedRows

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Outputs = tuple[torch.Tensor, ...]
    Tensors = Mapping[str, torch.Tensor]  # by name

Array = np.ndarray[Any, Any]
Smoothing = Union[float, "torch.Tensor"]
Reread = Callable[[Sequence[Mapping[str, str]]], tuple[Predictions, tuple[str, ...]]]
Marked = Callable[[Sequence[str]], str]  # tokens of a row -> the row in writing, with what is trained on marked
COLLAPSE = "gives every example the same answer"
"""What a collapsed model does, where its task knows no more."""


class Task(ABC):
    """What rows mean to a model. To add a task, write a subclass and add an entry to `hpo.tasks.registry.TASKS`.

    Attributes:
        name: Its name in `TASKS`, and under `task:` of a study file.
        auto_model: The class of transformers that loads its models.
        pipeline_tag: Its name on the Hub.
        peft_type: Its name in `peft`; None if `peft` has none.
        metric: The metric of a study whose file names none.
        problem_type: The name in a model's configuration that tells tasks of one class of models apart.
        keys: The keys of `data:` that it reads.
        example: What an example is called in messages: a row of a file, a sentence, a question.
        row: What a row of the model's inputs is called: a text, a window.
        cuts: Whether an example that is too long is cut; else it becomes several rows.
        emits_tokens: Whether its models give out tokens. Then the whole vocabulary is trained, the token target
            `labels` says which token is to be given out at each position (already shifted, where the model gives out
            the next token), and `result.logits` in `outputs` are not logits but scores of tokens [rows, tokens, 3]; see
            `hpo/tasks/language/scores.py`.
        redraws: Whether inputs are drawn anew in every pass; then no states of frozen layers can be kept.
        generates: Whether its models generate text; see `GeneratingTask` in `hpo/tasks/language/task.py`.
        formats: Endings of files that it reads itself, which need not be tables.
        answer_keys: The keys of `predicted_rows`.
        output_names: The tensors of a model's result that losses and answers are computed from, each [rows, ...].
        idle: Row target -> its value in a row of another task, where several tasks are trained together; 0 if it is not
            named. The loss of such a row is not used, but it has to be finite.
    """

    name: str
    auto_model: ClassVar[str]
    pipeline_tag: ClassVar[str]
    peft_type: ClassVar[str | None]
    metric: str
    problem_type: str | None = None
    keys: ClassVar[type[DataKeys]]
    example: ClassVar[str] = "row"
    row: ClassVar[str] = "row"
    emits_tokens: ClassVar[bool] = False
    redraws: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    formats: ClassVar[tuple[str, ...]] = ()
    cuts: ClassVar[bool] = True
    answer_keys: ClassVar[tuple[str, ...]] = ("predicted", "probability", "probabilities")
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    idle: ClassVar[Mapping[str, int]] = MappingProxyType({})

    def for_data(self, data: Dataset) -> Task:
        """Return the task for the data of a study; the task itself, unless the data says what the task is made of."""
        return self

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: Any) -> Iterable[tuple[Place, str]]:
        """Yield (place in `data:`, message) for keys that do not go together."""
        return ()

    def table(self, keys: Any, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the rows of one split, indexed by (file, row from 1).

        Raises:
            DataError: A file or data set cannot be read, has no rows or lacks a column.
        """
        from hpo.data.tables import read_table

        return read_table(keys, split, source, folder)

    def prepared(self, frames: dict[str, pd.DataFrame], keys: Any) -> list[str]:
        """Check and normalise the rows in place, and return notes on what was done.

        Raises:
            DataError: A row is not as the task needs it.
        """
        return []

    def resolved(self, train: pd.DataFrame, keys: Any, auto: bool) -> Task:
        """Return the task itself, or for a study with `task: auto` the one that the rows of train are of.

        Raises:
            DataError: The rows are not of the task.
        """
        return self

    @abstractmethod
    def contents(self, table: pd.DataFrame, keys: Any) -> Sequence[Hashable]:
        """Return what each row says; rows that say the same stay in one split."""

    def groups(self, table: pd.DataFrame, keys: Any) -> list[str] | None:
        """Return the group of each row, if there are groups; rows of a group stay in one split."""
        return None if keys.group is None else list(map(str, table[keys.group]))

    def strata(self, table: pd.DataFrame, keys: Any) -> Sequence[Hashable] | None:
        """Return the class of each row, whose proportions are kept when rows are set aside; None if there is none."""
        return None

    @abstractmethod
    def splits(self, frames: Mapping[str, pd.DataFrame], keys: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the names of the labels, and the splits.

        Raises:
            DataError: A split has a label that train has not, or nothing can be learned from train.
        """

    def notes(self, data: Dataset) -> list[str]:
        """Return notes on the data that every run shows."""
        return []

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on data that may make the result of a study useless, for `hpo check`."""
        return []

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return label -> sentence about the data, for `hpo check`."""
        return {}

    def label_shares(self, data: Dataset) -> dict[str, float]:
        """Return label -> its share of the examples of train; nothing unless an example has one label."""
        return {}

    @abstractmethod
    def input_columns(self, keys: Any) -> tuple[str, ...]:
        """Return the columns that a prediction needs."""

    def input_rows(self, path: Path, keys: Any) -> list[dict[str, Any]]:
        """Return the rows of a file for predictions, all their columns.

        Raises:
            DataError: It cannot be read, or has no rows.
        """
        from hpo.data.readers import read_rows

        table = read_rows(path)
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]

    @abstractmethod
    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: Any) -> Any:
        """Return a split of rows whose targets are not known, for predictions.

        Raises:
            DataError: A row lacks something.
        """

    # ------------------------------------------------------------ training and scoring

    def tokenizer_options(self, tokenizer: PreTrainedTokenizerBase, keys: Any) -> dict[str, Any]:
        """Return the options with which a tokenizer must be loaded again, to read what the task gives it."""
        return {}

    def loads(self, architecture: str) -> bool:
        """Return whether the task's models are of a class of transformers, e.g. `BertForTokenClassification`."""
        return self.auto_model.removeprefix("AutoModel") in architecture

    def configure(self, config: Any, labels: Sequence[str]) -> None:
        """Write the labels into a model's configuration before the model is loaded."""
        config.problem_type = self.problem_type

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return a row as a model sees it, with what is trained on marked, for `hpo check`.

        Args:
            rows: A split.
            row: Number of the row; of a row of several choices, that of the sequence in `inputs`.
            tokens: The row's tokens in writing.
            labels: Names of the labels, by index.
        """
        return " ".join(tokens)

    def examples(self, rows: EncodedRows, labels: Sequence[str]) -> Iterator[tuple[Sequence[int], Marked]]:
        """Yield for each row that `hpo check` shows its token ids, and what marks its tokens in writing."""
        for row, ids in enumerate(rows.inputs["input_ids"]):
            yield ids, partial(self.marked, rows, row, labels=labels)

    def trained_in_full(self, new: frozenset[str], classifier: frozenset[str]) -> frozenset[str]:
        """Return the names of the parameters that are trained beside adapters.

        Those are the new ones and the classifier; but where the model gives out tokens, only the new ones, because
        what follows its layers is pretrained there.

        Args:
            new: Names of the parameters that are not pretrained.
            classifier: Names of the parameters outside of the model without its head.
        """
        return new if self.emits_tokens else new | classifier

    def labels_of(self, config: Any) -> tuple[str, ...]:
        """Return the labels that `configure` wrote into a model's configuration."""
        return ()

    @abstractmethod
    def encode(self, split: Any, keys: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
        """Return a split as rows of at most `max_length` tokens.

        Raises:
            DataError: An example does not fit.
        """

    def for_model(self, rows: EncodedRows, model: PreTrainedModel) -> EncodedRows:
        """Return rows as `encode` returned them, with what depends on the model, such as the inputs of its decoder.

        Raises:
            ModelError: The model cannot read them.
        """
        return rows

    def refuse_model(self, model: PreTrainedModel, rows: EncodedRows) -> None:  # noqa: B027 - most models can learn it
        """Refuse a model that cannot learn what is expected of it.

        Args:
            model: The model.
            rows: Those of train; the first ones have their tokens.

        Raises:
            ModelError: It cannot.
        """

    def row_facts(self, rows: Mapping[str, EncodedRows], max_length: int) -> dict[str, str]:
        """Return label -> sentence about the rows of all splits, for `hpo check`."""
        return {}

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: Any) -> list[str]:
        """Return notes on the rows of all splits, for the user."""
        return []

    def tasks_of(self, rows: EncodedRows) -> Array | None:
        """Return [rows] the number of the task that each row is of, if there are several tasks; else None."""
        return None

    def class_weights(self, data: Dataset) -> Mapping[str, Array]:
        """Return setting of `class_weights` -> weights [labels] by the targets of train; nothing if it has none."""
        return {}

    def outputs(self, result: Any) -> Outputs:
        """Return the tensors `output_names` of a model's result."""
        return tuple(getattr(result, name) for name in self.output_names)

    @abstractmethod
    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each row [rows]: the sum over its units.

        Args:
            outputs: As `outputs` returns them, in float32 or float64.
            targets: Name -> [rows, ...] as `encode` names them; token targets are [rows, tokens].
            smoothing: Label smoothing, a float or [rows].
            weights: Class weights, [labels] or [rows, labels], or None.
        """

    @abstractmethod
    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return what predictions need of a model's outputs: name -> [rows, ...], or [rows, tokens, ...]."""

    @abstractmethod
    def predictions(self, split: Any, rows: EncodedRows, answers: Mapping[str, Array], keys: Any) -> Predictions:
        """Return the predictions for the examples of a split.

        Args:
            split: The split.
            rows: Its rows, as `encode` returned them.
            answers: Name -> [rows, ...], in the order of the rows; answers about tokens are padded with zeros.
            keys: The keys of `data:`.
        """

    def fitted(self, predictions: Any, metric: str, keys: Any) -> dict[str, Any]:
        """Return what is fitted to a model's predictions for the validation split, such as a threshold.

        It is kept with the weights, and stored in the model's configuration under these names.

        Args:
            predictions: Predictions for the validation split, whose outputs are finite.
            metric: Name in `METRICS` of what the search optimises.
            keys: The keys of `data:`.
        """
        return {}

    def with_fitted(self, predictions: Any, settings: Mapping[str, Any]) -> Any:
        """Return predictions with what was fitted for their model: its configuration, or what `fitted` returned."""
        return predictions

    def scores_beside(self, predictions: Any) -> dict[str, float]:
        """Return name -> score of what is measured beside the metric, without being asked for."""
        return {}

    # ------------------------------------------------------------ results

    def default_metric(self, data: Dataset) -> str:
        """Return the metric of a study whose file names none."""
        return self.metric

    def refuse_metric(self, metric: str, data: Dataset) -> None:  # noqa: B027 - most metrics are always defined
        """Refuse a metric that cannot be computed on the validation or test split.

        Raises:
            DataError: It is not defined there, or is 0 even for perfect predictions.
        """

    def too_few(self, metric: str, predictions: Any, labels: Sequence[str]) -> str | None:
        """Return why there are too few examples of a kind to compare models by this metric, or None."""
        return None

    def collapse(self, predictions: Any) -> str:
        """Return what a collapsed model does, as the end of a sentence about it."""
        return COLLAPSE

    def references(self, data: Dataset, metric: str, folder: Path) -> dict[str, Reference | None]:
        """Return name -> baseline; None for one that cannot be had for this data.

        The one named `majority` gives every example the same answer.

        Args:
            data: The study's data.
            metric: Name in `METRICS`.
            folder: Where what was computed is stored for later looks.
        """
        return {}

    def breakdown(self, predictions: Any, labels: Sequence[str]) -> dict[str, Any] | None:
        """Return a model's performance by class, as JSON values; None if there are no classes.

        See `hpo.tasks.classification.breakdown.by_class` for the keys.
        """
        return None

    def usage(self, settings: Mapping[str, Any]) -> str:
        """Return Python code that uses an exported model without hpo, for its card; empty if a pipeline does.

        Args:
            settings: The study's settings.
        """
        return ""

    @abstractmethod
    def predicted_rows(self, predictions: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return a model's predictions for n examples as JSON values, with the key `predicted`."""

    @property
    def reread(self) -> Reread | None:
        """What reads the predictions and the labels from the rows of a file of predictions.

        It raises KeyError if a column is missing, and ValueError if a value is not what it must be. None if such a file
        does not say all that metrics need. Then the file has the counts of the study's metric too, unless it is no
        function of counts.
        """
        return None

    def refuse_unlearnable(self, data: Dataset) -> None:
        """Refuse data from which nothing can be learned.

        Raises:
            DataError: All examples of train are equal, or expect the same answer.
        """
        if len(set(data.splits["train"].contents)) == 1:
            raise DataError(f"every {self.example} of train is the same: nothing can be learned. Check the columns")
