"""Pairs of texts as rows of tokens: sources for the encoder, targets for the decoder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo.core.errors import ModelError
from hpo.tasks.rows import EncodedRows
from hpo.tasks.seq2seq.keys import PairKeys
from hpo.tasks.seq2seq.pairs import PairSplit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 3  # rows whose targets are kept in writing
Ids = list[list[int]]


@dataclass(frozen=True)
class Encoded:
    """What is known of the rows of a split besides their tokens.

    Attributes:
        cut_sources: Number of sources that are longer than `max_length`.
        cut_targets: Number of targets that are longer than `data.max_target_length`.
        written: The tokens of the first targets in writing, for `hpo check`.
    """

    cut_sources: int
    cut_targets: int
    written: Sequence[Sequence[str]]


def encode(split: PairSplit, keys: PairKeys, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
    """Return a row for each pair: the source, and the target with its end token as labels.

    Args:
        split: The pairs.
        keys: The keys of `data:`.
        tokenizer: The model's tokenizer.
        max_length: Tokens after which a source is cut.
    """
    sources, cut_sources = _tokenised(tokenizer, prefixed(split, keys), max_length)
    targets, cut_targets = _tokenised(tokenizer, split.targets, keys.max_target_length, target=True)
    labels = [_ended(ids, _end_token(tokenizer), keys.max_target_length) for ids in targets]
    written = [list(map(str, tokenizer.convert_ids_to_tokens(ids))) for ids in labels[:SHOWN]]
    return EncodedRows(
        {"input_ids": sources},
        token_targets={"labels": labels},
        units=np.array([len(ids) for ids in labels], dtype=float),
        example=np.arange(len(labels)),
        alignment=Encoded(cut_sources, cut_targets, written),
    )


def source_ids(split: PairSplit, keys: PairKeys, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Ids:
    """Return the token ids of each source, cut after `max_length`."""
    return _tokenised(tokenizer, prefixed(split, keys), max_length)[0]


def prefixed(split: PairSplit, keys: PairKeys) -> list[str]:
    """Return the sources as the model reads them."""
    return [keys.prefix + source for source in split.sources]


def with_decoder_inputs(rows: EncodedRows, model: PreTrainedModel) -> EncodedRows:
    """Return rows with the inputs of a model's decoder: the labels, shifted to the right by the model's own function.

    What a decoder starts with depends on its family: T5 and Marian start with the padding token, BART with the end
    token, mBART with the language, which is the last token of the labels.

    Raises:
        ModelError: The model has no such function, or does not know with what token its decoder starts.
    """
    import torch

    shift, kind = shift_of(model), type(model).__name__
    try:
        shifted = [shift(torch.tensor([labels]))[0].tolist() for labels in rows.token_targets["labels"]]
    except (ValueError, TypeError, RuntimeError):
        raise ModelError(
            f"{kind} does not know with what token its decoder starts; write decoder_start_token_id into its "
            "config.json: for two encoders such as BERT, the id of [CLS]"
        ) from None
    _refuse_long(rows, model)
    return replace(rows, decoder_inputs={"decoder_input_ids": shifted})


def shift_of(model: PreTrainedModel) -> Callable[[Any], Any]:
    """Return the function of a model's family that makes its decoder's inputs of labels [rows, tokens].

    Raises:
        ModelError: It has none.
    """
    own: Callable[[Any], Any] | None = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own
    of_module = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)  # of M2M100 and NLLB
    if of_module is None:
        raise ModelError(
            f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels; choose a model such as T5, BART or "
            "Marian"
        )
    config: Any = model.config
    return lambda labels: of_module(labels, config.pad_token_id, config.decoder_start_token_id)


def _refuse_long(rows: EncodedRows, model: PreTrainedModel) -> None:
    """Refuse targets that are longer than a model's decoder can read."""
    decoder = getattr(model.config, "decoder", None) or model.config  # a model of two models has two configurations
    most = getattr(decoder, "max_position_embeddings", None) or 0
    longest = max(map(len, rows.token_targets["labels"]))
    if 0 < most < longest:
        raise ModelError(
            f"a target has {longest} tokens, and the decoder of {type(model).__name__} reads {most}; set data: "
            f"{{max_target_length: {most}}} or less"
        )


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, target: bool = False
) -> tuple[Ids, int]:
    """Return the token ids of texts, and how many texts are longer than `length` and are cut."""

    def ids_of(some: list[str], **options: Any) -> Ids:
        given: dict[str, Any] = {"text_target" if target else "text": some}
        found = tokenizer(**given, **options, return_attention_mask=False, return_token_type_ids=False)
        return [list(ids) for ids in found["input_ids"]]

    found = ids_of(list(texts))
    long = [number for number, ids in enumerate(found) if len(ids) > length]
    if long:
        cut = ids_of([texts[number] for number in long], truncation=True, max_length=length)
        for number, ids in zip(long, cut, strict=True):
            found[number] = ids
    return found, len(long)


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that ends a target; of a tokenizer of an encoder, that of `[SEP]`."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return end if isinstance(end, int) else None


def _ended(ids: list[int], end: int | None, length: int) -> list[int]:
    """Return the ids of a target with the end token last, or before the language that mBART puts last."""
    return ids if end is None or end in ids[-2:] else [*ids[: length - 1], end]
