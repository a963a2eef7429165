"""Gradient checkpointing: a layer's activations are dropped after its forward pass, and computed again in the backward.

Between the passes each layer keeps its input only, so the memory of activations is that of one layer and of all inputs.
The layers are those that transformers marks, and PyTorch computes them again (`torch.utils.checkpoint`). What a forward
pass takes from its thread is given to the repetition, which runs in another thread on CUDA: the keys and numbers of
dropout masks, and the packing. So the repetition is equal to the bit, and the gradients are.

The method is that of Chen et al., 2016 (Training Deep Nets with Sublinear Memory Cost).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hpo.core.errors import ModelError
from hpo.finetune.folded import packing
from hpo.finetune.models import dropout


def install(model: PreTrainedModel, own_masks: bool) -> None:
    """Let a model's layers be computed again in the backward pass of training.

    Args:
        model: The model; its copies are changed too.
        own_masks: Whether all dropout masks are drawn from keys. If not, the state of torch's generator is kept for
            each layer.

    Raises:
        ModelError: transformers marks no layers of the model.
    """
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise ModelError(
            f"gradient_checkpointing: transformers can compute no layers of {type(model).__name__} again in the "
            "backward pass; leave it out, and write a smaller micro_batch to save memory"
        )
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=not own_masks, context_fn=_contexts)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):  # a layer, or a stack of them, which then keeps no cache of keys
            module.gradient_checkpointing = True  # type: ignore[assignment]
            module._gradient_checkpointing_func = again  # type: ignore[assignment]


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a layer's forward pass, which begins now, and of its repetition."""
    return nullcontext(), _AsNow()


class _AsNow(AbstractContextManager[None]):
    """Within it, the settings of this thread's forward pass are those of the moment when it was made."""

    def __init__(self) -> None:
        self._drawing, self._packing = dropout.drawing(), packing.current()
        self._entered = ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(dropout.drawing_as(self._drawing))
        self._entered.enter_context(packing.packed(self._packing))

    def __exit__(self, *error: object) -> None:
        self._entered.close()
