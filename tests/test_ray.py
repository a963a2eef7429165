"""Workers as actors of a Ray cluster: two nodes on this machine, each with a GPU that Ray only counts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpo import commands, config, ray_workers, storage
from hpo.errors import MissingExtraError, StorageError, StudyError
from hpo.watcher import Silent

TRIALS = 16

OBJECTIVE = """
import os, time

def objective(params):
    for step in range(1, 6):
        time.sleep({pause})
        yield params["x"] * step
    with open("ran", "a") as ran:
        print(os.getppid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=ran)
"""

STUDY = f"""
objective: cheap:objective
space: {{x: {{low: 0.0, high: 1.0}}}}
sampler: random
pruner: none
trials: {TRIALS}
"""


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of two nodes; no process of it is left."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        pytest.skip("Ray is not installed (the extra `ray`): workers on a cluster are NOT tested here")
    before = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    os.environ["PYTHONPATH"] = str(Path(config.__file__).parents[1])
    node = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(**node)
    yield made
    made.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def start(cluster, postgresql, tmp_path):
    """Return a function that starts `hpo run` on the cluster."""
    started = []

    def run(*options, study=STUDY, pause=0.02):
        (tmp_path / "cheap.py").write_text(OBJECTIVE.format(pause=pause))
        (tmp_path / "cheap.yaml").write_text(study)
        command = [sys.executable, "-m", "hpo.cli", "run", "cheap.yaml", "--executor", "ray", *options]
        where = {"HPO_STORAGE": postgresql, "RAY_ADDRESS": cluster.address}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | where, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_study_runs(start, postgresql, tmp_path):
    began = time.time()
    process = start("--workers", "2")
    out, err = process.communicate(timeout=120)
    print(time.time() - began, out, err)
    assert process.returncode == 0
    print((tmp_path / "ran").read_text())
