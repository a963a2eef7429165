"""The environment variables of the benchmarks. Import this module before torch and transformers."""

from __future__ import annotations

import os

# By default, a waiting thread spins: that counts as CPU time, and takes the core from threads with work.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
