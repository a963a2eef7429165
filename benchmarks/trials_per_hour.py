"""Compare the speed of a search with `hpo` and with `Trainer.hyperparameter_search` on the same trials.

Both sides fine-tune the same model (by default of MiniLM-L6's shape, with random weights) on the same synthetic
sentences, with the same learning rates, epochs and evaluations, and without pruning, checkpoints and trackers. A
measurement begins after the imports and ends with the search: reading and tokenising the rows, loading the model, all
trials, and on hpo's side the storage and the weights of the best trial. It runs in a process of its own, forked from a
server that has imported everything and computed nothing.

The peer is set up as a careful user would (see `peer.py`). With `--group-by-length` it also batches rows of similar
length, as hpo always does; that is not its default.

The sides alternate within each round, and a ratio compares measurements of one round only, so that a machine that slows
down between rounds favours neither side. A ratio above 1 means that hpo took less time.

With several `--slots` hpo runs once with each. On CUDA the slots are slots of one folded model; one slot is measured
without CUDA graphs too, and the table has the arithmetic of the models as a share of that of a measured bf16 matmul
(tokens x 6 x weights; padding, attention and evaluation are not counted).

Run it: python benchmarks/trials_per_hour.py [--task token_classification] [--write]
On a GPU: python benchmarks/trials_per_hour.py --device cuda --trials 64 --slots 1 4 16 64 --write
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import language_peer
import numpy as np
import optuna
import pages
import peer
import synthetic
import torch
from transformers.utils import logging

from hpo.config import study_spec
from hpo.execution import run_study
from hpo.finetune.folded import program as folded_program

IMPORTED = ["accelerate", "torch", "transformers.trainer", "transformers.models.bert.modeling_bert"]
IMPORTED += ["datasets", "peft"]
IMPORTED += ["hpo.execution.run_study", "hpo.finetune.folded.engine", "hpo.tasks.loading"]
IMPORTED += ["alembic.command", "optuna.storages._rdb.models", "rich.console", "scipy.stats", "sklearn.metrics"]
MINILM = (6, 384)  # layers, hidden units
EAGER = " without graphs"
SLOTS = min(2, os.cpu_count() or 1)
SQUARE = 8192  # rows and columns of the matmul that utilisation is a share of

TASKS = {"classification": "single_label"} | {
    name: name for name in ("token_classification", "question_answering", *language_peer.SEARCHES)
}
SMOLLM2 = {"layers": 30, "hidden": 576, "heads": 9, "vocabulary": 49152, "rows": 96, "validation": 32, "batch": 8}
DEFAULTS = {"causal_lm": SMOLLM2 | {"trials": 4, "slots": [4]}, "seq2seq": {"heads": 6}}
"""Task -> what differs from the defaults of the options."""
RATES = {"causal_lm": (1e-4, 1e-3), "seq2seq": (1e-4, 1e-3)}
"""Task -> lowest and highest learning rate; of others 2e-5 and 2e-4."""

Settings = dict[str, Any]
Measured = dict[str, Any]

# ---------------------------------------------------------------- the two sides


def search_with_hpo(settings: Settings, folder: Path, slots: int) -> Measured:
    """Search with hpo, and return its trials, evaluations and best score."""
    task = settings["task"]
    ending = peer.TASKS[task].ending if task in peer.TASKS else ".jsonl"
    space = {"learning_rate": settings["learning_rates"], "batch_size": settings["batch"], "epochs": settings["epochs"]}
    data = {split: str(folder / f"{split}{ending}") for split in ("train", "validation", "test")}
    if task == "causal_lm":
        data["chat_template"] = "plain"
        space |= {"lora_rank": language_peer.LORA["rank"], "lora_alpha": language_peer.LORA["alpha"]}
        space["lora_targets"] = "all_linear"
    else:
        space["frozen_layers"] = settings.get("frozen_layers", 0)
    study = study_spec.build(
        {
            "name": "benchmark",
            "model": str(folder / "model"),
            "task": TASKS[task],
            "data": data,
            "space": space,
            "baseline": False,
            "sampler": "grid",
            "pruner": "none",
            "evaluations_per_epoch": settings["evaluations"],
            "max_length": peer.MAX_LENGTH,
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


# ---------------------------------------------------------------- measuring


def measure(side: str, settings: Settings, model_and_rows: Path) -> Measured:
    """Run one side, and return its results with its seconds and CPU seconds (of all threads).

    Args:
        side: `hpo` with its number of slots, with or without CUDA graphs; or the peer's precision, `fp32` or `bf16`.
        settings: Settings of the benchmark.
        model_and_rows: Folder that `synthetic.prepare` has written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source in model_and_rows.iterdir():
            (folder / source.name).symlink_to(source)
        os.chdir(folder)
        gc.freeze()  # the peer collects garbage three times a trial; exclude the imported modules from it
        wall, cpu = time.perf_counter(), time.process_time()
        if side.endswith(EAGER):
            folded_program.Replay = lambda program, device: program  # type: ignore[assignment,misc,return-value]
        if (slots := _slots(side)) is not None:
            ran = search_with_hpo(settings, folder, slots)
        else:
            search = language_peer.SEARCHES.get(settings["task"], peer.search_with_trainer)
            ran = search(settings, folder, side)
        ran |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        os.chdir("/")
    return ran


def _apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process in which everything is imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with context.Pool(1) as process:
        return process.apply(call, arguments)


def run(settings: Settings) -> dict[str, Any]:
    """Run all rounds.

    Returns:
        `rounds`: the results of each side; `ratios`: hpo's side -> the peer's precision -> `wall` and `cpu` -> median,
        min and max of the peer's time over hpo's; `trials_per_hour`: side -> number by the median of its seconds;
        `utilisation`: hpo's side -> share of a matmul's arithmetic (CUDA only).
    """
    peers, ours = peer.precisions(settings["device"]), [f"hpo {slots}" for slots in settings["slots"]]
    if settings["device"] == "cuda":
        ours.insert(0, f"hpo 1{EAGER}")
    # hpo's sides run between the peer's, and every other round runs backwards.
    order = [peers[0], *ours, *peers[1:]]
    rounds: list[dict[str, Measured]] = []
    with tempfile.TemporaryDirectory() as scratch:
        _apart(synthetic.prepare, settings, Path(scratch))
        for number in range(settings["pairs"]):
            sides = order if number % 2 == 0 else order[::-1]
            rounds.append({})
            for side in sides:
                ran = rounds[-1][side] = _apart(measure, side, settings, Path(scratch))
                print(
                    f"round {number + 1}, {_name(side, settings['task'])}: {ran['wall']:.1f} s, CPU {ran['cpu']:.1f} s",
                    flush=True,
                )
    trials = len(settings["learning_rates"])
    seconds = {side: statistics.median(ran[side]["wall"] for ran in rounds) for side in order}
    return {
        "rounds": rounds,
        "ratios": {
            side: {
                precision: {kind: _ratio(rounds, precision, side, kind) for kind in ("wall", "cpu")}
                for precision in peers
            }
            for side in ours
        },
        "trials_per_hour": {side: 3600 * trials / taken for side, taken in seconds.items()},
        "utilisation": {side: _arithmetic(settings) * trials / seconds[side] / _matmul("cuda") for side in ours}
        if settings["device"] == "cuda"
        else {},
    }


def _arithmetic(settings: Settings) -> float:
    """Return the operations of a trial: 6 for each weight and token, forward and backward, without embeddings.

    These are 65 million per token for MiniLM-L6.
    """
    weights = 12 * settings["layers"] * settings["hidden"] ** 2
    return 6.0 * weights * settings["rows"] * settings["epochs"] * 26  # 24 words, [CLS] and [SEP]


def _matmul(device: str, size: int = SQUARE) -> float:
    """Return the operations per second of a square matmul in bf16, measured now."""
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for repeats in (3, 20):  # the first ones warm up
        wait()
        began = time.perf_counter()
        for _ in range(repeats):
            square @ square
        wait()
    return 20 * 2 * size**3 / (time.perf_counter() - began)


def _ratio(rounds: Sequence[dict[str, Measured]], precision: str, side: str, kind: str) -> dict[str, float]:
    ratios = [ran[precision][kind] / ran[side][kind] for ran in rounds]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


# ---------------------------------------------------------------- reporting


def _slots(side: str) -> int | None:
    """Return the number of slots of a side of hpo; None for the peer."""
    return int(side.split()[1]) if side.startswith("hpo ") else None


def _name(side: str, task: str) -> str:
    slots = _slots(side)
    if slots is None:
        return f"{language_peer.NAMES.get(task, 'Trainer')} {side}"
    return f"hpo, {slots} slot{'s' if slots > 1 else ''}{EAGER if side.endswith(EAGER) else ''}"


def table(results: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table, a row for each number of slots."""
    hourly, (first, *_), task = results["trials_per_hour"], results["rounds"], results["settings"]["task"]
    peers = [side for side in first if _slots(side) is None]
    head = ["side", "trials an hour"]
    head += [f"{kind}: {_name(precision, task)} / hpo" for precision in peers for kind in ("wall", "CPU")]
    head += ["of a matmul"] if results["utilisation"] else []
    lines = [head, ["---"] * len(head)]
    lines += [[_name(precision, task), f"{hourly[precision]:.0f}", *[""] * (len(head) - 2)] for precision in peers]
    for side, ratios in results["ratios"].items():
        cells = [pages.cell(ratios[precision][kind]) for precision in peers for kind in ("wall", "cpu")]
        share = [f"{results['utilisation'][side]:.1%}"] if results["utilisation"] else []
        lines.append([f"{_name(side, task)} ({first[side]['precision']})", f"{hourly[side]:.0f}", *cells, *share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def add_settings(parser: argparse.ArgumentParser, **others: int) -> None:
    """Add the options for the rows, the trials and the model, with `others` as defaults of some."""
    numbers = {"rows": 480, "validation": 120, "trials": 6, "pairs": 2, "batch": 16, "epochs": 1, "evaluations": 2}
    shape = {"layers": MINILM[0], "hidden": MINILM[1], "heads": 12, "vocabulary": 30522}
    for name, default in {**numbers, **shape, "threads": os.cpu_count(), **others}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=" ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_settings(parser)
    parser.add_argument("--task", choices=TASKS, default="classification", help="what both sides fine-tune for")
    parser.add_argument("--slots", type=int, nargs="+", default=[SLOTS], help="of hpo")
    parser.add_argument("--fold", action=argparse.BooleanOptionalAction, help="hpo's slots into one model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help=" ")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of hpo's trials")
    parser.add_argument("--group-by-length", action="store_true", help="let the peer batch rows of similar length")
    parser.add_argument("--write", action="store_true", help=f"write {pages.RESULTS}")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = _parser()
    task = parser.parse_known_args(arguments)[0].task
    parser.set_defaults(**DEFAULTS.get(task, {}))
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    if settings["rows"] % (settings["batch"] * settings["evaluations"]):
        parser.error(
            "--rows must be a multiple of batch size x evaluations, or the sides would be scored unequally often"
        )
    kind = {"causal_lm": "Llama with LoRA", "seq2seq": "T5"}.get(task, "BERT")
    settings["model"] = f"{kind} of {settings['layers']} layers of {settings['hidden']}"
    rates = RATES.get(task, (2e-5, 2e-4))
    settings["learning_rates"] = np.geomspace(*rates, settings.pop("trials")).round(8).tolist()
    results = {"settings": settings, "circumstances": pages.circumstances(settings["device"]), **run(settings)}
    print(f"\n{table(results)}")
    if writes:
        layers, hidden = settings["layers"], settings["hidden"]
        usual = DEFAULTS.get(task, {}).get("layers", MINILM[0]), DEFAULTS.get(task, {}).get("hidden", MINILM[1])
        variant = "" if (layers, hidden) == usual else f"_{layers}x{hidden}"
        variant += "" if task == "classification" else f"_{task}"
        pages.write(results, pages.RESULTS, "trials_per_hour", "Trials an hour", table(results), variant)
    return results


if __name__ == "__main__":
    main()
