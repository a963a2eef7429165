"""The lowest layers of a model, frozen: what they yield is given to the model, and only the layers above them run.

A frozen layer yields the same for a row in every step of every trial. So a pass may be given these states as one more
input, `states`. Then the layers below the line return them at once, and what comes before the layers is not computed.
Without that input the model runs whole. A check of the outputs decides whether a model is of this kind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hpo.core.errors import ModelError
from hpo.finetune.folded.packing import current as packed_now
from hpo.finetune.models import output_check


class _Reached(Exception):
    """Ends a pass at the line; its argument is what the layers below yield."""


class Line:
    """The line between the frozen layers of a model and those above.

    Args:
        path: Name of the list of layers in the model.
        count: Number of all layers.
        before: Names of the modules that run before the layers, such as the embeddings.

    Attributes:
        layers: Number of frozen layers; 0 if the whole model is trained.
        states: [b, length, hidden], given to the present pass; None if it runs whole.
        shared: Names of other parameters that frozen layers use, such as DeBERTa's relative positions.
        like: [1, hidden], of the dtype of the states.
    """

    def __init__(self, path: str, count: int, before: tuple[str, ...]) -> None:
        self.path, self.count, self.before = path, count, before
        self.layers = 0
        self.states: torch.Tensor | None = None
        self.shared: frozenset[str] = frozenset()
        self.like = torch.empty(0)
        self.last: int | None = None  # the layer after which a pass ends

    def freezes(self, name: str) -> bool:
        """Return whether a parameter is frozen."""
        frozen = (*self.before, *(f"{self.path}.{number}" for number in range(self.layers)))
        return self.layers > 0 and (name in self.shared or name.startswith(tuple(f"{each}." for each in frozen)))

    def taking(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the states from the inputs of a pass; a hook of the model."""
        states = kwargs.pop("states", None)
        self.states = None if states is None else states.flatten(0, -3)  # a model for multiple choice flattens its rows
        return args, kwargs


class _Layer:
    """Mixed into a layer: if it is frozen, it yields the states that are given.

    Attributes:
        line: The model's.
        number: The layer's, from 0.
        others: Number of values that the layer returns besides the states in a tuple; None if it returns no tuple.
    """

    line: Line
    number: int
    others: int | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        line = self.line
        if line.states is None or self.number >= line.layers:
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
            if line.last == self.number:
                raise _Reached(output[0] if isinstance(output, tuple) else output)
            return output
        states = _first(args, kwargs)
        if self.number == line.layers - 1:  # what the layers below return is not read
            packing = packed_now()
            states = line.states if packing is None else packing.to_line(line.states)
        return states if self.others is None else (states, *[None] * self.others)


class _Before:
    """Mixed into a module before the layers: it yields zeros of the right shape, which nothing reads.

    Attributes:
        line: The model's.
        width: Of its output [b, length, width].
    """

    line: Line
    width: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.line.states is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        dtype = next((p.dtype for p in self.parameters()), self.line.states.dtype)  # type: ignore[attr-defined]
        return self.line.states.new_zeros(1, dtype=dtype).expand(*_first(args, kwargs).shape[:2], self.width)


def of(model: nn.Module) -> Line | None:
    """Return the line of a model; None if it is always trained whole."""
    return getattr(model, "frozen_line", None)


def freeze(model: PreTrainedModel, layers: int) -> None:
    """Let a model's lowest layers, and what comes before them, get no gradient; 0 freezes nothing."""
    line = of(model)
    if line is not None:
        line.layers = layers
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not line.freezes(name))


@contextmanager
def freezing(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Freeze other layers of a model than now, for passes whose outputs do not matter."""
    line = of(model)
    before = 0 if line is None else line.layers
    freeze(model, layers)
    try:
        yield
    finally:
        freeze(model, before)


def above(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a model, by name, that are not frozen."""
    line = of(model)
    return weights if line is None else {name: tensor for name, tensor in weights.items() if not line.freezes(name)}


@contextmanager
def ending_at(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Within it, passes of a model end after its lowest layers, without dropout; `states` returns what they yield."""
    line, training = of(model), model.training
    assert line is not None
    line.last = layers - 1
    model.train(False)
    try:
        yield
    finally:
        line.last = None
        model.train(training)


def states(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what the lowest layers yield for some rows, [b, length, hidden], within `ending_at`."""
    try:
        model(**inputs)
    except _Reached as reached:
        found: torch.Tensor = reached.args[0]
        return found
    raise AssertionError(f"a pass of {type(model).__name__} went on beyond its frozen layers")


# ---------------------------------------------------------------- in a model


def install(model: PreTrainedModel, numbers: Iterable[int]) -> Line:
    """Prepare a model for numbers of frozen layers, the largest of which is not 0, and return its line.

    Nothing is frozen yet.

    Raises:
        ModelError: The model has fewer layers, or its frozen layers cannot be computed apart from the others.
    """
    numbers, kind = sorted(set(numbers) - {0}), type(model).__name__
    found = _list_of_layers(model)
    if found is None:
        raise _unsuitable(kind, "it has no single list of layers that differ in their weights")
    path, layers = found
    if numbers[-1] > len(layers):
        raise ModelError(
            f"frozen_layers: {numbers[-1]} is more than the {len(layers)} layers of {kind}; 0 to {len(layers)} can be "
            "frozen"
        )
    training = model.training
    model.train(False)
    inputs = output_check.inputs(model)
    whole = output_check.outputs(model)
    line = _gated(model, path, layers, inputs)
    shared = _used_below(model, line, inputs, numbers[-1])
    if shared is None:
        raise _unsuitable(kind, "what they yield does not begin with rows and tokens")
    line.shared = frozenset(shared)
    for number in numbers:
        if not _same(model, whole, inputs, number):
            raise _unsuitable(kind, f"with {number} of them given, its outputs are others")
    model.train(training)
    return line


def _unsuitable(kind: str, why: str) -> ModelError:
    return ModelError(
        f"frozen_layers: the lowest layers of {kind} cannot be computed apart from the others ({why}); leave "
        "frozen_layers out of the space"
    )


def _list_of_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Return the only list of as many modules as the configuration says layers, with its name."""
    count = getattr(model.config, "num_hidden_layers", 0)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return lists[0] if len(lists) == 1 and not model.config.is_encoder_decoder else None


def _gated(model: PreTrainedModel, path: str, layers: nn.ModuleList, inputs: Mapping[str, torch.Tensor]) -> Line:
    """Mix `_Layer` and `_Before` into the modules of a model, and return its line."""
    results = _results(
        model, [f"{path}.{number}" for number in range(len(layers))] + list(_beside(model, path)), inputs
    )
    names = list(results)
    first = names.index(f"{path}.0") if f"{path}.0" in names else 0
    shape = inputs["input_ids"].flatten(0, -2).shape
    widths = {
        name: results[name].shape[-1]
        for name in names[:first]
        if isinstance(results[name], torch.Tensor) and results[name].ndim == 3 and results[name].shape[:2] == shape
    }
    line = Line(path, len(layers), tuple(widths))
    for number, layer in enumerate(layers):
        output = results.get(f"{path}.{number}")
        others = len(output) - 1 if isinstance(output, tuple) else None
        _mix(layer, _Layer, line=line, number=number, others=others)
    for name, width in widths.items():
        _mix(model.get_submodule(name), _Before, line=line, width=width)
    model.frozen_line = line  # type: ignore[assignment]
    model.register_forward_pre_hook(line.taking, with_kwargs=True)
    return line


def _beside(model: nn.Module, path: str) -> Iterator[str]:
    """Yield the names of the modules beside the list of layers, and beside each module that holds it."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        for name, _ in model.get_submodule(".".join(parts[:depth])).named_children():
            if name != part:
                yield ".".join([*parts[:depth], name])


@torch.no_grad()
def _results(model: nn.Module, names: list[str], inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return what modules return in a pass, by name, in the order of their calls."""
    found: dict[str, Any] = {}

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        found.setdefault(name, output)

    hooks = [model.get_submodule(name).register_forward_hook(functools.partial(record, name)) for name in names]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def _mix(module: nn.Module, mixin: type, **attributes: Any) -> None:
    """Mix a class into a module, whose class keeps its name."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})
    for name, value in attributes.items():
        setattr(module, name, value)


def _used_below(
    model: PreTrainedModel, line: Line, inputs: Mapping[str, torch.Tensor], layers: int
) -> list[str] | None:
    """Return the parameters that the lowest layers use, without those that `line.freezes` knows by their module.

    Return None if what the layers yield is not [b, length, hidden].
    """
    with ending_at(model, layers):
        found = states(model, inputs)
    if found.ndim != 3 or found.shape[:2] != inputs["input_ids"].flatten(0, -2).shape:
        return None
    line.like, line.layers = torch.zeros_like(found.detach()[0, :1]), layers
    found.float().sum().backward()  # type: ignore[no-untyped-call]
    used = [name for name, p in model.named_parameters() if p.grad is not None and not line.freezes(name)]
    model.zero_grad()
    line.layers = 0
    return used


@torch.no_grad()
def _same(model: PreTrainedModel, whole: output_check.Outputs, inputs: Mapping[str, torch.Tensor], layers: int) -> bool:
    """Return whether a model's outputs stay the same when the states of its lowest layers are given."""
    line = of(model)
    assert line is not None
    with ending_at(model, layers):
        mask = inputs["attention_mask"].flatten(0, -2)[..., None]
        given = states(model, inputs) * mask  # padding is zero, as in a batch
    line.layers = layers
    try:
        return output_check.same(whole, output_check.outputs(model, states=given))
    except (RuntimeError, IndexError, TypeError):
        return False
    finally:
        line.layers = 0


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the first tensor that a module is called with."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
