"""Tiny tokenizers that divide words into pieces, as BERT's and RoBERTa's do."""

from __future__ import annotations

import functools

from tokenizers import pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##er", "##s", "##ed", "un", "##aff", "##able"]
BERT += ["game", "rome", "warm", "don", "'", "t", "?", "a"]
MERGES = ["Ġ g", "a m", "Ġg am", "Ġgam e", "Ġ p", "l a", "Ġp la", "Ġpla y", "e r", "Ġ a", "Ġ R", "o m"]


@functools.cache
def bert() -> PreTrainedTokenizerBase:
    """Return a WordPiece tokenizer of lower-case text, as BERT's."""
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(BERT)})


@functools.cache
def roberta(add_prefix_space: bool = True) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer, as RoBERTa's."""
    merges = [tuple(pair.split()) for pair in MERGES]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return RobertaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=add_prefix_space)
