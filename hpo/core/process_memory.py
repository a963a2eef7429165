"""The memory of this process, and what is left to it: of the computer, and of the limits that the process is under.

Read from `/proc` and the control groups of Linux. Elsewhere only the peak of the process is known.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def peak() -> int:
    """Return the most bytes that have been resident in this process since it began, libraries included."""
    for line in _lines(PROC / "self" / "status"):  # `getrusage` counts the process that started this one, too
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def resident() -> int | None:
    """Return the bytes that are resident in this process now; None if the system does not say."""
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def free(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Return the bytes that this process may still use; None if the system does not say.

    It is the least of the memory that is available and of what the limits of its control groups leave. Pages of files
    that were not used lately count as free, because the system drops them first.

    Args:
        proc: Where the system tells about processes.
        groups: Where it tells about control groups.
    """
    known = [*_available(proc), *_left(proc, groups)]
    return max(0, min(known)) if known else None


def _available(proc: Path) -> Iterator[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _left(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what is left of the limit of each control group that the process is in, of both versions of them."""
    for line in _lines(proc / "self" / "cgroup"):
        _, kinds, path = line.split(":", 2)
        if not kinds:
            yield from _left_of(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left_of(groups / "memory", path, *names)


def _left_of(root: Path, path: str, limit: str, usage: str, unused: str) -> Iterator[int]:
    """Yield the same of a group and of the groups that it is in; a container may see the outermost one only."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        most, used = _lines(folder / limit), _lines(folder / usage)
        if most and used and most[0].isdigit():
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            yield int(most[0]) - int(used[0]) + int(stat.get(unused, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
