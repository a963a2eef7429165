"""A study on a Ray cluster: two nodes, here both on this machine, that run the trials of pytorch_lstm.yaml together.

    pip install 'hpo[ray,postgresql]'
    HPO_STORAGE=postgresql://user@host/database python examples/ray_cluster.py

On a cluster that exists already only the command is left, given on one of its machines:

    hpo run examples/pytorch_lstm.yaml --executor ray --workers 2
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STUDY = Path(__file__).with_name("pytorch_lstm.yaml")


@contextmanager
def two_nodes(**node: Any) -> Iterator[Any]:
    """Start a cluster of two nodes on this machine, as `ray start` would on one machine each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report to its makers
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "include_dashboard": False, **node}
    cluster = Cluster(initialize_head=True, head_node_args=each)
    try:
        cluster.add_node(**each)
        yield cluster
    finally:
        cluster.shutdown()


def main(study: Path = STUDY, workers: int = 2, trials: int = 10) -> int:
    with two_nodes() as cluster:
        command = ["run", str(study), "--executor", "ray", "--address", cluster.address]
        options = ["--workers", str(workers), "--trials", str(trials)]
        return subprocess.run([sys.executable, "-m", "hpo.cli", *command, *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
