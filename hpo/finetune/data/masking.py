"""Masks of tokens for masked language models, drawn on the device.

What is masked of a row is a hash of a key, of the row's number and of the token's position. So it depends neither on
the rows of the batch, nor on padding, nor on the engine: a folded trial has the masks of a separate one, and nothing of
a random generator has to be saved. Nothing waits for the device.
"""

from __future__ import annotations

import torch

from hpo.finetune.models.dropout import GOLDEN, mixed
from hpo.tasks.rows import IGNORED, Masking

Tensors = dict[str, torch.Tensor]

# Of the masked tokens 80 % become the mask token, 10 % another token, and 10 % stay (Devlin et al., 2019, 3.1).
HIDDEN, REPLACED = round(0.8 * 2**16), round(0.9 * 2**16)
_LAST = torch.iinfo(torch.int64).max


def mask(
    inputs: Tensors, targets: Tensors, masking: Masking, index: torch.Tensor, keys: torch.Tensor | int
) -> tuple[Tensors, Tensors]:
    """Return inputs and targets with some tokens masked; the others have no target.

    Args:
        inputs: `input_ids` [b, length] among them.
        targets: `labels` [b, length], the tokens that may be masked, `IGNORED` elsewhere; and `masked` [b], how many
            are: at least one, and no more than there are.
        masking: What stands in their place.
        index: [b] numbers of the rows in their split.
        keys: [b] int64, or one for all rows: where keys differ, so do the masks.
    """
    labels, ids = targets["labels"], inputs["input_ids"]
    positions = torch.arange(labels.shape[1], device=labels.device)

    def draws(number: int) -> torch.Tensor:
        """Return uniform int64 [b, length]."""
        of_rows = mixed(mixed(torch.add(index * GOLDEN, keys)) + number)
        return mixed(torch.add(of_rows[:, None], positions, alpha=GOLDEN))

    order = torch.where(labels != IGNORED, draws(0), _LAST)
    last = order.sort(dim=1).values.gather(1, targets["masked"][:, None] - 1)
    chosen = order <= last
    kind = draws(1).bitwise_and_(2**16 - 1)
    replaced = torch.where(
        kind < HIDDEN, masking.token, torch.where(kind < REPLACED, draws(2) % masking.vocabulary, ids)
    )
    return (
        inputs | {"input_ids": torch.where(chosen, replaced, ids)},
        targets | {"labels": torch.where(chosen, labels, IGNORED)},
    )
