"""Opens a study's array: loads the model, and chooses the engine and the adaptation from its file and search space."""

from __future__ import annotations

from pathlib import Path

from hpo.config.schema import StudyConfig
from hpo.core.errors import NotFoldableError
from hpo.finetune.adaptation import Adaptation, WholeModel
from hpo.finetune.array import FineTuneArray
from hpo.finetune.device import chosen, folds
from hpo.finetune.engine import Engine
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.memory import Before
from hpo.finetune.plain import PlainEngine
from hpo.finetune.scorable import OneModelArray
from hpo.finetune.setup import Setup
from hpo.finetune.sharded.array import ShardedArray
from hpo.recipe.trial_limits import TrialLimits
from hpo.tasks.dataset import Dataset


def open_array(config: StudyConfig, limits: TrialLimits, folder: Path, data: Dataset) -> OneModelArray:
    """Load a study's model and return its array; nothing is written.

    Args:
        config: The study's settings.
        limits: What its search space allows of trials.
        folder: The study file's folder.
        data: Its data.

    Raises:
        DataError: An example does not fit.
        ModelError: The model cannot be loaded or adapted.
        MissingExtraError: Adapters need `peft`.
    """
    if config.shards > 1:
        return ShardedArray(config, data, folder, limits.epochs)
    before = Before.now(chosen(config.device))
    lora = limits.lora_rank is not None
    several = len(limits.frozen_layers) > 1  # trials that freeze other layers do not fold
    try:
        folded = lora or (folds(config.fold, config.device) and not several)
        return _array(config, limits, folder, data, before, folded=folded)
    except NotFoldableError as error:
        # Adapters fold in one slot, in which a trial shares nothing.
        array = _array(config.model_copy(update={"slots": 1}), limits, folder, data, before, folded=lora)
        array.notes = (*array.notes, f"{error}; trials train one after the other")
        return array


def _array(
    config: StudyConfig, limits: TrialLimits, folder: Path, data: Dataset, before: Before, *, folded: bool
) -> FineTuneArray:
    setup = Setup(config, data, folder, folded=folded, frozen_layers=limits.frozen_layers)
    adaptation: Adaptation = WholeModel()
    if limits.lora_rank is not None:
        adaptation = LoraAdaptation(Lora(limits.lora_targets, limits.lora_rank))
    adaptation.install(setup)
    setup.finish()
    engine: Engine
    if folded:
        engine = FoldedEngine(setup, adaptation, limits.smallest_batch, limits.layer_decay)
    else:
        engine = PlainEngine(setup, adaptation, limits.largest_batch)
    return FineTuneArray(setup, engine, adaptation, limits.epochs, before)
