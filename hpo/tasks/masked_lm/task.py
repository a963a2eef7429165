"""Masked language models as a task: encoders are pretrained further (Devlin et al., 2019; Gururangan et al., 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.dataset import SPLITS, Dataset, small_splits
from hpo.tasks.language.predictions import TextPredictions
from hpo.tasks.language.task import LanguageTask
from hpo.tasks.masked_lm.documents import DocumentSplit, encode
from hpo.tasks.masked_lm.keys import DocumentKeys
from hpo.tasks.rows import EncodedRows

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]


class MaskedLM(LanguageTask):
    """The tokens of a text that are hidden from the model."""

    name = "masked_lm"
    auto_model = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    peft_type = None
    keys = DocumentKeys
    example = "document"
    row = "window"
    cuts = False
    redraws: ClassVar[bool] = True
    answer_keys = ("predicted", "loss", "tokens", "right")

    # ------------------------------------------------------------ reading

    def prepared(self, frames: dict[str, pd.DataFrame], keys: DocumentKeys) -> list[str]:
        """Leave out rows without a text, and return a note on them."""
        from hpo.data.tables import is_missing, place

        notes = []
        for name, table in frames.items():
            texts = ["" if is_missing(value) else str(value) for value in table[keys.text]]
            empty = np.array([not text.strip() for text in texts], dtype=bool)
            if empty.all():
                raise DataError(f"column {keys.text!r} of {name} has no text; name the column under data: text")
            if empty.any():
                first = place(table.index[int(empty.argmax())])
                notes.append(
                    f"{empty.sum()} of {len(table)} rows of {name} have no text and are left out, first {first}"
                )
            frames[name] = table.assign(**{keys.text: texts})[~empty]
        return notes

    def contents(self, table: pd.DataFrame, keys: DocumentKeys) -> list[str]:
        """Return the documents."""
        return list(table[keys.text])

    def splits(self, frames: Mapping[str, pd.DataFrame], keys: DocumentKeys) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return no labels, and the splits."""
        return (), {
            name: DocumentSplit(
                list(frames[name][keys.text]), members=self.groups(frames[name], keys), places=frames[name].index
            )
            for name in SPLITS
        }

    def doubts(self, data: Dataset, metric: str) -> list[str]:
        """Return notes on small splits."""
        return small_splits(data, metric, self.example, share=False)

    def facts(self, data: Dataset) -> dict[str, str]:
        """Return what is masked."""
        assert isinstance(data.keys, DocumentKeys)
        return {
            "masked": f"{data.keys.masked:.0%} of the tokens of a {self.row}, others in every step; those of validation"
            " and test are the same for all trials"
        }

    def row_notes(self, rows: Mapping[str, EncodedRows], keys: DocumentKeys) -> list[str]:
        """Return notes on documents without tokens."""
        return [
            f"{each.alignment} documents of {name} have no tokens and are left out: look whether the tokenizer knows "
            "their characters"
            for name, each in rows.items()
            if each.alignment
        ]

    def input_columns(self, keys: DocumentKeys) -> tuple[str, ...]:
        """Return the column of documents."""
        return (keys.text,)

    def unlabelled(self, rows: Sequence[Mapping[str, Any]], keys: DocumentKeys) -> DocumentSplit:
        """Return documents."""
        texts = [str(row[keys.text] or "") for row in rows]
        if empty := [number for number, text in enumerate(texts, 1) if not text.strip()]:
            raise DataError(f"{len(empty)} rows have no text, the first is row {empty[0]}; leave them out")
        return DocumentSplit(texts)

    # ------------------------------------------------------------ training and scoring

    def encode(
        self, split: DocumentSplit, keys: DocumentKeys, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedRows:
        """Return the windows of the documents."""
        return encode(split.texts, tokenizer, max_length, keys.masked)

    def marked(self, rows: EncodedRows, row: int, tokens: Sequence[str], labels: Sequence[str]) -> str:
        """Return the tokens, and how many of them are masked."""
        return f"{' '.join(tokens)} -> {int(rows.units[row])} of them are masked, others in every step"

    def expected(self, split: DocumentSplit) -> list[str]:
        """Return the documents."""
        return split.texts

    def sources(self, split: DocumentSplit) -> list[str]:
        """Return empty texts: a model is given the rest of the document."""
        return [""] * len(split)

    # ------------------------------------------------------------ results

    def predicted_rows(self, predictions: TextPredictions, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return for each document the mean loss of a masked token, how many are masked, and how many are right."""
        return [
            {
                "predicted": None,
                "loss": float(loss / units) if units else None,
                "tokens": int(units),
                "right": int(right),
            }
            for loss, units, right in zip(predictions.losses, predictions.units, predictions.right, strict=True)
        ]
