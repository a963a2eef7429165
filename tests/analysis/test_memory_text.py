"""The memory of a study in words."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from hpo.analysis import report
from hpo.analysis.memory_text import memory_text, shortage
from hpo.cli.study_text import study_facts, study_text
from hpo.storage.snapshot import MEMORY, Results, read

PARTS = {"weights": 200_000_000, "gradients": 100_000_000, "moments": 200_000_000, "best_weights": 100_000_000}
PARTS |= {"rows": 0, "activations": 400_000_000, "checkpoint": 500_000_000}


def results(**stored: Any) -> Results:
    study = optuna.create_study(study_name="s")
    settings = {"device": "cpu", "slots": 1}
    study.set_user_attr(MEMORY, {"estimated": PARTS, "settings": settings, "used": None, "checkpoint": False, **stored})
    return read(study)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            {"used": 1_500_000_000},
            "used 1.5 GB (by how much the process grew since before",
        ),
        ({"used": 1_500_000_000, "checkpoint": True}, "1.00 times the estimate"),
        (
            {"used": 500_000_000, "settings": {"device": "cuda"}},
            "(what PyTorch had allocated), 0.50 times the estimate",
        ),
        ({}, "from the second minute on"),
    ],
)
def test_what_was_used_stands_beside_the_estimate(stored: dict[str, Any], said: str) -> None:
    found = memory_text(results(**stored))
    assert found is not None
    assert found.startswith(
        "memory: estimated about 1.0 GB at the peak (weights 200.0 MB, gradients 100.0 MB, moments "
    )
    assert said in found
    assert ("used" in found) == ("used" in stored)
    assert found in study_text(results(**stored))
    page = report.html(results(**stored))
    peak = "1.5 GB" if stored.get("checkpoint") else "1.0 GB"
    assert (f"used at the peak, estimated {peak};" in page) == ("used" in stored)
    assert ("estimated peak" in page) == ("used" not in stored)


def test_a_study_without_an_estimate_says_nothing() -> None:
    without = read(optuna.create_study(study_name="s"))
    assert memory_text(without) is None
    assert study_facts(without)["memory"] is None
    assert memory_text(results(used="much")) is None  # another program's attribute


@pytest.mark.parametrize(
    ("free", "settings", "said"),
    [
        (None, {}, None),
        (1_500_000_000, {}, None),
        (1_400_000_000, {}, "write a smaller micro_batch, gradient_checkpointing: true, a smaller model"),
        (
            1_400_000_000,
            {"slots": 4},
            "needs about 1.5 GB of memory at the peak, and 1.4 GB were free on cpu; write fewer",
        ),
        (1, {"micro_batch": 1, "gradient_checkpointing": True}, "write a smaller model"),
    ],
)
def test_too_little_memory_is_noted_with_the_next_step(
    free: int | None, settings: dict[str, Any], said: str | None
) -> None:
    usual = {"slots": 1, "micro_batch": 64, "gradient_checkpointing": False}
    found = shortage(PARTS, free, "cpu", {**usual, **settings})
    assert (found is None) == (said is None)
    assert said is None or said in str(found)
