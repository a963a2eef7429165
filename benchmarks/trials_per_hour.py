"""Compare the speed of a search with `hpo` and with `Trainer.hyperparameter_search` on the same trials.

Both sides fine-tune the same model (by default of MiniLM-L6's shape, with random weights) on the same synthetic
sentences, at the same learning rates, for as many epochs, evaluated as often, with nothing pruned, no
checkpoints and no trackers. Every measurement is one call, from imports done to search finished: reading and
tokenising the rows, loading the model, all trials, and on hpo's side the storage and the best trial's weights.
It runs in a process of its own, forked from a server that has imported everything and computed nothing.

The peer is given what a careful user would give it: rows encoded once into a plain list (indexing a `datasets`
table is slower), dynamic padding, a large evaluation batch, and a fresh model for each trial (a model used
again keeps the precision of the first `Trainer` it was given to). With `--group-by-length` it also batches rows
of similar length, as hpo always does; that is not the default.

The sides alternate within each round, and the ratio of a round compares its own measurements only, so that a
machine that slows down in between favours neither. A ratio above 1 says that hpo took less.

With several `--slots` hpo runs once with each. On CUDA its slots are those of one folded model; one slot is measured
without CUDA graphs too, and the table says what share of the arithmetic of a measured bf16 matmul goes into the models
(tokens x 6 x weights, padding, attention and evaluation not counted).

Run it: python benchmarks/trials_per_hour.py [--write]
On a GPU: python benchmarks/trials_per_hour.py --device cuda --trials 64 --slots 1 4 16 64 --write
"""

from __future__ import annotations

import os

# A spinning thread that waits counts as CPU time, and takes the core from whoever has work.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import csv
import datetime
import gc
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tokenizers
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from hpo.config import study_spec
from hpo.execution import run_study
from hpo.finetune.folded import program as folded_program

RESULTS = Path(__file__).parent / "results"
IMPORTED = ["accelerate", "torch", "transformers.trainer", "transformers.models.bert.modeling_bert"]
IMPORTED += ["hpo.execution.run_study", "hpo.finetune.folded.engine", "hpo.finetune.data.sources"]
IMPORTED += ["alembic.command", "optuna.storages._rdb.models", "rich.console", "scipy.stats", "sklearn.metrics"]
SCORING_BATCH = 128  # rows, of the peer
MAX_LENGTH = 64
MINILM = (6, 384)  # layers of hidden units
EAGER = " without graphs"
SQUARE = 8192  # of the matmul that utilisation is measured against

Settings = dict[str, Any]
Measured = dict[str, Any]

# ---------------------------------------------------------------- the model and the rows


def prepare(settings: Settings, folder: Path) -> None:
    """Write the model, its tokenizer and the three splits."""
    shape = BertConfig(
        vocab_size=settings["vocabulary"],
        hidden_size=settings["hidden"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["hidden"],
    )
    torch.manual_seed(0)
    BertModel(shape).save_pretrained(folder / "model")  # no head: both sides draw one for each trial
    words = [f"w{i}" for i in range(settings["vocabulary"] - 5)]
    _tokenizer(words).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for split, rows in (
        ("train", settings["rows"]),
        ("validation", settings["validation"]),
        ("test", settings.get("test", 10)),
    ):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *_sentences(rng, words, rows)])


def _tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer that has every word whole: n words make n tokens, [CLS] and [SEP]."""
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *words])}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=512, **names)


def _sentences(rng: np.random.Generator, words: Sequence[str], rows: int) -> list[tuple[str, str]]:
    """Return (text, label) of sentences of 5 to 60 words, 24 on average, drawn as in real text (Zipf).

    A seventh of the words is drawn from ten that only sentences of that label have.
    """
    cues, common = np.array(words[:20]).reshape(2, 10), np.array(words[20:])
    shares = 1.0 / (np.arange(len(common)) + 2.7)
    lengths = np.clip(rng.gamma(4.0, 6.0, rows).round().astype(int), 5, 60)
    sentences = []
    for length in lengths:
        label = int(rng.integers(2))
        plain = rng.choice(common, length, p=shares / shares.sum())
        text = np.where(rng.random(length) < 1 / 7, rng.choice(cues[label], length), plain)
        sentences.append((" ".join(text), ("negative", "positive")[label]))
    return sentences


# ---------------------------------------------------------------- the two sides


def search_with_hpo(settings: Settings, folder: Path, slots: int) -> Measured:
    """Search with hpo, and return what it ran."""
    study = study_spec.build(
        {
            "name": "benchmark",
            "model": str(folder / "model"),
            "data": {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")},
            "space": {
                "learning_rate": settings["learning_rates"],
                "batch_size": settings["batch"],
                "epochs": settings["epochs"],
            },
            "baseline": False,
            "sampler": "grid",
            "pruner": "none",
            "evaluations_per_epoch": settings["evaluations"],
            "max_length": MAX_LENGTH,
            "precision": settings["precision"],
            "device": settings["device"],
            "threads": settings["threads"],
            "slots": slots,
            "fold": settings["fold"],
        },
        "the benchmark",
        folder,
    )
    finished = run_study.run(study, f"sqlite:///{folder / 'hpo.db'}")
    trials = finished.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    return {
        "precision": finished.array.facts["precision"],
        "slots": finished.array.slots,
        "learning_rates": sorted(trial.params["learning_rate"] for trial in trials),
        "evaluations": sum(len(trial.intermediate_values) for trial in trials),
        "best": finished.study.best_value,
    }


def search_with_trainer(settings: Settings, folder: Path, precision: str) -> Measured:
    """Search with `Trainer.hyperparameter_search`, and return what it ran."""
    rates, scored = settings["learning_rates"], []
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        value = float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        scored.append((trainer.args.learning_rate, value))
        return {"accuracy": value}

    trainer = Trainer(
        model_init=lambda: BertForSequenceClassification.from_pretrained(folder / "model", num_labels=2),
        args=_arguments(settings, folder, precision),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=_encoded(folder / "train.csv", tokenizer),
        eval_dataset=_encoded(folder / "validation.csv", tokenizer),
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


def _arguments(settings: Settings, folder: Path, precision: str) -> TrainingArguments:
    """Return the peer's arguments; what is not named here has the same value on both sides."""
    steps = settings["rows"] // settings["batch"]
    return TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=SCORING_BATCH,
        num_train_epochs=settings["epochs"],
        warmup_steps=0.1,  # a share of all steps, as hpo's default
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


def _encoded(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
    labels = [int(row["label"] == "positive") for row in rows]
    return [{**{key: encoded[key][i] for key in encoded}, "labels": label} for i, label in enumerate(labels)]


# ---------------------------------------------------------------- measuring


def measure(side: str, settings: Settings, model_and_rows: Path) -> Measured:
    """Run one side and return what it ran, with the seconds and the CPU seconds (of all threads) it took.

    Args:
        side: `hpo` with its slots, and perhaps without CUDA graphs, or the peer with its precision: `fp32` or `bf16`.
        settings: The benchmark's.
        model_and_rows: Folder that `prepare` has written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source in model_and_rows.iterdir():
            (folder / source.name).symlink_to(source)
        os.chdir(folder)
        gc.freeze()  # the peer collects garbage three times a trial, and shall not search all that is imported here
        wall, cpu = time.perf_counter(), time.process_time()
        if side.endswith(EAGER):
            folded_program.Replay = lambda program, device: program  # type: ignore[assignment,misc,return-value]
        if (slots := _slots(side)) is not None:
            ran = search_with_hpo(settings, folder, slots)
        else:
            ran = search_with_trainer(settings, folder, side)
        ran |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        os.chdir("/")
    return ran


def _apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process that has done its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with context.Pool(1) as process:
        return process.apply(call, arguments)


def _precisions(device: str) -> list[str]:
    """Return the peer's precisions: bf16 only where the processor has it."""
    if device == "cpu":
        has = torch.cpu.get_capabilities()
        return ["fp32", "bf16"] if has.get("amx_bf16") or has.get("avx512_bf16") else ["fp32"]
    return ["fp32", "bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32"]


def run(settings: Settings) -> dict[str, Any]:
    """Run all rounds.

    Returns:
        `rounds`: what each side ran and took; `ratios`: hpo's side -> the peer's precision -> `wall` and `cpu` ->
        median, min and max of the peer's over hpo's; `trials_per_hour`: side -> from the median of its seconds;
        `utilisation`: hpo's side -> share of a matmul's arithmetic (CUDA only).
    """
    peers, ours = _precisions(settings["device"]), [f"hpo {slots}" for slots in settings["slots"]]
    if settings["device"] == "cuda":
        ours.insert(0, f"hpo 1{EAGER}")
    # hpo in the middle, next to either peer, and every other round backwards.
    order = [peers[0], *ours, *peers[1:]]
    rounds: list[dict[str, Measured]] = []
    with tempfile.TemporaryDirectory() as scratch:
        _apart(prepare, settings, Path(scratch))
        for number in range(settings["pairs"]):
            sides = order if number % 2 == 0 else order[::-1]
            rounds.append({})
            for side in sides:
                ran = rounds[-1][side] = _apart(measure, side, settings, Path(scratch))
                print(f"round {number + 1}, {_name(side)}: {ran['wall']:.1f} s, CPU {ran['cpu']:.1f} s", flush=True)
    trials = len(settings["learning_rates"])
    seconds = {side: statistics.median(ran[side]["wall"] for ran in rounds) for side in order}
    return {
        "rounds": rounds,
        "ratios": {
            side: {peer: {kind: _ratio(rounds, peer, side, kind) for kind in ("wall", "cpu")} for peer in peers}
            for side in ours
        },
        "trials_per_hour": {side: 3600 * trials / taken for side, taken in seconds.items()},
        "utilisation": {side: _arithmetic(settings) * trials / seconds[side] / _matmul("cuda") for side in ours}
        if settings["device"] == "cuda"
        else {},
    }


def _arithmetic(settings: Settings) -> float:
    """Return the operations of a trial: 6 a weight and token, forward and backward, embeddings left out.

    That is 65 million a token for MiniLM-L6.
    """
    weights = 12 * settings["layers"] * settings["hidden"] ** 2
    return 6.0 * weights * settings["rows"] * settings["epochs"] * 26  # 24 words, [CLS] and [SEP]


def _matmul(device: str, size: int = SQUARE) -> float:
    """Return the operations a second of a square matmul in bf16, measured now."""
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for repeats in (3, 20):  # the first ones warm up
        wait()
        began = time.perf_counter()
        for _ in range(repeats):
            square @ square
        wait()
    return 20 * 2 * size**3 / (time.perf_counter() - began)


def _ratio(rounds: Sequence[dict[str, Measured]], peer: str, side: str, kind: str) -> dict[str, float]:
    ratios = [ran[peer][kind] / ran[side][kind] for ran in rounds]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


# ---------------------------------------------------------------- reporting


def _slots(side: str) -> int | None:
    """Return the slots of a side that is hpo's."""
    return int(side.split()[1]) if side.startswith("hpo ") else None


def _name(side: str) -> str:
    slots = _slots(side)
    if slots is None:
        return f"Trainer {side}"
    return f"hpo, {slots} slot{'s' if slots > 1 else ''}{EAGER if side.endswith(EAGER) else ''}"


def table(results: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table, a row for each number of slots."""
    hourly, (first, *_) = results["trials_per_hour"], results["rounds"]
    peers = [side for side in first if _slots(side) is None]
    head = ["side", "trials an hour"]
    head += [f"{kind}: {_name(peer)} / hpo" for peer in peers for kind in ("wall", "CPU")]
    head += ["of a matmul"] if results["utilisation"] else []
    lines = [head, ["---"] * len(head)]
    lines += [[_name(peer), f"{hourly[peer]:.0f}", *[""] * (len(head) - 2)] for peer in peers]
    for side, ratios in results["ratios"].items():
        cells = [_cell(ratios[peer][kind]) for peer in peers for kind in ("wall", "cpu")]
        share = [f"{results['utilisation'][side]:.1%}"] if results["utilisation"] else []
        lines.append([f"{_name(side)} ({first[side]['precision']})", f"{hourly[side]:.0f}", *cells, *share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(ratio: dict[str, float]) -> str:
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)


def _circumstances(device: str) -> dict[str, Any]:
    """Return when and on what the benchmark ran."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("hpo", "torch", "transformers", "accelerate", "optuna")},
    }


def write(results: dict[str, Any], folder: Path, name: str, title: str, found: str, variant: str = "") -> None:
    """Write results as JSON, and what was found as a page.

    Args:
        results: With `settings` and `circumstances`.
        folder: Where.
        name: Of the benchmark.
        title: Of the page.
        found: In Markdown.
        variant: Of the settings, where a benchmark has pages for several.
    """
    settings, on = results["settings"], results["circumstances"]
    stem = folder / f"{name}_{settings['device']}{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    hardware = f"{on['gpu']}, " if on["gpu"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in on["versions"].items())
    trials = settings["trials"] if "trials" in settings else len(settings["learning_rates"])
    rounds = f", rounds: {settings['pairs']}; median (min to max)" if "pairs" in settings else ""
    lines = [
        f"# {title} on {settings['device']}",
        "",
        f"{on['date']}, {hardware}{on['cpu']}, {on['cores']} cores; {versions}.",
        f"{settings['model']}, {settings['rows']} rows, batch size {settings['batch']}, epochs: {settings['epochs']}, "
        f"{settings['evaluations']} evaluations an epoch on {settings['validation']} rows; trials: {trials}{rounds}.",
        "",
        found,
        "",
        f"`python benchmarks/{name}.py --write` says in its docstring what is measured.",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    numbers = {"rows": 480, "validation": 120, "trials": 6, "pairs": 2, "batch": 16, "epochs": 1, "evaluations": 2}
    shape = {"layers": MINILM[0], "hidden": MINILM[1], "heads": 12, "vocabulary": 30522}
    for name, default in {**numbers, **shape, "threads": os.cpu_count()}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=" ")
    parser.add_argument("--slots", type=int, nargs="+", default=[min(2, os.cpu_count() or 1)], help="of hpo")
    parser.add_argument("--fold", action=argparse.BooleanOptionalAction, help="hpo's slots into one model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help=" ")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of hpo's trials")
    parser.add_argument("--group-by-length", action="store_true", help="let the peer batch rows of similar length")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = _parser()
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    if settings["rows"] % (settings["batch"] * settings["evaluations"]):
        parser.error(
            "--rows must be a multiple of batch size x evaluations, or the sides would be scored unequally often"
        )
    settings["model"] = f"BERT of {settings['layers']} layers of {settings['hidden']}"
    settings["learning_rates"] = np.geomspace(2e-5, 2e-4, settings.pop("trials")).round(8).tolist()
    results = {"settings": settings, "circumstances": _circumstances(settings["device"]), **run(settings)}
    print(f"\n{table(results)}")
    if writes:
        layers, hidden = settings["layers"], settings["hidden"]
        variant = "" if (layers, hidden) == MINILM else f"_{layers}x{hidden}"
        write(results, RESULTS, "trials_per_hour", "Trials an hour", table(results), variant)
    return results


if __name__ == "__main__":
    main()
