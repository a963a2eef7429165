"""Documents, and the rows that a model gets of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import DataError
from hpo.tasks.dataset import Split
from hpo.tasks.rows import IGNORED, EncodedRows, Masking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DocumentSplit(Split):
    """Documents.

    Attributes:
        texts: n texts.
    """

    texts: list[str]

    @property
    def contents(self) -> list[str]:
        """The documents."""
        return self.texts

    def hashed(self, name: str) -> Iterator[bytes]:
        """Yield the documents."""
        for text in self.texts:
            yield f"{name}\0{text}\0".encode()

    def as_rows(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Return the documents."""
        return [{"text": text} for text in self.texts]


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, share: float) -> EncodedRows:
    """Return the rows of documents: windows of at most `max_length` tokens, one after the other.

    Of each row the same number of tokens is masked in every pass, at least one, so that the units of a row are known.
    The number of documents without tokens is the rows' alignment; they have no rows.

    Args:
        texts: The documents.
        tokenizer: The model's tokenizer.
        max_length: Tokens of a row at most.
        share: Share of the tokens of a row that are masked, without those that the tokenizer adds.

    Raises:
        DataError: The tokenizer has no mask token, or the documents have no tokens.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(
            "task masked_lm: the tokenizer of the model has no mask token, so it is no masked language model; for a "
            "model that continues texts write task: causal_lm"
        )
    types = "token_type_ids" in tokenizer.model_input_names
    windows = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=types,
    )
    added = [np.asarray(each, dtype=bool) for each in windows["special_tokens_mask"]]
    kept = [number for number, each in enumerate(added) if not each.all()]
    if not kept:
        raise DataError("the documents have no tokens: look whether the tokenizer knows their characters")
    ids = [np.asarray(windows["input_ids"][number]) for number in kept]
    counts = np.array([max(1, round(share * int((~added[number]).sum()))) for number in kept])
    example = np.asarray(windows["overflow_to_sample_mapping"])[kept]
    inputs: dict[str, Any] = {"input_ids": ids}
    if types:
        inputs["token_type_ids"] = [windows["token_type_ids"][number] for number in kept]
    return EncodedRows(
        inputs,
        {"masked": counts.astype(np.int64)},
        {"labels": [np.where(added[number], IGNORED, row) for number, row in zip(kept, ids, strict=True)]},  # type: ignore[misc]
        units=counts.astype(float),
        example=example,
        alignment=len(texts) - len(set(example.tolist())),
        masking=Masking(tokenizer.mask_token_id, len(tokenizer)),
    )
