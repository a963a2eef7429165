"""The memory of trials in the slots of a folded model: that of one slot is measured, in a program of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hpo.finetune.folded.program import MicroBatch
from hpo.finetune.memory import Memory, of_pass, size_of, size_of_model
from hpo.finetune.trial_model import counted
from hpo.recipe.training_params import TrainingParams

if TYPE_CHECKING:
    from hpo.finetune.folded.engine import FoldedEngine


def estimated(engine: FoldedEngine, free: int | None) -> Memory:
    """Estimate the memory of the trials in all slots of an engine that has no program yet.

    Args:
        engine: The engine.
        free: Bytes of which at most half may be used to find out; None for no limit.
    """
    setup, template = engine.setup, engine.setup.model
    parameters = dict(template.named_parameters())
    trained = size_of(parameters[name] for name in engine.trained)
    passed = of_pass(lambda rows: _pass(engine, rows), engine.shape().rows, setup.device, free)
    gc.collect()  # a program and its recording refer to each other
    return counted(
        setup,
        engine.adaptation,
        template,
        slots=engine.slots,
        at_once=engine.slots,
        weights=size_of_model(template) + engine.slots * trained,
        gradients=trained,
        activations=passed,
    )


def _pass(engine: FoldedEngine, rows: int) -> Callable[[], None]:
    """Return a micro-step of one trial with a number of rows: the longest, or those of usual length if packed."""
    setup, template, shape = engine.setup, engine.setup.model, engine.shape()
    tokens = setup.measurable(template)
    order = -tokens.totals
    if shape.line is not None:
        order = abs(tokens.totals - shape.line / shape.rows)
        shape = replace(shape, line=max(int(tokens.totals.max()), shape.line * rows // shape.rows))
    shape = replace(shape, rows=rows)
    program = engine.program_of(template, 1, tokens, shape)
    params = {**engine.adaptation.usual(), "batch_size": rows, "frozen_layers": setup.frozen_layers[0]}
    program.load(0, template, TrainingParams.of(params))
    some = shape.parts(np.argsort(order, kind="stable"), tokens.totals)[0]
    rates = [0.0] * len(program.optimizer.depths)
    program.write({0: [MicroBatch(some, len(some), 1.0, 0, rates)]})
    return partial(program.step, 0)
