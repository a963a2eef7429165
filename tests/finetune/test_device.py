import os
import subprocess
import sys

import pytest
import torch

from hpo.core.errors import ModelError
from hpo.finetune import device


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_the_first_device_that_is_available(monkeypatch, only_cpu):
    assert device.chosen("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.chosen("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.chosen("auto").type == "cuda"
    assert device.chosen("cpu").type == "cpu"


def test_a_device_that_is_not_available_is_named(only_cpu):
    with pytest.raises(ModelError, match="device: cuda is not available here; write device: auto"):
        device.chosen("cuda")


def test_slots_fold_on_cuda_or_as_the_study_says(monkeypatch, only_cpu):
    assert [device.folds(setting, "auto") for setting in (None, True, False)] == [False, True, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.folds(setting, "auto") for setting in (None, True, False)] == [True, True, False]
    assert not device.folds(None, "cpu")


@pytest.mark.parametrize(
    ("has", "chosen"), [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "fp32"), ({}, "fp32")]
)
def test_bf16_is_chosen_where_the_hardware_computes_it(monkeypatch, has, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert device.precision("auto", torch.device("cpu")) == chosen
    assert device.precision("fp32", torch.device("cpu")) == "fp32"
    assert device.precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.slow
def test_products_do_not_depend_on_memory_in_a_process_that_has_not_computed():
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    script = "from hpo.finetune import device; print(device.reproducible_products())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
