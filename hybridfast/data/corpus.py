"""Parallel training data: read and validate it, tokenize it once, memory-map it.

An *item* is a question with what answers it; a *version* is that item in one language: a query, a passage
that answers it and, optionally, hard negatives. Missing translations are normal. A *group* is what a batch
draws: an item with one version a language. An item with several passages in a language is several groups,
the k-th of the k-th passages. A *source* is the data set that an item comes from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridfast.data import tokens
from hybridfast.data.columns import Version, version
from hybridfast.data.reading import File, files_at, from_disk, is_data_file, rows_in
from hybridfast.data.tokens import TokenizedCorpus

if TYPE_CHECKING:
    import datasets

__all__ = ["ParallelCorpus"]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("query", pa.string()),
        ("passage", pa.string()),
        ("negatives", pa.list_(pa.string())),
        ("source", pa.string()),
        ("split", pa.string()),
    ]
)
CHUNK = 16_384  # rows validated at a time


class ParallelCorpus:
    """Parallel queries and passages as text.

    Args:
        table: columns ``id, lang, query, passage, negatives, source, split``; one row a version, validated.
        name: what the corpus is called in messages.

    Use :meth:`load` or :meth:`from_rows`, which validate.

    ``items``, ``groups``, ``languages`` and ``sources`` are names; ``item_V``, ``group_V``, ``language_V``
    and ``source_V`` are each row's places among them. ``repeat_V`` counts the earlier rows of a row's item
    and language: with k of them it is of the group ``id#k+1``, whose number is behind those of all items.
    """

    def __init__(self, table: pa.Table, name: str) -> None:
        self.table = table
        self.name = name
        items = table.column("id").combine_chunks().dictionary_encode()
        languages = table.column("lang").combine_chunks().dictionary_encode()
        sources = table.column("source").combine_chunks().dictionary_encode()
        self.items: list[str] = items.dictionary.to_pylist()
        # Sorted, so that a language keeps its number when rows are reordered.
        self.languages: list[str] = sorted(languages.dictionary.to_pylist())
        self.sources: list[str] = sorted(sources.dictionary.to_pylist())
        self.item_V: NDArray[np.int32] = items.indices.to_numpy()
        self.language_V: NDArray[np.int32] = _renumber(languages, self.languages)
        self.source_V: NDArray[np.int32] = _renumber(sources, self.sources)
        self.repeat_V = _repeats(self.item_V.astype(np.int64) * len(self.languages) + self.language_V)
        self.groups: list[str] = self.items
        self.group_V: NDArray[np.int32] = self.item_V
        later_R = np.flatnonzero(self.repeat_V)
        if len(later_R):
            number: dict[tuple[int, int], int] = {}
            repeats = zip(self.item_V[later_R].tolist(), self.repeat_V[later_R].tolist(), strict=True)
            later = [number.setdefault(key, len(self.items) + len(number)) for key in repeats]
            self.groups = self.items + [f"{self.items[item]}#{repeat + 1}" for item, repeat in number]
            self.group_V = self.item_V.copy()
            self.group_V[later_R] = later

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | datasets.Dataset,
        *,
        config: str | None = None,
        split: str = "train",
        language: str | None = None,
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
                ``datasets.load_dataset``. Files are ``.parquet`` or, in UTF-8 and perhaps with ``.gz``:
                ``.jsonl``, ``.json`` (an object a line, or an array, or objects over several lines),
                ``.csv`` (RFC 4180) and ``.tsv`` (one line a row, a quote is text). Every row of the latter
                two has as many fields as the header. Hidden files of a folder are ignored.
            config: for ``datasets.load_dataset``.
            split: for it, and of a DatasetDict.
            language: of rows without ``lang``. Rows without ``id`` are then items of their own. Where it is
                None and every file of a folder is called after a language, rows have their file's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a bad row, named by file and line: not JSON, not UTF-8, a column missing or named
                twice, an empty text, half a character, no language tag, a row seen before, an ``(id, lang)``
                with two queries, an item in two sources.
        """
        if not isinstance(source, (str, os.PathLike)):
            return cls.from_rows(rows_in(source, split), name="dataset", language=language)
        if not str(source):  # as a shell's unset variable is; Path would read the working folder
            raise FileNotFoundError("the corpus needs a name, got ''")
        path = Path(source)
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return cls.from_rows(from_disk(path, split), name=path.name, language=language)
        if path.exists():
            return _assemble(files_at(path, language), path.name, language)
        if is_data_file(path) or path.is_absolute() or str(source).startswith("."):
            raise FileNotFoundError(f"{path}: no such file or folder")
        from datasets import load_dataset

        return cls.from_rows(
            load_dataset(str(source), config, split=split), name=str(source), language=language
        )

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]] | Any, *, name: str = "rows", language: str | None = None
    ) -> ParallelCorpus:
        """Validate what is in memory, with the columns and in the forms that :meth:`load` describes."""
        numbered = enumerate(rows_in(rows), start=1)
        return _assemble([File(Path(name), numbered, name, language=language, unit="row ")], name, language)

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return self.table.num_rows

    def __repr__(self) -> str:
        return (
            f"ParallelCorpus({self.name!r}: {len(self.groups):,} groups, {len(self):,} versions in "
            f"{_counted(self.languages, 'language')}, {_counted(self.sources, 'source')})"
        )

    @property
    def version_GL(self) -> NDArray[np.int32]:
        """The row of a group in a language, or -1 where that translation is missing."""
        version_GL = np.full((len(self.groups), len(self.languages)), -1, np.int32)
        version_GL[self.group_V, self.language_V] = np.arange(len(self), dtype=np.int32)
        return version_GL

    @property
    def source_G(self) -> NDArray[np.int32]:
        """The source of each group: that of its first row, and in a validated corpus of all of them."""
        return _first_of(self.source_V, self.group_V, len(self.groups))

    @property
    def item_G(self) -> NDArray[np.int32]:
        """The item of each group: groups of one item answer the same question, so never are negatives."""
        return _first_of(self.item_V, self.group_V, len(self.groups))

    @property
    def query_hash_V(self) -> NDArray[np.uint64]:
        """Equal queries have equal hashes."""
        return self._hashes("query")

    @property
    def passage_hash_V(self) -> NDArray[np.uint64]:
        """Equal passages have equal hashes."""
        return self._hashes("passage")

    def _hashes(self, column: str) -> NDArray[np.uint64]:
        texts = self.table.column(column).to_pylist()
        return np.fromiter(map(tokens.text_hash, texts), np.uint64, len(texts))

    @property
    def fingerprint(self) -> str:
        """Names the data: every column of every row, but for the split."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.table.drop_columns("split").to_batches(max_chunksize=CHUNK):
            digest.update(json.dumps(batch.to_pydict()).encode())
        return digest.hexdigest()

    @property
    def split_V(self) -> NDArray[np.str_]:
        """What each row is for: train, dev or test."""
        return self.table.column("split").to_numpy().astype(str)

    def where(self, row_V: NDArray[np.bool_]) -> ParallelCorpus:
        """The corpus of these rows alone."""
        return ParallelCorpus(self.table.filter(pa.array(row_V)).combine_chunks(), self.name)

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
        """Every query and passage, row by row."""
        for batch in self.table.to_batches(max_chunksize=CHUNK):
            yield from batch.column("query").to_pylist()
            yield from batch.column("passage").to_pylist()

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
        return tokens.tokenize(
            self,
            tokens.TokenizerIds(tokenizer, query_prefix, max_query_length),
            tokens.TokenizerIds(tokenizer, passage_prefix, max_passage_length),
            cache_dir=cache_dir,
            progress=progress,
        )


def _counted(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}" + ("" if len(names) == 1 else "s")


# --- validating --------------------------------------------------------------------------------------------


def _assemble(files: list[File], name: str, language: str | None) -> ParallelCorpus:
    tables: list[pa.Table] = []
    lines = array("q")  # 8 bytes a row
    first_row_of_file: list[int] = []
    for file in files:
        first_row_of_file.append(len(lines))
        batches: list[pa.RecordBatch] = []
        pending: list[Version] = []
        name_of_file, id_needed = file.path.name, language is None
        for line, row in file.rows:
            try:
                place = f"{name_of_file}:{line}"
                pending.append(version(row, file.language, place, id_needed=id_needed))
            except ValueError as error:
                raise ValueError(f"{file.at(line)}: {error}") from None
            lines.append(line)
            if len(pending) == CHUNK:
                batches.append(_batch(pending, file, lines))
                pending.clear()
        if pending:
            batches.append(_batch(pending, file, lines))
        tables.append(_named_source(pa.Table.from_batches(batches, SCHEMA), file))
    if not lines:
        raise ValueError(f"{name}: no rows")
    table = pa.concat_tables(tables).combine_chunks()  # a fingerprint does not see where files ended
    corpus = ParallelCorpus(table, name)

    def at(row: int) -> str:
        file = int(np.searchsorted(first_row_of_file, row, side="right")) - 1
        return files[file].at(lines[row])

    _check_repeats(corpus, at)
    _check_sources(corpus, at)
    return corpus


def _batch(versions: list[Version], file: File, lines: array[int]) -> pa.RecordBatch:
    try:
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*versions, strict=True), SCHEMA, strict=True)
        ]
    except UnicodeEncodeError:
        for row, line in zip(versions, lines[-len(versions) :], strict=True):
            for name, value in row._asdict().items():
                for text in value if name == "negatives" else [value or ""]:
                    if half := _SURROGATE.search(text):
                        raise ValueError(
                            f"{file.at(line)}: {name} holds half a character, {half[0]!r} at position "
                            f"{half.start() + 1}"
                        ) from None
        raise
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair that JSON's \\u escapes were cut from


def _named_source(table: pa.Table, file: File) -> pa.Table:
    """Rows that name no source are of the file's."""
    source = table.column("source")
    if source.null_count:
        source = source.fill_null(file.source(table.column("lang").unique().to_pylist()))
    return table.set_column(SCHEMA.get_field_index("source"), "source", source)


def _check_repeats(corpus: ParallelCorpus, at: Callable[[int], str]) -> None:
    """Rows of one id and language have one query and different passages."""
    key_V = corpus.item_V.astype(np.int64) * len(corpus.languages) + corpus.language_V
    rows_R = np.flatnonzero(np.isin(key_V, key_V[corpus.repeat_V > 0]))
    first: dict[int, tuple[int, str]] = {}
    seen: dict[tuple[int, str], int] = {}
    table = corpus.table.select(["id", "lang", "query", "passage"]).take(rows_R)
    for row, own in zip(rows_R.tolist(), table.to_pylist(), strict=True):
        key = int(key_V[row])
        first_row, query = first.setdefault(key, (row, own["query"]))
        named = f"{at(row)}: id {own['id']!r} in language {own['lang']!r}"
        if own["query"] != query:
            raise ValueError(f"{named} is already at {at(first_row)}, with another query: {query!r}")
        if (earlier := seen.setdefault((key, own["passage"]), row)) != row:
            raise ValueError(f"{named} is already at {at(earlier)}, with this query and passage")


def _check_sources(corpus: ParallelCorpus, at: Callable[[int], str]) -> None:
    """An item is in one source."""
    source_I = _first_of(corpus.source_V, corpus.item_V, len(corpus.items))
    strays = np.flatnonzero(source_I[corpus.item_V] != corpus.source_V)
    if len(strays):
        stray = int(strays[0])
        item, source = corpus.item_V[stray], corpus.source_V[stray]
        raise ValueError(
            f"{at(stray)}: id {corpus.items[item]!r} is in source {corpus.sources[source]!r}, "
            f"but in {corpus.sources[source_I[item]]!r} before"
        )


# --- small helpers -----------------------------------------------------------------------------------------


def _repeats(key_V: NDArray[np.int64]) -> NDArray[np.int32]:
    """How many earlier rows have each row's key, which is not negative."""
    order_V = np.argsort(key_V, kind="stable")  # equal keys keep the order of their rows
    place_V = np.arange(len(key_V), dtype=np.int32)
    begins_V = np.diff(key_V[order_V], prepend=-1) != 0
    repeat_V = np.empty_like(place_V)
    repeat_V[order_V] = place_V - np.maximum.accumulate(np.where(begins_V, place_V, 0))
    return repeat_V


def _first_of(value_V: NDArray[np.int32], code_V: NDArray[np.int32], codes: int) -> NDArray[np.int32]:
    """The value at each code's first row."""
    value_C = np.empty(codes, np.int32)
    # Of several values for one place NumPy keeps the last: backwards, the first row's.
    value_C[code_V[::-1]] = value_V[::-1]
    return value_C


def _renumber(encoded: pa.DictionaryArray, order: list[str]) -> NDArray[np.int32]:
    position = {value: index for index, value in enumerate(order)}
    table = np.array([position[value] for value in encoded.dictionary.to_pylist()], np.int32)
    return table[encoded.indices.to_numpy()]
