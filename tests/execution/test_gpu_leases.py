from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpo.core.errors import StudyError
from hpo.execution.gpu_leases import leased, visible_gpus


def test_a_gpu_is_leased_to_each_worker_and_to_no_other_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-test-a, GPU-test-b,GPU-test-c")
    with leased(2, "auto") as first:
        assert first == [{"CUDA_VISIBLE_DEVICES": "GPU-test-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-test-b"}]
        with leased(1, "cuda") as second:
            assert second == [{"CUDA_VISIBLE_DEVICES": "GPU-test-c"}]
        message = "2 workers need 2 GPUs, and 1 of 3 are free"
        with pytest.raises(StudyError, match=message), leased(2, "auto"):
            pass
    with leased(1, "auto", each=3) as third:  # for a trial that is divided over three
        assert third == [{"CUDA_VISIBLE_DEVICES": "GPU-test-a,GPU-test-b,GPU-test-c"}]


@pytest.mark.parametrize(("device", "visible"), [("cpu", "0,1"), ("auto", ""), ("auto", "-1")])
def test_without_gpus_workers_get_nothing_to_add(monkeypatch: pytest.MonkeyPatch, device: str, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with leased(2, device) as leases:
        assert leases == [{}, {}]


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-1\necho GPU-2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["GPU-1", "GPU-2"]
