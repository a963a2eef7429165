"""What a model costs where it is used, whatever its weights: its latency and its size."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from hpo.finetune.memory import size_of
from hpo.finetune.models.loading import load_model
from hpo.finetune.setup import Setup

ROWS = 32  # of the validation split, evenly spaced
WARM_UP = 4  # passes that are not counted


@torch.no_grad()
def measured(setup: Setup) -> dict[str, float]:
    """Return the `MODEL_COSTS` of a model as it is exported: with its whole vocabulary, and adapters merged.

    `latency_ms` is the median of the milliseconds of a forward pass over one row without padding, on the study's device
    with its threads, in the precision of the weights. `size_mb` are the weights, in 1e6 bytes; shared ones count once.
    """
    assert isinstance(setup.config.model, str)
    pad = setup.tokenizer.pad_token_id
    model, _ = load_model(setup.config.model, setup.folder, setup.task, setup.data.labels, pad)
    model.to(setup.device).train(False)  # type: ignore[arg-type]
    tokens = setup.tokens["validation"]
    rows = np.linspace(0, len(tokens.lengths) - 1, min(ROWS, len(tokens.lengths))).astype(int)
    batches = [tokens.batch(rows[n : n + 1], int(tokens.lengths[row]))[0] for n, row in enumerate(rows)]
    seconds = []
    for inputs in [*batches[:1] * WARM_UP, *batches]:
        _wait(setup.device)
        began = time.perf_counter()
        model(**inputs)
        _wait(setup.device)
        seconds.append(time.perf_counter() - began)
    size = size_of(model.state_dict().values())
    return {"latency_ms": round(1e3 * median(seconds[WARM_UP:]), 3), "size_mb": round(size / 1e6, 3)}


def _wait(where: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if where.type != "cpu":
        getattr(torch, where.type).synchronize()
