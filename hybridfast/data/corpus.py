"""Parallel training data: read and validate it, tokenize it once, memory-map it.

An *item* is a question with what answers it; a *version* is that item in one language: a query, a passage
that answers it and, optionally, hard negatives. Missing translations are normal. A *group* is what a batch
draws: an item with one version a language. An item with several passages in a language is several groups,
the k-th of the k-th passages. A *source* is the data set that an item comes from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hybridfast.data import assembly, tokenizing
from hybridfast.data.checking import SCHEMA
from hybridfast.data.numbering import first_of, number, slices
from hybridfast.data.parallel import in_order
from hybridfast.data.reading import File, files_at, from_disk, is_data_file, rows_in, unread
from hybridfast.data.spool import MEMORY, Store, cache_folder
from hybridfast.data.texts import column_json, hash_column
from hybridfast.data.tokenizer import TokenizerIds
from hybridfast.data.tokens import TokenizedCorpus

if TYPE_CHECKING:
    import datasets

__all__ = ["ParallelCorpus"]

CHUNK = 16_384  # rows of a part of the fingerprint, and texts of one column before those of the other
PART = 65_536  # rows looked at in one go


class ParallelCorpus:
    """Parallel queries and passages as text.

    Args:
        table: columns ``id, lang, query, passage, negatives, source, split``; one row a version, validated.
        name: what the corpus is called in messages.
        store: where its arrays are kept; default in memory.

    Use :meth:`load` or :meth:`from_rows`, which validate.

    ``items``, ``groups``, ``languages`` and ``sources`` are names; ``item_V``, ``group_V``, ``language_V``
    and ``source_V`` are each row's places among them. ``repeat_V`` counts the earlier rows of a row's item
    and language: with k of them it is of the group ``id#k+1``, whose number is behind those of all items.
    ``notes`` says what was not read.
    """

    def __init__(self, table: pa.Table, name: str, store: Store | None = None) -> None:
        self.table = table
        self.name = name
        self.notes: list[str] = []
        self.pieces = [(0, len(table))]  # the rows of each file
        self.store = store or Store(cache_folder())
        # Sorted, so that a language keeps its number when rows are reordered.
        self.languages, self.language_V = self._numbered("lang")
        self.sources, self.source_V = self._numbered("source")
        hashes = in_order(lambda part: hash_column(part[1].column(0), 2), self.parts("id"))
        numbers = number(hashes, self.language_V, len(self.languages), self.store)
        self.num_items, self.num_groups = numbers.items, numbers.groups
        self.item_V: NDArray[np.int32] = numbers.item_V
        self.group_V: NDArray[np.int32] = numbers.group_V
        self.repeat_V: NDArray[np.int32] = numbers.repeat_V

    def parts(self, *columns: str, rows: int = PART) -> Iterator[tuple[slice, pa.RecordBatch]]:
        """The table in batches of so many rows at most, each with its rows' numbers."""
        done = 0
        for batch in self.table.select(columns or SCHEMA.names).to_batches(max_chunksize=rows):
            yield slice(done, done + batch.num_rows), batch
            done += batch.num_rows

    def _even(self, *columns: str, begin: int = 0, end: int | None = None) -> Iterator[list[pa.RecordBatch]]:
        """CHUNK rows at a time, in one or more batches: wherever files and blocks of them ended."""
        held: list[pa.RecordBatch] = []
        missing = CHUNK
        for part, batch in self.parts(*columns, rows=CHUNK):
            first = max(begin - part.start, 0)
            batch = batch.slice(first, max(min(end or part.stop, part.stop) - part.start - first, 0))
            while batch.num_rows:
                held.append(batch.slice(0, missing))
                missing -= held[-1].num_rows
                batch = batch.slice(held[-1].num_rows)
                if not missing:
                    yield held
                    held, missing = [], CHUNK
        if held:
            yield held

    def _numbered(self, column: str) -> tuple[list[str], NDArray[np.int32]]:
        """The column's values, sorted, and each row's place among them."""
        place: dict[str, int] = {}
        code_V = self.store.empty(len(self), np.int32)
        encoded_parts = in_order(
            lambda part: (part[0], part[1].column(0).dictionary_encode()), self.parts(column)
        )
        for part, encoded in encoded_parts:
            values = encoded.dictionary.to_pylist()
            codes = np.array([place.setdefault(value, len(place)) for value in values], np.int32)
            code_V[part] = codes[encoded.indices.to_numpy()]
        names = sorted(place)
        order = np.empty(len(names), np.int32)
        order[[place[value] for value in names]] = np.arange(len(names))
        for part in slices(len(code_V)):
            code_V[part] = order[code_V[part]]
        return names, code_V

    @property
    def items(self) -> list[str]:
        """Every item's id, as a list made anew; see :meth:`item_names` where there are many."""
        return list(itertools.chain.from_iterable(names.to_pylist() for names in self.item_names()))

    @property
    def groups(self) -> list[str]:
        """Every group's name, likewise."""
        return list(itertools.chain.from_iterable(names.to_pylist() for names in self.group_names()))

    def item_names(self) -> Iterator[pa.StringArray]:
        """The ids of the items, some at a time."""
        before = -1
        for part, batch in self.parts("id"):
            item_B = self.item_V[part]
            first_B = item_B > np.maximum.accumulate(np.append(before, item_B))[:-1]  # its number is new
            before = max(before, int(item_B.max(initial=-1)))
            yield batch.column(0).filter(pa.array(first_B))

    def group_names(self) -> Iterator[pa.StringArray]:
        """The names of the groups, some at a time."""
        yield from self.item_names()
        if self.num_groups == self.num_items:
            return
        before = self.num_items - 1
        for part, batch in self.parts("id"):
            later_B = np.where(self.repeat_V[part] > 0, self.group_V[part], -1)
            first_B = later_B > np.maximum.accumulate(np.append(before, later_B))[:-1]
            before = max(before, int(later_B.max(initial=-1)))
            places = pa.array(self.repeat_V[part][first_B] + 1).cast(pa.string())
            yield pc.binary_join_element_wise(batch.column(0).filter(pa.array(first_B)), places, "#")

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | datasets.Dataset,
        *,
        config: str | None = None,
        split: str = "train",
        language: str | None = None,
        streaming: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        memory: int = MEMORY,
    ) -> ParallelCorpus:
        """Read a corpus from a file, a folder, a hub name or a table in memory.

        Columns: ``id, lang, query, passage`` and optionally ``source`` and ``negatives`` (a list),
        ``negative`` or ``negative_1, negative_2, ...``; or sentence-transformers' ``anchor, positive,
        negative_1, ...``. Other columns are ignored. None, NaN and empty text are missing.

        ``id`` is text or an integer, and 7, 7.0 and "7 " are one. Further rows of an ``(id, lang)`` with its
        query are further passages that answer it. ``lang`` is read as BCP 47 spells it: ``EN``, ``zh_hans``
        are en, zh-Hans. A row without ``source`` is of its file's: the file's name without a shard's number
        and without the language of all of its rows; where nothing is left, the folder's name. So a folder of
        ``de.jsonl`` and ``en.jsonl``, or of ``train-00000-of-00002.parquet`` and ``-00001-``, is one source.
        ``split`` is dev (or validation, valid, val) or test of rows that a trainer leaves alone.

        Args:
            source: a file, a folder of such files or one written by ``Dataset.save_to_disk``; a Dataset,
                DatasetDict, pyarrow.Table, pandas.DataFrame or iterable of mappings; or else a name for
                ``datasets.load_dataset``. Files are ``.parquet``, ``.arrow`` or, in UTF-8 and perhaps with
                ``.gz``, ``.bz2`` or ``.zst``: ``.jsonl``, ``.json`` (an object a line, or an array, or
                objects over several lines),
                ``.csv`` (RFC 4180) and ``.tsv`` (one line a row, a quote is text). Every row of the latter
                two has as many fields as the header. Hidden files of a folder are ignored.
            config: for ``datasets.load_dataset``.
            split: for it, and of a DatasetDict.
            streaming: for ``datasets.load_dataset``; rows are kept in the cache and not asked for again.
            cache_dir: where rows that do not fit into `memory` are kept, validated, and mapped from; a file
                that has not changed since is not read again. Default ``$HYBRIDFAST_CACHE`` or
                ``~/.cache/hybridfast``.
            memory: bytes of rows that are held in memory.
            language: of rows without ``lang``. Rows without ``id`` are then items of their own. Where it is
                None and every file of a folder is called after a language, rows have their file's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a bad row, named by file and line: not JSON, not UTF-8, a column missing or named
                twice, an empty text, half a character, no language tag, a row seen before, an ``(id, lang)``
                with two queries, an item in two sources.
        """
        store = Store(cache_folder(cache_dir), memory)
        if not isinstance(source, (str, os.PathLike)):
            return _of_rows(rows_in(source, split), "dataset", language, store)
        if not str(source):  # as a shell's unset variable is; Path would read the working folder
            raise FileNotFoundError("the corpus needs a name, got ''")
        path = Path(source)
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _of_rows(rows_in(from_disk(path, split)), path.name, language, store)
        if path.exists():
            corpus = _of_files(files_at(path, language), path.name, language, store)
            corpus.notes += filter(None, [unread(path)])
            return corpus
        if is_data_file(path) or path.is_absolute() or str(source).startswith("."):
            raise FileNotFoundError(f"{path}: no such file or folder")
        from datasets import load_dataset

        if not streaming:
            return _of_rows(
                rows_in(load_dataset(str(source), config, split=split)), str(source), language, store
            )
        named = assembly.digest([str(source), config, split, language])

        def rows() -> Iterator[tuple[int, Any]]:  # asked for only where the cache does not have them
            yield from rows_in(load_dataset(str(source), config, split=split, streaming=True))

        return _of_rows(rows(), str(source), language, Store(store.cache, room=0), named)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]] | Any, *, name: str = "rows", language: str | None = None
    ) -> ParallelCorpus:
        """Validate what is in memory, with the columns and in the forms that :meth:`load` describes."""
        return _of_rows(rows_in(rows), name, language, Store(cache_folder()))

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return self.table.num_rows

    def __repr__(self) -> str:
        return (
            f"ParallelCorpus({self.name!r}: {self.num_groups:,} groups, {len(self):,} versions in "
            f"{_counted(self.languages, 'language')}, {_counted(self.sources, 'source')}"
            + (f", {self.store.mapped / 1e9:.1f} GB mapped)" if self.store.mapped else ")")
        )

    @property
    def version_GL(self) -> NDArray[np.int32]:
        """The row of a group in a language, or -1 where that translation is missing."""
        version_GL = self.store.empty((self.num_groups, len(self.languages)), np.int32)
        for part in slices(self.num_groups):
            version_GL[part] = -1
        for part in slices(len(self)):
            row_B = np.arange(part.start, part.stop, dtype=np.int32)
            version_GL[self.group_V[part], self.language_V[part]] = row_B
        return version_GL

    @property
    def source_G(self) -> NDArray[np.int32]:
        """The source of each group: that of its first row, and in a validated corpus of all of them."""
        return first_of(self.source_V, self.group_V, self.store.empty(self.num_groups, np.int32))

    @property
    def item_G(self) -> NDArray[np.int32]:
        """The item of each group: groups of one item answer the same question, so never are negatives."""
        return first_of(self.item_V, self.group_V, self.store.empty(self.num_groups, np.int32))

    @property
    def query_hash_V(self) -> NDArray[np.uint64]:
        """Equal queries have equal hashes."""
        return self._hashes("query")

    @property
    def passage_hash_V(self) -> NDArray[np.uint64]:
        """Equal passages have equal hashes."""
        return self._hashes("passage")

    def _hashes(self, column: str) -> NDArray[np.uint64]:
        hash_V = self.store.empty(len(self), np.uint64)
        for part, batch in self.parts(column):
            hash_V[part] = hash_column(batch.column(0))[:, 0]
        return hash_V

    @property
    def item_hash_I(self) -> NDArray[np.uint64]:
        """The hash of each item's id."""
        return np.concatenate([hash_column(names)[:, 0] for names in self.item_names()])

    @cached_property
    def fingerprint(self) -> str:
        """Names the data: every column of every row, but for the split."""
        return self._fingerprint(0, len(self))

    @cached_property
    def piece_fingerprints(self) -> list[str]:
        """That of each file by itself; "" if it has hard negatives, which other files may rule out."""
        names = []
        for begin, end in self.pieces:
            hard = self.table.column("negatives").slice(begin, end - begin)
            whole = (begin, end) == (0, len(self))
            known = self.fingerprint if whole else self._fingerprint(begin, end)
            names.append("" if pc.sum(pc.list_value_length(hard)).as_py() else known)
        return names

    def _fingerprint(self, begin: int, end: int) -> str:
        digest, names = hashlib.blake2b(digest_size=16), SCHEMA.names[:-1]
        for rows in self._even(*names, begin=begin, end=end):
            for i, name in enumerate(names):
                digest.update(f"{', ' if i else '{'}{json.dumps(name)}: [".encode())
                digest.update(b", ".join(column_json(batch.column(i)) for batch in rows))
                digest.update(b"]")
            digest.update(b"}")
        return digest.hexdigest()

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """Whether each row is for that: train, dev or test."""
        there_V = np.empty(len(self), bool)
        for part, batch in self.parts("split"):
            there_V[part] = pc.equal(batch.column(0), split).to_numpy(zero_copy_only=False)
        return there_V

    def where(self, row_V: NDArray[np.bool_]) -> ParallelCorpus:
        """The corpus of these rows alone."""
        store = Store(self.store.cache, self.store.room)
        ends = [int(row_V[:end].sum()) for _, end in self.pieces]
        kept = (batch.filter(pa.array(row_V[part])) for part, batch in self.parts())
        corpus = ParallelCorpus(store.table(kept, SCHEMA), self.name, store)
        corpus.pieces = [*filter(lambda piece: piece[0] < piece[1], itertools.pairwise([0, *ends]))]
        return corpus

    def taken(self, column: str, rows: NDArray[np.integer]) -> list[str]:
        """The texts of some rows, in their order."""
        order = np.argsort(rows, kind="stable")
        found = np.empty(len(rows), object)
        sorted_rows = rows[order]
        for part, batch in self.parts(column):
            begin, end = np.searchsorted(sorted_rows, (part.start, part.stop))
            if begin < end:
                places = pa.array(sorted_rows[begin:end] - part.start)
                found[order[begin:end]] = batch.column(0).take(places).to_pylist()
        return list(found)

    def coverage(self) -> dict[str, int]:
        """How many groups exist in each language."""
        counts = np.bincount(self.language_V, minlength=len(self.languages))
        return dict(zip(self.languages, counts.tolist(), strict=True))

    def samples(self) -> list[list[str]]:
        """A few queries and a few passages, short and long ones, of the first rows."""
        first = self.table.slice(0, 1000)
        sides = (sorted(first.column(name).to_pylist(), key=len) for name in ("query", "passage"))
        # The shortest, those at the quarters, and the longest.
        return [[texts[len(texts) * i // 4 - (i == 4)] for i in range(5)] for texts in sides]

    def texts(self) -> Iterator[str]:
        """Every query and passage, those of some rows at a time."""
        for rows in self._even("query", "passage"):
            for column in range(2):
                for batch in rows:
                    yield from batch.column(column).to_pylist()

    def tokenize(
        self,
        tokenizer: Any,
        *,
        query_prefix: str = "Query: ",
        passage_prefix: str = "Passage: ",
        max_query_length: int = 64,
        max_passage_length: int = 256,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> TokenizedCorpus:
        """Tokenize every text once and memory-map the result.

        Args:
            tokenizer: a transformers tokenizer (special tokens added) or a ``tokenizers.Tokenizer`` (none
                added, as sentence-transformers' StaticEmbedding does).
            query_prefix, passage_prefix: put before each text.
            max_query_length, max_passage_length: in tokens, prefix and special tokens counted.
            cache_dir: where token caches live, each in a folder named by the fingerprint of data and
                settings; default ``$HYBRIDFAST_CACHE`` or ``~/.cache/hybridfast``.
            progress: show a progress bar.

        Raises:
            ValueError: a length < 1.
        """
        for name, length in (
            ("max_query_length", max_query_length),
            ("max_passage_length", max_passage_length),
        ):
            if length < 1:
                raise ValueError(f"{name} must be >= 1, got {length}")
        return tokenizing.tokenize(
            self,
            TokenizerIds(tokenizer, query_prefix, max_query_length),
            TokenizerIds(tokenizer, passage_prefix, max_passage_length),
            cache_dir=cache_dir,
            progress=progress,
        )


def _counted(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}" + ("" if len(names) == 1 else "s")


def _of_rows(
    rows: Iterable[tuple[int, Any]], name: str, language: str | None, store: Store, kept: str | None = None
) -> ParallelCorpus:
    file = File(Path(name), rows, name, language=language, unit="row ", kept=kept)
    return _of_files([file], name, language, store)


def _of_files(files: list[File], name: str, language: str | None, store: Store) -> ParallelCorpus:
    table, ends, at = assembly.assemble(files, name, language, store)
    corpus = ParallelCorpus(table, name, store)
    corpus.pieces = [*itertools.pairwise([0, *ends])]
    assembly.check_repeats(corpus, at)
    assembly.check_sources(corpus, at)
    return corpus
