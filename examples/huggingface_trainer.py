"""Tune with Hugging Face's `Trainer`: one `train()` under one schedule, driven from outside as a generator.

`Trainer` owns its loop, and a generator is asked for its next score. So the training runs in a thread, which
a callback holds at every evaluation until the search has decided: go on, or stop. Stopping is leaving the
generator. Calling `train()` once for each evaluation instead would restart the schedule every time.

Run it: python examples/huggingface_trainer.py
"""

import queue
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import hpo

EXAMPLES_A_SEGMENT, EPOCHS = 128, 2
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
    "batch_size": [16, 32],
    "warmup_ratio": {"low": 0.0, "high": 0.3},
}

# ---------------------------------------------------------------- Trainer as a generator


class Gate(TrainerCallback):
    """Hands over every evaluation, and holds the training until it is told whether to go on."""

    def __init__(self) -> None:
        self.evaluations: queue.SimpleQueue[hpo.Evaluation | None] = queue.SimpleQueue()
        self.go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pass the score on, and wait for the answer."""
        seen, total = (steps * args.train_batch_size for steps in (state.global_step, state.max_steps))
        metrics = kwargs["metrics"]
        loss = {"loss": metrics["eval_loss"]}
        self.evaluations.put(hpo.Evaluation(metrics["eval_accuracy"], at=seen, metrics=loss, of=total))
        if not self.go_on.get():
            control.should_training_stop = True


def evaluations(trainer: Trainer) -> Iterator[hpo.Evaluation]:
    """Yield the evaluations of one `trainer.train()`, which stands still while the caller thinks.

    However the loop over it is left, the training has ended and its thread is gone afterwards. What the
    training raises is raised here.
    """
    gate = Gate()
    trainer.add_callback(gate)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer") as thread:
        training = thread.submit(trainer.train)
        training.add_done_callback(lambda _: gate.evaluations.put(None))
        try:
            while (evaluation := gate.evaluations.get()) is not None:
                yield evaluation
                gate.go_on.put(True)
            training.result()
        finally:
            gate.go_on.put(False)  # the `with` then waits for the thread


# ---------------------------------------------------------------- a model, data and an objective

OPINIONS = [["bad", "poor", "dull"], ["good", "great", "fine"]]
OTHERS = ["the", "a", "film", "plot", "was", "is"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows twelve words."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *OTHERS, *OPINIONS[0], *OPINIONS[1]])}
    whole_words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    whole_words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole_words, pad_token="[PAD]", unk_token="[UNK]")


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    """Return encoded texts of 4 to 12 words, of which about a third tell the label."""
    draw, encode = random.Random(seed), tokenizer()
    labels = draw.choices([0, 1], k=count)
    texts = [draw.choices(OTHERS + OPINIONS[label], k=draw.randint(4, 12)) for label in labels]
    return [{**encode(" ".join(text)), "labels": label} for text, label in zip(texts, labels, strict=True)]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def build(params: Mapping[str, Any], folder: str) -> Trainer:
    """Return a `Trainer` of a small BERT with random weights, scored every `EXAMPLES_A_SEGMENT` examples."""
    steps = EXAMPLES_A_SEGMENT // params["batch_size"]
    train = reviews(512, seed=1)
    arguments = TrainingArguments(
        folder,
        learning_rate=params["learning_rate"],
        per_device_train_batch_size=params["batch_size"],
        num_train_epochs=EPOCHS,
        lr_scheduler_type="linear",
        warmup_steps=round(params["warmup_ratio"] * EPOCHS * len(train) / params["batch_size"]),
        eval_strategy="steps",
        eval_steps=steps,
        per_device_eval_batch_size=128,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    set_seed(0)
    words = tokenizer()
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    trainer = Trainer(
        BertForSequenceClassification(shape),
        arguments,
        DataCollatorWithPadding(words),
        train_dataset=train,
        eval_dataset=reviews(256, seed=2),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def objective(params: Mapping[str, Any]) -> Iterator[hpo.Evaluation]:
    """Yield the validation accuracy, eight times in a whole trial."""
    with TemporaryDirectory() as folder:
        yield from evaluations(build(params, folder))


def main(trials: int = 6) -> optuna.Study:
    study = hpo.optimize(objective, SPACE, trials=trials, pruner={"name": "median", "n_startup_trials": 2})
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: accuracy {best.value:.3f} with {best.params}")
    return study


if __name__ == "__main__":
    main()
