"""A corpus as token ids: tokenized once, memory-mapped from then on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

if TYPE_CHECKING:
    from hybridfast.data.corpus import ParallelCorpus

__all__ = [
    "TextIds",
    "TokenizedCorpus",
    "TokenizerIds",
    "joined",
    "own_passages",
    "spans",
    "text_hash",
    "tokenize",
    "tokenizer_settings",
]

FORMAT = 3  # of the token cache; part of its fingerprint
CHUNK = 16_384  # rows tokenized and written at a time

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


def tokenize(
    corpus: ParallelCorpus,
    query: TextIds,
    passage: TextIds,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TokenizedCorpus:
    """Tokenize every text once and memory-map the result.

    Args:
        query, passage: how queries, and how passages and hard negatives, become ids.
        cache_dir: where token caches live, each in a folder named by the fingerprint of data and settings;
            default ``$HYBRIDFAST_CACHE`` or ``~/.cache/hybridfast``.
        progress: show a progress bar.
    """
    settings = {
        "format": FORMAT,
        "query": query.settings,
        "passage": passage.settings,
        "data": corpus.fingerprint,
    }
    fingerprint = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
    cache = Path(cache_dir or os.environ.get("HYBRIDFAST_CACHE") or Path.home() / ".cache" / "hybridfast")
    folder = cache / fingerprint
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{fingerprint}-", dir=cache))
        try:
            _write(corpus, unfinished, fingerprint, settings, query, passage, progress)
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another process finished the same cache first
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return TokenizedCorpus.open(folder)


def _write(
    corpus: ParallelCorpus,
    folder: Path,
    fingerprint: str,
    settings: dict[str, Any],
    query: TextIds,
    passage: TextIds,
    progress: bool,
) -> None:
    passages_of = own_passages(corpus)
    hashes = {side: array("Q") for side in ("query_hash_V", "passage_hash_V", "negative_hash_H")}
    text_lengths, version_sizes = array("q"), array("q")
    left_out = row = 0
    hidden = None if progress else True  # None: where nobody watches
    bar = tqdm(total=len(corpus), desc="tokenizing", unit=" rows", disable=hidden, leave=False)
    with open(folder / "token_ids.bin", "wb") as ids_file, bar:
        for batch in corpus.table.to_batches(max_chunksize=CHUNK):
            queries, passages, negatives = (
                batch.column(name).to_pylist() for name in ("query", "passage", "negatives")
            )
            documents: list[str] = []
            sizes_B = np.empty(len(queries), np.int64)
            for i, (positive, hard) in enumerate(zip(passages, negatives, strict=True)):
                own = passages_of(row + i) if hard else ()
                kept = [text for text in hard if text not in own]
                left_out += len(hard) - len(kept)
                documents += [positive, *kept]
                sizes_B[i] = 1 + len(kept)
            asked, told = query.ids(queries), passage.ids(documents)
            document_hashes = _hashes(told)
            is_passage = np.zeros(len(document_hashes), bool)
            is_passage[np.cumsum(sizes_B) - sizes_B] = True
            hashes["query_hash_V"].frombytes(_hashes(asked).tobytes())
            hashes["passage_hash_V"].frombytes(document_hashes[is_passage].tobytes())
            hashes["negative_hash_H"].frombytes(document_hashes[~is_passage].tobytes())
            ids_T, lengths_B = _interleaved(asked, told, sizes_B)
            ids_T.tofile(ids_file)
            text_lengths.extend(lengths_B.tolist())
            version_sizes.extend((1 + sizes_B).tolist())
            row += len(queries)
            bar.update(len(queries))
    arrays: dict[str, NDArray[Any]] = {
        "text_indptr": _indptr(text_lengths),
        "version_indptr": _indptr(version_sizes),
        "group_V": corpus.group_V,
        "language_V": corpus.language_V,
        "version_GL": corpus.version_GL,
        "source_G": corpus.source_G,
        "item_G": corpus.item_G,
        **{name: np.frombuffer(values, np.uint64) for name, values in hashes.items()},
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
        "pad_id": passage.pad_id,
        "negatives_left_out": left_out,
        "samples": corpus.samples(),
        "arrays": shapes,
    }
    (folder / "groups.json").write_text(json.dumps(corpus.groups, ensure_ascii=False), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def own_passages(corpus: ParallelCorpus) -> Callable[[int], set[str]]:
    """The passages of a row's item in all languages: none of them is a negative of it, whoever mined it."""
    passages = corpus.table.column("passage")
    item_V = corpus.item_G[corpus.group_V]
    order_V = np.argsort(item_V, kind="stable")
    starts = np.searchsorted(item_V[order_V], np.arange(item_V.max() + 2))

    def own(row: int) -> set[str]:
        item = item_V[row]
        return {passages[int(version)].as_py() for version in order_V[starts[item] : starts[item + 1]]}

    return own


def _interleaved(queries: Ids, documents: Ids, sizes_B: NDArray[np.int64]) -> Ids:
    """Each query's ids followed by those of its documents, of which it has so many."""
    query_lengths_B, document_lengths_D = queries[1], documents[1]
    at_query = np.cumsum(1 + sizes_B) - 1 - sizes_B  # the place of each query among the texts
    lengths = np.empty(len(query_lengths_B) + len(document_lengths_D), np.int64)
    is_query = np.zeros(len(lengths), bool)
    is_query[at_query] = True
    lengths[is_query], lengths[~is_query] = query_lengths_B, document_lengths_D
    starts = np.empty_like(lengths)
    starts[is_query] = np.cumsum(query_lengths_B) - query_lengths_B
    starts[~is_query] = np.cumsum(document_lengths_D) - document_lengths_D + len(queries[0])
    return np.concatenate([queries[0], documents[0]])[spans(starts, lengths)], lengths


def spans(starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places start, start + 1, ... of every span, one span after the other."""
    ends_B = np.cumsum(lengths_B)
    return np.arange(lengths_B.sum()) + np.repeat(starts_B - (ends_B - lengths_B), lengths_B)


def _indptr(sizes: array[int]) -> NDArray[np.int64]:
    indptr = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(np.frombuffer(sizes, np.int64), out=indptr[1:])
    return indptr


def text_hash(text: str) -> int:
    """64 bits that equal texts share, in every process."""
    return _hash(text.encode())


def _hashes(texts: Ids) -> NDArray[np.uint64]:
    """Of each text's ids: texts that differ in case alone are one to a tokenizer that lowers it."""
    ids_T, lengths_B = texts
    ends_B = np.cumsum(lengths_B)
    data, step = ids_T.tobytes(), ids_T.itemsize
    spans_B = zip(((ends_B - lengths_B) * step).tolist(), (ends_B * step).tolist(), strict=True)
    return np.fromiter((_hash(data[start:end]) for start, end in spans_B), np.uint64, len(lengths_B))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


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
    samples: list[list[str]] = field(repr=False)  # a few queries and a few passages
    token_ids: NDArray[np.int32] = field(repr=False)  # (T,)
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
