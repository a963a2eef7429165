"""The frozen linear layers of a model, held in 8 or 4 bits (QLoRA; Dettmers et al., 2023).

A weight is held as codes and their scales, which `bitsandbytes` makes. Every pass widens it again for its products, the
backward pass too, so that no wide copy is kept between them. Products are computed in the precision of the study, and
the gradient of a layer's input is exactly that of a layer with the widened weight. LLM.int8 and `bitsandbytes.nn` round
the input of a layer as well, on some processors only; here a trial's numbers do not depend on that.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hpo.core.errors import MissingExtraError, ModelError
from hpo.finetune.folded.layers import Shared
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.models.token_head import product_dtype

DEVICES = ("cpu", "cuda")  # for which bitsandbytes has kernels that are tested
BLOCK = 64  # values that share a scale in NF4, as published


def library() -> Any:
    """Return the functions of `bitsandbytes`.

    Raises:
        MissingExtraError: It is not installed.
    """
    # On some processors it warns that an optional package for inference is missing, which is not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except ImportError:
        raise MissingExtraError("A base in few bits (base_weights)", "quantised") from None
    return bitsandbytes.functional


# ---------------------------------------------------------------- formats


class Held(Protocol):
    """A weight [out, in] in few bits, which never changes: all copies of a model have one."""

    def wide(self) -> torch.Tensor:
        """Return the weight in float32."""

    @property
    def tensors(self) -> Iterable[torch.Tensor]:
        """All that is held."""

    def __deepcopy__(self, known: Any) -> Held: ...


class _Held:
    def __deepcopy__(self, known: Any) -> Any:
        return self


class Nf4(_Held):
    """NormalFloat in 4 bits: 64 values share a scale, and the scales are held in 8 bits (double quantisation)."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._shape = weight.shape
        # A block a row: with AVX-512, bitsandbytes 0.50 widens rows of 32, 96, 160, ... values with wrong scales.
        blocks = weight.reshape(-1, BLOCK) if weight.numel() % BLOCK == 0 else weight.reshape(1, -1)
        self._codes, self._state = library().quantize_4bit(
            blocks, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )

    def wide(self) -> torch.Tensor:
        """Return the weight in float32."""
        found: torch.Tensor = library().dequantize_4bit(self._codes, self._state)
        return found.view(self._shape)

    @property
    def tensors(self) -> Iterable[torch.Tensor]:
        """Codes, scales, and the scales of scales."""
        state = self._state
        return self._codes, state.code, state.absmax, state.offset, state.state2.absmax, state.state2.code


class Int8(_Held):
    """Integers of 8 bits with a scale for each output: the weights of LLM.int8 (Dettmers et al., 2022)."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._codes, self._scales, _ = library().int8_vectorwise_quant(weight.half())  # the kernel of CUDA needs half

    def wide(self) -> torch.Tensor:
        """Return the weight in float32."""
        found: torch.Tensor = library().int8_vectorwise_dequant(self._codes, self._scales)
        return found

    @property
    def tensors(self) -> Iterable[torch.Tensor]:
        """Codes and scales."""
        return self._codes, self._scales


FORMATS: Mapping[str, Callable[[torch.Tensor], Held]] = {"int8": Int8, "nf4": Nf4}
"""Value of `base_weights` -> what holds a weight in it."""


# ---------------------------------------------------------------- in a model


class Quantised(Shared):
    """Mixed into a frozen linear layer, whose weight is held in few bits and which all slots share.

    Attributes:
        held: The weight, [out, in].
        dtype: What it was held in before.
    """

    held: Held
    dtype: torch.dtype
    slots = 1

    @property
    def weight(self) -> torch.Tensor:
        """The weight as the layer's class has it, for model code that reads it."""
        wide = self.held.wide().to(self.dtype)
        return wide.mT if isinstance(self, Conv1D) else wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [K * b, ..., in] to [K * b, ..., out]; on a CPU the rows of each slot separately, see `Shared`."""
        parts = self.slots if x.device.type == "cpu" else 1
        bias: torch.Tensor | None = self.bias  # type: ignore[attr-defined]
        rows = x.to(product_dtype(x))
        product: torch.Tensor = _Product.apply(rows, self.held, bias, parts)  # type: ignore[no-untyped-call]
        return product


class QuantisedLinear(Quantised, nn.Linear):  # type: ignore[override]  # the weight is a property
    """A linear layer."""


class QuantisedConv1D(Quantised, Conv1D):  # type: ignore[misc]
    """One of transformers' transposed linear layers."""


KINDS: Mapping[type[nn.Module], type[Quantised]] = {nn.Linear: QuantisedLinear, Conv1D: QuantisedConv1D}


class _Product(torch.autograd.Function):
    """Rows [..., in] -> rows [..., out], of a weight and a bias that are not trained."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, held: Held, bias: torch.Tensor | None, parts: int) -> torch.Tensor:
        ctx.held, ctx.parts = held, parts
        weight, bias = held.wide().to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        return torch.cat([F.linear(part, weight, bias) for part in rows.chunk(parts)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight = ctx.held.wide().to(gradient.dtype)
        return torch.cat([part @ weight for part in gradient.chunk(ctx.parts)]), None, None, None


def quantise(model: PreTrainedModel, lora: Lora, form: str) -> list[str]:
    """Hold the weights of a model's frozen linear layers in few bits, in place.

    Embeddings, norms, the projection onto the vocabulary, what is trained in full, and weights that other modules use
    too, stay as they are.

    Args:
        model: A model that `lora.install` changed, on its device.
        lora: Where its adapters are.
        form: A key of `FORMATS`.

    Returns:
        The names of the layers.

    Raises:
        MissingExtraError: `bitsandbytes` is not installed.
        ModelError: The model has no such layers, or is on another device than `DEVICES`.
    """
    if model.device.type not in DEVICES:
        raise ModelError(
            f"base_weights: {form} is for {' and '.join(DEVICES)}, not {model.device.type}; leave it out, or write "
            f"device: cpu"
        )
    library()
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = {
        name: layer
        for name, layer in lora.layers(model, ["all_linear"]).items()
        if type(layer) in KINDS and owners[id(layer.weight)] == 1 and not layer.weight.requires_grad
    }
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no frozen linear layers that can be held in {form}; leave base_weights out"
        )
    for layer in layers.values():
        _quantise(layer, FORMATS[form])
    return list(layers)


def _quantise(layer: nn.Linear | Conv1D, form: Callable[[torch.Tensor], Held]) -> None:
    weight = layer.weight.data
    del layer.weight
    changed: Any = layer
    changed.__class__ = KINDS[type(layer)]
    changed.held = form((weight.mT if isinstance(layer, Conv1D) else weight).float().contiguous())
    changed.dtype = weight.dtype


def size(model: nn.Module) -> int:
    """Return the bytes of a model's parameters, those in few bits as they are held; shared memory counts once."""
    held = [tensor for module in model.modules() if isinstance(module, Quantised) for tensor in module.held.tensors]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *held]}.values())
