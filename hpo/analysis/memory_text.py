"""The memory of a study in words: what it needs by the estimate, what was used, and whether it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.core.formatting import size
from hpo.storage.snapshot import MEMORY, Results

CHECKPOINT = "checkpoint"  # a part that is there at times only

USED = {
    "cpu": "by how much the process grew since before the model was loaded, with libraries that it loaded since",
    "cuda": "what PyTorch had allocated",
}
"""Device -> what was measured."""


def needed(parts: Mapping[str, int], checkpoint: bool = False) -> int:
    """Return the bytes of all parts, with or without those of a checkpoint."""
    return sum(count for part, count in parts.items() if checkpoint or part != CHECKPOINT)


def estimate_text(parts: Mapping[str, int]) -> str:
    """Return an estimate, as `hpo.finetune.memory.Memory` has its parts, as a phrase."""
    shown = ", ".join(f"{part.replace('_', ' ')} {size(count)}" for part, count in parts.items() if part != CHECKPOINT)
    text = f"about {size(needed(parts))} at the peak ({shown})"
    if more := parts.get(CHECKPOINT):
        text += f"; {size(more)} more while a checkpoint is copied, from the second minute on"
    return text


def shortage(parts: Mapping[str, int], free: int | None, device: str, settings: Mapping[str, Any]) -> str | None:
    """Return a note that the memory of the device does not suffice; None if it does, or if that is unknown.

    Args:
        parts: The estimate.
        free: Bytes that were free before the model was loaded.
        device: Of training.
        settings: `slots`, `micro_batch` and `gradient_checkpointing` of the study.
    """
    if free is None or needed(parts, checkpoint=True) <= free:
        return None
    steps = ["fewer slots"] if settings["slots"] != 1 else []
    steps += ["a smaller micro_batch"] if settings["micro_batch"] > 1 else []
    steps += [] if settings["gradient_checkpointing"] else ["gradient_checkpointing: true"]
    return (
        f"training needs about {size(needed(parts, checkpoint=True))} of memory at the peak, and "
        f"{size(free)} were free on {device}; "
        f"write {', '.join([*steps, 'a smaller model'])}"
    )


def memory_text(results: Results) -> str | None:
    """Return what a study was estimated to need beside what was used; None without an estimate."""
    stored = results.attrs.get(MEMORY)
    if stored is None:
        return None
    parts, used, device = stored["estimated"], stored["used"], stored["settings"].get("device")
    text = f"memory: estimated {estimate_text(parts)}"
    if used is None or device not in USED:
        return text
    expected = needed(parts, stored[CHECKPOINT])
    return f"{text}; used {size(used)} ({USED[device]}), {used / expected:.2f} times the estimate"


def memory_fact(results: Results) -> tuple[str | None, str]:
    """Return the same in a few words: what was used, else the estimate, and what that is; None without an estimate."""
    stored = results.attrs.get(MEMORY)
    if stored is None:
        return None, ""
    parts, used = stored["estimated"], stored["used"]
    if used is None or stored["settings"].get("device") not in USED:
        return size(needed(parts)), "estimated peak"
    return size(used), f"used at the peak, estimated {size(needed(parts, stored[CHECKPOINT]))}; hpo show says of what"
