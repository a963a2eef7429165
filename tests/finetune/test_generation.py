"""Generated text: folded slots equal separate models token by token, in batches of any kind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import architectures
import pytest
import tiny
import torch
from transformers import GenerationConfig, PreTrainedModel

from hpo.config.schema import GenerateConfig
from hpo.core.errors import ModelError
from hpo.core.interrupts import StopRequest
from hpo.finetune import device, generation
from hpo.finetune.folded.model import fold, load_slot
from hpo.finetune.lora.adapters import Lora
from hpo.finetune.models.loading import attend

FAMILIES = (
    "gpt2-causal",
    "llama-causal",
    "qwen2-causal",
    "qwen3-causal",
    "t5-seq2seq",
    "bart-seq2seq",
    "marian",
    "encoder-decoder",
)
GREEDY = GenerateConfig(max_new_tokens=8)
BEAMS = GenerateConfig(max_new_tokens=8, num_beams=3, length_penalty=0.6)
PROMPTS = [[5 + (7 * row + 3 * place) % 90 for place in range(length)] for row, length in enumerate([3, 9, 6, 6, 1])]


def separate(name: str, lora: bool) -> list[PreTrainedModel]:
    """Return models of three trials: with weights of their own, or with adapters on the same weights."""
    models = architectures.models(name, 3, torch.float64, pad_token_id=0, eos_token_id=2)
    for model in models:
        model.generation_config = GenerationConfig.from_model_config(model.config)
        attend(model)
    generator = torch.Generator().manual_seed(1)
    if lora:
        models = [copy.deepcopy(models[0]) for _ in models]
        for model in models:
            Lora(("all_linear",), 4).install(model)
            for parameter_name, p in model.named_parameters():
                if ".adapter." in parameter_name:
                    p.data = torch.randn(p.shape, generator=generator).to(p) * 0.5
    else:
        trained = (p for model in models for p in model.parameters() if p.requires_grad)  # Marian's positions are fixed
        for p in trained:  # without more noise BART repeats its first token
            p.data += torch.randn(p.shape, generator=generator).to(p) * 0.3
    return models


def tokens(model: PreTrainedModel, generate: GenerateConfig, prompts: Any, slots: int) -> list[list[list[int]]]:
    """Return what each slot generates for each prompt, up to the end of the text."""
    settings = generation.settings_of(model, tiny.tokenizer(), generate)
    settings.eos_token_id = [2]
    with torch.no_grad():
        found = generation._batch(model, settings, prompts, slots, StopRequest())
    return [[generation._until_end(row, settings) for row in rows] for rows in found.tolist()]


@pytest.mark.parametrize("generate", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_slots_generate_in_one_call_what_each_generates_alone(
    name: str, lora: bool, generate: GenerateConfig
) -> None:
    models = separate(name, lora)
    folded = fold(models[0], 3).eval()
    for slot, model in enumerate(models):
        load_slot(folded, slot, model.state_dict())
    alone = [fold(model, 1).eval() if lora else model.eval() for model in models]
    together = tokens(folded, generate, PROMPTS, 3)
    assert together == [tokens(model, generate, PROMPTS, 1)[0] for model in alone]
    assert together[0] == [tokens(alone[0], generate, [prompt], 1)[0][0] for prompt in PROMPTS]
    assert any(one != other for one, other in itertools.combinations(together, 2))


class Reader:
    """Writes ids as text."""

    eos_token_id, pad_token_id = 2, 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


def texts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], slots: int = 1) -> list[list[str]]:
    reader: Any = Reader()
    return generation.generated(model, reader, generation.settings_of(model, reader, GREEDY), prompts, slots)


def test_texts_are_in_the_order_of_the_rows_whatever_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = separate("llama-causal", False)[0]
    alone = [texts(model, [prompt])[0][0] for prompt in PROMPTS]
    assert texts(model, PROMPTS) == [alone]
    assert len(set(alone)) > 1
    monkeypatch.setattr(device, "scoring_batch", lambda where, slots: 2)
    assert texts(model, PROMPTS) == [alone]


def test_a_lack_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, sizes = separate("llama-causal", False)[0], generation._batch, []
    wanted = texts(model, PROMPTS)

    def small(model: Any, settings: Any, prompts: Any, *rest: Any) -> torch.Tensor:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(model, settings, prompts, *rest)

    monkeypatch.setattr(generation, "_batch", small)
    assert texts(model, PROMPTS) == wanted
    assert sizes == [5, 3, 2, 1, 1, 1]
    monkeypatch.setattr(generation, "_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        texts(model, PROMPTS)


def test_settings_of_another_task_are_not_taken_over() -> None:
    model = architectures.models("bart-seq2seq", 1)[0]
    model.generation_config = GenerationConfig(
        min_length=56, no_repeat_ngram_size=3, do_sample=True, num_beams=4, forced_bos_token_id=7, eos_token_id=[2, 9]
    )
    found = generation.settings_of(model, tiny.tokenizer(), GREEDY)
    kept = {name: getattr(found, name) for name in ("min_length", "no_repeat_ngram_size", "do_sample")}
    assert not any(kept.values())
    assert found.num_beams == 1
    assert (found.forced_bos_token_id, found.max_new_tokens) == (7, 8)
    assert found.eos_token_id == [2, 9]  # the tiny tokenizer has none
    assert found.decoder_start_token_id == model.config.decoder_start_token_id


def test_texts_longer_than_the_table_of_positions_are_refused() -> None:
    causal, translator, pair = (
        architectures.models(name, 1)[0] for name in ("gpt2-causal", "bart-seq2seq", "encoder-decoder")
    )
    generation.refuse_too_long(causal, GenerateConfig(max_new_tokens=32), 32)
    with pytest.raises(ModelError, match="after a prompt of max_length: 33 is more than the 64 positions"):
        generation.refuse_too_long(causal, GenerateConfig(max_new_tokens=32), 33)
    generation.refuse_too_long(translator, GenerateConfig(max_new_tokens=63), 64)
    with pytest.raises(ModelError, match="64} is more than the 64 positions"):
        generation.refuse_too_long(translator, GenerateConfig(), 64)
    with pytest.raises(ModelError, match="64} is more than the 64 positions"):
        generation.refuse_too_long(pair, GenerateConfig(), 64)
