"""Trials of several pretrained models in one study: an array for each model, and slots that the arrays share.

A trial in slot n is in slot n of its model's array. All trials go on together to their next evaluation: on a CPU the
arrays train side by side, a thread or more for each trial; elsewhere, and where models are folded, one after the other.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from hpo.config.schema import StudyConfig
from hpo.core.errors import DataError, ModelError
from hpo.core.formatting import size
from hpo.core.interrupts import StopRequest
from hpo.core.trainer import Evaluation, Seen, TrialCheckpoint, TrialSpec
from hpo.finetune import model_costs
from hpo.finetune.array import FineTuneArray
from hpo.finetune.device import threaded
from hpo.finetune.memory import Memory
from hpo.finetune.open import open_array
from hpo.finetune.plain import PlainEngine
from hpo.finetune.scorable import OneModelArray
from hpo.finetune.setup import Setup
from hpo.recipe.hyperparameters import MODEL
from hpo.recipe.trial_limits import TrialLimits
from hpo.tasks.dataset import Dataset
from hpo.tasks.language.metrics import OF_TOKENS
from hpo.tasks.metrics import searchable


def open_models(config: StudyConfig, limits: Mapping[str, TrialLimits], folder: Path, data: Dataset) -> SeveralModels:
    """Load all models of a study and return the array of their trials; nothing is written.

    Args:
        config: The study's settings, with several models.
        limits: Model -> what the search space allows of its trials.
        folder: The study file's folder.
        data: The study's data.

    Raises:
        ModelError: Models cannot be loaded or adapted, an example does not fit them, or they cannot be compared.
        MissingExtraError: Adapters need `peft`.
    """
    arrays: dict[str, OneModelArray] = {}
    problems = []
    for name, limit in limits.items():
        try:
            arrays[name] = open_array(config.model_copy(update={"model": name}), limit, folder, data)
        except (DataError, ModelError) as error:
            problems.append(str(error) if name in str(error) else f"model {name!r}: {error}")
    if problems:
        raise ModelError("\n".join(problems))
    refuse_incomparable({name: array.setup for name, array in arrays.items()})
    return SeveralModels(arrays)


class SeveralModels:
    """Trains trials of several models; see `ScorableArray`.

    Args:
        models: Model -> the array that trains its trials. The arrays have the same data, metric and segments.

    Attributes:
        models: As given.
        setup: That of the first model: its data, task, metric and device are those of all.
        notes: What the user should know of how it runs.
        segment: Examples between two evaluations.
        costs: Model -> its costs, which its trials report beside their metrics; nothing if the study asks for none.
        horizon: Examples of the longest trial that the space allows.
    """

    def __init__(self, models: Mapping[str, OneModelArray]) -> None:
        self.models = models
        self.setup = self._first.setup
        self.segment, self.horizon = self._first.segment, max(array.horizon or 0 for array in models.values())
        self.slots = min(array.slots for array in models.values())
        self.notes: Sequence[str] = (*_shared({name: array.notes for name, array in models.items()}), self._memory())
        self._held: dict[int, OneModelArray] = {}  # slot -> the array of its trial's model
        self.costs: Mapping[str, Mapping[str, float]] = {}

    @property
    def _first(self) -> OneModelArray:
        return next(iter(self.models.values()))

    def of(self, params: Mapping[str, Any]) -> OneModelArray:
        """Return the array that trains the trials of a model."""
        return self.models[params[MODEL]]

    @property
    def slots(self) -> int:
        """How many trials it holds at once; as few as the array of any model, which may lack memory for more."""
        return min(array.slots for array in self.models.values())

    @slots.setter
    def slots(self, count: int) -> None:
        for array in self.models.values():
            array.slots = count

    @property
    def stop_request(self) -> StopRequest:
        """Once set, `advance` returns as soon as the step under way is done."""
        return self._first.stop_request

    @stop_request.setter
    def stop_request(self, request: StopRequest) -> None:
        for array in self.models.values():
            array.stop_request = request

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the results depend on besides the study file; a fact that differs between models by model."""
        found = {name: array.facts for name, array in self.models.items()}
        names = dict.fromkeys(fact for facts in found.values() for fact in facts)
        return {fact: _in_common({name: facts.get(fact) for name, facts in found.items()}) for fact in names}

    def resume_with(self, facts: Mapping[str, Any]) -> None:
        """Take over what each model's array takes over."""
        added = {}
        for name, array in self.models.items():
            before = len(array.notes)
            array.resume_with({fact: _of_model(value, name) for fact, value in facts.items()})
            added[name] = array.notes[before:]
        self.notes = (*self.notes, *_shared(added))

    def _memory(self) -> str:
        """Return what the models keep in memory, and when they train."""
        weights = ", ".join(f"{name} {size(_bytes(array.setup))}" for name, array in self.models.items())
        kept = f"{len(self.models)} models are in memory ({weights} of weights)"
        if self.slots == 1:
            return kept
        when = "side by side" if self._side_by_side else "one after the other, which leaves slots idle meanwhile"
        return f"{kept}, each for up to {self.slots} slots; trials of different models train {when}"

    # ------------------------------------------------------------ trials in slots

    def load(self, slot: int, trial: TrialSpec) -> None:
        """Put a trial into an empty slot, in the array of its model."""
        array = self.of(trial.params)
        rest = {name: value for name, value in trial.params.items() if name != MODEL}
        array.load(slot, replace(trial, params=rest))
        self._held[slot] = array

    def advance(self) -> dict[int, Evaluation | Exception]:
        """Train every occupied slot to its next boundary."""
        occupied = [array for array in self.models.values() if array in self._held.values()]
        if self._side_by_side and len(occupied) > 1:
            return self._with_costs(_merged(self._advance_together(occupied)))
        return self._with_costs(_merged(array.advance() for array in occupied))

    def _with_costs(self, outcomes: dict[int, Evaluation | Exception]) -> dict[int, Evaluation | Exception]:
        """Return the outcomes, with what the model of each trial costs among its metrics."""
        found = dict(outcomes)
        for slot, outcome in outcomes.items():
            own = self.costs.get(str(self._held[slot].setup.config.model))
            if own is not None and isinstance(outcome, Evaluation):
                found[slot] = replace(outcome, metrics={**outcome.metrics, **own})
        return found

    @property
    def _side_by_side(self) -> bool:
        """Whether all models can train at once: each trial in threads of its own, with masks of its own."""
        return self.slots > 1 and all(map(_has_own_threads, self.models.values()))

    def _advance_together(self, arrays: Sequence[OneModelArray]) -> list[dict[int, Evaluation | Exception]]:
        # The settings of threads are inherited by threads that start within them.
        with threaded(torch.get_num_threads()), ThreadPoolExecutor(len(arrays)) as pool:
            futures = [pool.submit(array.advance) for array in arrays]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.stop_request.set()  # the pool waits for its threads, which end after their present step
                raise

    def seen(self, slot: int) -> Seen | None:
        """Return the examples that the slot's trial has seen, and those of its whole training."""
        array = self._held.get(slot)
        return None if array is None else array.seen(slot)

    def save(self, slot: int) -> TrialCheckpoint | None:
        """Return what the slot's trial needs to go on from its last whole step."""
        return self._held[slot].save(slot)

    def pause(self, slot: int) -> bool:
        """Return False: trials are held in slots only."""
        return False

    def save_weights(self, slot: int, folder: Path) -> bool:
        """Write the best evaluation's weights as a Hugging Face folder."""
        return self._held[slot].save_weights(slot, folder)

    def unload(self, slot: int) -> None:
        """Empty a slot, whatever state its trial is in."""
        if (array := self._held.pop(slot, None)) is not None:
            array.unload(slot)

    # ------------------------------------------------------------ measuring

    def fastest_slots(self, most: int) -> int:
        """Return how many slots train the most examples a second with the model that has the fewest such slots."""
        return min(array.fastest_slots(most) for array in self.models.values())

    def seconds_per_example(self) -> float:
        """Return the mean over the models."""
        return mean(array.seconds_per_example() for array in self.models.values())

    def measured_costs(self) -> dict[str, dict[str, float]]:
        """Measure the costs of each model; see `hpo/finetune/model_costs.py`."""
        return {name: model_costs.measured(array.setup) for name, array in self.models.items()}

    def memory(self) -> Memory | None:
        """Return the sum over the models, as each keeps what its trials have once needed."""
        found = [array.memory() for array in self.models.values()]
        known = [each for each in found if each is not None]
        return functools.reduce(operator.add, known) if len(known) == len(found) else None

    def memory_used(self) -> int | None:
        """Return how far the peak is above what was used before the first model was loaded."""
        return self._first.memory_used()

    def memory_free(self) -> int | None:
        """Return what was free before the first model was loaded."""
        return self._first.memory_free()


# ---------------------------------------------------------------- comparing models


def refuse_incomparable(setups: Mapping[str, Setup]) -> None:
    """Refuse models whose trials are scored after different numbers of rows, or by scores of different tokens.

    Args:
        setups: Model -> its data and settings.

    Raises:
        ModelError: Their trials cannot be compared.
    """
    first = next(iter(setups.values()))
    rows = {name: setup.train_rows for name, setup in setups.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{count:,} of {name}" for name, count in rows.items())
        raise ModelError(
            f"the {first.task.example}s of train are not the same number of rows for all models: {counts}. Their "
            "tokenizers divide long ones into different numbers of windows, so evaluations of trials would not be at "
            "the same steps; raise max_length until each fits, or make a study for each model"
        )
    compared = {first.metric} | ({"loss"} if first.config.prune_on is not None else set())
    wrong = sorted(compared & OF_TOKENS)
    if first.task.emits_tokens and wrong and not _same_tokens(setups.values()):
        others = [metric for metric in searchable(first.data.task) if metric not in OF_TOKENS]
        step = f"write metric: {others[0]}, and leave prune_on out" if others else "make a study for each model"
        raise ModelError(
            f"{' and '.join(wrong)} of models with different tokenizers cannot be compared, as it is a mean over "
            f"tokens, and these models divide the same text into different ones; {step}"
        )


def _same_tokens(setups: Iterable[Setup]) -> bool:
    """Return whether the validation split has the same tokens for all models."""
    first, *others = [setup.tokens["validation"] for setup in setups]
    return all(
        other.ids.shape == first.ids.shape
        and bool((other.ids == first.ids).all())
        and bool((other.lengths == first.lengths).all())
        for other in others
    )


# ---------------------------------------------------------------- the arrays together


def _has_own_threads(array: OneModelArray) -> bool:
    """Return whether an array's trials train in threads of their own, with nothing random from a common generator."""
    return isinstance(array, FineTuneArray) and isinstance(array.engine, PlainEngine) and array.setup.own_masks


def _merged(outcomes: Iterable[dict[int, Evaluation | Exception]]) -> dict[int, Evaluation | Exception]:
    return {slot: outcome for each in outcomes for slot, outcome in each.items()}


def _shared(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the texts of all models: one that all have once, any other with its model."""
    everywhere = [text for text in next(iter(texts.values())) if all(text in each for each in texts.values())]
    of_one = [f"{name}: {text}" for name, each in texts.items() for text in each if text not in everywhere]
    return [*everywhere, *of_one]


def _in_common(values: Mapping[str, Any]) -> Any:
    """Return the value that all models have, or model -> value."""
    first, *others = values.values()
    return first if all(other == first for other in others) else dict(values)


def _of_model(value: Any, name: str) -> Any:
    """Return a model's value of what `_in_common` returned."""
    return value.get(name) if isinstance(value, Mapping) else value


def _bytes(setup: Setup) -> int:
    """Return the size of a model's weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in setup.model.parameters())
