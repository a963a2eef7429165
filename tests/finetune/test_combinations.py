"""Settings of different rooms in one study: each keeps what it promises beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import several
from trials import SPACE, curves, same

from hpo.config import study_spec
from hpo.execution import trial_arrays

ADAPTERS = {"learning_rate": [3e-3, 1e-3], "batch_size": [8, 16], "epochs": 1, "lora_rank": 4}
TRIALS = [{"learning_rate": 3e-3, "batch_size": 16, "epochs": 1}, {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1}]


def assert_same(one: dict[int, Any], other: dict[int, Any]) -> None:
    assert all(same(curve, other[number]) for number, curve in one.items())


def found(folder: Path, trials: list[dict[str, Any]], **overrides: Any) -> dict[int, Any]:
    raw = several.study(folder, **overrides)
    return curves(trial_arrays.open_array(study_spec.build(raw, "test", folder)), trials)


@pytest.mark.parametrize("fold", [False, True], ids=["plain", "folded"])
def test_several_tasks_with_gradient_checkpointing(tmp_path: Path, fold: bool) -> None:
    asked = {"space": SPACE, "fold": fold, "slots": 2 if fold else 1}
    assert_same(found(tmp_path, TRIALS, **asked, gradient_checkpointing=True), found(tmp_path, TRIALS, **asked))


def test_several_tasks_with_adapters_on_a_base_in_few_bits_and_gradient_checkpointing(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    trials = [{**each, "lora_rank": 4} for each in TRIALS]
    asked = {"space": ADAPTERS, "base_weights": "nf4", "slots": 2}
    rounded = found(tmp_path, trials, **asked)
    assert_same(found(tmp_path, trials, **asked, gradient_checkpointing=True), rounded)
    whole = found(tmp_path, trials, space=ADAPTERS, slots=2)
    assert [curve[0][2] for curve in whole.values()] != [curve[0][2] for curve in rounded.values()]
