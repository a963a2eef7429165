"""Compare the speed of a search whose trials freeze layers with that of the same search whose trials do not.

Both searches fine-tune the same model (by default of MiniLM-L6's shape, with random weights) on the same synthetic
sentences, with the same learning rates. A measurement is as in `trials_per_hour.py`: from after the imports to the end
of the search, what the frozen layers yield computed and written in it. The sides alternate, and a ratio compares
measurements of one round only. A ratio above 1 means that the frozen search took less time.

Run it: python benchmarks/frozen_layers.py [--write]
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages
import synthetic
import trials_per_hour

Settings = dict[str, Any]


def run(settings: Settings) -> dict[str, Any]:
    """Run all rounds.

    Returns:
        `rounds`: number of frozen layers -> what `trials_per_hour.measure` returns; `ratios`: `wall` and `cpu` ->
        median, min and max of the seconds without frozen layers over those with them; `trials_per_hour`: by number of
        frozen layers.
    """
    sides, rounds = [0, settings["frozen"]], []
    with tempfile.TemporaryDirectory() as scratch:
        trials_per_hour._apart(synthetic.prepare, settings, Path(scratch))
        for number in range(settings["pairs"]):
            ran = {}
            for layers in sides if number % 2 == 0 else sides[::-1]:
                given = {**settings, "frozen_layers": layers}
                side = f"hpo {settings['slots']}"
                ran[layers] = trials_per_hour._apart(trials_per_hour.measure, side, given, Path(scratch))
                seconds = f"{ran[layers]['wall']:.1f} s, CPU {ran[layers]['cpu']:.1f} s"
                print(f"round {number + 1}, {layers} layers frozen: {seconds}", flush=True)
            rounds.append({str(layers): ran[layers] for layers in sides})
    trials = len(settings["learning_rates"])
    return {
        "rounds": rounds,
        "ratios": {kind: _ratio(rounds, settings["frozen"], kind) for kind in ("wall", "cpu")},
        "trials_per_hour": {
            str(layers): 3600 * trials / statistics.median(each[str(layers)]["wall"] for each in rounds)
            for layers in sides
        },
    }


def _ratio(rounds: Sequence[dict[str, Any]], frozen: int, kind: str) -> dict[str, float]:
    ratios = [ran["0"][kind] / ran[str(frozen)][kind] for ran in rounds]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    settings, precision = results["settings"], results["rounds"][0]["0"]["precision"]
    lines = [
        "| frozen layers | trials an hour | wall: none / frozen | CPU: none / frozen |",
        "| --- | --- | --- | --- |",
    ]
    for layers, hourly in results["trials_per_hour"].items():
        ratios = [pages.cell(results["ratios"][kind]) if layers != "0" else "" for kind in ("wall", "cpu")]
        lines.append(f"| {layers} of {settings['layers']} ({precision}) | {hourly:.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark as the command line says, print it, and return its results."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    trials_per_hour.add_settings(parser, rows=320, validation=80, trials=2, epochs=2, pairs=3)
    parser.add_argument("--slots", type=int, default=trials_per_hour.SLOTS, help="of both sides")
    parser.add_argument("--frozen", type=int, default=4, help="layers that are frozen on one side")
    parser.add_argument("--write", action="store_true", help=f"write {pages.RESULTS}")
    settings = vars(parser.parse_args(arguments))
    writes = settings.pop("write")
    settings |= {"device": "cpu", "precision": "auto", "fold": False, "task": "classification"}
    settings["model"] = f"BERT of {settings['layers']} layers of {settings['hidden']}"
    settings["learning_rates"] = np.geomspace(2e-5, 2e-4, settings.pop("trials")).round(8).tolist()
    results = {"settings": settings, "circumstances": pages.circumstances("cpu"), **run(settings)}
    print(f"\n{table(results)}")
    if writes:
        pages.write(results, pages.RESULTS, "frozen_layers", "Frozen layers", table(results))
    return results


if __name__ == "__main__":
    main()
