"""Checks whether a model folds: compares two folded slots with two separate models.

Small models of the same class and configuration (two layers, a small vocabulary) are compared in float64, in training,
with dropout masks from keys: outputs and gradients, for rows of different lengths. The first difference is named.
With LoRA, a separate model is a folded model with one slot, in which no trials can be mixed up.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hpo.core.errors import NotFoldableError
from hpo.finetune.folded import packing
from hpo.finetune.folded.model import fold, load_slot, trains
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.models import dropout
from hpo.finetune.models import frozen as frozen_layers
from hpo.finetune.models.loading import attend, first_position
from hpo.finetune.models.output_check import about_tokens, as_taken, logits_of, parts

log = logging.getLogger(__name__)

LENGTHS = torch.tensor([[7, 4, 6], [5, 7, 3]])  # real tokens of each row of the two slots
TOLERANCE = 1e-6  # of a tensor's norm; float64 leaves 1e-15, some models compute norms in float32
DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
WIDTHS = ("intermediate_size", "d_ff", "d_inner", "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim")
WINDOWS = ("local_attention", "sliding_window")  # tokens that attend to each other
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk", "mask", "decoder_start", "forced_eos")

# Results by arguments; they hold for the process, which has one version of torch and of transformers.
_known: dict[tuple[type, str, Lora | None, bool, bool], str | None] = {}


def check(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    lora: Lora | None = None,
    packed: bool = False,
    frozen: bool = False,
) -> str | None:
    """Return a sentence that says what is wrong with folded models of a class, or None.

    Args:
        kind: The model's class.
        config: Its configuration.
        lora: Adapters that are installed before the model is folded.
        packed: Whether tokens are packed; if so there is no dropout, whose masks depend on the arrangement of tokens.
        frozen: Whether the first layer is frozen, and what it yields is given.
    """
    config = _cut(config)
    key = (kind, config.to_json_string(), lora, packed, frozen)
    if key not in _known:
        log.info("checking that trials of %s can train as one model", kind.__name__)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _known[key] = _difference(kind, config, lora, packed, frozen)
    return _known[key]


def _cut(config: PreTrainedConfig, special: Sequence[int] = ()) -> PreTrainedConfig:
    """Return a configuration with two narrow layers, few tokens and no names.

    Args:
        config: The configuration of a model, or of a part of one.
        special: Ids of the whole model's special tokens, in order; by default those of the configuration.
    """
    special = special or sorted({token for part in parts(config) for token in _tokens(part)})
    small = copy.deepcopy(config)
    small._name_or_path = ""
    small.id2label = {number: str(number) for number in range(config.num_labels or 1)}
    small.label2id = {}
    layers = getattr(config, "num_hidden_layers", 0)
    for name, value in vars(config).items():
        if name in WINDOWS and isinstance(value, int):  # shorter than the rows of this check
            setattr(small, name, min(value, 4))
        elif name in DEPTHS or config.attribute_map.get("num_hidden_layers") == name:
            setattr(small, name, min(value, 2))
        elif name in WIDTHS and isinstance(value, int):
            setattr(small, name, min(value, 64))
        elif isinstance(value, list) and len(value) == layers > 2:  # the kinds of the layers
            setattr(small, name, value[:2])
    for number, token in enumerate(special):
        for name in SPECIAL:
            if getattr(config, f"{name}_token_id", None) == token:
                setattr(small, f"{name}_token_id", number)
    if small.pad_token_id is None:
        small.pad_token_id = 0
    if getattr(config, "vocab_size", None):
        small.vocab_size = min(config.vocab_size, len(special) + 32)
    for name in ("encoder", "decoder"):
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            setattr(small, name, _cut(part, special))
    return small


def _tokens(config: PreTrainedConfig) -> Iterator[int]:
    tokens = (getattr(config, f"{name}_token_id", None) for name in SPECIAL)
    return (token for token in tokens if isinstance(token, int) and token >= 0)


def _model(kind: type[PreTrainedModel], config: PreTrainedConfig, lora: Lora | None, rate: float) -> PreTrainedModel:
    """Return a model as trials train it: with hpo's attention where the class allows it, and dropout everywhere."""
    model: PreTrainedModel = kind(config).double().train()
    attend(model)
    dropout.install(model)
    if lora is not None:
        lora.install(model)
    for name, attribute in dropout.rates(model):
        setattr(model.get_submodule(name), attribute, rate)
    return model


def _difference(
    kind: type[PreTrainedModel], config: PreTrainedConfig, lora: Lora | None, packed: bool, frozen: bool
) -> str | None:
    one = _model(kind, config, lora, 0.0 if packed else 0.2)
    _shuffle(one.parameters())
    if frozen:
        frozen_layers.install(one, [1])
        frozen_layers.freeze(one, 1)
    two = copy.deepcopy(one)
    _shuffle(p for module in two.modules() if trains(module) for p in module.parameters(recurse=False))
    try:
        folded = fold(one, 2)
        load_slot(folded, 1, two.state_dict())
        for slot in range(2):
            dropout.set_rates(folded, slot, 2, one)
        inputs = _inputs(one)
        if frozen:
            inputs["states"] = _states(one, inputs)
        line = None
        if packed:
            if not packing.install(folded, first_position(config)):
                return f"{kind.__name__} does not take positions"
            line = packing.Packing(LENGTHS, int(LENGTHS.sum(1).max()) + 1, int(LENGTHS.max()))
        rows = {name: x.flatten(0, 1) for name, x in inputs.items()}
        together = _Run(folded, rows, seeds=(0, 1), line=line, padding=not packed)
        if lora is not None:
            one, two = fold(one, 1), fold(two, 1)
        alone = [
            _Run(model, {name: x[slot] for name, x in inputs.items()}, (slot,), padding=not packed)
            for slot, model in enumerate((one, two))
        ]
    except NotFoldableError as error:
        return str(error)
    except Exception as error:  # a model's code may raise anything on unexpected inputs
        first = str(error).partition("\n")[0]
        return f"{kind.__name__} does not run with two trials folded into it: {type(error).__name__}: {first}"
    # Packed, only the model's own outputs have the shape of rows.
    outputs = [found for found in together.output_errors(alone) if not packed or found[0] == "the output"]
    for what, off in (*outputs, *together.gradient_errors(alone)):
        if not off <= TOLERANCE:
            return f"{kind.__name__}: {what} of two folded trials differs from that of two models by {off:.0e}"
    return None


@torch.no_grad()
def _states(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the first layer yields for the rows of two slots: [2, b, length, hidden]."""
    rows = {name: x.flatten(0, 1) for name, x in inputs.items()}
    with frozen_layers.ending_at(model, 1):
        found = frozen_layers.states(model, rows)
    return found.view(2, -1, *found.shape[1:])


def _shuffle(parameters: Iterable[nn.Parameter]) -> None:
    """Change parameters that are all 0 or all 1 in every model, in which a mix-up would not show."""
    with torch.no_grad():
        for p in parameters:
            p.copy_(p.flip(0) + 0.1 * torch.randn(p.shape[-1:]))


class _Run:
    """A forward and a backward pass, with the output of every module.

    Args:
        model: The model.
        inputs: Its inputs, [rows, tokens].
        seeds: Seeds of the dropout masks, one for each slot.
        line: The packing of its tokens, if they are packed.
        padding: Whether outputs about padding have a part in the backward pass; packed ones are zero.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        seeds: tuple[int, ...],
        line: packing.Packing | None = None,
        padding: bool = True,
    ) -> None:
        self.model = model
        self.outputs: dict[tuple[str, int], torch.Tensor] = {}
        hooks = [m.register_forward_hook(self._recorder(name)) for name, m in model.named_modules() if name]
        with dropout.OwnFunction(), dropout.drawing_from(torch.tensor(seeds)), packing.packed(line):
            outputs = logits_of(model(**inputs))
        if not padding:
            outputs = about_tokens(outputs, inputs["attention_mask"].flatten(0, -2).bool())
        for hook in hooks:
            hook.remove()
        self.outputs |= {("", number): output.detach() for number, output in enumerate(outputs.values())}
        torch.stack([output.square().sum() for output in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]

    def _recorder(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        calls = itertools.count()

        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else next(iter(output), None)
            call = next(calls)
            if isinstance(first, torch.Tensor):
                self.outputs[name, call] = first.detach()

        return record

    def output_errors(self, alone: list[_Run]) -> Iterator[tuple[str, float]]:
        """Yield the error of each module's output, in the order of calls; without outputs whose rows cannot be told."""
        for (name, call), found in self.outputs.items():
            parts = [run.outputs[name, call] for run in alone]
            for dim in range(min(2, found.ndim)):  # rows are the first dimension; in XLNet the second
                wanted = torch.cat(parts, dim)
                if wanted.shape == found.shape:
                    module = self.model.get_submodule(name)
                    what = f"the output of {name} ({type(module).__name__})" if name else "the output"
                    yield what, _error(found, wanted, wanted)
                    break

    def gradient_errors(self, alone: list[_Run]) -> Iterator[tuple[str, float]]:
        """Yield the error of each parameter's gradient."""
        for slot, run in enumerate(alone):
            gradients = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
            largest = max(gradients.values(), key=torch.linalg.vector_norm)
            for name, p in self.model.named_parameters():
                if not p.requires_grad:
                    continue
                found = torch.zeros_like(p[slot]) if p.grad is None else p.grad[slot]
                wanted = gradients.get(name, torch.zeros_like(found)).view_as(found)
                yield (
                    f"the gradient of {name}",
                    min(
                        _error(found, wanted, wanted),
                        1e3 * _error(found, wanted, largest),  # for key biases, whose gradient is only rounding
                    ),
                )


def _error(found: torch.Tensor, wanted: torch.Tensor, scale: torch.Tensor) -> float:
    off, norm = float(torch.linalg.vector_norm(found - wanted)), float(torch.linalg.vector_norm(scale))
    return off / norm if norm else off


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return padded rows of arbitrary tokens for two slots, [2, b, length], that end in the model's end token."""
    config, taken = model.config, inspect.signature(model.forward).parameters
    first = 1 + max((token for part in parts(config) for token in _tokens(part)), default=0)
    size = min(part.vocab_size for part in parts(config) if getattr(part, "vocab_size", None))
    columns, lengths = torch.arange(int(LENGTHS.max())), LENGTHS[..., None]
    ids = first + torch.randint(size - first, (*LENGTHS.shape, len(columns)))
    end = getattr(config, "eos_token_id", None)
    ids = ids.where(columns != lengths - 1, end) if isinstance(end, int) else ids  # BART classifies there
    real = columns < lengths
    inputs = {"input_ids": ids.where(real, config.pad_token_id), "attention_mask": real.long()}
    if "token_type_ids" in taken and getattr(config, "type_vocab_size", 2) > 1:
        inputs["token_type_ids"] = (columns > 2).long().expand_as(ids)
    if config.is_encoder_decoder and "decoder_input_ids" in taken:
        inputs["decoder_input_ids"] = inputs["input_ids"]
        inputs["decoder_attention_mask"] = inputs["attention_mask"]
    return as_taken(model, inputs)
