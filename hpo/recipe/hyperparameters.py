"""The hyperparameters of the built-in fine-tuning objective, one entry each.

The defaults are those of BERT's `run_classifier.py` (Devlin et al., 2019). They are the baseline: every study runs them
first, and compares its best trial with them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.recipe.class_weights import CLASS_WEIGHTS
from hpo.recipe.schedules import SCHEDULES

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter of the built-in objective.

    Attributes:
        kind: `float`, `int` or `str`.
        default: The published default; None leaves the model's own configuration as it is.
        low: The smallest allowed value.
        high: The largest allowed value.
        low_open: Whether `low` itself is excluded.
        high_open: Whether `high` itself is excluded.
        choices: The allowed values, for `str`.
        says: Its description, in one line.
    """

    kind: type
    default: Value
    says: str
    low: float = 0.0
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""
        if self.kind is str:
            return None if value in self.choices else f"{value!r} is not one of {', '.join(self.choices)}"
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            whole = f"; write {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
            return f"{value!r} is not {'a whole number' if self.kind is int else 'a number'}{whole}"
        below = value <= self.low if self.low_open else value < self.low
        above = value >= self.high if self.high_open else value > self.high
        if below or above or value != value:
            return f"{value!r} is outside {self.range}"
        return None

    @property
    def range(self) -> str:
        """The allowed range in interval notation, e.g. `(0, 1]`."""
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


# Name -> pattern that the names of the adapted linear layers match; the classifier is never adapted.
LORA_TARGETS: dict[str, str] = {
    # Hu et al. adapt these two; in models with one matrix for queries, keys and values, that matrix.
    "query_value": r"(^|\.)((q|v|query|value)(_proj|_lin)?|c_attn|Wqkv|qkv_proj|query_key_value)$",
    "attention": r"attn|attention",
    "all_linear": r"",
}

HYPERPARAMETERS: dict[str, Hyperparameter] = {
    "learning_rate": Hyperparameter(float, 5e-5, "peak learning rate of AdamW", high=1, low_open=True),
    "batch_size": Hyperparameter(int, 32, "examples an optimiser step", low=1, high=65536),
    "epochs": Hyperparameter(int, 3, "passes over the training split", low=1, high=10000),
    "warmup_ratio": Hyperparameter(float, 0.1, "share of the steps that warm up linearly", high=1),
    "warmup_steps": Hyperparameter(int, None, "steps that warm up linearly, in place of warmup_ratio", high=10**9),
    "weight_decay": Hyperparameter(float, 0.01, "decoupled decay of matrices (not of biases and norms)", high=10),
    "schedule": Hyperparameter(str, "linear", "shape of the learning rate after warm-up", choices=tuple(SCHEDULES)),
    "num_cycles": Hyperparameter(int, 1, "restarts of cosine_with_restarts", low=1, high=1000),
    "power": Hyperparameter(float, 1.0, "exponent of polynomial", low_open=True, high=100),
    "decay_ratio": Hyperparameter(float, 0.2, "share of the steps that warmup_stable_decay decays", high=1),
    "dropout": Hyperparameter(
        float, None, "probability in every dropout of the model; empty: the model's own", high=1, high_open=True
    ),
    "layer_decay": Hyperparameter(
        float, 1.0, "learning rate of a layer as a share of the layer above (ELECTRA: 0.8)", low_open=True, high=1
    ),
    "label_smoothing": Hyperparameter(float, 0.0, "share of the target spread over all labels", high=1, high_open=True),
    "class_weights": Hyperparameter(
        str,
        "none",
        "balanced: an example's loss counts n / (k * rows of its class), n being the rows and k the classes",
        choices=tuple(CLASS_WEIGHTS),
    ),
    "max_grad_norm": Hyperparameter(float, 1.0, "gradient norm above which gradients are scaled down", low_open=True),
    "frozen_layers": Hyperparameter(
        int, 0, "layers that are not trained, from the lowest, and the embeddings; 0: none", high=1000
    ),
    "sampling_temperature": Hyperparameter(
        float,
        1.0,
        "of several tasks: a task of n rows has a share of an epoch in proportion to n ** (1 / sampling_temperature)",
        low=1,
        high=1000,
    ),
    # Table 9 of Hu et al., 2021 (RoBERTa on GLUE). Without lora_rank in its space, a study trains whole models.
    "lora_rank": Hyperparameter(int, 8, "rank of LoRA's adapters; the pretrained weights are frozen", low=1, high=1024),
    "lora_alpha": Hyperparameter(float, 8.0, "adapters are scaled by lora_alpha / lora_rank", low_open=True),
    "lora_dropout": Hyperparameter(float, 0.0, "dropout on the adapters' input", high=1, high_open=True),
    "lora_targets": Hyperparameter(str, "query_value", "layers that get adapters", choices=tuple(LORA_TARGETS)),
}

DEFAULTS: dict[str, Value] = {name: entry.default for name, entry in HYPERPARAMETERS.items()}

ADAPTER_DEFAULTS: dict[str, Value] = {"learning_rate": 5e-4}
"""The defaults that differ where adapters are trained: Hu et al., 2021, table 9 (RoBERTa base on GLUE)."""

MODEL = "model"
"""The parameter of a study of several models; no hyperparameter of training, which gets one model."""

READ_BY_SCHEDULE = {"num_cycles": "cosine_with_restarts", "power": "polynomial", "decay_ratio": "warmup_stable_decay"}
"""Hyperparameters that only one schedule reads -> that schedule."""


def trains_adapters(names: Container[str]) -> bool:
    """Return whether trials with these hyperparameters train LoRA adapters, not whole models."""
    return "lora_rank" in names


def defaults(names: Container[str]) -> dict[str, Value]:
    """Return the defaults of all hyperparameters, in a space with these names."""
    return DEFAULTS | ADAPTER_DEFAULTS if trains_adapters(names) else DEFAULTS


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return these settings and the defaults of the other hyperparameters that the trial reads."""
    everything = {**defaults(settings), **settings}
    unread = {name for name, schedule in READ_BY_SCHEDULE.items() if everything["schedule"] != schedule}
    unread.add("sampling_temperature")  # it is said where it is set, as most studies have one task
    unread.add("warmup_steps" if everything["warmup_steps"] is None else "warmup_ratio")
    if "lora_rank" not in settings:
        unread |= {name for name in HYPERPARAMETERS if name.startswith("lora_")}
    return {name: value for name, value in everything.items() if name not in unread or name in settings}


def model_choice(models: Sequence[str]) -> Hyperparameter:
    """Return the parameter `model` of a study of several models; the published default is the first one's."""
    return Hyperparameter(str, models[0], "pretrained model", choices=tuple(models))


def conflicts(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> why a parameter conflicts with the rest of its space, or of the study file.

    Args:
        parameters: Name -> parameter as the space is written.
    """
    found = _adapter_conflicts(parameters)
    if {"warmup_steps", "warmup_ratio"} <= {*parameters}:
        found["warmup_steps"] = "is the warm-up in steps, and warmup_ratio the same as a share; leave one of them out"
    if MODEL in parameters:
        found[MODEL] = "is a key of the study file, not of its space: write model: [a, b] there, and leave it out here"
    return found


def _adapter_conflicts(parameters: Mapping[str, Any]) -> dict[str, str]:
    if "lora_rank" not in parameters:
        lora = [name for name in parameters if str(name).startswith("lora_") and name in HYPERPARAMETERS]
        return dict.fromkeys(lora, "is read with lora_rank only; give lora_rank a value too, or leave this out")
    rank = parameters["lora_rank"]
    written = rank if isinstance(rank, Mapping) else {"values": rank}
    values = written.get("values", [])
    if written.get("when") or None in (values if isinstance(values, list) else [values]):
        return {
            "lora_rank": "must be a number in every trial: a study trains adapters or whole models, no mixture of "
            "both; make two studies"
        }
    return {}
