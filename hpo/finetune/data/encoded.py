"""A split as token ids on the device: tokenised once, gathered into batches without a word to the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpo.finetune.data.batches import by_length
from hpo.finetune.data.sources import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tokens:
    """The rows of one split, end to end.

    Attributes:
        ids: [tokens] int32, all rows one after the other.
        types: [tokens] which of two texts a token is of, if the model reads that.
        starts: [n] position of a row's first token, on the device.
        counts: [n] tokens of each row, on the device.
        lengths: [n] the same on the host, to plan batches by.
        targets: [n] or [n, labels], on the device.
        pad: Token id that fills a batch up.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    counts: torch.Tensor
    lengths: Array
    targets: torch.Tensor
    pad: int

    def to(self, where: torch.device) -> Tokens:
        """Return the same on another device."""
        moved = {name: value.to(where) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def batch(self, rows: Array, length: int | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the model's inputs and the targets of some rows.

        Args:
            rows: [b] row numbers.
            length: Tokens a row is padded to; without it, one of few lengths that the longest of them fits in.
        """
        index = torch.from_numpy(rows).to(self.ids.device, non_blocking=True)
        return self.gather(index, length or min(one_of_few(int(self.lengths[rows].max())), int(self.lengths.max())))

    def gather(self, index: torch.Tensor, length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the same for row numbers [b] that are on the device."""
        columns = torch.arange(length, device=self.ids.device)
        real = columns < self.counts[index, None]
        places = torch.where(real, self.starts[index, None] + columns, 0)
        inputs = {
            "input_ids": torch.where(real, self.ids[places], self.pad).long(),
            "attention_mask": real.long(),
        }
        if self.types is not None:
            inputs["token_type_ids"] = torch.where(real, self.types[places], 0).long()
        return inputs, self.targets[index]

    def outputs(self, said: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], size: int) -> Array:
        """Return what a model says of all rows, in their order: [..., n, outputs]; computed in order of length.

        Args:
            said: The model's inputs for b rows -> [..., b, outputs].
            size: Most rows at once.
        """
        chunks = by_length(self.lengths, size)
        logits = torch.cat([said(self.batch(rows)[0]).float() for rows in chunks], dim=-2).cpu().numpy()
        return np.asarray(logits[..., np.argsort(np.concatenate(chunks)), :])


def one_of_few(length: int) -> int:
    """Return the shortest of few lengths, eight to an octave, that is not below one.

    Kernels are compiled for every new shape: on a CPU in bf16, all those of a step in a fifth of the step's time. As
    octaves are divided alike, batches of 8, 16 and 32 rows have shapes in common. It costs 2 % more padding.
    """
    step = 1 << max(0, length.bit_length() - 4)
    return -(-length // step) * step


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, device: torch.device) -> Tokens:
    """Tokenise a split and put it on the device."""
    types = "token_type_ids" in tokenizer.model_input_names
    encoded = tokenizer(
        split.texts,
        split.pairs,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=types,
    )
    rows: Sequence[Sequence[int]] = encoded["input_ids"]
    lengths = np.array([len(row) for row in rows])
    flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    kinds = np.concatenate([np.asarray(r, dtype=np.int32) for r in encoded["token_type_ids"]]) if types else None
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return Tokens(
        ids=torch.from_numpy(flat).to(device),
        types=None if kinds is None else torch.from_numpy(kinds).to(device),
        starts=torch.from_numpy(starts).to(device),
        counts=torch.from_numpy(lengths).to(device),
        lengths=lengths,
        targets=torch.from_numpy(split.targets).to(device),
        pad=pad,
    )
