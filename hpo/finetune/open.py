"""A study's array: the data read, the model loaded, and the engine and adaptation that its file asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpo.config.study_spec import Study, trains_adapters
from hpo.core.errors import NotFoldableError
from hpo.finetune.adaptation import Adaptation, WholeModel
from hpo.finetune.array import FineTuneArray
from hpo.finetune.data.sources import Dataset
from hpo.finetune.device import folds
from hpo.finetune.engine import Engine
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.plain import PlainEngine
from hpo.finetune.scorable import ScorableArray
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.engine import ShardedArray
from hpo.recipe.hyperparameters import DEFAULTS
from hpo.space.search_space import SearchSpace


def open_array(study: Study, data: Dataset) -> ScorableArray:
    """Return the array of a study: loads its model, writes nothing.

    Args:
        study: The validated study.
        data: Its rows.

    Raises:
        DataError: The metric is not defined for the data.
        ModelError: The model cannot be loaded or adapted.
        MissingExtraError: Adapters need `peft`.
    """
    config, space = study.config, study.space
    epochs = max(_values(space, "epochs"))
    if config.shards > 1:
        return ShardedArray(config, data, study.folder, epochs)
    lora = trains_adapters(space)
    folded = lora or folds(config.fold, config.device)

    def build(*, slots: int | str, folded: bool) -> FineTuneArray:
        setup = Setup(config.model_copy(update={"slots": slots}), data, study.folder, folded=folded)
        adaptation: Adaptation = WholeModel()
        if lora:
            adaptation = LoraAdaptation(Lora(tuple(_values(space, "lora_targets")), max(_values(space, "lora_rank"))))
        adaptation.install(setup)
        setup.finish()
        engine: Engine
        if folded:
            engine = FoldedEngine(setup, adaptation, min(_values(space, "batch_size")), _by_depth(space))
        else:
            engine = PlainEngine(setup, adaptation)
        return FineTuneArray(setup, engine, adaptation, epochs)

    try:
        return build(slots=config.slots, folded=folded)
    except NotFoldableError as error:
        array = build(slots=1, folded=lora)  # a single slot of adapters is not folded into anything
        array.notes = (*array.notes, f"{error}; trials train one after the other")
        return array


def _by_depth(space: SearchSpace) -> bool:
    """Return whether a trial may have layer-wise decay."""
    return "layer_decay" in space.parameters or space.fixed.get("layer_decay", DEFAULTS["layer_decay"]) != 1.0


def _values(space: SearchSpace, name: str) -> Sequence[Any]:
    return space.values_of(name, DEFAULTS[name])
