"""The device that a study trains on: precision, threads, batch sizes, lack of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hpo.core.errors import ModelError, OutOfMemoryError

SCORING_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
SMALLEST = 32  # rows that are enough to use a device well


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
    """Return whether to fold trials into one model: the study's setting; by default on CUDA only.

    On a CPU folding gains nothing: a step's time goes into arithmetic, not into kernel launches.
    """
    return chosen(device).type == "cuda" if setting is None else setting


def precision(setting: str, device: torch.device) -> str:
    """Return the precision that a study asks for; for `auto`, bf16 where the hardware computes it, else fp32.

    Elsewhere bf16 is emulated, and slower than fp32.
    """
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def reproducible_mode() -> str:
    """Return the value of `MKL_CBWR` that makes the products of this processor reproducible.

    Intel's processors without AVX-512 need the strict mode too: there gradients of weights that lie at other addresses
    differed with two threads, measured with the kernels of AVX2. Other makers' processors have no strict mode.
    """
    cpuinfo = Path("/proc/cpuinfo")
    intel = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text(errors="replace")
    return "AUTO,STRICT" if intel and torch.backends.cpu.get_cpu_capability() == "AVX2" else "AUTO"


def reproducible_products() -> bool:
    """Make matrix products on a CPU independent of the memory addresses of their operands, and return whether they are.

    MKL chooses a kernel, and with it the order of summation, by the alignment of the operands, unless its reproducible
    mode is on (conditional numerical reproducibility, oneMKL Developer Guide). MKL reads `MKL_CBWR` at its first
    product, so this function has no effect after that. Addresses differ between trials: a slot's part of a tensor
    begins where the part of the slot before it ends, and PyTorch's attention gives each thread a part of one buffer.
    """
    os.environ.setdefault("MKL_CBWR", reproducible_mode())
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 63, generator=generator) for size in (8, 64))
    displaced = torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
    return all(torch.equal(rows[:size] @ weight.T, rows[:size] @ displaced.T) for size in (1, 2, 8))


@contextmanager
def threaded(threads: int) -> Iterator[None]:
    """Compute with a number of threads, and with zero in place of denormal numbers.

    The moments of rare embedding rows decay to denormal numbers, with which a CPU is ten times slower. Threads that
    are started within the context inherit the setting.
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
    """Return the rows of each slot in a pass without gradients: as few as are fast, because fewer rows pad less.

    On a CPU the number does not depend on the slots, because the last bits of the outputs depend on it.
    """
    return max(SMALLEST, SCORING_BATCH[device.type] // slots)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32 or more: losses are not computed in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that an allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory")
    )


def memory_error(error: Exception) -> Exception:
    """Return the error that ends a trial: an OutOfMemoryError for a lack of memory, else the error itself.

    It is for errors outside of the passes whose micro-batch can be halved.
    """
    if isinstance(error, RuntimeError) and out_of_memory(error):
        return OutOfMemoryError(f"the optimiser, the scoring or the best weights do not fit in memory ({error})")
    return error
