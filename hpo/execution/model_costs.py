"""What the models of a study cost where they are used: measured once, and the same numbers for all its processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna

from hpo.config.study_spec import StudySpec
from hpo.core.formatting import number, plain
from hpo.storage.criteria import MODEL_COSTS
from hpo.storage.trial_locks import starting

if TYPE_CHECKING:
    from hpo.finetune.several_models import SeveralModels

log = logging.getLogger(__name__)

STORED = "model_costs"
"""Attribute of a study: `device`, and `models`, model -> its costs."""


def asked(study: StudySpec) -> list[str]:
    """Return the costs of models that a study limits or that are its second metric."""
    return [name for name in study.criteria.reported if name in MODEL_COSTS and study.config.objective is None]


def provide(opened: optuna.Study, study: StudySpec, array: SeveralModels, url: str | None) -> None:
    """Give an array the costs of its models, if its study asks for any; the first process measures and stores them."""
    if not (names := asked(study)):
        return
    with starting(url, study.config.name):
        stored: dict[str, Any] | None = opened.user_attrs.get(STORED)
        if stored is None:
            log.info("measuring the latency and the size of %d models", len(array.models))
            stored = {"device": array.setup.device.type, "models": array.measured_costs()}
            opened.set_user_attr(STORED, stored)
    array.costs = stored["models"]
    array.notes = (*array.notes, f"{costs_text(array.costs, names)}; measured once, on {stored['device']}")


def costs_text(costs: Mapping[str, Mapping[str, float]], names: list[str]) -> str:
    """Return the named costs of all models as a phrase."""
    return "; ".join(
        f"{name} {', '.join(f'{plain(model)} {number(each[name])}' for model, each in costs.items())}" for name in names
    )
