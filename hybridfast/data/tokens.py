"""A corpus as token ids: tokenized once, memory-mapped from then on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "TextIds",
    "TokenizedCorpus",
    "TokenizerIds",
    "joined",
    "spans",
    "tokenizer_settings",
]

Ids = tuple[NDArray[np.int32], NDArray[np.int64]]  # of all texts, one after the other; how many each has


class TextIds(Protocol):
    """How one side's texts become token ids."""

    def ids(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts, one after the other (T,), and how many each has (B,)."""

    @property
    def pad_id(self) -> int: ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes the ids, for JSON: part of the cache's key."""


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
        if self.plain:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the caller's keeps its settings
            tokenizer.no_padding()  # states that use leaves behind
            tokenizer.no_truncation()
        self.tokenizer = tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prefix": self.prefix,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "tokenizer": tokenizer_settings(self.tokenizer),
        }

    def ids(self, texts: Sequence[str]) -> Ids:
        prefixed = [self.prefix + text for text in texts]
        if self.plain:
            # "fast" leaves out the characters' offsets, which nobody asks for.
            encodings = self.tokenizer.encode_batch_fast(prefixed, add_special_tokens=False)
            return joined([encoding.ids[: self.max_length] for encoding in encodings])
        encoded = self.tokenizer(
            prefixed, truncation=True, max_length=self.max_length, padding=False, return_attention_mask=False
        )
        return joined(encoded["input_ids"])


def joined(rows: Sequence[Sequence[int]]) -> Ids:
    """The ids of some texts as two arrays."""
    lengths_B = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths_B.sum()), lengths_B


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


def spans(starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places start, start + 1, ... of every span, one span after the other."""
    ends_B = np.cumsum(lengths_B)
    return np.arange(lengths_B.sum()) + np.repeat(starts_B - (ends_B - lengths_B), lengths_B)


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as token ids: flat arrays over a memory map, read-only.

    Text ``t`` is ``token_ids[text_indptr[t]:text_indptr[t + 1]]``. Version ``v`` owns the texts
    ``version_indptr[v]`` to ``version_indptr[v + 1] - 1``: its query, its passage, then its hard negatives.
    """

    path: Path
    name: str
    fingerprint: str  # of the data and of every setting that shaped the ids
    settings: dict[str, Any]
    languages: list[str]  # (L,) sorted
    sources: list[str]  # (S,) sorted
    pad_id: int
    negatives_left_out: int  # hard negatives that equal a passage of their own item
    pieces: list[list[Any]] = field(repr=False)  # its files: fingerprint, first row, row behind the last
    samples: list[list[str]] = field(repr=False)  # a few queries and a few passages
    token_ids: NDArray[np.int32] | NDArray[np.uint16] = field(repr=False)  # (T,)
    text_indptr: NDArray[np.int64] = field(repr=False)  # (texts + 1,)
    version_indptr: NDArray[np.int64] = field(repr=False)  # (V + 1,)
    group_V: NDArray[np.int32] = field(repr=False)
    language_V: NDArray[np.int32] = field(repr=False)
    version_GL: NDArray[np.int32] = field(repr=False)  # the version of a group in a language, or -1
    source_G: NDArray[np.int32] = field(repr=False)
    item_G: NDArray[np.int32] = field(repr=False)  # equal for groups that answer one question
    query_hash_V: NDArray[np.uint64] = field(repr=False)  # equal ids have equal hashes
    passage_hash_V: NDArray[np.uint64] = field(repr=False)
    negative_hash_H: NDArray[np.uint64] = field(repr=False)  # of all hard negatives, version by version
    # What an earlier version did not write: how many items there are, and what `presence` makes of arrays.
    items: int = 0
    source_indptr: NDArray[np.int64] | None = field(repr=False, default=None)
    order_G: NDArray[np.int32] | None = field(repr=False, default=None)
    present_LW: NDArray[np.uint64] | None = field(repr=False, default=None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenizedCorpus:
        """Map a folder that :func:`tokenize` wrote.

        Raises:
            FileNotFoundError: the folder holds no token cache.
            ValueError: a file of it is damaged: its size is not the one recorded.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"{folder}: no token cache here (meta.json is missing)")
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {}
        for name, (shape, dtype) in meta.pop("arrays").items():
            file = folder / f"{name}.bin"
            expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
            actual = file.stat().st_size if file.is_file() else 0
            if actual != expected:
                raise ValueError(
                    f"{file}: {actual} bytes where {expected} were written; delete {folder} to tokenize again"
                )
            # An empty file cannot be mapped.
            arrays[name] = (
                np.memmap(file, dtype, "r", shape=tuple(shape)) if expected else np.empty(shape, dtype)
            )
        return cls(path=folder, **{"pieces": [], **meta}, **arrays)  # pieces: an earlier version had none

    def __reduce__(self) -> tuple[Callable[[Path], TokenizedCorpus], tuple[Path]]:
        return TokenizedCorpus.open, (self.path,)  # a pickle carries the path, not the data

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return len(self.group_V)

    def text(self, index: int) -> NDArray[np.int32] | NDArray[np.uint16]:
        """The token ids of one text."""
        return self.token_ids[self.text_indptr[index] : self.text_indptr[index + 1]]

    def group_ids(self) -> list[str]:
        """The ids of the groups as the data spelled them, in the order of their numbers."""
        ids: list[str] = self._group_names().to_pylist()
        return ids

    def group_id(self, group: int) -> str:
        """One of them."""
        name: str = self._group_names()[group].as_py()
        return name

    def _group_names(self) -> pa.ChunkedArray:
        if (self.path / "groups.json").is_file():  # as it once was
            return pa.chunked_array([json.loads((self.path / "groups.json").read_text(encoding="utf-8"))])
        with pa.memory_map(str(self.path / "groups.arrow")) as file:
            return pa.ipc.open_file(file).read_all().column(0)
