"""Chat templates as models publish them, tiny tokenizers for them, and conversations."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo.tasks.causal_lm.examples import Conversation, Turn
from hpo.tasks.rows import IGNORED, EncodedRows

# Template of SmolLM2's and Qwen2.5's kind (Apache-2.0).
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# As Qwen3's: the thoughts of the last answer are kept, and those of earlier ones are left out.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% set content = message['content'].split('</think>')[-1] %}"
    "{% if message['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>' + message['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in message['content']"
    " else '<think>' }}{{ '</think>' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen2.5's: tools in a turn of the system, calls between tags, and what tools return in a turn of the user.
QWEN_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ ' ' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}{% for call in m.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ (call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Mistral's: it refuses what tools return where nothing was called.
MISTRAL_TOOLS = (
    "{% set ns = namespace(turns=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.turns % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.turns = ns.turns + 1 %}{% endif %}{% endfor %}{{ bos_token }}"
    "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}{{ call.function | tojson }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
MARKED_TOOLS = QWEN_TOOLS.replace(
    "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}",
    "{{ '<|im_start|>assistant' }}{% generation %}{% if m.content %}{{ '\n' + m.content }}",
).replace(
    "{% endfor %}{{ '<|im_end|>\n' }}{% else %}",
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}",
)

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "hi",
    "there",
    "well",
    "met",
    "and",
    "you",
    "fine",
    "Be",
    "kind",
    "user",
    "assistant",
    "system",
    "model",
    "INST",
    "SYS",
]
WORDS += [*"\n ?.:[]/<>#|", "é", "naïve", *(f"w{i}" for i in range(40))]


@functools.cache
def _tokenizer(special: tuple[str, ...]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *special, *WORDS]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=list(special), **names)


def tokenizer(template: str | None = CHATML, special: Sequence[str] = SPECIAL) -> Any:
    """Return a tokenizer of words, blanks and signs, with the control tokens of the templates.

    Args:
        template: Its chat template.
        special: Its control tokens.
    """
    import copy

    found = copy.deepcopy(_tokenizer(tuple(special)))
    found.chat_template = template
    return found


def conversation(*texts: str, system: str | None = None) -> Conversation:
    """Return a conversation of alternating turns, the user's first."""
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Conversation((*([Turn("system", system)] if system else []), *turns))


def shown(rows: EncodedRows, row: int, words: Any) -> str:
    """Return a row's text with each run of trained tokens between double brackets, from ids and labels alone."""
    ids, labels = (list(map(int, values[row])) for values in (rows.inputs["input_ids"], rows.token_targets["labels"]))
    assert len(ids) == len(labels)
    assert all(label in (IGNORED, token) for label, token in zip(labels, ids[1:], strict=False))
    trained = [False, *(label != IGNORED for label in labels[:-1])]
    text, open_ = "", False
    for token, is_trained in zip(words.convert_ids_to_tokens(ids), trained, strict=True):
        text += ("[[" if is_trained else "]]") * (is_trained != open_) + token
        open_ = is_trained
    return text + "]]" * open_


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def messages(*texts: str) -> list[dict[str, str]]:
    """Return alternating messages, the user's first."""
    return [turn.message for turn in conversation(*texts).turns]


def rows(count: int) -> list[dict[str, Any]]:
    """Return rows of different questions, each answered by its word."""
    return [{"messages": messages(f"a w{i % 40}{' b' * (i // 40)}", f"w{i % 40} fine")} for i in range(count)]


def save_model(folder: Path, kind: str = "llama") -> Path:
    """Write a tiny pretrained causal language model and its tokenizer, whose chat template is `CHATML`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}}
    sizes["gpt2"] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    words = tokenizer()
    ends = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(words), **ends, **sizes[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def study(folder: Path, kind: str = "llama", **overrides: Any) -> dict[str, Any]:
    """Return a study of conversations in `folder`: a tiny model, two random trials."""
    if not (folder / "model").exists():
        save_model(folder / "model", kind)
    if not (folder / "chats.jsonl").exists():
        write(folder / "chats.jsonl", rows(100))
    return {
        "name": "chats",
        "model": str(folder / "model"),
        "task": "causal_lm",
        "data": {"train": str(folder / "chats.jsonl"), "validation": 20, "test": 20, **overrides.pop("data", {})},
        "space": {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}, "batch_size": 8, "epochs": 2},
        "sampler": "random",
        "pruner": "none",
        "trials": 2,
        "max_length": 48,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        **overrides,
    }
