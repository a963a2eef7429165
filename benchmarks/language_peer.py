"""The other side of the comparison for language models: TRL's `SFTTrainer` with `peft`, and `Seq2SeqTrainer`.

`SFTTrainer` cannot make a model for each trial, as `Trainer.hyperparameter_search` does, so its trials are a loop.
Gradient checkpointing, which it turns on, is off, as on hpo's side: memory is not short here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peer
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

LORA = {"rank": 8, "alpha": 16}  # on both sides, at all linear layers


def search_with_sft(settings: dict[str, Any], folder: Path, precision: str) -> dict[str, Any]:
    """Train each trial with `SFTTrainer`, and return the trials, evaluations and best loss."""
    from trl import SFTConfig, SFTTrainer  # takes seconds, and no other benchmark needs it

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = {split: datasets.Dataset.from_list(_rows(folder / f"{split}.jsonl")) for split in ("train", "validation")}
    common = peer.arguments_of(settings, folder, precision).to_dict()

    def trainer_of(rate: float) -> Trainer:
        return SFTTrainer(
            AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32"),
            SFTConfig(
                **_given(common, learning_rate=rate),
                max_length=peer.MAX_LENGTH,
                gradient_checkpointing=False,
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=LORA["rank"],
                lora_alpha=LORA["alpha"],
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )

    return _searched(settings, precision, trainer_of)


def search_with_seq2seq(settings: dict[str, Any], folder: Path, precision: str) -> dict[str, Any]:
    """Train each trial with `Seq2SeqTrainer`, and return the trials, evaluations and best loss."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    common = peer.arguments_of(settings, folder, precision).to_dict()

    def encoded(split: str) -> list[dict[str, Any]]:
        rows = _rows(folder / f"{split}.jsonl")
        return [
            tokenizer(row["source"], text_target=row["target"], truncation=True, max_length=peer.MAX_LENGTH)
            for row in rows
        ]

    rows = {split: encoded(split) for split in ("train", "validation")}

    def trainer_of(rate: float) -> Trainer:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
        return Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(**_given(common, learning_rate=rate)),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
        )

    return _searched(settings, precision, trainer_of)


def _given(common: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the arguments that the benchmark sets, with more."""
    names = (
        "output_dir per_device_train_batch_size per_device_eval_batch_size num_train_epochs warmup_steps weight_decay "
        "eval_strategy eval_steps train_sampling_strategy bf16 use_cpu dataloader_pin_memory save_strategy "
        "logging_strategy report_to disable_tqdm"
    )
    return {name: common[name] for name in names.split()} | more


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _searched(settings: dict[str, Any], precision: str, trainer_of: Callable[[float], Trainer]) -> dict[str, Any]:
    """Train a trial for each learning rate, and return the precision, the rates, the evaluations and the best loss."""
    losses = []
    for rate in settings["learning_rates"]:
        trainer = trainer_of(rate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses += [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    rates = settings["learning_rates"]
    return {"precision": precision, "learning_rates": rates, "evaluations": len(losses), "best": min(losses)}


SEARCHES = {"causal_lm": search_with_sft, "seq2seq": search_with_seq2seq}
"""Task -> what searches with the peer."""
NAMES = {"causal_lm": "SFTTrainer", "seq2seq": "Seq2SeqTrainer"}
