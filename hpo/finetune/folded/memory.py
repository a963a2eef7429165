"""The memory of trials in the slots of a folded model: that of one slot is measured, in a program of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from hpo.finetune.folded.program import MicroBatch, Shape
from hpo.finetune.folded.program_builder import ProgramBuilder
from hpo.finetune.memory import Memory, of_pass, size_of, size_of_model
from hpo.finetune.trial_model import counted
from hpo.recipe.training_params import TrainingParams


def estimated(builder: ProgramBuilder, slots: int, shape: Shape, free: int | None) -> Memory:
    """Estimate the memory of the trials in all slots, while there is no program.

    Args:
        builder: Builds the programs of the study.
        slots: How many trials are held.
        shape: The shape of their micro-batches.
        free: Bytes of which at most half may be used to find out; None for no limit.
    """
    setup, template = builder.setup, builder.setup.model
    parameters = dict(template.named_parameters())
    trained = size_of(parameters[name] for name in builder.trained)
    passed = of_pass(lambda rows: _pass(builder, shape, rows), shape.rows, setup.device, free)
    gc.collect()  # a program and its recording refer to each other
    return counted(
        setup,
        builder.adaptation,
        template,
        slots=slots,
        at_once=slots,
        weights=size_of_model(template) + slots * trained,
        gradients=trained,
        activations=passed,
    )


def _pass(builder: ProgramBuilder, shape: Shape, rows: int) -> Callable[[], None]:
    """Return a micro-step of one trial with a number of rows: the longest, or those of usual length if packed."""
    setup = builder.setup
    tokens = setup.measurable(setup.model)
    order = -tokens.totals
    if shape.line is not None:
        order = abs(tokens.totals - shape.line / shape.rows)
        shape = replace(shape, line=max(int(tokens.totals.max()), shape.line * rows // shape.rows))
    shape = replace(shape, rows=rows)
    program = builder.program(1, tokens, shape)
    params = {**builder.adaptation.usual(), "batch_size": rows, "frozen_layers": setup.frozen_layers[0]}
    program.load(0, setup.model, TrainingParams.of(params))
    some = shape.parts(np.argsort(order, kind="stable"), tokens.totals)[0]
    rates = [0.0] * len(program.optimizer.depths)
    program.write({0: [MicroBatch(some, len(some), 1.0, 0, rates)]})
    return partial(program.step, 0)
