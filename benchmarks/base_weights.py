"""Measure what a base in few bits saves of memory and costs of time.

The model has the widths of SmolLM2-135M (576, 1,536; random weights) and fewer layers, and LoRA of rank 8 on all of
them. A pass is a forward and a backward pass over one micro-batch. The sides alternate, and a ratio compares passes of
one round only: CPU seconds of this process with a base in few bits over those with a base in full, at one thread. CPU
seconds do not count the time in which other processes have the core.

Run it: python benchmarks/base_weights.py [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import pages
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hpo.finetune.lora.adapters import Lora
from hpo.finetune.lora.base_weights import hold_as_multiplied
from hpo.finetune.lora.quantised import FORMATS, quantise, size
from hpo.finetune.models import token_head
from hpo.finetune.models.loading import attend

SIDES = ("full", *FORMATS)
VOCABULARY = 1000  # the table of tokens and the projection are no part of what is measured


def model_of(side: str, layers: int, bf16: bool) -> PreTrainedModel:
    """Return a model with adapters whose base is held as a side says."""
    torch.manual_seed(0)
    widths = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, pad_token_id=0, **widths)
    model = LlamaForCausalLM(config)
    attend(model)
    token_head.install(model)
    lora = Lora(("all_linear",), 8)
    lora.install(model)
    if side != "full":
        quantise(model, lora, side)
    if bf16:
        hold_as_multiplied(model, torch.bfloat16)
    return model.train()


def passed(model: PreTrainedModel, ids: torch.Tensor, bf16: bool) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(input_ids=ids).logits.float().square().mean().backward()
    model.zero_grad()
    return time.process_time() - began


def measured(settings: dict[str, Any], bf16: bool) -> list[dict[str, Any]]:
    """Return for each side its bytes, the CPU seconds of its passes by tokens, and their ratios to the base in full."""
    models = {side: model_of(side, settings["layers"], bf16) for side in SIDES}
    found = [{"side": side, "bytes": size(model), "passes": {}} for side, model in models.items()]
    for tokens in settings["tokens"]:
        ids = torch.randint(1, VOCABULARY, (tokens // 64, 64))
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(settings["rounds"] + 1):  # the first warms up
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                seconds[side].append(passed(models[side], ids, bf16))
        for each in found:
            own, full = seconds[each["side"]][1:], seconds["full"][1:]
            ratios = [one / other for one, other in zip(own, full, strict=True)]
            ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            each["passes"][tokens] = {"seconds": statistics.median(own), "ratio": ratio}
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    heads = [f"CPU seconds of {tokens} tokens, to full" for tokens in results["settings"]["tokens"]]
    lines = [f"| precision | base | MiB | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for precision, sides in results["sides"].items():
        for each in sides:
            passes = [f"{p['seconds']:.3f}, {pages.cell(p['ratio'])}" for p in each["passes"].values()]
            lines.append(f"| {precision} | {each['side']} | {each['bytes'] / 2**20:.1f} | {' | '.join(passes)} |")
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """Return the results as a page."""
    about, settings = results["circumstances"], results["settings"]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    return (
        f"# A base in few bits on cpu\n\n{about['date']}, {about['cpu']}, one thread; {versions}.\n"
        f"Llama of {settings['layers']} layers of 576, LoRA of rank 8 on all linear layers; "
        f"rounds: {settings['rounds']}; median (min to max).\n\n{table(results)}\n\n"
        "`python benchmarks/base_weights.py --write` says in its docstring what is measured.\n"
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048], help="of a micro-batch, in rows of 64")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each side that count")
    parser.add_argument("--write", action="store_true", help=f"write {pages.RESULTS}")
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    torch.set_num_threads(1)
    results = {"settings": settings, "circumstances": pages.circumstances("cpu")}
    results["sides"] = {name: measured(settings, name == "bf16") for name in ("fp32", "bf16")}
    print(table(results))
    if writes:
        (pages.RESULTS / "base_weights_cpu.md").write_text(page(results))
    return results


if __name__ == "__main__":
    main()
