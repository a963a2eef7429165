"""Open the array of a study, which trains its trials."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpo.config import combinations, study_spec
from hpo.core.errors import DataError
from hpo.core.paths import verify
from hpo.core.trainer import TrialArray
from hpo.execution.custom_objective import imported, refuse_unread_parameters
from hpo.execution.generator_array import GeneratorArray
from hpo.execution.objective_source import source_digest
from hpo.execution.study_setup import SOURCE
from hpo.recipe.hyperparameters import DEFAULTS, MODEL, trains_adapters
from hpo.recipe.trial_limits import TrialLimits
from hpo.space.search_space import SearchSpace
from hpo.storage.criteria import MODEL_COSTS
from hpo.tasks.dataset import Dataset
from hpo.tasks.registry import TASKS

if TYPE_CHECKING:
    from hpo.finetune.scorable import ScorableArray

log = logging.getLogger(__name__)


def open_array(study: study_spec.StudySpec) -> TrialArray:
    """Return the array of a study, with the data and the model read; writes nothing.

    Raises:
        HpoError: The data, the model or the custom objective is not as the study file says.
    """
    if study.config.checksums:
        log.info("checking the SHA-256 of %d files", len(study.config.checksums))
    verify(study.config.checksums, study.folder)
    if study.config.objective is not None:
        log.info("importing %s", study.config.objective)
        objective = imported(study.config.objective, study.folder)
        refuse_unread_parameters(study.config, study.space, objective)
        assert study.config.slots != "auto"  # `study_spec.build` refuses it
        return open_custom(objective, study.config.slots)
    return _open_finetuning(study)


def open_custom(objective: Any, slots: int = 1) -> GeneratorArray:
    """Return the array of a custom objective, with the digest of its source among the facts."""
    array = GeneratorArray(objective, slots)
    source = source_digest(objective)
    if source is None:
        array.notes = ("the objective's source cannot be read here: an edit of it between two runs goes unnoticed",)
    else:
        array.facts = {SOURCE: source}
    return array


def _open_finetuning(study: study_spec.StudySpec) -> ScorableArray:
    """Return the array of the built-in objective. Torch is loaded last, so that errors in the data come early."""
    config = study.config
    log.info("loading pandas")
    loading = importlib.import_module("hpo.tasks.loading")
    if config.tasks is not None:
        several = importlib.import_module("hpo.tasks.multitask.loading")
        data = several.load(config.tasks, config.seed, study.folder)
    else:
        assert config.data is not None
        data = loading.load(config.data, config.task, config.seed, study.folder)
    data = loading.with_metric(data, config.metric, _scored(study))
    _refuse_class_weights(study, data)
    log.info("loading torch and transformers")
    array: ScorableArray
    if isinstance(config.model, list):
        opened = importlib.import_module("hpo.finetune.several_models").open_models
        limits = {model: _limits(study.space.fixing(MODEL, model)) for model in config.model}
        array = opened(config, limits, study.folder, data)
        if config.baseline:
            default = study.space.first_trial()[MODEL]
            array.notes = (*array.notes, f"trial 0, the published default, is of model {default}")
    else:
        array = importlib.import_module("hpo.finetune.open").open_array(
            config, _limits(study.space), study.folder, data
        )
    array.notes = (*array.notes, *data.notes)
    return array


def _scored(study: study_spec.StudySpec) -> list[str]:
    """Return the metrics that are scored beside the one that is optimised."""
    return [name for name in study.criteria.reported if name not in MODEL_COSTS]


def _limits(space: SearchSpace) -> TrialLimits:
    """Return the limits of the trials that a search space allows."""

    def values(name: str) -> Sequence[Any]:
        return space.values_of(name, DEFAULTS[name])

    adapters = trains_adapters(space.names)
    return TrialLimits(
        epochs=max(values("epochs")),
        smallest_batch=min(values("batch_size")),
        largest_batch=max(values("batch_size")),
        layer_decay="layer_decay" in space.parameters or values("layer_decay")[0] != DEFAULTS["layer_decay"],
        frozen_layers=combinations.frozen_layers(space),
        lora_rank=max(values("lora_rank")) if adapters else None,
        lora_targets=tuple(values("lora_targets")) if adapters else (),
    )


def _refuse_class_weights(study: study_spec.StudySpec, data: Dataset) -> None:
    weights = list(map(str, study.space.values_of("class_weights", DEFAULTS["class_weights"])))
    if set(weights) != {"none"} and not TASKS[data.task].class_weights(data):
        raise DataError(
            f"class_weights: {', '.join(weights)} needs one label a row, and the task of this data is {data.task}; "
            "leave class_weights out of the space"
        )
