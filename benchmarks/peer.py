"""The other side of the comparison: `Trainer`, set up as a careful user would.

Rows are encoded once into a plain list (indexing a `datasets` table is slower), padding is dynamic, the batch of an
evaluation is large, and each trial has a fresh model (a reused model stays in the precision of its first `Trainer`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
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
    task = TASKS[settings.get("task", "classification")]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def score(prediction: EvalPrediction) -> dict[str, float]:
        value = task.score(prediction)
        scored.append((trainer.args.learning_rate, value))
        return {"score": value}

    trainer = Trainer(
        model_init=lambda: task.model.from_pretrained(folder / "model", num_labels=task.labels),
        args=arguments_of(settings, folder, precision),
        data_collator=task.collator(tokenizer),
        train_dataset=task.encoded(folder / f"train{task.ending}", tokenizer),
        eval_dataset=task.encoded(folder / f"validation{task.ending}", tokenizer),
        compute_metrics=score,
    )
    trainer.remove_callback(PrinterCallback)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=lambda metrics: metrics["eval_score"],
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


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """How the examples of transformers do a task.

    Attributes:
        model: Class of the model.
        labels: Outputs of its head.
        ending: Of the files of rows.
        encoded: (file, tokenizer) -> rows for `Trainer`.
        collator: Tokenizer -> what makes batches of rows.
        score: Outputs on the validation split -> the score.
    """

    model: type[PreTrainedModel]
    labels: int
    ending: str
    encoded: Callable[[Path, PreTrainedTokenizerFast], list[dict[str, Any]]]
    collator: Callable[[PreTrainedTokenizerFast], Any]
    score: Callable[[EvalPrediction], float]


TAGS = ["B-NEG", "B-POS", "O"]


def _tagged(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Return rows with the tag of each word, as `run_ner.py`; in the benchmark's data a word is one token."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    words = [row["tokens"] for row in rows]
    features = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
    encoded = []
    for i, row in enumerate(rows):
        tags = [-100 if word is None else TAGS.index(row["tags"][word]) for word in features.word_ids(i)]
        encoded.append({**{key: features[key][i] for key in features}, "labels": tags})
    return encoded


def _entity_f1(prediction: EvalPrediction) -> float:
    """Return the F1 of entities of one word each."""
    predicted, expected = prediction.predictions.argmax(-1), prediction.label_ids
    real = expected != -100
    outside = TAGS.index("O")
    hits = (real & (predicted == expected) & (expected != outside)).sum()
    named = (real & (predicted != outside)).sum() + (real & (expected != outside)).sum()
    return float(2 * hits / max(1, named))


def _asked(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Return rows with the positions of the answers, as `run_qa.py`; in the benchmark's data nothing is cut."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
    features = tokenizer(questions, contexts, truncation="only_second", max_length=MAX_LENGTH)
    encoded = []
    for i, row in enumerate(rows):
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        first = features.char_to_token(i, start, sequence_index=1)
        last = features.char_to_token(i, start + len(text) - 1, sequence_index=1)
        encoded.append({**{key: features[key][i] for key in features}, "start_positions": first, "end_positions": last})
    return encoded


def _exact_match(prediction: EvalPrediction) -> float:
    """Return the share of rows whose most probable start and end are right."""
    (starts, ends), (first, last) = prediction.predictions, prediction.label_ids
    return float(np.mean((starts.argmax(-1) == first) & (ends.argmax(-1) == last)))


TASKS = {
    "classification": Task(
        BertForSequenceClassification,
        2,
        ".csv",
        encoded,
        DataCollatorWithPadding,
        lambda prediction: float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()),
    ),
    "token_classification": Task(
        BertForTokenClassification, len(TAGS), ".jsonl", _tagged, DataCollatorForTokenClassification, _entity_f1
    ),
    "question_answering": Task(BertForQuestionAnswering, 2, ".jsonl", _asked, DataCollatorWithPadding, _exact_match),
}
