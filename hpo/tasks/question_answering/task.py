"""Extractive question answering as a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.data.keys import Place
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.question_answering import notes
from hpo.tasks.question_answering.answers import best_answers
from hpo.tasks.question_answering.breakdown import by_kind
from hpo.tasks.question_answering.keys import QuestionKeys
from hpo.tasks.question_answering.no_answer import refuse_blind
from hpo.tasks.question_answering.predictions import ALWAYS, AnswerPredictions
from hpo.tasks.question_answering.questions import Question, asked
from hpo.tasks.question_answering.reading import ENDINGS, unanswered_rows
from hpo.tasks.question_answering.scoring import best_threshold, score
from hpo.tasks.question_answering.split import QuestionSplit
from hpo.tasks.question_answering.tables import QUESTION, read_table
from hpo.tasks.question_answering.usage import code
from hpo.tasks.question_answering.windows import Windows, windows_of
from hpo.tasks.rows import EncodedRows
from hpo.tasks.task import Smoothing, Task

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpo.tasks.task import Outputs, Tensors

Array = np.ndarray[Any, Any]
THRESHOLD = "no_answer_threshold"
"""The key of `data:`, and the name in a model's configuration."""


@dataclass(frozen=True)
class Aligned:
    """The windows of questions.

    Attributes:
        windows: The windows.
        questions: The questions that they are of.
    """

    windows: Windows
    questions: Sequence[Question]


class QuestionAnswering(Task):
    """The piece of a context that answers a question; or no answer, if questions of train have none."""

    name = "question_answering"
    auto_model = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    peft_type = "QUESTION_ANS"
    metric = "answer_f1"
    keys = QuestionKeys
    example = "question"
    row = "window"
    cuts = False
    formats = ENDINGS
    answer_keys = ("predicted", "probability", "predicted_start", "null_difference")
    output_names = ("start_logits", "end_logits")  # each [rows, tokens]
    idle = MappingProxyType({"lengths": 1})  # without a token, the loss of a row would be infinite

    # ------------------------------------------------------------ reading

    def key_problems(self, keys: QuestionKeys) -> Iterator[tuple[Place, str]]:
        """Yield a problem for each column with two uses, and for a key that is not read."""
        uses: dict[str, str] = {}
        for name, column in vars(keys.named).items():
            if column in uses:
                yield (name,), f"is column {column!r}, as data.{uses[column]} is; name a column of its own"
            uses.setdefault(column, name)
        if keys.separator:
            yield (
                ("separator",),
                f"is for CSV and TSV files; questions are read from {', '.join(ENDINGS)}; leave it out",
            )

    def table(self, keys: QuestionKeys, split: str, source: str | list[str], folder: Path) -> pd.DataFrame:
        """Return the questions of one split, checked."""
        return read_table(keys, split, source, folder)

    def contents(self, table: pd.DataFrame, keys: QuestionKeys) -> list[str]:
        """Return the context of each question: all questions about it stay in one split."""
        return [question.context for question in table[QUESTION]]

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: QuestionKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return no labels, and the splits."""
        unanswerable = not all(question.answers for question in frames["train"][QUESTION])
        return (), {
            name: QuestionSplit(
                list(frames[name][QUESTION]),
                unanswerable,
                members=self.groups(frames[name], keys),
                places=frames[name].index,
            )
            for name in SPLITS
        }

    def refuse_unlearnable(self, data: Dataset) -> None:
        """Refuse data whose questions are all equal, or of which none of train has an answer."""
        super().refuse_unlearnable(data)
        if not data.splits["train"].gold.has_answer.any():
            raise DataError(
                "no question of train has an answer: nothing can be learned. Name the column of the answers under "
                "data: answers"
            )

    def notes(self, data: Dataset) -> list[str]:
        """Return notes on shared contexts, and on questions without an answer that the model cannot recognise."""
        return notes.of_data(data)

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: QuestionKeys) -> list[str]:
        """Return notes on answers that are in no window, or longer than `max_answer_length`."""
        windows = {name: encoded.alignment.windows for name, encoded in rows.items()}
        return notes.of_windows(windows, keys.max_answer_length)

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on splits of few contexts."""
        return small_splits(data, metric, self.example, share=True)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return how many questions have an answer, and how many contexts there are."""
        return notes.facts(data)

    def input_columns(self, keys: QuestionKeys) -> tuple[str, ...]:
        """Return the columns of the question and the context."""
        return keys.question, keys.context

    def input_rows(self, path: Path, keys: QuestionKeys) -> list[dict[str, Any]]:
        """Return the rows of a file, also of SQuAD's JSON."""
        return unanswered_rows(path) if path.suffix.lower() in ENDINGS else super().input_rows(path, keys)

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: QuestionKeys) -> QuestionSplit:
        """Return questions whose answers are not known."""
        return QuestionSplit(asked(rows, keys.named), True)

    # ------------------------------------------------------------ training and scoring

    def configure(self, config: Any, labels: Sequence[str]) -> None:
        """Write that the model gives two numbers for each token: to begin and to end an answer."""
        super().configure(config, labels)
        config.num_labels = 2

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens with the answer between double brackets, and the text that it stands for."""
        aligned, (start, end) = rows.alignment, (int(rows.row_targets[name][row]) for name in ("starts", "ends"))
        windows: Windows = aligned.windows
        if start == windows.null[row]:
            return (
                f"{' '.join(tokens)} -> no answer in this window (the token {start}, {tokens[start]}, stands for none)"
            )
        shown = list(tokens)
        shown[start : start + 1] = [f"[[{token}" for token in shown[start : start + 1]]
        shown[end : end + 1] = [f"{token}]]" for token in shown[end : end + 1]]
        offsets = windows.padded_offsets(slice(row, row + 1), int(windows.lengths[row]))[0]
        context = aligned.questions[windows.example[row]].context
        return f"{' '.join(shown)} -> {context[offsets[start, 0] : offsets[end, 1]]!r}, tokens {start} to {end}"

    def encode(
        self, split: QuestionSplit, keys: QuestionKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return the windows of the questions."""
        windows = windows_of(split.questions, tokenizer, max_length, keys.overlap(max_length))
        ends = np.cumsum(windows.lengths)[:-1]
        targets = {"starts": windows.starts, "ends": windows.ends, "lengths": windows.lengths}
        return EncodedRows(
            {name: np.split(values, ends) for name, values in windows.inputs.items()},  # type: ignore[misc]
            {name: np.asarray(values, dtype=np.int64) for name, values in targets.items()},
            units=np.ones(len(windows)),
            example=windows.example,
            alignment=Aligned(windows, split.questions),
        )

    def refuse_model(self, model: PreTrainedModel, rows: EncodedRows) -> None:
        """Refuse a model that cannot learn which questions have no answer, if some have none."""
        refuse_blind(model, rows)

    def loss(
        self, outputs: Outputs, targets: Tensors, smoothing: Smoothing, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean of the cross-entropies of start and end [rows]; padding is no place for them."""
        from hpo.tasks.question_answering.losses import span_losses

        return span_losses(outputs[0], outputs[1], targets, smoothing)

    def answers(self, outputs: Outputs, targets: Tensors) -> dict[str, torch.Tensor]:
        """Return the logits of the start and of the end, each [rows, tokens]."""
        return {"start_logits": outputs[0], "end_logits": outputs[1]}

    def predictions(
        self, split: QuestionSplit, rows: EncodedRows, answers: Mapping[str, Array], keys: QuestionKeys
    ) -> AnswerPredictions:
        """Return the best answers; where train has questions without one, with the threshold of the keys, or 0."""
        from hpo.tasks.question_answering.losses import losses_of_questions

        start, end = answers["start_logits"], answers["end_logits"]
        windows: Windows = rows.alignment.windows
        found = best_answers(start, end, windows, keys.max_answer_length)
        texts = found.texts(split.contexts)
        return AnswerPredictions(
            found,
            texts,
            [golds[0] for golds in split.gold.texts],
            score(texts, split.gold, found.null_differences),
            losses_of_questions(start, end, rows.row_targets, windows.example),
            np.bincount(windows.example).astype(float),
            finite=bool(np.isfinite(start).all() and np.isfinite(end).all()),
            threshold=(keys.no_answer_threshold or 0.0) if split.unanswerable else ALWAYS,
        )

    def fitted(self, predictions: AnswerPredictions, metric: str, keys: QuestionKeys) -> dict[str, float | None]:
        """Return the threshold of no answer: the key's, or the one with the best score; None if there is none."""
        if predictions.threshold == ALWAYS:
            return {THRESHOLD: None}
        if keys.no_answer_threshold is not None:
            return {THRESHOLD: keys.no_answer_threshold}
        return {THRESHOLD: best_threshold(predictions.scores, metric)}

    def with_fitted(self, predictions: AnswerPredictions, settings: Mapping[str, Any]) -> AnswerPredictions:
        """Return the predictions with the threshold of a model's configuration."""
        threshold = settings.get(THRESHOLD)
        return replace(predictions, threshold=ALWAYS if threshold is None else float(threshold))

    # ------------------------------------------------------------ results

    def collapse(self, predictions: AnswerPredictions) -> str:
        """Return what a collapsed model does."""
        return "gives every question the same answer" if predictions.answered.any() else "answers no question"

    def breakdown(self, predictions: AnswerPredictions, labels: Sequence[str]) -> dict[str, Any]:
        """Return exact match and F1 of questions with and without an answer."""
        found = by_kind(predictions)
        return found | ({"collapse": self.collapse(predictions)} if predictions.collapsed else {})

    def usage(self, settings: Mapping[str, Any]) -> str:
        """Return code that answers a question with an exported model."""
        return code(settings)

    def predicted_rows(self, predictions: AnswerPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the answers, empty where there is none, with their probabilities and places in the contexts."""
        says_none = predictions.threshold != ALWAYS
        of_answer, of_none = predictions.answers.probabilities(says_none)
        answered = predictions.answered
        rows: list[dict[str, Any]] = [
            {
                "predicted": text,
                "probability": float(yes if kept else no),
                "predicted_start": int(start) if kept else None,
            }
            for text, kept, yes, no, start in zip(
                predictions.predicted, answered, of_answer, of_none, predictions.answers.starts, strict=True
            )
        ]
        if says_none:
            for row, difference in zip(rows, predictions.answers.null_differences, strict=True):
                row["null_difference"] = float(difference)
        return rows
