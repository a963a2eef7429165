"""The training loop of transformers' examples, which a trial is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from hpo.core.trainer import TrialSpec
from hpo.finetune import trial_start

# As the examples train: no clipping, no warm-up.
PARAMS: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 16, "dropout": 0.0, "weight_decay": 0.0}
PARAMS |= {"warmup_ratio": 0.0, "schedule": "linear", "max_grad_norm": 1e9}


def loaded(array: Any, params: dict[str, Any] = PARAMS) -> tuple[Any, list[Any]]:
    """Load a trial into an array, and return its slot and the rows of each of its batches."""
    array.load(0, TrialSpec(0, params, 1))
    slot = array.engine.occupied[0]
    return slot, list(trial_start.batches(array.setup, slot, array.engine.window))


def without_dropout(auto: Any, folder: Path) -> PreTrainedModel:
    """Return a model of a folder in float64, in training, whose dropout draws nothing."""
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float64).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train(model: PreTrainedModel, batches: Sequence[Any], loss: Callable[[Any], torch.Tensor]) -> None:
    """Train a model on batches; `loss` takes the rows of one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PARAMS["learning_rate"], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    for batch in batches:
        loss(batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def assert_same_weights(slot: Any, model: PreTrainedModel, rounding: tuple[str, ...] = ("key.bias",)) -> None:
    """The weights of a trial are those of a model, but for the embeddings of words and for names with such ends.

    The study's table of them has fewer rows; the gradients of `rounding` are only rounding.
    """
    expected = model.state_dict()
    for name, weight in slot.model.state_dict().items():
        if "word_embeddings" not in name and not name.endswith(rounding):
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)
