"""Texts to ids by a tokenizer alone, and all that decides about its ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from hybridfast.data.ids import Ids, joined
from hybridfast.data.words import ByWords, copied

__all__ = ["TokenizerIds", "tokenizer_settings"]


class TokenizerIds:
    """Ids by a tokenizer alone: a prefix, the text, its head of so many tokens.

    tokenizer: a transformers tokenizer (special tokens added) or a ``tokenizers.Tokenizer`` (none added, as
    sentence-transformers' StaticEmbedding does).
    """

    def __init__(self, tokenizer: Any, prefix: str, max_length: int) -> None:
        from tokenizers import Tokenizer

        self.pad_id = _pad_id(tokenizer)
        self.prefix, self.max_length = prefix, max_length
        self.plain = isinstance(tokenizer, Tokenizer)
        # Padding and truncation are states that use leaves behind.
        self.tokenizer = copied(tokenizer) if self.plain else tokenizer
        self._words = ByWords(self.tokenizer, prefix, self._read)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prefix": self.prefix,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "tokenizer": tokenizer_settings(self.tokenizer),
        }

    def ids(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts, one after the other (T,), and how many each has (B,)."""
        return self._words(texts)

    def _read(self, texts: Sequence[str]) -> Ids:
        prefixed = [self.prefix + text for text in texts]
        if self.plain:
            # "fast" leaves out the characters' offsets, which nobody asks for.
            encodings = self.tokenizer.encode_batch_fast(prefixed, add_special_tokens=False)
            return joined([encoding.ids[: self.max_length] for encoding in encodings])
        encoded = self.tokenizer(
            prefixed, truncation=True, max_length=self.max_length, padding=False, return_attention_mask=False
        )
        return joined(encoded["input_ids"])


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """What decides a tokenizer's ids, for JSON; large tables as their digest."""
    settings: dict[str, Any] = {"class": type(tokenizer).__name__}
    for name in ("truncation_side", "padding_side", "chat_template", "init_kwargs", "special_tokens_map"):
        if hasattr(tokenizer, name):
            settings[name] = json.loads(json.dumps(getattr(tokenizer, name), default=str, sort_keys=True))
    # Where it was loaded from changes no id.
    if isinstance(options := settings.get("init_kwargs"), dict):
        settings["init_kwargs"] = {name: options[name] for name in options if "name_or_path" not in name}
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        # Before the tokens stands how it pads and cuts; transformers sets both anew at every call.
        _, _, definition = backend.to_str().partition('"added_tokens":')
        if backend is tokenizer:
            settings["truncation"] = tokenizer.truncation
    else:  # a pure Python tokenizer
        tables: dict[str, Any] = {
            name: getattr(tokenizer, name, dict)() for name in ("get_config_dict", "get_vocab")
        }
        definition = json.dumps(tables, sort_keys=True, default=str)
    return settings | {"definition": hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()}


def _pad_id(tokenizer: Any) -> int:
    pad_id = getattr(tokenizer, "pad_token_id", None)
    if pad_id is None and (padding := getattr(tokenizer, "padding", None)):
        pad_id = padding["pad_id"]
    return int(pad_id or 0)
