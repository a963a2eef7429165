"""The layers of a folded model: each holds the weights of K slots, and computes the rows of all slots at once.

A layer's class, attributes and parameter names stay; a parameter [...] becomes [K, ...]. Rows come slot by slot
([K * b, ...], or packed tokens [K, tokens, ...]), so the shape of its weights tells a layer which rows belong to which
slot. The idea is HFTA's (Wang et al., MLSys 2021), for which models have to be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from hpo.finetune.models.token_head import TokenHead


class PerSlot(torch.Tensor):
    """A tensor [K, ...] where model code expects [...], the same for all rows.

    In a sum with rows, each slot's part is added to the slot's rows; in an einsum, rows are the letter `b`.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give each slot's rows the slot's part in sums and einsums; call every other function as it is."""
        if func is torch.einsum:
            return _einsum(*args)
        if func in _SUMS:
            own, rows = args if isinstance(args[0], PerSlot) else args[::-1]
            if not isinstance(rows, PerSlot):
                share = rows.shape[-own.ndim] // len(own)
                spread = own.as_subclass(torch.Tensor).repeat_interleave(share, dim=0).expand(rows.shape)
                if spread.requires_grad:  # gradients of one memory layout are summed in one order, for every K
                    spread.register_hook(torch.Tensor.contiguous)
                return rows + spread
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


_SUMS = {torch.add, torch.Tensor.add, torch.Tensor.add_}


def _einsum(equation: str, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Compute `einsum(equation, rows, own)` with `b` divided into slots (`z`) and a slot's rows.

    On a CPU there is one einsum for each slot, with contiguous operands and gradients. Otherwise the memory layout
    would depend on the number of slots, and AVX2's kernels sum another layout in another order.
    """
    inputs, output = equation.split("->")
    left, right = inputs.split(",")
    dim = left.index("b")
    if _one_by_one(rows):
        parts = zip(rows.chunk(len(own), dim), own.as_subclass(torch.Tensor), strict=True)
        results = [torch.einsum(equation, part.contiguous(), weight) for part, weight in parts]
        for each in results:
            if each.requires_grad:
                each.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        return torch.cat(results, output.index("b"))
    apart = rows.reshape(*rows.shape[:dim], len(own), -1, *rows.shape[dim + 1 :])
    equation = f"{left.replace('b', 'zb')},z{right}->{output.replace('b', 'zb')}"
    result: torch.Tensor = torch.einsum(equation, apart, own.as_subclass(torch.Tensor))
    return result.flatten(output.index("b"), output.index("b") + 1)


def _affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply the rows of each slot with the slot's weight [K, in, out], in one batched matmul.

    On a CPU there is one matmul for each slot. With several threads, a batch of one matrix is summed in another order
    than a batch of several, and a trial's result must not depend on the number of slots.
    """
    rows = x.reshape(len(weight), -1, x.shape[-1])
    if _one_by_one(x):
        biases = [None] * len(weight) if bias is None else bias
        y = torch.stack([_product(*own) for own in zip(rows, weight, biases, strict=True)])
    else:
        y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)
    return y.view(*x.shape[:-1], weight.shape[-1])


def _one_by_one(x: torch.Tensor) -> bool:
    return x.device.type == "cpu"


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return rows @ weight if bias is None else torch.addmm(bias, rows, weight)


class FoldedLinear(nn.Linear):
    """K linear layers: weight [K, out, in], bias [K, out]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [K * b, ..., in] to [K * b, ..., out]."""
        return _affine(input, self.weight.mT, self.bias)


class FoldedConv1D(Conv1D):
    """K of transformers' transposed linear layers: weight [K, in, out], bias [K, out]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [K * b, ..., in] to [K * b, ..., out]."""
        return _affine(x, self.weight, self.bias)


class FoldedLayerNorm(nn.LayerNorm):
    """K layer norms over the last dimension: weight and bias [K, n]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [K * b, ..., n]."""
        rows = F.layer_norm(input, self.normalized_shape, eps=self.eps).view(len(self.weight), -1, input.shape[-1])
        weight = self.weight[:, None]
        y = rows * weight if self.bias is None else torch.addcmul(self.bias[:, None], rows, weight)
        return y.view(input.shape).to(rows.dtype)  # as the plain layer: under autocast on a CPU it returns bf16


class Shared:
    """Mixed into a frozen matrix, which all slots share.

    On a CPU the rows of each slot are multiplied separately: the order in which a product is summed depends on its
    number of rows, and a trial's result must not depend on the number of slots.

    Attributes:
        slots: K.
    """

    slots: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [K * b, ..., in] to [K * b, ..., out]."""
        layer: Callable[[torch.Tensor], torch.Tensor] = super().forward  # type: ignore[misc]
        return torch.cat([layer(rows) for rows in x.chunk(self.slots)]) if _one_by_one(x) else layer(x)


class FoldedTokenHead(TokenHead, FoldedLinear):
    """K output projections: weight [K, vocabulary, hidden]."""


class SharedTokenHead(TokenHead, Shared, nn.Linear):
    """A frozen output projection that all slots share."""


class FoldedVectors:
    """Mixed into a layer that owns only vectors [n], such as an RMSNorm of any kind.

    The layer's own code runs on [K, rows, n], and gets its vectors as [K, 1, n].
    """

    def __getattr__(self, name: str) -> Any:
        """Return a parameter [K, n] as [K, 1, n]."""
        value = super().__getattr__(name)  # type: ignore[misc]
        return value[:, None] if isinstance(value, nn.Parameter) else value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to [K * b, ..., n]."""
        slots = len(next(self.parameters()))
        rows = x.reshape(slots, -1, x.shape[-1])
        y: torch.Tensor = super().forward(rows)  # type: ignore[misc]
        return y.view(x.shape)


class _Lookup(torch.autograd.Function):
    """`weight[slot, id]`, with the gradient of `F.embedding` for a weight that need not be contiguous."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        """Look ids [K, m] up in tables [K, n, d]; `padding` gets no gradient."""
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding = weight.shape, padding
        return weight[_slots(ids), ids]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        slots, size, width = ctx.shape
        rows = ids + size * _slots(ids)
        padding = -1
        if ctx.padding is not None:
            padding = ctx.padding  # the kernel leaves out one row: the first slot's padding is used for all slots
            rows = torch.where(ids == padding, padding, rows)
        flat = grads[0].reshape(-1, width)
        table = torch.ops.aten.embedding_dense_backward(flat, rows.flatten(), slots * size, padding, False)
        return table.view(slots, size, width), None, None


def _slots(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(ids), device=ids.device)[:, None]


class FoldedEmbedding(nn.Embedding):
    """K tables: weight [K, n, d]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up ids [K * b, ...], or ids [...] or [1, ...] that all rows share, such as positions."""
        slots = len(self.weight)
        if slots > 1 and (input.ndim < 2 or len(input) == 1):
            shared = input.reshape(1, -1).expand(slots, -1)
            found = self._look_up(shared).view(slots, *input.shape[-1:], -1)
            return found.as_subclass(PerSlot)
        return self._look_up(input.reshape(slots, -1)).view(*input.shape, -1)

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Lookup.apply(self.weight, ids, self.padding_idx)  # type: ignore[no-untyped-call]
        return found


class SideBySide(nn.Embedding):
    """K tables, weight [K, n, d], that model code looks up once for all rows: each id gives [K * d] columns."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up ids [...] and return [..., K * d]."""
        return F.embedding(input, self.weight.transpose(0, 1).flatten(1))
