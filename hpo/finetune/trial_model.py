"""What engines do with the model of one trial: predict with it, measure its speed, count its memory."""

from __future__ import annotations

import logging
import time

from transformers import PreTrainedModel

from hpo.finetune.adaptation import Adaptation
from hpo.finetune.data.batches import epoch_batches
from hpo.finetune.memory import Memory, size_of
from hpo.finetune.models import frozen, token_head
from hpo.finetune.setup import Setup
from hpo.tasks.task import Predictions

log = logging.getLogger(__name__)


def predict_whole(setup: Setup, model: PreTrainedModel, split: str) -> Predictions:
    """Return the predictions of a whole model, whose vocabulary is cut to the study's."""
    return setup.predict(whole_on_device(setup, model), split)


def whole_on_device(setup: Setup, model: PreTrainedModel) -> PreTrainedModel:
    """Return a whole model on the device, able to score tokens, with the study's vocabulary; it is changed in place."""
    model.to(setup.device)  # type: ignore[arg-type]
    if setup.task.emits_tokens:
        token_head.install(model)
    setup.vocabulary.cut(model)
    return model


def measured_seconds(setup: Setup, model: PreTrainedModel) -> float:
    """Return the seconds per example of forward and backward passes over a few batches; no weight is changed."""
    log.info("measuring how fast a trial trains")
    tokens = setup.measurable(model)
    batches = epoch_batches(tokens.sizes, min(16, len(tokens.lengths)), 0, 0)
    model.train()
    examples, began = 0, 0.0
    for i, rows in enumerate(batches[:6]):
        if i == 2:  # the first two warm up
            examples, began = 0, time.perf_counter()
        inputs, targets = tokens.batch(rows)
        with setup.autocast():
            outputs = setup.outputs(model, inputs, targets)
        loss = setup.task.loss(outputs, targets, 0.0, None).sum() / max(1, tokens.units[rows].sum())
        loss.backward()
        model.zero_grad(set_to_none=True)
        examples += len(rows)
    return (time.perf_counter() - began) / examples if began else 0.0


def counted(
    setup: Setup,
    adaptation: Adaptation,
    model: PreTrainedModel,
    *,
    slots: int,
    at_once: int,
    weights: int,
    gradients: int,
    activations: int,
) -> Memory:
    """Return the memory of all slots, from what one trial needs.

    Args:
        setup: What trials share.
        adaptation: What of the model is trained.
        model: The model of one trial.
        slots: How many trials are held.
        at_once: How many of them have gradients and activations at the same time.
        weights: Bytes of the weights of all trials.
        gradients: Bytes of the gradients of one trial.
        activations: Bytes that its pass allocates besides.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    owned = adaptation.owned(frozen.above(model, model.state_dict()), trained)
    kept = size_of(setup.initial.pristine.values())
    if setup.vocabulary.rows is not None:
        kept += setup.vocabulary.whole.nbytes
    rows = sum(tokens.nbytes for tokens in setup.tokens.values())
    if setup.frozen is not None:
        rows += setup.frozen.bytes * sum(layers > 0 for layers in setup.frozen_layers)
    return Memory(
        weights=weights + kept,
        gradients=at_once * gradients,
        moments=slots * 2 * gradients,
        best_weights=slots * sum(tensor.nbytes for tensor in owned.values()),
        rows=rows,
        activations=at_once * activations,
        checkpoint=slots * 4 * gradients if setup.device.type == "cpu" else 0,  # weights, moments, best weights
    )
