from __future__ import annotations

from typing import Any

import pytest
from study_problems import BUILT_IN, CUSTOM, problems


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        ({"slots": 2}, "slots", "must be 1 with shards"),
        ({"slots": "auto"}, "slots", "must be 1 with shards"),
        ({"fold": True}, "fold", "a model is folded or divided (shards), not both"),
        ({"device": "mps"}, "device", "shards are for cuda or cpu"),
        ({"space": "lora"}, "shards", "whole models only, not adapters (lora_rank)"),
        ({"space": {"epochs": [1, 2], "frozen_layers": 2}}, "shards", "not models with frozen_layers"),
    ],
)
def test_what_does_not_go_with_a_divided_trial(change: dict[str, Any], path: str, said: str) -> None:
    assert problems({**BUILT_IN, **change}) == {}
    assert problems({**BUILT_IN, "shards": 2, "fold": False}) == {}
    found = problems({**BUILT_IN, "shards": 2, **change})
    assert set(found) == {path}
    assert said in found[path]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"epochs": [1, 2]}}, "is for adapters (lora_rank in the space), below which the layers are frozen"),
        ({"space": "lora", "device": "mps"}, "is for cpu and cuda, not mps"),
        ({"space": "lora", "base_weights": "int4"}, "Input should be 'int8' or 'nf4', not 'int4'"),
    ],
)
def test_what_does_not_go_with_a_base_in_few_bits(change: dict[str, Any], said: str) -> None:
    assert problems({**BUILT_IN, "space": "lora", "base_weights": "nf4"}) == {}
    found = problems({**BUILT_IN, "base_weights": "nf4", **change})
    assert set(found) == {"base_weights"}
    assert said in found["base_weights"]


@pytest.mark.parametrize(
    ("change", "space", "said"),
    [
        (
            {},
            {"lora_rank": [4, 8], "frozen_layers": 2},
            "adapters (lora_rank) are trained on a model whose layers are all",
        ),
        (
            {"fold": True},
            {"frozen_layers": [2, 4]},
            "freeze the same layers, not 2, 4; write one number, or fold: false",
        ),
        ({"fold": True}, {"frozen_layers": {"low": 0, "high": 2}}, "freeze the same layers, not 0, 1, 2"),
        (
            {"fold": True},
            {"schedule": ["linear", "cosine"], "frozen_layers": {"values": [3], "when": {"schedule": "cosine"}}},
            "freeze the same layers, not 0, 3",
        ),
    ],
)
def test_what_does_not_go_with_frozen_layers(change: dict[str, Any], space: dict[str, Any], said: str) -> None:
    found = problems({**BUILT_IN, **change, "space": {"epochs": [1, 2], **space}})
    assert set(found) == {"space.frozen_layers"}
    assert said in found["space.frozen_layers"]
    allowed = {**space, "frozen_layers": 0} if "lora_rank" in space else {**space, "frozen_layers": 2}
    assert problems({**BUILT_IN, **change, "space": {"epochs": [1, 2], **allowed}}) == {}


def test_an_objective_of_ones_own_has_no_shards() -> None:
    assert set(problems({**CUSTOM, "shards": 2, "slots": 2})) == {"shards"}


def test_a_grid_over_ranges_names_each_of_them() -> None:
    found = problems({**BUILT_IN, "sampler": {"name": "grid"}})
    assert set(found) == {f"space.{name}" for name in ("learning_rate", "warmup_ratio", "weight_decay")}
    lattice = {"learning_rate": [1e-5], "warmup_ratio": {"low": 0, "high": 0.2, "step": 0.1}}
    assert problems({**BUILT_IN, "sampler": "grid", "space": lattice}) == {}
