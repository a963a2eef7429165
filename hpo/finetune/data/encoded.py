"""A split as token values on the device: encoded once, and gathered into batches without waiting for the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hpo.finetune.data.batches import by_length
from hpo.finetune.data.masking import mask
from hpo.tasks.rows import IGNORED, EncodedRows, Masking

Array = np.ndarray[Any, Any]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DecoderTokens:
    """What the decoder of an encoder-decoder model gets of the rows of one split; its rows have their own lengths.

    Attributes:
        values: Input of the decoder -> [tokens] int32, the values of all rows, one row after the other.
        starts: [n] position of each row's first token, on the device.
        counts: [n] number of tokens of each row, on the device.
        lengths: [n] the same on the host.
    """

    values: Tensors
    starts: torch.Tensor
    counts: torch.Tensor
    lengths: Array


@dataclass(frozen=True)
class Tokens:
    """The rows of one split.

    Attributes:
        values: Input of the model -> [tokens] int32, the values of all rows, one row after the other; `input_ids`
            among them.
        token_targets: Name -> [tokens] int32, the target of each token; of the decoder's tokens, if there are some.
        row_targets: Name -> [n, ...], what is expected of each row.
        starts: [n] position of each row's first token, on the device; [n, choices] where a row has several choices.
        counts: [n] number of tokens of each row, on the device; or [n, choices].
        lengths: [n] the same on the host, to plan batches; of several choices, the length of the longest.
        units: [n] units of each row, by which losses are divided, on the host.
        pad: Token id of padding.
        states: [tokens, hidden] what the frozen layers yield for each token, on the device or on the host; None if the
            whole model runs.
        decoder: The decoder's part of the rows; None if the model has one input only.
        masking: What stands in the place of masked tokens; None if none are masked.
        key: Key of the masks of passes that are given none.
    """

    values: Tensors
    token_targets: Tensors
    row_targets: Tensors
    starts: torch.Tensor
    counts: torch.Tensor
    lengths: Array
    units: Array
    pad: int
    states: torch.Tensor | None = None
    decoder: DecoderTokens | None = None
    masking: Masking | None = None
    key: int = 0

    @property
    def sizes(self) -> Array:
        """[n] tokens of each row, the decoder's included: rows of similar size are computed together."""
        return self.lengths if self.decoder is None else self.lengths + self.decoder.lengths

    @cached_property
    def totals(self) -> Array:
        """[n] tokens of each row, of all its choices, without padding, on the host."""
        return self.lengths if self.choices == 1 else np.asarray(self.counts.sum(dim=1).cpu().numpy())

    @property
    def choices(self) -> int:
        """Sequences of a row."""
        return self.counts.shape[1] if self.counts.ndim > 1 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens and the targets; without the states."""
        held = [*self.values.values(), *self.token_targets.values(), *self.row_targets.values()]
        if self.decoder is not None:
            held += self.decoder.values.values()
        return sum(tensor.nbytes for tensor in held)

    @property
    def ids(self) -> torch.Tensor:
        """[tokens] int32, the token ids of all rows."""
        return self.values["input_ids"]

    def with_ids(self, ids: torch.Tensor) -> Tokens:
        """Return a copy with other token ids."""
        return replace(self, values={**self.values, "input_ids": ids})

    def to(self, where: torch.device) -> Tokens:
        """Return a copy on another device."""
        moved: dict[str, Any] = {
            name: {key: tensor.to(where) for key, tensor in getattr(self, name).items()}
            for name in ("values", "token_targets", "row_targets")
        }
        decoder = self.decoder
        if decoder is not None:
            values = {name: tensor.to(where) for name, tensor in decoder.values.items()}
            moved["decoder"] = DecoderTokens(
                values, decoder.starts.to(where), decoder.counts.to(where), decoder.lengths
            )
        return replace(self, **moved, starts=self.starts.to(where), counts=self.counts.to(where))

    def batch(self, rows: Array, length: int | None = None, key: int | None = None) -> tuple[Tensors, Tensors]:
        """Return the model's inputs and the targets of some rows, both by name; inputs are [b, length].

        Where rows have several choices, inputs are [b, choices, length].

        Args:
            rows: [b] row numbers.
            length: Tokens to which rows are padded; if None, the length of the longest row, rounded up by
                `one_of_few`. The decoder's rows are always padded to their longest, rounded up.
            key: Key of the masks of tokens.
        """
        index = torch.from_numpy(rows).to(self.ids.device, non_blocking=True)
        of_decoder = 0 if self.decoder is None else _longest(self.decoder.lengths, rows)
        return self.gather(index, length or _longest(self.lengths, rows), of_decoder, key)

    def gather(
        self, index: torch.Tensor, length: int, decoder_length: int = 0, keys: torch.Tensor | int | None = None
    ) -> tuple[Tensors, Tensors]:
        """Return the same for row numbers `index` [b] on the device.

        Args:
            index: [b] row numbers.
            length: Tokens to which rows are padded.
            decoder_length: Tokens to which the decoder's rows are padded, if there are some.
            keys: Key of the masks of tokens, or [b] one for each row; `key` if None.
        """
        real, positions = _places(self.starts, self.counts, index, length)

        def gathered(values: torch.Tensor, fill: int) -> torch.Tensor:
            return torch.where(real, values[positions], fill).long()

        inputs = {
            name: gathered(values, self.pad if name == "input_ids" else 0) for name, values in self.values.items()
        }
        inputs["attention_mask"] = real.long()
        if self.states is not None:
            inputs["states"] = _gathered(self.states, positions, real)
        if self.decoder is not None:  # from here on `gathered` is about the decoder's tokens
            real, positions = _places(self.decoder.starts, self.decoder.counts, index, decoder_length)
            inputs |= {name: gathered(values, self.pad) for name, values in self.decoder.values.items()}
            inputs["decoder_attention_mask"] = real.long()
        targets = {name: values[index] for name, values in self.row_targets.items()}
        targets |= {name: gathered(values, IGNORED) for name, values in self.token_targets.items()}
        if self.masking is not None:
            return mask(inputs, targets, self.masking, index, self.key if keys is None else keys)
        return inputs, targets

    def answers(self, answer: Callable[[Tensors, Tensors], Tensors], size: int) -> dict[str, Array]:
        """Return a model's answers for all rows, by name: [..., n, ...]. They are computed in order of length.

        Args:
            answer: Inputs and targets of b rows -> answers by name [K, b, ...]; answers about tokens, which are
                [K, b, length, ...], are padded with zeros to the longest row.
            size: Largest number of rows in one call.
        """
        chunks = by_length(self.sizes, max(1, size // self.choices))
        found = [answer(*self.batch(rows)) for rows in chunks]
        order = np.argsort(np.concatenate(chunks))
        return {name: joined([each[name] for each in found])[:, order] for name in found[0]}


def _places(
    starts: torch.Tensor, counts: torch.Tensor, index: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of `length` places in each row are no padding, and their positions, both [b, length].

    Both are [b, choices, length] where rows have several choices.
    """
    offsets = torch.arange(length, device=starts.device)
    real = offsets < counts[index, ..., None]
    return real, torch.where(real, starts[index, ..., None] + offsets, 0)


def _longest(lengths: Array, rows: Array) -> int:
    """Return the length to which some rows are padded: never more than the longest row of the split."""
    return min(one_of_few(int(lengths[rows].max())), int(lengths.max()))


def _gathered(states: torch.Tensor, positions: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the states at some positions [b, length], zero at padding: [b, length, hidden], on their device."""
    found = states.index_select(0, positions.to(states.device).flatten()).to(positions.device, non_blocking=True)
    return found.view(*positions.shape, -1).masked_fill_(~real[..., None], 0)


def joined(parts: Sequence[torch.Tensor]) -> Array:
    """Return answers [K, b, ...] of several chunks of rows as one array [K, n, ...] on the host.

    Answers about tokens are padded with zeros to one length.
    """
    if parts[0].ndim > 2 and len({part.shape[2] for part in parts}) > 1:
        length = max(part.shape[2] for part in parts)
        parts = [F.pad(part, [*[0, 0] * (part.ndim - 3), 0, length - part.shape[2]]) for part in parts]
    return np.asarray(torch.cat(list(parts), dim=1).cpu().numpy())


def one_of_few(length: int) -> int:
    """Return a length rounded up to one of eight lengths between two powers of two.

    Kernels are compiled for every new shape; on a CPU in bf16 that takes a fifth of the time of a step. Each power of
    two is divided alike, so that batches of 8, 16 and 32 rows have shapes in common. Padding grows by 2 %.
    """
    step = 1 << max(0, length.bit_length() - 4)
    return -(-length // step) * step


def on_device(rows: EncodedRows, pad: int, device: torch.device, key: int = 0) -> Tokens:
    """Move encoded rows to a device; `pad` is the token id of padding, `key` that of masks."""
    starts, counts, lengths = _lengths(rows.inputs["input_ids"], device)
    if rows.choices > 1:
        starts, counts = starts.view(-1, rows.choices), counts.view(-1, rows.choices)
        lengths = lengths.reshape(-1, rows.choices).max(axis=1)
    decoder = None
    if rows.decoder_inputs:
        values = {name: _flat(each, device) for name, each in rows.decoder_inputs.items()}
        decoder = DecoderTokens(values, *_lengths(next(iter(rows.decoder_inputs.values())), device))
    return Tokens(
        values={name: _flat(values, device) for name, values in rows.inputs.items()},
        token_targets={name: _flat(values, device) for name, values in rows.token_targets.items()},
        row_targets={name: torch.from_numpy(targets).to(device) for name, targets in rows.row_targets.items()},
        starts=starts,
        counts=counts,
        lengths=lengths,
        units=rows.units,
        pad=pad,
        decoder=decoder,
        masking=rows.masking,
        key=key,
    )


def _lengths(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Array]:
    """Return the starts and the lengths of rows on the device, and the lengths on the host, each [n]."""
    lengths = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return torch.from_numpy(starts).to(device), torch.from_numpy(lengths).to(device), lengths


def _flat(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])).to(device)
