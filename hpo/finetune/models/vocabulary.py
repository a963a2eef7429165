"""Train only the embedding rows that the data uses.

The embedding table of a small model is half of its parameters, and a study's texts use a fraction of it. A row that
no text uses gets no gradient. AdamW only decays it by a factor, one number for each trial, which is applied when
weights are written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

Array = np.ndarray[Any, Any]

# The ids of special tokens must not change, because models compare ids with them, so rows up to the largest stay. If
# that is more than this number of rows, the table is not cut.
MOST_KEPT = 4096


class Vocabulary:
    """The rows of a model's token embedding that are used; all rows where the table cannot be cut.

    Args:
        model: The model; its table is cut in place.
        used: The token ids of all texts; None if the table is not to be cut.

    Attributes:
        name: Name of the table; None if there is no table that can be cut.
        rows: Numbers of the rows that are used; None if the table is not cut.
        whole: Copy of the whole table; there is none if the table is not cut.
    """

    def __init__(self, model: PreTrainedModel, used: Array | None) -> None:
        self.name = _table(model)
        self.rows: torch.Tensor | None = None
        first = _special(model.config) + 1
        if self.name is None or used is None or first > MOST_KEPT:
            return
        table = model.get_parameter(self.name)
        rows = np.union1d(np.arange(first), used)
        if len(rows) > 0.9 * len(table):
            return
        self.rows = torch.from_numpy(rows)
        self.whole = table.detach().clone()
        self.cut(model)

    def cut(self, model: PreTrainedModel) -> None:
        """Remove the unused rows from a model's table."""
        if self.rows is None:
            return
        module = model.get_input_embeddings()
        assert isinstance(module, nn.Embedding)
        module.weight = nn.Parameter(module.weight.detach()[self.rows.to(module.weight.device)])
        module.num_embeddings = len(self.rows)

    def renumber(self, ids: torch.Tensor) -> torch.Tensor:
        """Return token ids as row numbers of the cut table."""
        if self.rows is None:
            return ids
        return torch.searchsorted(self.rows.to(ids.device), ids.long()).to(ids.dtype)

    def restored(self, weights: dict[str, torch.Tensor], decay: float) -> dict[str, torch.Tensor]:
        """Return weights with the whole table in place of the cut one.

        Args:
            weights: Name -> tensor, of a model whose table is cut.
            decay: Factor that weight decay has left of an unused row: the product of 1 - rate x decay over the steps.
        """
        if self.rows is None or self.name is None:
            return weights
        whole = self.whole * decay
        whole[self.rows.to(whole.device)] = weights[self.name]
        return {**weights, self.name: whole}


def _table(model: PreTrainedModel) -> str | None:
    """Return the name of the token embedding, if it is a plain table that no other module shares."""
    module = model.get_input_embeddings()
    if type(module) is not nn.Embedding or module.max_norm is not None:
        return None
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is module.weight]
    return names[0] if len(names) == 1 else None


def _special(config: Any) -> int:
    """Return the largest special token id that the model's configuration names, or 0."""
    return max((i for i in _ids(config) if isinstance(i, int)), default=0)


def _ids(config: Any) -> Iterable[Any]:
    for key in ("pad", "bos", "eos", "cls", "sep", "unk", "mask", "decoder_start"):
        value = getattr(config, f"{key}_token_id", None)
        yield from value if isinstance(value, list) else [value]
