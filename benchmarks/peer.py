"""The other side of the comparison: `Trainer`, set up as a careful user would.

Rows are encoded once into a plain list (indexing a `datasets` table is slower), padding is dynamic, the batch of an
evaluation is large, and each trial has a fresh model (a reused model stays in the precision of its first `Trainer`).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

SCORING_BATCH = 128  # rows
MAX_LENGTH = 64  # tokens, on both sides


def search_with_trainer(settings: dict[str, Any], folder: Path, precision: str) -> dict[str, Any]:
    """Search with `Trainer.hyperparameter_search`, and return its trials, evaluations and best score."""
    rates, scored = settings["learning_rates"], []
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        value = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        scored.append((trainer.args.learning_rate, value))
        return {"accuracy": value}

    trainer = Trainer(
        model_init=lambda: BertForSequenceClassification.from_pretrained(folder / "model", num_labels=2),
        args=arguments_of(settings, folder, precision),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded(folder / "train.csv", tokenizer),
        eval_dataset=encoded(folder / "validation.csv", tokenizer),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=len(rates),
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    return {
        "precision": precision,
        "learning_rates": sorted({rate for rate, _ in scored}),
        "evaluations": len(scored),
        "best": best.objective,
    }


def arguments_of(settings: dict[str, Any], folder: Path, precision: str) -> TrainingArguments:
    """Return the peer's arguments; those not named here have the same value on both sides."""
    steps = settings["rows"] // settings["batch"]
    return TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=SCORING_BATCH,
        num_train_epochs=settings["epochs"],
        warmup_steps=0.1,  # a share of all steps; hpo's default
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=steps // settings["evaluations"],
        train_sampling_strategy="group_by_length" if settings["group_by_length"] else "random",
        bf16=precision == "bf16",
        use_cpu=settings["device"] == "cpu",
        dataloader_pin_memory=settings["device"] != "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def encoded(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Return the tokenised rows of a CSV file, as a plain list."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    features = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
    labels = [int(row["label"] == "positive") for row in rows]
    return [{**{key: features[key][i] for key in features}, "labels": label} for i, label in enumerate(labels)]


def precisions(device: str) -> list[str]:
    """Return the peer's precisions: fp32, and bf16 where the device supports it."""
    if device == "cpu":
        found = torch.cpu.get_capabilities()
        return ["fp32", "bf16"] if found.get("amx_bf16") or found.get("avx512_bf16") else ["fp32"]
    return ["fp32", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32"]
