"""Scores of tokens from the last projection of a model that gives out tokens, without the logits of a whole batch.

Logits of the whole vocabulary are the largest tensor of a language model: 32 rows of 256 tokens with a vocabulary of
50,000 have 1.6 GB of them in float32, and as much again for their gradient. Here the model's output projection is given
the labels and computes `hpo.tasks.language.scores.COLUMNS` from logits of `CHUNK` values at a time, which are dropped.

* If the projection is trained, the backward pass computes the logits of a chunk again, and adds up the gradients of the
  weight. If it is frozen, the forward pass already multiplies the logits' gradient with the weight, [tokens, hidden].
* The tokens of each slot are computed by themselves, so a trial's numbers do not depend on the other slots. On a CPU
  only trained tokens are computed. On other devices all are, those of the packed line where tokens are packed: shapes
  must not depend on the labels there, because nothing may wait for the device.

The method is that of Liger Kernel's FusedLinearCrossEntropy (Hsu et al., 2024), which computes the gradients of a
trained projection in the forward pass instead; here they have a weight that is known in the backward pass only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from hpo.finetune.device import widened
from hpo.finetune.folded.packing import current as packed_now
from hpo.finetune.models import output_check
from hpo.tasks.language.scores import COLUMNS
from hpo.tasks.rows import IGNORED
from hpo.tasks.task import Task

Tensors = Mapping[str, torch.Tensor]  # by name

CHUNK = 1 << 24  # values of logits that are held at once: 64 MiB in float32


def outputs(task: Task, model: PreTrainedModel, inputs: Tensors, targets: Tensors) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a forward pass that a task reads, in float32 or wider.

    Args:
        task: The task. If its models give out tokens, `result.logits` are scores of tokens [rows, tokens, 3].
        model: Its model.
        inputs: Name -> [rows, ...], what the model takes.
        targets: Name -> [rows, ...]; `labels` [rows, tokens] among them if the models give out tokens.
    """
    if not task.emits_tokens:
        return tuple(widened(output) for output in task.outputs(model(**inputs)))
    labels = targets["labels"]
    with _given(labels):
        result = model(**inputs)
    if not isinstance(projection(model), TokenHead):
        result.logits = scores_of(widened(result.logits), labels)
    return tuple(widened(output) for output in task.outputs(result))


def install(model: PreTrainedModel) -> bool:
    """Let a model's output projection compute scores of tokens where labels are given; elsewhere it gives logits.

    Returns:
        Whether it does. It does not if the projection is no plain linear layer, or if the model changes the logits
        afterwards: then `outputs` computes the scores from all logits, which takes more memory.
    """
    head = projection(model)
    if isinstance(head, TokenHead):
        return True
    if type(head) is not nn.Linear:
        return False
    inputs = output_check.inputs(model)
    labels = _some_labels(inputs.get("decoder_input_ids", inputs["input_ids"]))
    kind, training = type(model), model.training
    model.train(False)
    head.__class__ = TokenHead
    head.register_buffer("logits_bias", None)
    if isinstance(added := getattr(model, "final_logits_bias", None), torch.Tensor):
        head.register_buffer("logits_bias", added.view(-1), persistent=False)
        model.__class__ = type(kind.__name__, (_BiasInHead, kind), {"__module__": kind.__module__})
    same = _same(model, inputs, labels)
    if not same:
        head.__class__, model.__class__ = nn.Linear, kind
        del head.logits_bias
    model.train(training)
    return same


@torch.no_grad()
def _same(model: PreTrainedModel, inputs: Tensors, labels: torch.Tensor) -> bool:
    """Return whether the scores that a model's head computes are those of the model's logits."""
    wanted = scores_of(widened(model(**inputs).logits), labels)
    try:
        with _given(labels):
            found = model(**inputs).logits
    except (RuntimeError, IndexError, ValueError):  # the model's code needs logits
        return False
    return output_check.same({"scores": wanted}, {"scores": found})


def _some_labels(ids: torch.Tensor) -> torch.Tensor:
    """Return labels for the rows of a check; the first token of each row has none."""
    return ids.masked_fill(torch.arange(ids.shape[1], device=ids.device) == 0, IGNORED)


def projection(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer that turns hidden states into logits of the vocabulary, if the model has one."""
    found: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return found


def scores_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the scores of tokens [rows, tokens, 3] from logits [rows, tokens, vocabulary], as a head computes them."""
    valid, target = labels != IGNORED, labels.clamp(min=0)
    whole = logits.logsumexp(-1)
    own = whole - logits.gather(-1, target[..., None]).squeeze(-1)
    scores = torch.stack([own, whole - logits.mean(-1), (logits.argmax(-1) == target).to(logits.dtype)], dim=-1)
    return torch.where(valid[..., None], scores, 0)


# ---------------------------------------------------------------- in a model


class _Labels(threading.local):
    now: torch.Tensor | None = None


_labels = _Labels()


@contextmanager
def _given(labels: torch.Tensor) -> Iterator[None]:
    """Let the heads that run within it compute scores for labels [rows, tokens]; trials train in threads."""
    before, _labels.now = _labels.now, labels
    try:
        yield
    finally:
        _labels.now = before


class _BiasInHead:
    """Mixed into a model that adds `final_logits_bias` to its logits (BART, Marian): the head adds it to scores."""

    def __getattr__(self, name: str) -> Any:
        """Return zero for the bias where scores are computed; the buffer stays as published."""
        value = super().__getattr__(name)  # type: ignore[misc]
        return value.new_zeros(()) if name == "final_logits_bias" and _labels.now is not None else value


class TokenHead(nn.Linear):
    """An output projection that computes scores of tokens where labels are given.

    Attributes:
        weight: [vocabulary, hidden], or [K, vocabulary, hidden] in a folded model.
        bias: [vocabulary], [K, vocabulary], or None.
        logits_bias: [vocabulary], what the model adds to the logits in float32; or None.
        slots: K, if all slots share the weight.
    """

    logits_bias: torch.Tensor | None
    slots: int = 1

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map hidden states [rows, tokens, hidden] to scores [rows, tokens, 3]; without labels, to logits."""
        labels = _labels.now
        if labels is None:
            return super().forward(input)
        dtype = product_dtype(input)
        own = self.weight.ndim == 3
        slots = len(self.weight) if own else self.slots
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if not weight.requires_grad:  # cast once for all slots
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        weights = weight.unbind() if own else [weight] * slots
        biases = [None] * slots if bias is None else bias.unbind() if own else [bias] * slots
        packing = None if _only_trained(input) else packed_now()
        hidden = input
        if packing is not None:
            hidden = packing.to_line(input)
            labels = torch.where(packing.filled, packing.to_line(labels), IGNORED)
        parts = zip(_apart(hidden, slots), _apart(labels, slots), weights, biases, strict=True)
        scores = torch.stack([self._of_a_slot(*part, dtype) for part in parts])
        if packing is not None:
            return packing.to_rows(scores)
        return scores.view(*input.shape[:-1], len(COLUMNS))

    def _of_a_slot(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return the scores [n, 3] of a slot's tokens."""
        if not _only_trained(hidden):
            return _scores(hidden, weight, bias, labels, self.logits_bias, dtype)
        trained = (labels != IGNORED).nonzero().squeeze(1)
        found = _scores(hidden.index_select(0, trained), weight, bias, labels[trained], self.logits_bias, dtype)
        return found.new_zeros(len(labels), len(COLUMNS)).index_copy(0, trained, found)


def _apart(x: torch.Tensor, slots: int) -> tuple[torch.Tensor, ...]:
    """Return [K * b, tokens, ...] as the tokens of each slot, [b * tokens, ...]."""
    return x.reshape(slots, -1, *x.shape[2:]).unbind()


def _only_trained(x: torch.Tensor) -> bool:
    """Return whether only tokens that have a label are computed; to find them, the host waits for the device."""
    return x.device.type == "cpu"


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer multiplies."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype


def _scores(*arguments: Any) -> torch.Tensor:
    found: torch.Tensor = _Scores.apply(*arguments)  # type: ignore[no-untyped-call]
    return found


class _Scores(torch.autograd.Function):
    """Hidden states [n, hidden] and labels [n] -> scores [n, 3], zero where there is no label."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        offset: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        valid, target = labels != IGNORED, labels.clamp(min=0)
        trained = any(ctx.needs_input_grad[1:3])
        toward = None  # the gradient of `loss` with respect to the hidden states
        if ctx.needs_input_grad[0] and not trained:
            toward = hidden.new_empty(hidden.shape, dtype=dtype)
        scores = hidden.new_empty(len(hidden), len(COLUMNS), dtype=torch.promote_types(hidden.dtype, torch.float32))
        product = _Product(weight, bias, offset, dtype)
        for part in _chunks(len(hidden), len(weight)):
            logits, own = product.logits(hidden[part]), target[part, None]
            whole = logits.logsumexp(1)
            scores[part, 0] = whole - logits.gather(1, own).squeeze(1)
            scores[part, 1] = whole - logits.mean(1)
            scores[part, 2] = (logits.argmax(1) == target[part]).to(scores.dtype)
            if toward is not None:
                slope = logits.sub_(whole[:, None]).exp_()
                slope.scatter_add_(1, own, -torch.ones_like(own, dtype=slope.dtype))
                toward[part] = slope.to(dtype) @ product.weight
        ctx.save_for_backward(None if toward is not None else hidden, weight, bias, target, offset, valid, toward)
        ctx.dtype, ctx.of_hidden = dtype, hidden.dtype
        return scores.masked_fill_(~valid[:, None], 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, target, offset, valid, toward = ctx.saved_tensors
        gradient = torch.where(valid[:, None], gradient, 0)
        loss, mean_loss = gradient[:, :1], gradient[:, 1:2]
        if toward is not None:
            return _toward_hidden(toward, weight, target, loss, mean_loss).to(ctx.of_hidden), *[None] * 5
        product = _Product(weight, bias, offset, ctx.dtype)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for part in _chunks(len(hidden), len(weight)):
            slope = product.logits(hidden[part])
            slope = slope.sub_(slope.logsumexp(1, keepdim=True)).exp_().mul_(loss[part] + mean_loss[part])
            slope.sub_(mean_loss[part] / len(weight)).scatter_add_(1, target[part, None], -loss[part])
            if of_bias is not None:
                of_bias += slope.sum(0)
            slope = slope.to(ctx.dtype)
            if of_hidden is not None:
                of_hidden[part] = slope @ product.weight
            if of_weight is not None:
                of_weight += slope.T @ hidden[part].to(ctx.dtype)
        return of_hidden, of_weight, of_bias, None, None, None


class _Product:
    """A linear layer in the dtype of its products.

    Args:
        weight: [vocabulary, hidden].
        bias: [vocabulary], or None.
        offset: [vocabulary], added to the logits in float32 or wider; or None.
        dtype: Of the product.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, offset: torch.Tensor | None, dtype: torch.dtype
    ) -> None:
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self._offset = offset

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of some tokens in float32 or wider, in memory of their own."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = widened(F.linear(hidden.to(self.weight.dtype), self.weight, self.bias))
        return logits if self._offset is None else logits.add_(self._offset)


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Yield slices of tokens whose logits are at most `CHUNK` values."""
    size = max(1, CHUNK // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _toward_hidden(
    toward: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, loss: torch.Tensor, mean_loss: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of hidden states in front of a frozen product.

    With p the probabilities, y the target and W the weight: d loss = p W - W[y], which is `toward`, and
    d mean_loss = p W - mean(W) = toward + W[y] - mean(W).
    """
    found = toward * (loss + mean_loss)
    if _only_trained(toward) and not mean_loss.any():  # there is no label smoothing
        return found
    return found + (weight[target] - weight.mean(0, dtype=found.dtype)) * mean_loss
