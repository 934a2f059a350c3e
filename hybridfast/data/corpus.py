"""Parallel training data: read and validate it, tokenize it once, memory-map it.

A *group* is one parallel item (a question and its answer); a *version* is that item in one language: a
query, a passage that answers it and, optionally, hard negatives. Missing translations are normal. A *source*
is the data set that a group comes from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridfast.data import tokens
from hybridfast.data.reading import READERS, File, from_disk, rows_of_file
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
    ]
)
CHUNK = 16_384  # rows validated at a time


class ParallelCorpus:
    """Parallel queries and passages as text.

    Args:
        table: columns ``id, lang, query, passage, negatives, source``; one row a version, validated.
        name: what the corpus is called in messages.

    Use :meth:`load` or :meth:`from_rows`, which validate.
    """

    def __init__(self, table: pa.Table, name: str) -> None:
        self.table = table
        self.name = name
        groups = table.column("id").combine_chunks().dictionary_encode()
        languages = table.column("lang").combine_chunks().dictionary_encode()
        sources = table.column("source").combine_chunks().dictionary_encode()
        self.groups: list[str] = groups.dictionary.to_pylist()
        # Sorted, so that a language keeps its number when rows are reordered.
        self.languages: list[str] = sorted(languages.dictionary.to_pylist())
        self.sources: list[str] = sorted(sources.dictionary.to_pylist())
        self.group_V: NDArray[np.int32] = groups.indices.to_numpy()
        self.language_V: NDArray[np.int32] = _renumber(languages, self.languages)
        self.source_V: NDArray[np.int32] = _renumber(sources, self.sources)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | datasets.Dataset,
        *,
        config: str | None = None,
        split: str = "train",
        language: str | None = None,
    ) -> ParallelCorpus:
        """Read a corpus from a file, a folder, a :class:`datasets.Dataset` or a hub name.

        Columns: ``id, lang, query, passage`` and optionally ``source`` and ``negative`` or
        ``negative_1, negative_2, ...``; or sentence-transformers' ``anchor, positive, negative_1, ...``.
        Other columns are ignored.

        Args:
            source: ``.jsonl``/``.json`` (one object a line), ``.csv``, ``.tsv`` or ``.parquet``; a folder of
                such files or one written by ``Dataset.save_to_disk``; a Dataset; or else a name for
                ``datasets.load_dataset``. Text files are UTF-8.
            config, split: for ``datasets.load_dataset``.
            language: the language of every row, for data without a ``lang`` column. Rows without ``id`` are
                then groups of their own.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a bad row, named by file and line: not JSON, not UTF-8, a missing column, an empty
                text, an ``(id, lang)`` seen before, a group in two sources.
        """
        if not isinstance(source, (str, os.PathLike)):
            return cls.from_rows(source, name="dataset", language=language)
        path = Path(source)
        if path.is_file():
            return _assemble([File(path, path.stem, rows_of_file(path))], path.name, language)
        if path.is_dir():
            if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
                return cls.from_rows(from_disk(path, split), name=path.name, language=language)
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
            if not files:
                raise ValueError(f"{path}: the folder holds none of {', '.join(sorted(READERS))}")
            return _assemble(
                [File(file, file.stem, rows_of_file(file)) for file in files], path.name, language
            )
        if path.suffix.lower() in READERS or path.is_absolute() or str(source).startswith("."):
            raise FileNotFoundError(f"{path}: no such file or folder")
        from datasets import load_dataset

        return cls.from_rows(
            load_dataset(str(source), config, split=split), name=str(source), language=language
        )

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], *, name: str = "rows", language: str | None = None
    ) -> ParallelCorpus:
        """Validate an iterable of mappings with the columns that :meth:`load` describes."""
        return _assemble([File(Path(name), name, enumerate(rows, start=1), unit="row ")], name, language)

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return self.table.num_rows

    def __repr__(self) -> str:
        return (
            f"ParallelCorpus({self.name!r}: {len(self.groups):,} groups, {len(self):,} versions in "
            f"{len(self.languages)} languages, {len(self.sources)} sources)"
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
        source_G = np.empty(len(self.groups), np.int32)
        source_G[self.group_V[::-1]] = self.source_V[::-1]
        return source_G

    @property
    def passage_hash_V(self) -> NDArray[np.uint64]:
        """Equal passages have equal hashes."""
        texts = self.table.column("passage").to_pylist()
        return np.fromiter((_text_hash(text) for text in texts), np.uint64, len(texts))

    @property
    def fingerprint(self) -> str:
        """Names the data: every column of every row."""
        digest = hashlib.blake2b(digest_size=16)
        for batch in self.table.to_batches(max_chunksize=CHUNK):
            digest.update(json.dumps(batch.to_pydict()).encode())
        return digest.hexdigest()

    def coverage(self) -> dict[str, int]:
        """How many groups exist in each language."""
        counts = np.bincount(self.language_V, minlength=len(self.languages))
        return dict(zip(self.languages, counts.tolist(), strict=True))

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
        settings = {
            "format": tokens.FORMAT,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
            "max_query_length": max_query_length,
            "max_passage_length": max_passage_length,
            "tokenizer": tokens.tokenizer_digest(tokenizer),
            "data": self.fingerprint,
        }
        fingerprint = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()
        cache = Path(cache_dir or os.environ.get("HYBRIDFAST_CACHE") or Path.home() / ".cache" / "hybridfast")
        folder = cache / fingerprint
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{fingerprint}-", dir=cache))
            try:
                tokens.write(self, unfinished, fingerprint, settings, tokenizer, progress)
                os.rename(unfinished, folder)
            except OSError:
                if not folder.is_dir():  # else another process finished the same cache first
                    raise
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return TokenizedCorpus.open(folder)


# --- validating --------------------------------------------------------------------------------------------


def _assemble(files: list[File], name: str, language: str | None) -> ParallelCorpus:
    batches: list[pa.RecordBatch] = []
    lines = array("q")
    first_row_of_file: list[int] = []
    pending: list[dict[str, Any]] = []
    for file in files:
        first_row_of_file.append(len(lines))
        for line, row in file.rows:
            try:
                pending.append(_version(row, file.source, str(line), language))
            except ValueError as error:
                raise ValueError(f"{file.at(line)}: {error}") from None
            lines.append(line)
            if len(pending) == CHUNK:
                batches.append(pa.RecordBatch.from_pylist(pending, SCHEMA))
                pending.clear()
    batches.append(pa.RecordBatch.from_pylist(pending, SCHEMA))
    if not lines:
        raise ValueError(f"{files[0].path}: no rows")
    corpus = ParallelCorpus(pa.Table.from_batches(batches), name)

    def at(row: int) -> str:
        file = int(np.searchsorted(first_row_of_file, row, side="right")) - 1
        return files[file].at(lines[row])

    key_V = corpus.group_V.astype(np.int64) * len(corpus.languages) + corpus.language_V
    if (repeat := _first_repeat(key_V)) is not None:
        earlier, later = repeat
        row = corpus.table.slice(later, 1).to_pylist()[0]
        raise ValueError(
            f"{at(later)}: id {row['id']!r} in language {row['lang']!r} is already at {at(earlier)}"
        )
    source_G = corpus.source_G
    strays = np.flatnonzero(source_G[corpus.group_V] != corpus.source_V)
    if len(strays):
        stray = int(strays[0])
        row = corpus.table.slice(stray, 1).to_pylist()[0]
        raise ValueError(
            f"{at(stray)}: id {row['id']!r} is in source {row['source']!r}, "
            f"but in {corpus.sources[source_G[corpus.group_V[stray]]]!r} before"
        )
    return corpus


def _version(row: Mapping[str, Any], source: str, place: str, language: str | None) -> dict[str, Any]:
    """One row in the schema's columns; a ValueError says what is wrong with it."""
    pair = ("anchor", "positive") if "anchor" in row and "query" not in row else ("query", "passage")
    lang = row.get("lang") or language
    if lang is None:
        raise ValueError(
            f"column 'lang' is missing; the row has {', '.join(map(repr, row))} (or pass language=)"
        )
    identifier = row.get("id")
    if identifier is None or identifier == "":
        if language is None and pair[0] == "query":
            raise ValueError(f"column 'id' is missing; the row has {', '.join(map(repr, row))}")
        identifier = f"{source}:{place}"
    return {
        "id": str(identifier),
        "lang": _text(lang, "lang"),
        "query": _column(row, pair[0]),
        "passage": _column(row, pair[1]),
        "negatives": _negatives(row),
        "source": _text(row.get("source") or source, "source"),
    }


def _column(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        raise ValueError(f"column {name!r} is missing; the row has {', '.join(map(repr, row))}")
    return _text(row[name], name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    return value


def _negatives(row: Mapping[str, Any]) -> list[str]:
    """``negatives`` (a list), ``negative`` or ``negative_1, negative_2, ...``; empty ones mean fewer."""
    listed = row.get("negatives")
    if listed is not None and not isinstance(listed, (list, tuple)):
        raise ValueError(f"negatives must be a list of texts, got {listed!r}")
    numbered = sorted(
        (name for name in row if name == "negative" or name.startswith("negative_")),
        key=lambda name: (len(name), name),
    )
    found = [*(("negatives", value) for value in listed or ()), *((name, row[name]) for name in numbered)]
    return [_text(value, name) for name, value in found if value is not None and value != ""]


def _first_repeat(key_V: NDArray[np.int64]) -> tuple[int, int] | None:
    """The first row whose key an earlier row has, after that earlier row."""
    order = np.argsort(key_V, kind="stable")
    repeats = np.flatnonzero(key_V[order][1:] == key_V[order][:-1])
    if not len(repeats):
        return None
    at = repeats[np.argmin(order[repeats + 1])]
    return int(order[at]), int(order[at + 1])


# --- small helpers -----------------------------------------------------------------------------------------


def _renumber(encoded: pa.DictionaryArray, order: list[str]) -> NDArray[np.int32]:
    position = {value: index for index, value in enumerate(order)}
    table = np.array([position[value] for value in encoded.dictionary.to_pylist()], np.int32)
    return table[encoded.indices.to_numpy()]


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
