"""Leases of the GPUs of this machine, so that no two workers share one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpo.core.errors import StudyError
from hpo.storage.file_lock import FileLock


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; none without NVIDIA's tools."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def leased(count: int, device: str, each: int = 1) -> Iterator[list[dict[str, str]]]:
    """Lease GPUs to workers. A GPU is leased to one worker of one study of this machine.

    Args:
        count: How many workers.
        device: The study's `device`; with cpu or mps, nothing is leased.
        each: GPUs of a worker.

    Yields:
        Environment variables to add for each worker; none without GPUs.

    Raises:
        StudyError: There are GPUs, but too few of them are free.
    """
    gpus = [] if device in ("cpu", "mps") else visible_gpus()
    if not gpus:
        yield [{} for _ in range(count)]
        return
    wanted = count * each
    with ExitStack() as stack:
        free: list[str] = []
        for gpu in gpus:
            lock = FileLock(Path(tempfile.gettempdir()) / "hpo-leases" / re.sub(r"[^\w-]", "_", gpu))
            if len(free) < wanted and lock.acquire(limit=0):
                stack.callback(lock.release)
                free.append(gpu)
        if len(free) < wanted:
            raise StudyError(
                f"{count} workers need {wanted} GPUs, and {len(free)} of {len(gpus)} are free; ask for fewer workers, "
                "or for several trials on each: --slots auto"
            )
        yield [{"CUDA_VISIBLE_DEVICES": ",".join(free[n * each : (n + 1) * each])} for n in range(count)]
