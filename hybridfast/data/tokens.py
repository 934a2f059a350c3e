"""A corpus as token ids: tokenized once, memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

if TYPE_CHECKING:
    from hybridfast.data.corpus import ParallelCorpus

__all__ = ["FORMAT", "TokenizedCorpus", "tokenizer_digest", "write"]

FORMAT = 1  # of the token cache; part of its fingerprint
CHUNK = 16_384  # rows tokenized and written at a time


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
    token_ids: NDArray[np.int32] = field(repr=False)  # (T,)
    text_indptr: NDArray[np.int64] = field(repr=False)  # (texts + 1,)
    version_indptr: NDArray[np.int64] = field(repr=False)  # (V + 1,)
    group_V: NDArray[np.int32] = field(repr=False)
    language_V: NDArray[np.int32] = field(repr=False)
    version_GL: NDArray[np.int32] = field(repr=False)  # the version of a group in a language, or -1
    source_G: NDArray[np.int32] = field(repr=False)
    passage_hash_V: NDArray[np.uint64] = field(repr=False)  # equal passages have equal hashes

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenizedCorpus:
        """Map a folder that :meth:`ParallelCorpus.tokenize` wrote.

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
            arrays[name] = (
                np.memmap(file, dtype, "r", shape=tuple(shape)) if expected else np.empty(shape, dtype)
            )
        return cls(path=folder, **meta, **arrays)

    def __reduce__(self) -> tuple[Callable[[Path], TokenizedCorpus], tuple[Path]]:
        return TokenizedCorpus.open, (self.path,)  # a pickle carries the path, not the data

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return len(self.group_V)

    def text(self, index: int) -> NDArray[np.int32]:
        """The token ids of one text."""
        return self.token_ids[self.text_indptr[index] : self.text_indptr[index + 1]]

    def group_ids(self) -> list[str]:
        """The ids of the groups as the data spelled them, in the order of their numbers."""
        ids: list[str] = json.loads((self.path / "groups.json").read_text(encoding="utf-8"))
        return ids


def write(
    corpus: ParallelCorpus,
    folder: Path,
    fingerprint: str,
    settings: dict[str, Any],
    tokenizer: Any,
    progress: bool,
) -> None:
    encode_query = _encoder(tokenizer, settings["max_query_length"])
    encode_passage = _encoder(tokenizer, settings["max_passage_length"])
    text_lengths = array("q")
    version_sizes = array("q")
    with (
        open(folder / "token_ids.bin", "wb") as ids_file,
        tqdm(total=len(corpus), desc="tokenizing", unit=" rows", disable=not progress, leave=False) as bar,
    ):
        for batch in corpus.table.to_batches(max_chunksize=CHUNK):
            queries, passages, negatives = (
                batch.column(name).to_pylist() for name in ("query", "passage", "negatives")
            )
            query_ids = encode_query([settings["query_prefix"] + text for text in queries])
            documents = [
                text for first, rest in zip(passages, negatives, strict=True) for text in (first, *rest)
            ]
            document_ids = iter(encode_passage([settings["passage_prefix"] + text for text in documents]))
            rows: list[list[int]] = []
            for query, rest in zip(query_ids, negatives, strict=True):
                rows.append(query)
                rows.extend(next(document_ids) for _ in range(1 + len(rest)))
                version_sizes.append(2 + len(rest))
            for row in rows:
                text_lengths.append(len(row))
            np.fromiter((token for row in rows for token in row), np.int32).tofile(ids_file)
            bar.update(len(queries))
    arrays: dict[str, NDArray[Any]] = {
        "text_indptr": _indptr(text_lengths),
        "version_indptr": _indptr(version_sizes),
        "group_V": corpus.group_V,
        "language_V": corpus.language_V,
        "version_GL": corpus.version_GL,
        "source_G": corpus.source_G,
        "passage_hash_V": corpus.passage_hash_V,
    }
    shapes = {"token_ids": ([int(arrays["text_indptr"][-1])], "int32")}
    for name, values in arrays.items():
        values.tofile(folder / f"{name}.bin")
        shapes[name] = (list(values.shape), values.dtype.name)
    meta = {
        "fingerprint": fingerprint,
        "name": corpus.name,
        "settings": settings,
        "languages": corpus.languages,
        "sources": corpus.sources,
        "pad_id": _pad_id(tokenizer),
        "arrays": shapes,
    }
    (folder / "groups.json").write_text(json.dumps(corpus.groups, ensure_ascii=False), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _encoder(tokenizer: Any, max_length: int) -> Callable[[list[str]], list[list[int]]]:
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):

        def encode_plain(texts: list[str]) -> list[list[int]]:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids[:max_length] for encoding in encodings]

        return encode_plain

    def encode(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(
            texts, truncation=True, max_length=max_length, padding=False, return_attention_mask=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    return encode


def tokenizer_digest(tokenizer: Any) -> str:
    """What decides a tokenizer's ids; its truncation and padding state does not, and changes with use."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        definition = json.loads(backend.to_str())
        definition.pop("truncation", None)
        definition.pop("padding", None)
    else:  # a pure Python tokenizer
        definition = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    text = json.dumps(definition, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _pad_id(tokenizer: Any) -> int:
    pad_id = getattr(tokenizer, "pad_token_id", None)
    if pad_id is None and (padding := getattr(tokenizer, "padding", None)):
        pad_id = padding["pad_id"]
    return int(pad_id or 0)


def _indptr(sizes: array[int]) -> NDArray[np.int64]:
    indptr = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(np.frombuffer(sizes, np.int64), out=indptr[1:])
    return indptr
