"""Trials that share a frozen pretrained model and train adapters: LoRA (Hu et al., 2021), folded.

The pretrained layers run once over the rows of all slots. Adapters and head, a percent of the parameters, are what
has a slot for each trial; everything else is as in `FoldedArray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hpo.config.schema import StudyConfig
from hpo.core.trainer import TrialSpec
from hpo.finetune.folded import equivalence as fold_check
from hpo.finetune.folded.engine import FoldedArray
from hpo.finetune.lora import peft_files as adapter_files
from hpo.finetune.lora.adapters import Lora
from hpo.search.samplers import derived_seed
from hpo.tasks.classification import Outputs


class LoraArray(FoldedArray):
    """Trains adapters of one pretrained model; see `FoldedArray`.

    Args:
        lora: Where adapters are.

    Raises:
        MissingExtraError: `peft`, which says what is written, is not installed.
        ModelError: The model has no layers of that kind.
        NotFoldableError: With several slots, trials would differ from trials of their own.
    """

    def __init__(self, config: StudyConfig, *args: Any, lora: Lora, **kwargs: Any) -> None:
        adapter_files.library()
        self._lora = lora
        self._alone = config.slots == 1  # all rows are one trial's, whatever the model does with them
        super().__init__(config, *args, **kwargs)

    def _adapt(self, model: PreTrainedModel, head: frozenset[str]) -> None:
        pretrained = {name for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)}
        classifier = {name for name, _ in model.named_parameters() if name not in pretrained}
        self._lora = replace(self._lora, head=head | classifier)
        self._lora.install(model)

    def _check(self, template: PreTrainedModel, packed: bool = False) -> str | None:
        if self._alone and not packed:
            return None
        return fold_check.check(type(template), template.config, self._lora, packed)

    def _start(self, model: PreTrainedModel, trial: TrialSpec) -> None:
        super()._start(model, trial)
        self._lora.start(model, trial.params, derived_seed(trial.seed, "adapters"))

    def _held(self, weights: dict[str, torch.Tensor], trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: weights[name] for name in trained}  # not the shared model

    def _usual(self) -> dict[str, Any]:
        return {**super()._usual(), "lora_rank": self._lora.rank, "lora_targets": self._lora.targets[0]}

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second; one where more were not looked at."""
        return 1 if self._alone else super().fastest_slots(most)

    def keep(self, slot: int, folder: Path) -> bool:
        """Write the best evaluation's adapters and head as a `peft` folder, with configuration and tokenizer."""
        held = self._occupied[slot]
        if not held.best_weights:
            return False
        adapter_files.save(folder, held.model, self._lora, held.best_weights, held.trial.params)
        self.tokenizer.save_pretrained(folder)
        return True

    def outputs_of(self, folder: Path, split: str) -> Outputs:
        """Return the outputs of what `keep` wrote, added to the pretrained weights as `hpo export` adds it."""
        model = adapter_files.merged(folder)
        model.to(self.device)  # type: ignore[arg-type]
        self._vocabulary.cut(model)
        return self.predict(model, split)
