"""Where a study trains, and what that place is good at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpo.core.errors import ModelError, OutOfMemoryError

SCORING_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
SMALLEST = 32  # which keeps any device busy


def chosen(setting: str) -> torch.device:
    """Return the device that a study asks for, or for `auto` the first of cuda, mps, cpu.

    Raises:
        ModelError: It is not available here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[setting]:
        raise ModelError(f"device: {setting} is not available here; write device: auto, or install torch for it")
    return torch.device(setting)


def folds(setting: bool | None, device: str) -> bool:
    """Return whether slots are to be those of one folded model: what the study says, else on CUDA.

    On a CPU folding gains nothing: there a step is arithmetic, not launches.
    """
    return chosen(device).type == "cuda" if setting is None else setting


def precision(setting: str, device: torch.device) -> str:
    """Return bf16 where the processor has units for it: elsewhere it is emulated, and slower."""
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def reproducible_products() -> bool:
    """Let a CPU's products not depend on where their operands lie in memory, and return whether they do not.

    MKL chooses its kernels by that, and sums in another order, unless its reproducible mode (conditional numerical
    reproducibility, oneMKL Developer Guide) is on. It reads `MKL_CBWR` at its first product, so that this has an
    effect before that only. A slot's part of a tensor lies where the slots before it end, and PyTorch's attention
    gives each thread a part of one buffer.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 63, generator=generator) for size in (8, 64))
    displaced = torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
    return all(torch.equal(rows[:size] @ weight.T, rows[:size] @ displaced.T) for size in (1, 2, 8))


@contextmanager
def threaded(threads: int) -> Iterator[None]:
    """Compute with some threads, and with zero in the place of denormal numbers.

    The moments of embedding rows that come rarely decay to such, and a CPU is ten times slower with them. Threads
    that are started within inherit it.
    """
    total = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(total)


def scoring_batch(device: torch.device, slots: int = 1) -> int:
    """Return the rows of each slot in a pass that keeps no activations: few where few are as fast, as they pad less.

    On a CPU they do not depend on the slots, as what a model says depends on them in the last bit.
    """
    return max(SMALLEST, SCORING_BATCH[device.type] // slots)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32 at least: losses are not computed in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def memory_error(error: Exception) -> Exception:
    """Return what ends a trial: memory that ran out outside the passes that can be halved, or the error itself."""
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return OutOfMemoryError(f"the optimiser, the scoring or the best weights do not fit in memory ({error})")
    return error
