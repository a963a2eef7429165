"""Learning-rate schedules: functions of the step, and the dict that names them.

Each maps (step, warm-up steps, total steps, params) to a factor of the peak learning rate. They are equal to the
schedules of the same names in `transformers.optimization`, as a test shows step by step. There, `constant` is called
`constant_with_warmup`, and `polynomial` ends at 1e-7 unless `lr_end` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class ScheduleParams(Protocol):
    """The hyperparameters that schedules read; `TrainingParams` has them."""

    @property
    def schedule(self) -> str:
        """Name in `SCHEDULES`."""

    @property
    def warmup_ratio(self) -> float:
        """Share of the steps in which the learning rate rises to its peak."""

    @property
    def warmup_steps(self) -> int | None:
        """Steps of the same, in place of a share."""

    @property
    def num_cycles(self) -> float:
        """Cosines of `cosine_with_restarts`."""

    @property
    def power(self) -> float:
        """Power of `polynomial`."""

    @property
    def decay_ratio(self) -> float:
        """Share of the steps in which `warmup_stable_decay` falls."""


Schedule = Callable[[int, int, int, ScheduleParams], float]


def _progress(step: int, warmup: int, total: int) -> float:
    """Return the share of the steps after warm-up that are done, in [0, 1]."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


def constant(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Stay at the peak."""
    return 1.0


def linear(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Fall to zero in a straight line (Devlin et al., 2019)."""
    return 1.0 - _progress(step, warmup, total)


def cosine(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Fall to zero along half a cosine (Loshchilov and Hutter, 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup, total)))


def cosine_with_restarts(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Fall along a cosine `num_cycles` times (SGDR; Loshchilov and Hutter, 2017)."""
    progress = _progress(step, warmup, total)
    if progress >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * ((params.num_cycles * progress) % 1.0)))


def polynomial(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Fall to zero as (1 - progress) ** `power`."""
    return float((1.0 - _progress(step, warmup, total)) ** params.power)


def inverse_sqrt(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Fall as 1 / sqrt(step), continuous with the end of warm-up (Vaswani et al., 2017)."""
    timescale = warmup or 10_000  # the value that transformers uses without warm-up
    return 1.0 / math.sqrt((step + timescale - warmup) / timescale)


def warmup_stable_decay(step: int, warmup: int, total: int, params: ScheduleParams) -> float:
    """Stay at the peak, then fall along half a cosine in the last `decay_ratio` of the steps (Hu et al., 2024)."""
    decay = min(math.ceil(params.decay_ratio * total), total - warmup)
    return 1.0 if step < total - decay else cosine(step, total - decay, total, params)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
}


def warmup_steps(params: ScheduleParams, total: int) -> int:
    """Return the warm-up steps of a trial; a share of `total` is rounded up as `TrainingArguments` does."""
    return math.ceil(params.warmup_ratio * total) if params.warmup_steps is None else params.warmup_steps


def multiplier(step: int, total: int, params: ScheduleParams) -> float:
    """Return the factor of the peak learning rate at an optimiser step.

    Args:
        step: Optimiser steps already taken, from 0.
        total: Optimiser steps of the whole trial.
        params: All hyperparameters of the trial (`schedule`, its warm-up and the schedule's own).
    """
    warmup = warmup_steps(params, total)
    if step < warmup:
        return step / max(1, warmup)
    return SCHEDULES[params.schedule](step, warmup, total, params)
