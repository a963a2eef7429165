"""The memory of training: counted, measured in a pass, and compared with what a process used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from trials import MIXED, curves, open_array, same

from hpo.finetune import memory
from hpo.finetune.memory import allocated, of_pass, size_of_model

CPU = torch.device("cpu")


def test_what_is_held_at_once_is_counted_with_views_once_and_inputs_not_at_all() -> None:
    given_before = torch.ones(1000)

    def run() -> None:
        first = given_before + 1  # 4,000 bytes
        second = first.view(10, 100) * 2  # 4,000 more
        del first
        _ = given_before.t()
        third = second + 1
        del second, third

    assert allocated(run, CPU) == 8000


def test_the_backward_pass_is_counted() -> None:
    weight = torch.ones(1000, requires_grad=True)

    def run() -> None:
        (weight.exp() * 2).sum().backward()  # exp is kept; its gradient and that of the weight are made

    assert 12_000 <= allocated(run, CPU) <= 16_100
    assert weight.grad is not None


Lines = list[tuple[int, int]]


def peaks(lines: Lines, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], None]]:
    """Let a pass over n rows take the largest of a * n + b, the memory at its moments."""
    monkeypatch.setattr(memory, "allocated", lambda run, where: run())

    def passed(rows: int) -> Callable[[], Any]:
        tried.append(rows)
        return lambda: max(slope * rows + rest for slope, rest in lines)

    return passed


@pytest.mark.parametrize(
    ("free", "tried", "found"),
    [
        (None, [1, 32], 10 * 32 + 100),
        (100_000, [1, 32], 10 * 32 + 100),
        (2000, [1, 2, 4, 8, 32], 10 * 32 + 100),  # 32 rows fit in half of it by the bound that 8 rows give
        (500, [1, 2, 4], 140 * 8),
        (10, [1], 110 * 32),
    ],
)
def test_more_rows_are_tried_only_where_they_fit_in_half_of_the_free_memory(
    free: int | None, tried: list[int], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    assert of_pass(peaks([(10, 100)], seen, monkeypatch), 32, CPU, free) == found
    assert seen == tried


@given(
    lines=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), min_size=1, max_size=5),
    rows=st.integers(1, 70),
    free=st.none() | st.integers(0, 10_000),
)
def test_no_estimate_is_too_low_and_no_try_takes_more_than_half(lines: Lines, rows: int, free: int | None) -> None:
    def of(count: int) -> int:
        return max(slope * count + rest for slope, rest in lines)

    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        found = of_pass(peaks(lines, seen, patch), rows, CPU, free)
    assert found >= of(rows)
    assert free is None or all(of(count) <= free / 2 for count in seen[1:])
    assert found == of(rows) or seen[-1] < rows


# ---------------------------------------------------------------- arrays


def test_the_parts_are_those_of_the_model(tmp_path: Path) -> None:
    array = open_array(tmp_path, fold=False, slots=3, threads=3)
    one = size_of_model(array.setup.model)
    found = array.memory()
    trained = sum(p.nbytes for p in array.setup.model.parameters())
    kept = sum(p.nbytes for p in array.setup.initial.pristine.values())
    if array.setup.vocabulary.rows is not None:
        kept += array.setup.vocabulary.whole.nbytes
    assert found.weights == 3 * one + kept
    assert (found.gradients, found.moments) == (3 * trained, 6 * trained)
    assert found.best_weights >= 3 * trained
    assert found.checkpoint == 12 * trained
    assert found.activations > 0
    folded = open_array(tmp_path, slots=3).memory()
    assert (folded.gradients, folded.moments) == (3 * trained, 6 * trained)
    assert folded.weights == one + 3 * trained + kept


@pytest.mark.parametrize("changes", [{"fold": False}, {"slots": 2}], ids=["plain", "folded"])
def test_gradient_checkpointing_takes_fewer_activations_and_slots_more(changes: dict[str, Any], tmp_path: Path) -> None:
    kept = open_array(tmp_path, **changes).memory()
    again = open_array(tmp_path, gradient_checkpointing=True, **changes).memory()
    assert again.activations < 0.75 * kept.activations
    assert (again.weights, again.moments) == (kept.weights, kept.moments)
    more = open_array(tmp_path, **{**changes, "slots": 4, "threads": 4}).memory()
    assert more.activations > kept.activations


def test_adapters_have_few_gradients_and_share_the_weights(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-3, 2e-3], "batch_size": 8, "epochs": 1, "lora_rank": 2}
    array = open_array(tmp_path, slots=3, space=space, fold=None)
    found, one = array.memory(), size_of_model(array.setup.model)
    assert found.gradients < 0.5 * one
    assert found.weights < 3 * one
    assert found.moments == 2 * found.gradients


@pytest.mark.parametrize("changes", [{"fold": False}, {"slots": 2}], ids=["plain", "folded"])
def test_an_estimate_changes_no_result(changes: dict[str, Any], tmp_path: Path) -> None:
    trials = [{**each, "epochs": 1} for each in MIXED[:2]]
    expected = curves(open_array(tmp_path, **changes), trials)
    array = open_array(tmp_path, **changes)
    array.memory()
    found = curves(array, trials)
    assert [number for number in expected if not same(expected[number], found[number])] == []


# ---------------------------------------------------------------- a process

SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[2])
from transformers import AutoConfig, AutoModel
import tiny
from hpo.config import study_spec
from hpo.execution import run_study
from hpo.storage.snapshot import MEMORY
tiny.SIZES["bert"] |= {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 3, "intermediate_size": 2048}
tiny.sentence = lambda rng, label, **_: " ".join([*rng.choice(tiny.FILLER, 40), *rng.choice(tiny.TOPICS[label], 2)])
folder = Path(sys.argv[1])
tiny.write_csv(folder / "data.csv", 124)
space = {"learning_rate": [1e-4, 2e-4], "batch_size": 32, "epochs": 1}
raw = tiny.study(folder, space=space, trials=1, **json.loads(sys.argv[3]))
done = run_study.run(study_spec.build(raw, "test", folder), "sqlite:///hpo.db")
print(json.dumps(done.study.user_attrs[MEMORY]))
"""


@pytest.mark.slow
def test_the_estimate_is_near_what_a_process_uses(tmp_path: Path) -> None:
    """A model of 9.6 million parameters: weights, gradients and moments are some 230 MB, activations about as much."""
    paths = json.dumps([str(Path(tiny.__file__).parent)])
    root = str(Path(memory.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), paths, json.dumps({"evaluations_per_epoch": 1})],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    stored = json.loads(ran.stdout.splitlines()[-1])
    expected = sum(count for part, count in stored["estimated"].items() if part != "checkpoint" or stored["checkpoint"])
    assert stored["used"] is not None
    assert 0.5 < stored["used"] / expected < 2, stored
