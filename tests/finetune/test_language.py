"""Models that give out tokens through every engine: the same numbers, whatever trains, and never all logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import chats
import numpy as np
import paired
import pytest
import tape
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from trials import MIXED, SPACE, assert_separate, curves, same

from hpo.config import study_spec
from hpo.core.errors import ModelError
from hpo.core.trainer import TrialSpec
from hpo.execution import trial_arrays
from hpo.finetune.folded import program as folded_program
from hpo.finetune.folded import program_builder
from hpo.finetune.folded.engine import FoldedEngine
from hpo.finetune.lora.adaptation import LoraAdaptation
from hpo.finetune.models import token_head
from hpo.finetune.plain import PlainEngine

CAUSAL = ["gpt2-causal", "gpt2-untied", "gpt-neox-causal", "llama-causal", "llama-causal-tied", "qwen3-causal"]
CAUSAL += ["opt-causal"]
STILL = [{**each, "dropout": 0.0, "epochs": 1} for each in MIXED[:3]]
ENGINES = [(name, 10.0) for name in CAUSAL] + [(name, 0.0) for name in ("gpt2-causal", "llama-causal", *paired.KINDS)]
LORA_SPACE = SPACE | {"lora_rank": [2, 4], "lora_alpha": {"low": 1.0, "high": 16.0}, "lora_targets": ["all_linear"]}
ADAPTED = [
    {**each, "lora_rank": rank, "lora_targets": "all_linear"} for each, rank in zip(MIXED, (2, 4, 4, 2, 2), strict=True)
]

# Parameters whose gradient is only rounding, which AdamW turns into whole steps.
ROUNDING = ("key.bias", "k_proj.bias", "c_attn.bias", "query_key_value.bias")


def causal_study(folder: Path, name: str = "llama-causal", count: int = 70, **overrides: Any) -> dict[str, Any]:
    """Return a study file's content: a tiny causal model, and prompts that are completed with their own words."""
    if not (folder / "model").exists():
        words = chats.tokenizer(None)
        ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": 1}
        _, config = architectures.configuration(name, **{"vocab_size": len(words), **ends})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
        words.save_pretrained(folder / "model")
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        asked = [f"w{i}" for i in rng.integers(0, 12, rng.integers(1, 6))]
        rows.append({"prompt": " ".join(asked) + " ?", "completion": " ".join(asked[: rng.integers(1, 4)])})
    chats.write(folder / "prompts.jsonl", rows)
    data = {"train": str(folder / "prompts.jsonl"), "validation": 10, "test": 10, "chat_template": "plain"}
    return tiny.study(folder, task="causal_lm", data=data, **{"max_length": 24, "space": SPACE, **overrides})


def opened(folder: Path, name: str = "llama-causal", **overrides: Any) -> Any:
    """Return the array of a causal model, or of a model for sequence to sequence."""
    if name in paired.KINDS:
        raw = paired.study(folder, name, count=70, **{"space": SPACE, **overrides})
    else:
        raw = causal_study(folder, name, **overrides)
    return trial_arrays.open_array(study_spec.build(raw, "test", folder))


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize(("name", "worth"), ENGINES)
def test_folded_trials_are_separate_trials(tmp_path, monkeypatch, in_float64, name, worth):
    """Losses and weights, with label smoothing, several micro-batches and refilled slots: float64, to 1e-9."""
    monkeypatch.setattr(program_builder, "WORTH_PACKING", worth)
    plain = opened(tmp_path, name, fold=False)
    assert type(plain.engine) is PlainEngine
    plain.engine.window = FoldedEngine.window
    expected = curves(plain, STILL)
    array = opened(tmp_path, name, slots=2, fold=True)
    assert type(array.engine) is FoldedEngine, array.notes
    assert array.notes == plain.notes
    found = curves(array, STILL)
    packs = array.engine.program.shape.line is not None
    assert packs == (worth > 1 and name in CAUSAL and name != "opt-causal")
    assert_separate(found, expected, ROUNDING, tolerance=1e-8, scores=1e-8)


@pytest.mark.parametrize("name", ["llama-causal", "llama-causal-tied", "gpt2-causal", "t5", "bart"])
def test_adapted_trials_do_not_depend_on_their_neighbours(tmp_path, name):
    alone = curves(opened(tmp_path, name, slots=1, space=LORA_SPACE), ADAPTED[:3])
    array = opened(tmp_path, name, slots=3, space=LORA_SPACE)
    assert isinstance(array.adaptation, LoraAdaptation)
    assert not array.adaptation.lora.head  # an untied projection is pretrained too
    together = curves(array, ADAPTED[:3], [2, 0, 1])
    assert [number for number in alone if not same(alone[number], together[number])] == []
    assert all(np.isfinite(value) for *curve, _ in alone.values() for _, value, _ in curve)


@pytest.mark.parametrize("name", ["gpt2-causal", "llama-causal", "bart"])
def test_whole_trials_do_not_depend_on_their_neighbours(tmp_path, name):
    alone = curves(opened(tmp_path, name, slots=1, fold=True), MIXED[:3])
    together = curves(opened(tmp_path, name, slots=3, fold=True), MIXED[:3], [2, 0, 1])
    assert [number for number in alone if not same(alone[number], together[number])] == []


def test_trials_side_by_side_have_the_results_that_they_have_alone(tmp_path):
    raw = causal_study(tmp_path, threads=2)
    one, two = (
        trial_arrays.open_array(study_spec.build({**raw, "slots": slots, "fold": False}, "test", tmp_path))
        for slots in (1, 2)
    )
    one.engine.threads = two.engine.threads
    alone, together = curves(one, MIXED[:3]), curves(two, MIXED[:3])
    assert all(same(alone[number], together[number]) for number in alone)


@pytest.mark.parametrize("space", [SPACE, LORA_SPACE], ids=["whole", "lora"])
def test_a_recorded_program_trains_every_later_trial_to_the_bit(tmp_path, monkeypatch, space):
    """As on a GPU: all tokens are computed, and nothing waits for the device."""
    monkeypatch.setattr(token_head, "_only_trained", lambda x: False)
    monkeypatch.setattr(program_builder, "WORTH_PACKING", 10.0)
    trials = [{**each, "epochs": 1} for each in (ADAPTED if space is LORA_SPACE else MIXED)[:3]]
    expected = curves(opened(tmp_path, slots=2, fold=True, space=space), trials)
    monkeypatch.setattr(folded_program, "Replay", tape.Taped)
    monkeypatch.setattr(tape.Taped, "replayed", 0)
    found = curves(opened(tmp_path, slots=2, fold=True, space=space), trials)
    assert tape.Taped.replayed > 10
    assert [number for number in expected if not same(expected[number], found[number])] == []


def test_models_that_give_out_tokens_are_not_divided(tmp_path):
    with pytest.raises(ModelError, match="shards: models of task 'causal_lm' are not divided"):
        opened(tmp_path, shards=2)


# ---------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Records the most values of a tensor that an operation makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.values = max(self.values, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@pytest.mark.parametrize(("space", "slots"), [(SPACE, 1), (LORA_SPACE, 3)], ids=["whole", "lora"])
def test_logits_of_a_batch_are_never_held(tmp_path, monkeypatch, space, slots):
    """With 50,000 tokens in the vocabulary nothing is larger than a chunk, or than the embedding table."""
    vocabulary, width = 50_000, 8
    settings = {"vocab_size": vocabulary, "hidden_size": width, "num_attention_heads": 2, "intermediate_size": 16}
    kind, auto, usual = architectures.ARCHITECTURES["llama-causal-tied"]
    monkeypatch.setitem(architectures.ARCHITECTURES, "large", (kind, auto, usual | settings))
    monkeypatch.setattr(architectures, "configuration", with_vocabulary(vocabulary))
    monkeypatch.setattr(token_head, "CHUNK", 10 * vocabulary)
    array = opened(tmp_path, "large", slots=slots, fold=True, space=space)
    chosen = ADAPTED if space is LORA_SPACE else MIXED
    with Largest() as largest:
        for slot in range(slots):
            array.load(slot, TrialSpec(slot, {**chosen[slot], "epochs": 1}, slot))
        outcomes = array.advance()
    assert all(np.isfinite(outcome.value) for outcome in outcomes.values())
    trained = array.setup.tokens["train"].units.sum()
    assert trained > 3 * 10 * slots  # more than one chunk in a batch
    assert largest.values <= max(10, width) * vocabulary


def with_vocabulary(size):
    """Return `architectures.configuration` with a vocabulary that is larger than the tokenizer's."""
    own = architectures.configuration

    def configuration(name, **changes):
        return own(name, **{**changes, "vocab_size": size})

    return configuration
