"""A split as token ids on the device: tokenised once, and gathered into batches without waiting for the host."""

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
    """The tokens and targets of one split.

    Attributes:
        ids: [tokens] int32, the token ids of all rows, one row after the other.
        types: [tokens] int32, 0 or 1 for the first or the second text, if the model reads it.
        starts: [n] position of each row's first token, on the device.
        counts: [n] number of tokens of each row, on the device.
        lengths: [n] the same on the host, to plan batches.
        targets: [n] or [n, labels], on the device.
        pad: Token id of padding.
    """

    ids: torch.Tensor
    types: torch.Tensor | None
    starts: torch.Tensor
    counts: torch.Tensor
    lengths: Array
    targets: torch.Tensor
    pad: int

    def to(self, where: torch.device) -> Tokens:
        """Return a copy on another device."""
        moved = {name: value.to(where) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def batch(self, rows: Array, length: int | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the model's inputs and the targets of some rows.

        Args:
            rows: [b] row numbers.
            length: Tokens to which rows are padded; if None, the length of the longest row, rounded up by
                `one_of_few`.
        """
        index = torch.from_numpy(rows).to(self.ids.device, non_blocking=True)
        return self.gather(index, length or min(one_of_few(int(self.lengths[rows].max())), int(self.lengths.max())))

    def gather(self, index: torch.Tensor, length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the same for row numbers `index` [b] on the device."""
        offsets = torch.arange(length, device=self.ids.device)
        real = offsets < self.counts[index, None]  # not padding
        positions = torch.where(real, self.starts[index, None] + offsets, 0)
        inputs = {
            "input_ids": torch.where(real, self.ids[positions], self.pad).long(),
            "attention_mask": real.long(),
        }
        if self.types is not None:
            inputs["token_type_ids"] = torch.where(real, self.types[positions], 0).long()
        return inputs, self.targets[index]

    def outputs(self, predict: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], size: int) -> Array:
        """Return a model's outputs for all rows, [..., n, outputs]. They are computed in order of length.

        Args:
            predict: The model's inputs for b rows -> logits [..., b, outputs].
            size: Largest number of rows in one call.
        """
        chunks = by_length(self.lengths, size)
        logits = torch.cat([predict(self.batch(rows)[0]).float() for rows in chunks], dim=-2).cpu().numpy()
        return np.asarray(logits[..., np.argsort(np.concatenate(chunks)), :])


def one_of_few(length: int) -> int:
    """Return a length rounded up to one of eight lengths between two powers of two.

    Kernels are compiled for every new shape; on a CPU in bf16 that takes a fifth of the time of a step. Each power of
    two is divided alike, so that batches of 8, 16 and 32 rows have shapes in common. Padding grows by 2 %.
    """
    step = 1 << max(0, length.bit_length() - 4)
    return -(-length // step) * step


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, device: torch.device) -> Tokens:
    """Tokenise a split and move it to the device."""
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
    flat_types = (
        np.concatenate([np.asarray(row, dtype=np.int32) for row in encoded["token_type_ids"]]) if types else None
    )
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return Tokens(
        ids=torch.from_numpy(flat).to(device),
        types=None if flat_types is None else torch.from_numpy(flat_types).to(device),
        starts=torch.from_numpy(starts).to(device),
        counts=torch.from_numpy(lengths).to(device),
        lengths=lengths,
        targets=torch.from_numpy(split.targets).to(device),
        pad=pad,
    )
