"""The memory of the process, and what control groups leave."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.core import process_memory


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  8000 kB\n"}
V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n"}


def of_v2(folder: str, limit: str, used: int, unused: int = 0) -> dict[str, str]:
    files = {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 5\ninactive_file {unused}\n",
    }
    return {f"groups/{folder}{name}": text for name, text in files.items()}


def of_v1(folder: str, limit: int, used: int, unused: int) -> dict[str, str]:
    files = {
        "limit_in_bytes": str(limit),
        "usage_in_bytes": str(used),
        "stat": f"cache 1\ntotal_inactive_file {unused}\n",
    }
    return {f"groups/memory/{folder}memory.{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 8000 * 1024),
        (MEMINFO | V2 | of_v2("a/b/", "max", 7), 8000 * 1024),
        (MEMINFO | V2 | of_v2("a/b/", "5000", 3000), 2000),
        (MEMINFO | V2 | of_v2("a/b/", "5000", 3000, 500), 2500),
        (MEMINFO | V2 | of_v2("a/b/", "5000", 3000) | of_v2("a/", "4000", 3500), 500),
        (MEMINFO | V2 | of_v2("", "6000", 1000), 5000),  # a container sees the outermost group only
        (V2 | of_v2("a/b/", "5000", 6000), 0),
        (MEMINFO | V1 | of_v1("job/", 9000, 4000, 1000), 6000),
        (MEMINFO | V1 | of_v1("", 9223372036854771712, 4000, 0), 8000 * 1024),
    ],
)
def test_what_is_free_is_the_least_of_what_is_available_and_the_limits_leave(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    written(tmp_path, files)
    assert process_memory.free(tmp_path / "proc", tmp_path / "groups") == expected


def test_what_is_resident_grows_with_what_is_written() -> None:
    before = process_memory.resident()
    with mmap.mmap(-1, 64_000_000) as held:  # of the system: `bytearray` may get pages that were freed and are resident
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        after = process_memory.resident()
    assert before is not None
    assert after is not None
    assert after - before > 50_000_000
    assert process_memory.peak() >= 0.9 * after  # the two counts of the system differ a little


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it")
def test_the_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    """A parent that fills 300 MB starts this interpreter again, which asks for its own peak."""
    ask = "from hpo.core import process_memory; print(process_memory.peak())"
    held = "held = bytearray(b'1') * 300_000_000"
    start = f"import subprocess, sys; {held}; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", start, ask], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(done.stdout) < 250_000_000
