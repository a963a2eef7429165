"""The languages of models such as mBART, M2M100 and NLLB, whose tokenizers put a token of the language into each text.

What `run_translation.py` of transformers has set by hand is derived here: the tokenizer says where the language stands
in a target, and the model's own function with what its decoder starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpo.core.errors import ModelError
from hpo.tasks.seq2seq.keys import LANGUAGES, PairKeys

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LISTED = 60  # codes that an error lists at most
NEAR = 3  # codes that are suggested for an unknown one


def options(tokenizer: PreTrainedTokenizerBase, keys: PairKeys) -> dict[str, Any]:
    """Return the options with which a tokenizer must be loaded, to write the languages of a study.

    Raises:
        ModelError: It knows no languages and some are given, or it knows some and these are not given, or not known.
    """
    known = codes(tokenizer)
    given = {key: getattr(keys, key) for key in LANGUAGES if getattr(keys, key) is not None}
    if not known:
        if given:
            raise ModelError(
                f"data: {{{', '.join(given)}}}: the model's tokenizer knows no languages; leave them out, or choose a "
                "model such as mBART, M2M100 or NLLB"
            )
        return {}
    if not given:
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise ModelError(
            "the model's tokenizer puts a token of the language into each text: name both under data: "
            f"{{{': CODE, '.join(LANGUAGES)}: CODE}}. It knows {', '.join(known[:LISTED])}{more}"
        )
    unknown = {key: code for key, code in given.items() if code not in known}
    if unknown:
        raise ModelError("\n".join(_unknown(key, code, known) for key, code in unknown.items()))
    return {"src_lang": keys.source_language, "tgt_lang": keys.target_language}


def _unknown(key: str, code: str, known: Sequence[str]) -> str:
    spellings, given = {other.casefold(): other for other in known}, code.casefold()
    alike = [other for other in spellings if other.startswith(given)][:NEAR]
    near = [spellings[other] for other in alike or difflib.get_close_matches(given, spellings, NEAR, 0)]
    return (
        f"data.{key}: {code!r} is none of the {len(known)} languages of the model's tokenizer; did you mean "
        f"{' or '.join(near)}?"
    )


def codes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the codes of the languages that a tokenizer knows, in order; none if it knows no languages."""
    if not hasattr(type(tokenizer), "src_lang"):
        return []
    named = getattr(tokenizer, "lang_code_to_id", None) or tokenizer.extra_special_tokens
    return sorted(code for code in map(str, named) if _token(tokenizer, code) != tokenizer.unk_token_id)


def _token(tokenizer: PreTrainedTokenizerBase, code: str) -> int:
    """Return the id of the token of a language; M2M100's is another word than its code."""
    id_of: Any = getattr(tokenizer, "get_lang_id", tokenizer.convert_tokens_to_ids)
    return int(id_of(code))


def begin(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keys: PairKeys, shift: Any) -> None:
    """Let a model begin the texts that it generates as the targets of the training rows begin.

    The language stands first in a target of mBART-50, M2M100 and NLLB, and is forced there. In one of mBART it stands
    last, and the decoder starts with it.

    Args:
        model: The model, whose settings are changed.
        tokenizer: Its tokenizer, loaded with `options`.
        keys: The keys of `data:`.
        shift: Labels [1, tokens] -> what the decoder reads.
    """
    if keys.target_language is None:
        return
    import torch

    settings: Any = model.generation_config
    ids = list(tokenizer(text_target="a")["input_ids"])
    language = _token(tokenizer, keys.target_language)
    settings.forced_bos_token_id = language if ids[0] == language else None
    settings.decoder_start_token_id = int(shift(torch.tensor([ids]))[0, 0])
