"""Generates text with a model of one trial, or with a folded model for all its slots in one call.

Rows come slot by slot, as folded layers expect them: each prompt once for every slot. Beams of a row lie next to each
other, and the key-value cache has the rows' order, so transformers' own `generate` runs unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from hpo.config.schema import Decoding, GenerateConfig
from hpo.core.errors import ModelError
from hpo.core.interrupts import StopRequest
from hpo.finetune import device
from hpo.finetune.data.batches import by_length
from hpo.tasks.language.text_metrics import refuse_missing_libraries

STRUCTURAL = (
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
)
"""What a model's own generation settings say of its tokens. All others, such as sampling or a least length, are of the
task that it was published for."""


def prepared(
    generate: GenerateConfig | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> GenerationConfig | None:
    """Return how text is generated, and write it into a model, with which it is saved; None if no text is generated.

    Args:
        generate: The study's settings.
        model: The pretrained model.
        tokenizer: Its tokenizer.
        max_length: Most tokens of a prompt.

    Raises:
        MissingExtraError: A library that scores text is not installed.
        ModelError: The model has too few positions for texts of this length.
    """
    if generate is None:
        return None
    refuse_missing_libraries()
    refuse_too_long(model, generate, max_length)
    model.generation_config = settings_of(model, tokenizer, generate)
    return model.generation_config


def end_at(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Let a model end its texts at more tokens than those that its settings name; they are exported with it."""
    own = model.generation_config
    if own is not None and tokens:
        own.eos_token_id = _ends(own.eos_token_id, *tokens)


def settings_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generate: GenerateConfig
) -> GenerationConfig:
    """Return the settings with which a model generates, in transformers' form; they are exported with it."""
    own = model.generation_config
    assert own is not None
    first = generate.decodings[0]
    known = {name: getattr(own, name, None) for name in STRUCTURAL}
    known["decoder_start_token_id"] = known["decoder_start_token_id"] or getattr(
        model.config, "decoder_start_token_id", None
    )
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **{name: value for name, value in known.items() if value is not None},
        eos_token_id=_ends(own.eos_token_id, tokenizer.eos_token_id),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=generate.max_new_tokens,
        num_beams=first.num_beams,
        length_penalty=first.length_penalty,
        do_sample=False,
    )


def decoded(settings: GenerationConfig, decoding: Decoding) -> GenerationConfig:
    """Return settings with another way of decoding."""
    changed = copy.deepcopy(settings)
    changed.num_beams, changed.length_penalty = decoding
    return changed


def _ends(*given: int | list[int] | None) -> list[int] | None:
    """Return all ids that end a text: some models end a turn and a text with different tokens."""
    lists = [each if isinstance(each, list) else [each] for each in given if each is not None]
    return list(dict.fromkeys(token for tokens in lists for token in tokens)) or None


def refuse_too_long(model: PreTrainedModel, generate: GenerateConfig, max_length: int) -> None:
    """Refuse settings with which a text may become longer than a model's table of positions.

    Raises:
        ModelError: It may.
    """
    if longest_prompt(model, generate, max_length) < (1 if model.config.is_encoder_decoder else max_length):
        after = "" if model.config.is_encoder_decoder else f" after a prompt of max_length: {max_length}"
        raise ModelError(
            f"generate: {{max_new_tokens: {generate.max_new_tokens}}}{after} is more than the "
            f"{_positions(model)} positions of the model; write less"
        )


def longest_prompt(model: PreTrainedModel, generate: GenerateConfig, max_length: int) -> int:
    """Return the most tokens of a prompt after which there are positions for a whole text; at most `max_length`."""
    positions = _positions(model)
    left = positions - generate.max_new_tokens
    if positions <= 0 or (model.config.is_encoder_decoder and left > 0):
        return max_length
    return min(left, max_length)


def _positions(model: PreTrainedModel) -> int:
    """Return the positions of a model's decoder; 0 or less if it has no table of them."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or 0


@torch.no_grad()
def generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationConfig,
    prompts: Sequence[Sequence[int]],
    slots: int = 1,
    stop: StopRequest | None = None,
) -> list[list[str]]:
    """Return the texts that every slot generates for every prompt, [K][n], in the order of the prompts.

    Prompts of similar length are computed together. After a lack of memory there are half as many.

    Args:
        model: A model of one trial, or a folded one of K.
        tokenizer: Its tokenizer.
        settings: As `settings_of` returns them.
        prompts: n prompts; what a causal model continues, or what an encoder reads.
        slots: K.
        stop: Ends it before the next token, and all texts are lost.

    Raises:
        InterruptedError: A stop was due.
    """
    model.train(False)
    texts = [[""] * len(prompts) for _ in range(slots)]
    lengths = np.array([len(prompt) for prompt in prompts])
    size = device.scoring_batch(model.device, slots)
    left = by_length(lengths, size)
    while left:
        rows = left.pop(0)
        try:
            found = _batch(model, settings, [prompts[row] for row in rows], slots, stop or StopRequest())
        except RuntimeError as error:
            if not device.out_of_memory(error) or len(rows) == 1:
                raise
            left = [half for each in (rows, *left) for half in np.array_split(each, 2) if len(half)]
            continue
        for slot, ids in enumerate(found):
            for row, tokens in zip(rows, ids.tolist(), strict=True):
                texts[slot][row] = tokenizer.decode(_until_end(tokens, settings), skip_special_tokens=True)
    return texts


def _until_end(tokens: list[int], settings: GenerationConfig) -> list[int]:
    """Return tokens up to the first that ends the text."""
    ends = settings.eos_token_id or []
    return next((tokens[:place] for place, token in enumerate(tokens) if token in ends), tokens)


class _Stopping(StoppingCriteria):
    """Ends generation between two tokens once a stop is due."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        if self._request.is_due():
            raise InterruptedError
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _batch(
    model: PreTrainedModel,
    settings: GenerationConfig,
    prompts: Sequence[Sequence[int]],
    slots: int,
    stop: StopRequest,
) -> torch.Tensor:
    """Return the new tokens of every slot for some prompts, [K, b, tokens], padded."""
    longest = max(map(len, prompts))
    to_the_left = not model.config.is_encoder_decoder  # what is generated follows the prompt's last token
    pad = settings.pad_token_id
    rows = []
    for prompt in prompts:
        padding = [pad] * (longest - len(prompt))
        rows.append([*padding, *prompt] if to_the_left else [*prompt, *padding])
    ids = torch.tensor(rows, device=model.device)
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=model.device)
    columns = torch.arange(longest, device=model.device)
    real = columns >= longest - lengths if to_the_left else columns < lengths
    inputs = {"input_ids": ids.repeat(slots, 1), "attention_mask": real.long().repeat(slots, 1)}
    # A copy, because transformers writes into the settings that it is given.
    generate: Any = model.generate
    found: torch.Tensor = generate(
        **inputs, generation_config=copy.deepcopy(settings), stopping_criteria=[_Stopping(stop)]
    )
    given = longest if to_the_left else 1  # a decoder's first token, which may be one that ends texts, is given to it
    return found[:, given:].view(slots, len(prompts), -1)
