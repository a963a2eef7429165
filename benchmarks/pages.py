"""The pages of results: JSON, and Markdown with the versions and the hardware."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def cell(ratio: dict[str, float]) -> str:
    """Return a ratio as text: median (min to max)."""
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)


def circumstances(device: str) -> dict[str, Any]:
    """Return the date, the hardware and the versions of a run."""
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
    """Write results as JSON and as a page.

    Args:
        results: With `settings` and `circumstances`.
        folder: Folder of the two files.
        name: Name of the benchmark.
        title: Title of the page.
        found: The results in Markdown.
        variant: Suffix of the files, where a benchmark has pages for several settings.
    """
    settings, circumstances = results["settings"], results["circumstances"]
    stem = folder / f"{name}_{settings['device']}{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    hardware = f"{circumstances['gpu']}, " if circumstances["gpu"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in circumstances["versions"].items())
    trials = settings["trials"] if "trials" in settings else len(settings["learning_rates"])
    rounds = f", rounds: {settings['pairs']}; median (min to max)" if "pairs" in settings else ""
    task = settings.get("task", "classification")
    of, asked = ("", "") if task == "classification" else (f", {task}", f" --task {task}")
    lines = [
        f"# {title} on {settings['device']}{of}",
        "",
        f"{circumstances['date']}, {hardware}{circumstances['cpu']}, {circumstances['cores']} cores; {versions}.",
        f"{settings['model']}, {settings['rows']} rows, batch size {settings['batch']}, epochs: {settings['epochs']}, "
        f"{settings['evaluations']} evaluations an epoch on {settings['validation']} rows; trials: {trials}{rounds}.",
        "",
        found,
        "",
        f"`python benchmarks/{name}.py{asked} --write` says in its docstring what is measured.",
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
