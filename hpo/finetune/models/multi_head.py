"""A model of several tasks: one encoder, and for each task a head, which is what its own class adds to an encoder.

A head is a whole model of transformers, e.g. a `BertForTokenClassification`, whose encoder is replaced by one that all
heads share. In a pass, the first head that calls the encoder runs it, and the others get what it returned. So every
class of transformers that has one encoder serves, its own code runs unchanged, and an encoder with one of the heads is
an ordinary model of its class.

    encoder.*          the shared encoder
    heads.<task>.*     what the class of a task adds to it
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hpo.core.errors import ModelError
from hpo.tasks.multitask.task import HEADS
from hpo.tasks.registry import TASKS
from hpo.tasks.task import Task

Tensors = Mapping[str, torch.Tensor]  # by name


class _Passing:
    """The encoder, and what it returned in the present pass of all heads; they have the same one."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.of_all_heads = False
        self.returned: Any = None


class SharedEncoder(nn.Module):
    """Stands in a head in the place of its encoder.

    Args:
        passing: That of all heads of the model.
    """

    def __init__(self, passing: _Passing) -> None:
        super().__init__()
        self.passing = passing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the encoder returns; in a pass of all heads it runs at the first call only."""
        if self.passing.returned is not None:
            return self.passing.returned
        returned = self.passing.encoder(*args, **kwargs)
        if self.passing.of_all_heads:
            self.passing.returned = returned
        return returned


class MultiTaskModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An encoder with the heads of several tasks.

    Args:
        config: The configuration of the encoder, with the tasks and the labels of the heads under `heads`.
        models: Name of a task -> its whole model, which becomes the head; drawn at random where there are none.

    Raises:
        ModelError: The classes of two tasks have different encoders.
    """

    base_model_prefix = "encoder"

    def __init__(self, config: PreTrainedConfig, models: Mapping[str, PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        models = models or {name: _drawn(task, own) for name, task, own in tasks_of(config)}
        encoders = {name: model.base_model for name, model in models.items()}
        _refuse_different(models)
        # One class of a family may have a part, such as a pooler, that the encoder of another lacks.
        self.encoder = max(encoders.values(), key=lambda encoder: sum(1 for _ in encoder.parameters()))
        self.heads = nn.ModuleDict(models)
        self.passing = _Passing(self.encoder)
        for model in models.values():
            setattr(model, model.base_model_prefix, SharedEncoder(self.passing))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of all heads: `task.name` -> [rows, ...]."""
        found: dict[str, torch.Tensor] = {}
        self.passing.of_all_heads = True
        try:
            for name, head in self.heads.items():
                result = head(**inputs)
                found |= {f"{name}.{key}": value for key, value in result.items() if torch.is_tensor(value)}
        finally:
            self.passing.of_all_heads, self.passing.returned = False, None
        return found

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's table of tokens."""
        found: nn.Module = self.encoder.get_input_embeddings()  # type: ignore[operator]
        return found

    def _init_weights(self, module: nn.Module) -> None:
        """Draw a module's parameters as the class of the heads does."""
        next(iter(self.heads.values()))._init_weights(module)  # type: ignore[operator]


def has_heads(config: Any) -> bool:
    """Return whether a configuration is one of a model of several tasks."""
    return hasattr(config, HEADS)


def tasks_of(config: Any) -> Iterator[tuple[str, Task, PreTrainedConfig]]:
    """Yield the name of each head, its task, and the configuration of its whole model."""
    for name, head in getattr(config, HEADS).items():
        own = copy.deepcopy(config)
        delattr(own, HEADS)
        own.architectures = None
        task = TASKS[head["task"]]
        task.configure(own, head["labels"])
        yield name, task, own


def pretrained(
    config: PreTrainedConfig, load: Callable[[PreTrainedConfig, str], tuple[PreTrainedModel, dict[str, Any]]]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model of several tasks from pretrained weights of one model, and transformers' loading info.

    Args:
        config: Its configuration.
        load: Takes the configuration of a whole model and the class of transformers that loads it.
    """
    loaded = {name: load(own, task.auto_model) for name, task, own in tasks_of(config)}
    models = {name: model for name, (model, _) in loaded.items()}
    prefixes = {name: f"{model.base_model_prefix}." for name, model in models.items()}
    model = MultiTaskModel(config, models)
    model.train(False)  # as transformers loads a model
    there = model.state_dict().keys()
    missing = set()
    for name, (_, info) in loaded.items():
        for key in {*info["missing_keys"], *(key for key, *_ in info.get("mismatched_keys", ()))}:
            prefix = prefixes[name]
            renamed = f"encoder.{key.removeprefix(prefix)}" if key.startswith(prefix) else f"heads.{name}.{key}"
            missing |= {renamed} & there
    return model, {"missing_keys": missing}


def alone(config: PreTrainedConfig, weights: Tensors, name: str) -> PreTrainedModel:
    """Return the whole model of one of the tasks, an ordinary one of its class.

    Args:
        config: As of `MultiTaskModel`.
        weights: Its weights, by their names in its `state_dict`.
        name: Name of the task.
    """
    task, own = next((task, own) for other, task, own in tasks_of(config) if other == name)
    model = _drawn(task, own)
    of_head, prefix = f"heads.{name}.", f"{model.base_model_prefix}."
    renamed = {
        **{f"{prefix}{key.removeprefix('encoder.')}": value for key, value in weights.items()
           if key.startswith("encoder.")},
        **{key.removeprefix(of_head): value for key, value in weights.items() if key.startswith(of_head)},
    }  # fmt: skip
    model.load_state_dict({key: renamed[key] for key in model.state_dict()})
    return model


def _drawn(task: Task, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a whole model of a task with random weights."""
    model: PreTrainedModel = getattr(transformers, task.auto_model).from_config(config, attn_implementation="eager")
    return model


def _refuse_different(models: Mapping[str, PreTrainedModel]) -> None:
    kinds = {name: type(model.base_model).__name__ for name, model in models.items()}
    without = [name for name, model in models.items() if model.base_model is model]
    if without or len(set(kinds.values())) > 1:
        listed = ", ".join(f"{kind} (task {name})" for name, kind in kinds.items())
        raise ModelError(
            f"the tasks cannot share an encoder, because the classes of this model have {listed}; choose a model whose "
            "classes have one encoder, such as BERT, RoBERTa, DistilBERT or DeBERTa, or make a study of each task"
        )
