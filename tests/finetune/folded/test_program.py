"""The micro-step as a program that can be recorded once and replayed for every later trial."""

from contextlib import nullcontext

import numpy as np
import pytest
import tape
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trials import MIXED, curves, open_array, same

from hpo.finetune.data.encoded import Tokens
from hpo.finetune.folded import model as folded
from hpo.finetune.folded import program as folded_program
from hpo.finetune.folded import program_builder
from hpo.finetune.folded.cuda_graph import WARM_UP
from hpo.finetune.folded.program import MicroBatch, Program, Shape
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.models import dropout, first_token
from hpo.finetune.models.loading import load_model
from hpo.recipe.training_params import TrainingParams
from hpo.tasks.registry import TASKS


@pytest.mark.parametrize("worth", [10.0, 0.0], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "qwen3"])
def test_a_recorded_program_trains_every_later_trial_to_the_bit(tmp_path, monkeypatch, kind, worth):
    """Other rows, rates, masks, batch sizes, epochs and dropout are read from tensors only."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    tiny.save_model(tmp_path / "model", kind)
    trials = [{**each, "epochs": 1} for each in MIXED]
    expected = curves(open_array(tmp_path, slots=2), trials)
    monkeypatch.setattr(folded_program, "Replay", tape.Taped)
    monkeypatch.setattr(tape.Taped, "replayed", 0)
    found = curves(open_array(tmp_path, slots=2), trials)
    assert tape.Taped.replayed > 10
    assert [number for number in expected if not same(expected[number], found[number])] == []


def test_the_tape_detects_a_program_that_depends_on_the_host():
    step, total = 0, torch.zeros(2)

    def program():
        total.add_(step)

    taped = tape.Taped(program, torch.device("cpu"))
    for step in range(5):  # noqa: B007
        taped()
    assert total.tolist() == [0 + 1 + 2 + 2 + 2] * 2
    with pytest.raises(AssertionError, match="waits for the device"), tape.Tape():
        total.sum().item()


# ---------------------------------------------------------------- on CUDA, without one


def stepped(weights, gradients, *others, lr, found_inf, **settings):
    """Replace the fused kernel, which needs tensors with values."""
    for weight, *like in zip(weights, gradients, *others[:2], strict=True):
        assert all(each.shape == weight.shape and each.is_contiguous() for each in like)
    assert lr.shape == found_inf.shape == ()


def test_operations_on_a_device_read_only_numbers_of_the_host():
    here, there = torch.zeros(3), torch.zeros(3, device="meta")
    with tape.OnDevice():
        _ = there + torch.tensor(2.0)
        for reads in (lambda: torch.tensor(2.0).to("meta"), lambda: there[here.long()], lambda: there.copy_(here)):
            with pytest.raises(AssertionError, match="from the host"):
                reads()


@pytest.mark.parametrize(
    ("kind", "line", "targets"),
    [
        *((kind, 40, ()) for kind in ("bert", "roberta", "electra", "distilbert", "albert", "modernbert", "gpt2")),
        *((kind, None, ()) for kind in ("bert", "qwen3", "deberta-v2", "xlnet")),
        ("qwen3", 40, ()),
        ("bert", 40, ("all_linear",)),
        ("xlnet", None, ("all_linear",)),
    ],
)
def test_a_program_on_a_gpu_reads_no_values_and_no_tensors_of_the_host(tmp_path, monkeypatch, kind, line, targets):
    """On meta tensors, with the code for a GPU: reading a value is an error."""
    folder = tiny.save_model(tmp_path / "model", kind)
    model, head = load_model(str(folder), folder, TASKS["single_label"], ["a", "b"], 0)
    first_token.shorten(model)
    dropout.install(model)
    monkeypatch.setattr(torch, "_fused_adamw_", stepped)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(folded, "_folds", lambda layer, kind: True)  # it compares values
    meta = torch.device("meta")
    lengths = np.random.default_rng(0).integers(3, 15, 40)
    numbers = torch.empty(40, dtype=torch.int64, device=meta)
    ids = torch.empty(int(lengths.sum()), dtype=torch.int32, device=meta)
    tokens = Tokens({"input_ids": ids}, {}, {"labels": numbers}, numbers, numbers, lengths, np.ones(40), 0)
    if targets:
        Lora(targets, rank=4, head=head).install(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shape, task = Shape(4, 15, line), TASKS["single_label"]
    weights = {"none": torch.ones(2, device=meta)}
    program = Program(model.to(meta), 3, names, head, tokens, shape, task, weights, lambda keys: nullcontext())
    program.load(1, model, TrainingParams.of({"dropout": 0.1}))
    rates = [1e-3] * len(program.optimizer.depths)
    assert program.write({1: [MicroBatch(np.arange(3), 3, 3.0, 5, rates)]}) == 1
    for within in [nullcontext()] * WARM_UP + [tape.OnDevice()]:
        with within:
            program.step(0)
    assert program.losses.device == meta
    with pytest.raises(RuntimeError, match="meta"):
        program.losses.tolist()


def test_another_trial_moves_no_memory(tmp_path):
    array = open_array(tmp_path, slots=3)
    curves(array, MIXED[:3])
    program = array.engine.program

    def addresses():
        tensors = [*program.model.parameters(), *(p.grad for p in program.model.parameters() if p.grad is not None)]
        tensors += [program.losses, program._settings, *program._now]
        places = [m.p for m in program.model.modules() if isinstance(m, dropout.OwnDropout)]
        tensors += [tensor for place in places for tensor in (place.thresholds, place.scales)]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    curves(array, MIXED)
    assert array.engine.program is program
    assert addresses() == before


# ---------------------------------------------------------------- micro-batches


@pytest.mark.parametrize(
    ("shape", "lengths", "parts"),
    [
        (Shape(2, 9, None), [1, 1, 1, 1, 1], [[0, 1], [2, 3], [4]]),
        (Shape(3, 9, 10), [4, 4, 4, 2, 1, 1], [[0, 1], [2, 3, 4], [5]]),
        (Shape(4, 9, 9), [9, 9, 1], [[0], [1], [2]]),
        (Shape(4, 9, 9), [3], [[0]]),
    ],
)
def test_a_batch_is_cut_where_its_rows_or_tokens_are_full(shape, lengths, parts):
    assert [part.tolist() for part in shape.parts(np.arange(len(lengths)), np.array(lengths))] == parts


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    rows=st.integers(1, 8),
    line=st.one_of(st.none(), st.integers(9, 40)),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_row_is_in_one_micro_batch_that_holds_it(lengths, rows, line):
    parts = Shape(rows, 9, line).parts(np.arange(len(lengths)), np.array(lengths))
    assert np.concatenate(parts).tolist() == list(range(len(lengths)))
    assert max(map(len, parts)) <= rows
    assert line is None or max(sum(lengths[row] for row in part) for part in parts) <= line
