"""The memory of a study, stored with it: the estimate before its first trial, and the most that a process has used."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import optuna

from hpo.execution.checkpoint_writer import FIRST
from hpo.storage.snapshot import MEMORY

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)


def estimate(opened: optuna.Study, array: ScorableArray) -> None:
    """Estimate the memory of a study with trials left to train, unless that was done with the present settings.

    A pass that fails is left to the trials, which say why.
    """
    settings = _settings(array)
    if opened.user_attrs.get(MEMORY, {}).get("settings") == settings:
        return
    if all(row.state.is_finished() for row in opened.get_trials(deepcopy=False)):
        return
    log.info("estimating the memory that training takes")
    try:
        memory = array.memory()
    except Exception as error:
        log.info("the memory is not estimated (%s: %s)", type(error).__name__, error)
        return
    if memory is not None:
        stored = {"settings": settings, "estimated": asdict(memory), "used": None, "checkpoint": False}
        opened.set_user_attr(MEMORY, stored)


def keep_most_used(opened: optuna.Study, array: ScorableArray, seconds: float) -> None:
    """Store what this process has used at its peak, if no other one has used more.

    Args:
        opened: The study.
        array: Its array.
        seconds: How long this process has trained. Checkpoints are copied from the second minute on.
    """
    stored, used = opened.user_attrs.get(MEMORY), array.memory_used()
    if stored is None or used is None or stored.get("settings") != _settings(array):
        return
    if used > (stored["used"] or 0):
        opened.set_user_attr(MEMORY, {**stored, "used": used, "checkpoint": seconds > FIRST})


def _settings(array: ScorableArray) -> dict[str, Any]:
    """Return what the memory depends on and may change when a study goes on."""
    config = array.setup.config
    return {
        "device": array.setup.device.type,
        "slots": array.slots,
        "fold": config.fold,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
