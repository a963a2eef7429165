"""What some model families need beyond folded layers: for relative positions, and for weights outside of layers.

Each class is mixed into the module that it is named after, so that transformers' own code runs where possible.
`self` is a module whose layers are folded already.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from hpo.finetune.folded.layers import PerSlot, Shared, SideBySide
from hpo.finetune.lora.adapters import Adapter


class _Mixin:
    """For the type checker: these attributes belong to the module that a class is mixed into."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def forward(self, *args: Any, **kwargs: Any) -> Any: ...
        def compute_position_bias(self, *args: Any, **kwargs: Any) -> Any: ...
        def get_rel_pos(self, *args: Any, **kwargs: Any) -> Any: ...

        disentangled_attention_bias: Any


def _spread(bias: torch.Tensor, slots: int, rows: int) -> torch.Tensor:
    """Give every row its slot's position bias: [1, K * heads, q, k] -> [rows, heads, q, k]."""
    return bias.view(slots, -1, *bias.shape[2:]).repeat_interleave(rows // slots, dim=0)


class FoldedT5Attention(_Mixin):
    """The first layer's table of relative positions, looked up once for all slots."""

    def folded(self) -> None:
        """Change the table's class."""
        if self.has_relative_attention_bias:
            self.relative_attention_bias.__class__ = SideBySide

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend, with a position bias for every row."""
        if position_bias is None and self.has_relative_attention_bias:
            rows, length, _ = hidden_states.shape
            seen = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
            bias = self.compute_bias(length, seen + length, hidden_states.device, seen)
            position_bias = _spread(bias, len(self.relative_attention_bias.weight), rows)
        return super().forward(hidden_states, mask, key_value_states, position_bias, past_key_values, **kwargs)


class FoldedMPNetEncoder(_Mixin):
    """The same for MPNet, whose encoder has the table."""

    def folded(self) -> None:
        """Change the table's class."""
        self.relative_attention_bias.__class__ = SideBySide

    def compute_position_bias(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the bias of every row of [K * b, length, ...]."""
        bias = super().compute_position_bias(x[:1], *args, **kwargs)
        return _spread(bias, len(self.relative_attention_bias.weight), len(x))


def _weights(layer: nn.Linear) -> dict[str, torch.Tensor]:
    """Return a folded layer's parameters, each [K, ...]; shared parameters are repeated, and adapters added."""
    both = {"weight": layer.weight, "bias": layer.bias}  # a weight in few bits is no parameter
    own: dict[str, torch.Tensor] = {name: p for name, p in both.items() if p is not None}
    if isinstance(layer, Shared):
        own = {name: p.expand(layer.slots, *p.shape) for name, p in own.items()}
        if isinstance(adapter := getattr(layer, "adapter", None), Adapter):
            own["weight"] = own["weight"] + adapter.scale[..., None] * (adapter.B @ adapter.A)
    return own


class FoldedDisentangledSelfAttention(_Mixin):
    """DeBERTa-v2's attention, whose projections are also applied to the table of relative positions.

    The table is [K, buckets, hidden], or [buckets, hidden] if it is frozen. An adapter's dropout does not apply to it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend; slots with own projections have a frozen table each, because its dropout differs between slots."""
        table = kwargs.get("rel_embeddings")
        if table is not None and table.ndim == 2 and not isinstance(self.query_proj, Shared):
            kwargs["rel_embeddings"] = table.expand(len(self.query_proj.weight), *table.shape)
        return super().forward(*args, **kwargs)

    def disentangled_attention_bias(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        relative_pos: torch.Tensor,
        rel_embeddings: torch.Tensor,
        scale_factor: int,
    ) -> torch.Tensor:
        """Return the bias [K * b * heads, length, length]; each slot's is computed with its own projections."""
        code = super().disentangled_attention_bias.__func__
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        settings["transpose_for_scores"] = self.transpose_for_scores
        weights = {name: _weights(m) for name, m in self.named_children() if isinstance(m, nn.Linear)}

        def of_one_slot(query: torch.Tensor, key: torch.Tensor, table: torch.Tensor, weights: Any) -> Any:
            linears = {name: partial(F.linear, **own) for name, own in weights.items()}
            return code(SimpleNamespace(**settings, **linears), query, key, relative_pos, table, scale_factor)

        slots = len(weights["query_proj"]["weight"])
        table = rel_embeddings.expand(slots, *rel_embeddings.shape[-2:])
        query, key = (x.view(slots, -1, *x.shape[1:]) for x in (query_layer, key_layer))
        bias: torch.Tensor = torch.vmap(of_one_slot)(query, key, table, weights)
        return bias.flatten(0, 1)


class CachedRelativePositions(_Mixin):
    """DeBERTa-v2's encoder with cached buckets of relative positions.

    To compute them takes numbers from the host, which a recorded program cannot read.
    """

    def folded(self) -> None:
        """Begin with an empty cache."""
        self.cached_positions: dict[int, torch.Tensor] = {}  # by length

    def get_rel_pos(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the buckets [1, length, length]; cached in training, where all batches have the same shape."""
        if not self.training or any(given is not None for given in (*args, *kwargs.values())):
            return super().get_rel_pos(hidden_states, *args, **kwargs)
        length = hidden_states.shape[-2]
        if length not in self.cached_positions:
            self.cached_positions[length] = super().get_rel_pos(hidden_states)
        return self.cached_positions[length]


class FoldedXLNetAttention(_Mixin):
    """XLNet's attention, which owns its weights and uses them in einsums and sums."""

    def __getattr__(self, name: str) -> Any:
        """Return a parameter [K, ...] as one of which each slot's rows get their part."""
        value = super().__getattr__(name)
        return value.as_subclass(PerSlot) if isinstance(value, nn.Parameter) else value


class FoldedXLNetModel(_Mixin):
    """XLNet's rows are in the second dimension: every layer in it transposes its input, and its output back."""

    def folded(self) -> None:
        """Let the layers transpose their inputs."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | Adapter):
                module.__class__ = type(module.__class__.__name__, (_Transposed, module.__class__), {})


class _Transposed(_Mixin):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


# By the last part of the module's name and the class's name: two families have classes of the same name.
FAMILIES: dict[str, type] = {
    "modeling_deberta_v2.DebertaV2Encoder": CachedRelativePositions,
    "modeling_deberta_v2.DisentangledSelfAttention": FoldedDisentangledSelfAttention,
    "modeling_mpnet.MPNetEncoder": FoldedMPNetEncoder,
    "modeling_mt5.MT5Attention": FoldedT5Attention,
    "modeling_t5.T5Attention": FoldedT5Attention,
    "modeling_xlnet.XLNetModel": FoldedXLNetModel,
    "modeling_xlnet.XLNetRelativeAttention": FoldedXLNetAttention,
}

# The same for modules with frozen weights, whose trials differ in adapters only.
ADAPTED_FAMILIES: dict[str, type] = {
    "modeling_deberta_v2.DebertaV2Encoder": CachedRelativePositions,
    "modeling_deberta_v2.DisentangledSelfAttention": FoldedDisentangledSelfAttention,
    "modeling_xlnet.XLNetModel": FoldedXLNetModel,
}
