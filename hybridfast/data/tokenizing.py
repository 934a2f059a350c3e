"""A corpus to token ids, once: in shards that are synced, so that a kill costs no more than the last one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from hybridfast.data.ids import Ids, TextIds, spans
from hybridfast.data.presence import presence
from hybridfast.data.spool import cache_folder, write_whole
from hybridfast.data.texts import hash_spans
from hybridfast.data.tokens import TokenizedCorpus

if TYPE_CHECKING:
    from hybridfast.data.corpus import ParallelCorpus

__all__ = ["own_passages", "tokenize"]

FORMAT = 3  # of the token cache; part of its fingerprint
CHUNK = 16_384  # rows tokenized at a time
SHARD = 16  # chunks between one sync and the next


def tokenize(
    corpus: ParallelCorpus,
    query: TextIds,
    passage: TextIds,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TokenizedCorpus:
    """Tokenize every text once and memory-map the result; after a kill, go on from the last whole shard.

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
    cache = cache_folder(cache_dir)
    folder, part = cache / fingerprint, cache / f".{fingerprint}.part"
    while not folder.is_dir():
        part.mkdir(parents=True, exist_ok=True)
        with _alone(part) as is_mine:
            if is_mine and not folder.is_dir():
                found = _elsewhere(corpus, cache, settings)
                _write(corpus, part, fingerprint, settings, query, passage, found, progress)
                os.rename(part, folder)
    return TokenizedCorpus.open(folder)


class _alone:
    """Waits until no other process writes into a folder; says whether it is there still."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> bool:
        try:
            self.lock = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:
            self.lock = -1
            return False
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        return self.folder.is_dir() and os.path.samestat(os.fstat(self.lock), self.folder.stat())

    def __exit__(self, *_: object) -> None:
        if self.lock >= 0:
            os.close(self.lock)


# --- arrays that grow --------------------------------------------------------------------------------------

ARRAYS: dict[str, DTypeLike] = {
    "text_indptr": np.int64,
    "version_indptr": np.int64,
    "query_hash_V": np.uint64,
    "passage_hash_V": np.uint64,
    "negative_hash_H": np.uint64,
}


class _Growing:
    """The arrays that grow with the rows, in files; `rows`, `texts`, `tokens` are whole, whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state.json"
        state = json.loads(self.state.read_text()) if self.state.is_file() else {}
        self.dtypes = {"token_ids": np.dtype(state.get("dtype", "uint16"))}
        self.dtypes |= {name: np.dtype(dtype) for name, dtype in ARRAYS.items()}
        self.files: dict[str, IO[bytes]] = {
            name: open(folder / f"{name}.bin", "a+b")  # noqa: SIM115
            for name in self.dtypes
        }
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()}
        if state and all(sizes[name] >= size for name, size in state["sizes"].items()):
            self.rows, self.texts, self.tokens = state["rows"], state["texts"], state["tokens"]
            self.left_out: int = state["left_out"]
            for name, size in state["sizes"].items():
                self.files[name].truncate(size)
        else:
            self.start()

    def start(self, dtype: DTypeLike | None = None) -> None:
        """From nothing; with token ids of that type."""
        self.rows = self.texts = self.tokens = self.left_out = 0
        self.dtypes["token_ids"] = np.dtype(dtype or self.dtypes["token_ids"])
        self.state.unlink(missing_ok=True)
        for name, file in self.files.items():
            file.truncate(0)
            if name.endswith("indptr"):
                self.append(name, np.zeros(1, np.int64))

    @property
    def is_narrow(self) -> bool:
        return self.dtypes["token_ids"] == np.uint16

    def append(self, name: str, values: NDArray[Any]) -> None:
        self.files[name].write(np.ascontiguousarray(values, self.dtypes[name]).data)

    def grow(self, ids: tuple[NDArray[Any], NDArray[np.int64]], sizes_B: NDArray[np.int64]) -> None:
        """Texts' ids, and how many texts each row has."""
        ids_T, lengths_B = ids
        self.append("token_ids", ids_T)
        self.append("text_indptr", self.tokens + np.cumsum(lengths_B))
        self.append("version_indptr", self.texts + np.cumsum(sizes_B))
        self.tokens += len(ids_T)
        self.texts += len(lengths_B)
        self.rows += len(sizes_B)

    def sync(self) -> None:
        self.flush()
        state = {
            "rows": self.rows,
            "texts": self.texts,
            "tokens": self.tokens,
            "left_out": self.left_out,
            "dtype": self.dtypes["token_ids"].name,
            "sizes": {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()},
        }
        write_whole(self.state, json.dumps(state).encode())

    def flush(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _write(
    corpus: ParallelCorpus,
    folder: Path,
    fingerprint: str,
    settings: dict[str, Any],
    query: TextIds,
    passage: TextIds,
    found: _Found,
    progress: bool,
) -> None:
    growing = _Growing(folder)
    try:
        _tokenize(corpus, growing, query, passage, found, progress)
        growing.flush()
    except BaseException:
        if not growing.state.exists():  # no shard is whole: there is nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        growing.close()
    arrays: dict[str, NDArray[Any]] = {
        "group_V": corpus.group_V,
        "language_V": corpus.language_V,
        "version_GL": corpus.version_GL,
        "source_G": corpus.source_G,
        "item_G": corpus.item_G,
    }
    arrays |= presence(
        arrays["version_GL"], arrays["source_G"], len(corpus.sources), len(corpus), corpus.store.empty
    )
    shapes: dict[str, tuple[list[int], str]] = {}
    for name, dtype in growing.dtypes.items():
        size = (folder / f"{name}.bin").stat().st_size
        shapes[name] = ([size // dtype.itemsize], dtype.name)
    for name, values in arrays.items():
        with open(folder / f"{name}.bin", "wb") as file:
            file.write(values.data)
            file.flush()
            os.fsync(file.fileno())
        shapes[name] = (list(values.shape), values.dtype.name)
    schema = pa.schema([("group", pa.string())])
    with pa.OSFile(str(folder / "groups.arrow"), "wb") as names, pa.ipc.new_file(names, schema) as writer:
        for some in corpus.group_names():
            writer.write_batch(pa.record_batch([some], schema=schema))
    meta = {
        "fingerprint": fingerprint,
        "name": corpus.name,
        "settings": settings,
        "languages": corpus.languages,
        "sources": corpus.sources,
        "items": corpus.num_items,
        "pad_id": passage.pad_id,
        "negatives_left_out": growing.left_out,
        "pieces": [
            [name, *bounds] for name, bounds in zip(corpus.piece_fingerprints, corpus.pieces, strict=True)
        ],
        "samples": corpus.samples(),
        "arrays": shapes,
    }
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    growing.state.unlink(missing_ok=True)


def _tokenize(
    corpus: ParallelCorpus,
    growing: _Growing,
    query: TextIds,
    passage: TextIds,
    found: _Found,
    progress: bool,
) -> None:
    hidden = None if progress else True  # None: where nobody watches
    bar = tqdm(
        total=len(corpus), initial=growing.rows, desc="tokenizing", unit=" rows", disable=hidden, leave=False
    )
    with bar:
        while growing.rows < len(corpus):
            before = growing.rows
            begin, end = next(piece for piece in corpus.pieces if before < piece[1])
            if begin == before and begin in found:
                whole = _copy(growing, *found[begin])
            else:
                whole = _make(growing, _chunks(corpus, before, end, query, passage), bar)
            if not whole:  # a larger vocabulary than it seemed
                growing.start(np.int32)
            bar.update(growing.rows - bar.n)


def _make(growing: _Growing, chunks: Iterator[_Chunk], bar: Any) -> bool:
    """Write what is made; False if an id is too large."""
    for done, chunk in enumerate(chunks, start=1):
        if growing.is_narrow and chunk.largest > np.iinfo(np.uint16).max:
            return False
        growing.append("query_hash_V", chunk.query_hash_B)
        growing.append("passage_hash_V", chunk.document_hashes[chunk.is_passage])
        growing.append("negative_hash_H", chunk.document_hashes[~chunk.is_passage])
        growing.grow(chunk.ids, chunk.sizes_B)
        growing.left_out += chunk.left_out
        if done % SHARD == 0:
            growing.sync()
        bar.update(len(chunk.sizes_B))
    return True


# Where pieces begin whose ids are in the cache already: with which corpus, and its rows.
_Found = dict[int, tuple[TokenizedCorpus, int, int]]


def _elsewhere(corpus: ParallelCorpus, cache: Path, settings: dict[str, Any]) -> _Found:
    """The files of a corpus that were tokenized alike as those of another: adding one costs that one."""
    wanted = {name: begin for name, (begin, _) in zip(corpus.piece_fingerprints, corpus.pieces, strict=True)}
    wanted.pop("", None)
    found: _Found = {}
    for path in cache.glob("[0-9a-f]*/meta.json") if wanted else ():
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {**meta["settings"], "data": None} != json.loads(json.dumps({**settings, "data": None})):
            continue
        try:
            other = TokenizedCorpus.open(path.parent)
        except ValueError:  # damaged
            continue
        for name, begin, end in other.pieces:
            if name in wanted:
                found[wanted[name]] = (other, begin, end)
    return found


def _copy(growing: _Growing, other: TokenizedCorpus, begin: int, end: int) -> bool:
    """Write what another corpus has; False if its ids are too large."""
    if growing.is_narrow and other.token_ids.dtype != np.uint16:
        return False
    step = CHUNK * SHARD
    for start in range(begin, end, step):
        rows = slice(start, min(start + step, end))
        growing.append("query_hash_V", other.query_hash_V[rows])
        growing.append("passage_hash_V", other.passage_hash_V[rows])
        indptr = other.version_indptr[rows.start : rows.stop + 1]
        texts = other.text_indptr[indptr[0] : indptr[-1] + 1]
        growing.grow((other.token_ids[texts[0] : texts[-1]], np.diff(texts)), np.diff(indptr))
        growing.sync()
    return True


@dataclass(frozen=True)
class _Chunk:
    ids: Ids  # of all texts, version by version
    sizes_B: NDArray[np.int64]  # texts of each version
    query_hash_B: NDArray[np.uint64]
    document_hashes: NDArray[np.uint64]
    is_passage: NDArray[np.bool_]  # among these
    left_out: int

    @property
    def largest(self) -> int:
        return int(self.ids[0].max(initial=0))


def _chunks(
    corpus: ParallelCorpus, begin: int, end: int, query: TextIds, passage: TextIds
) -> Iterator[_Chunk]:
    """The rows from `begin` to `end`, made one chunk ahead: the tokenizer need not wait for the disk."""
    passages_of: Callable[[int], set[str]] | None = None

    def made(row: int, batch: pa.RecordBatch) -> _Chunk:
        nonlocal passages_of
        queries, passages, negatives = (batch.column(i).to_pylist() for i in range(3))
        documents, left_out = passages, 0
        sizes_B = np.ones(len(queries), np.int64)
        if any(negatives):
            passages_of = passages_of or own_passages(corpus)
            documents = []
            for i, (positive, hard) in enumerate(zip(passages, negatives, strict=True)):
                own = passages_of(row + i) if hard else ()
                kept = [text for text in hard if text not in own]
                left_out += len(hard) - len(kept)
                documents += [positive, *kept]
                sizes_B[i] = 1 + len(kept)
        asked, told = query.ids(queries), passage.ids(documents)
        is_passage = np.zeros(len(documents), bool)
        is_passage[np.cumsum(sizes_B) - sizes_B] = True
        return _Chunk(
            _interleaved(asked, told, sizes_B),
            1 + sizes_B,
            _hashes(asked),
            _hashes(told),
            is_passage,
            left_out,
        )

    with ThreadPoolExecutor(1, thread_name_prefix="tokenizing") as pool:
        ahead = None
        for part, batch in corpus.parts("query", "passage", "negatives", rows=CHUNK):
            first, last = max(part.start, begin), min(part.stop, end)
            if first >= last:
                continue
            following = pool.submit(made, first, batch.slice(first - part.start, last - first))
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()


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


def _hashes(texts: Ids) -> NDArray[np.uint64]:
    """Of each text's ids: texts that differ in case alone are one to a tokenizer that lowers it."""
    ids_T, lengths_B = texts
    return hash_spans(np.ascontiguousarray(ids_T, np.int32), np.append(0, np.cumsum(lengths_B)))
