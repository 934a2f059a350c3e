"""Files to one table of validated rows, and what one row by itself cannot show."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from hybridfast.data import blocks, checking
from hybridfast.data.blocks import RowByRow
from hybridfast.data.checking import SCHEMA
from hybridfast.data.columns import Version, version
from hybridfast.data.numbering import first_of, slices
from hybridfast.data.parallel import in_order
from hybridfast.data.reading import File, TextRows
from hybridfast.data.spool import Store
from hybridfast.data.texts import hash_column

if TYPE_CHECKING:
    from hybridfast.data.corpus import ParallelCorpus

__all__ = ["assemble", "check_repeats", "check_sources", "digest"]

FORMAT = 1  # of validated rows in the cache; part of a file's name there
CHUNK = 16_384  # rows validated one by one at a time


def assemble(
    files: list[File], name: str, language: str | None, store: Store
) -> tuple[pa.Table, list[int], Callable[[int], str]]:
    """The rows of all files, behind which rows files end, and where a row was read from, for messages."""
    tables: list[pa.Table] = []
    for file in files:
        key = file.kept or _key(file, language)
        table = store.table(_shown(_validated(file, id_needed=language is None), file), SCHEMA, key)
        tables.append(_named_source(table, file))
    first_row_of_file = np.cumsum([0] + [table.num_rows for table in tables])
    if not first_row_of_file[-1]:
        raise ValueError(f"{name}: no rows")

    def at(row: int) -> str:
        file = int(np.searchsorted(first_row_of_file, row, side="right")) - 1
        return files[file].at(_line(files[file], row - int(first_row_of_file[file])))

    ends = sorted({*first_row_of_file[1:].tolist()} - {0})  # some may be empty
    return pa.concat_tables(tables), ends, at


def digest(key: Any) -> str:
    """A name in the cache."""
    return hashlib.blake2b(json.dumps([FORMAT, key]).encode(), digest_size=16).hexdigest()


def _key(file: File, language: str | None) -> str | None:
    """Names the rows of a file as it is now, and how it is read."""
    if file.unit and not file.path.is_file():  # rows that are in memory
        return None
    status = file.path.stat()
    of = [str(file.path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
    return digest([*of, file.language, language is None])


def _line(file: File, row: int) -> int:
    """Where a row of a file stands."""
    if not isinstance(file.rows, TextRows):
        return row + 1
    return next(itertools.islice(file.rows, row, None))[0]


def _shown(batches: Iterable[pa.RecordBatch], file: File) -> Iterator[pa.RecordBatch]:
    # None: hidden where nobody watches. What takes no time needs no bar.
    bar = tqdm(desc=f"reading {file.path.name}", unit=" rows", disable=None, leave=False, delay=2)
    with bar:
        for batch in batches:
            bar.update(batch.num_rows)
            yield batch


def _validated(file: File, *, id_needed: bool) -> Iterator[pa.RecordBatch]:
    """The rows of a file, without a source where they name none: those in one go that can be."""
    done = 0

    def checked(make: Callable[[], blocks.Block]) -> tuple[blocks.Block, pa.RecordBatch | None]:
        block = make()
        if block.columns is None:
            return block, None
        return block, checking.versions(
            block.columns,
            block.number_B,
            language=file.language,
            file_name=file.path.name,
            id_needed=id_needed,
        )

    try:
        for block, batch in in_order(checked, blocks.blocks(file.rows)):
            for rows in [batch] if batch is not None else _row_by_row(file, block.rows(), id_needed):
                done += rows.num_rows
                yield rows
    except RowByRow:
        yield from _row_by_row(file, itertools.islice(file.rows, done, None), id_needed)


def _row_by_row(file: File, rows: Iterable[tuple[int, Any]], id_needed: bool) -> Iterator[pa.RecordBatch]:
    pending: list[Version] = []
    lines: list[int] = []
    for line, row in rows:
        try:
            place = f"{file.path.name}:{line}"
            pending.append(version(row, file.language, place, id_needed=id_needed))
        except ValueError as error:
            raise ValueError(f"{file.at(line)}: {error}") from None
        lines.append(line)
        if len(pending) == CHUNK:
            yield _batch(pending, file, lines)
            pending, lines = [], []
    if pending:
        yield _batch(pending, file, lines)


def _batch(versions: list[Version], file: File, lines: list[int]) -> pa.RecordBatch:
    try:
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*versions, strict=True), SCHEMA, strict=True)
        ]
    except UnicodeEncodeError:
        for row, line in zip(versions, lines, strict=True):
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
    if not source.null_count:
        return table
    name = file.source(table.column("lang").unique().to_pylist())
    most = max(map(len, source.chunks))
    same = pa.repeat(pa.scalar(name, pa.string()), most)  # one array for all chunks that name none
    chunks = [
        same[: len(chunk)] if chunk.null_count == len(chunk) else chunk.fill_null(name)
        for chunk in source.chunks
    ]
    return table.set_column(SCHEMA.get_field_index("source"), "source", pa.chunked_array(chunks, pa.string()))


def check_repeats(corpus: ParallelCorpus, at: Callable[[int], str]) -> None:
    """Rows of one id and language have one query and different passages."""
    languages = len(corpus.languages)

    def keys(part: slice) -> NDArray[np.int64]:
        return corpus.item_V[part].astype(np.int64) * languages + corpus.language_V[part]

    again = [keys(part)[corpus.repeat_V[part] > 0] for part in slices(len(corpus))]
    repeated = np.unique(np.concatenate(again))
    if not len(repeated):
        return
    found: list[NDArray[Any]] = []
    for part, batch in corpus.parts("query", "passage"):
        there_B = np.isin(keys(part), repeated)
        texts = batch.filter(pa.array(there_B))
        rows_R = np.flatnonzero(there_B) + part.start
        query_R, passage_R = (hash_column(texts.column(i))[:, 0] for i in range(2))
        found.append(np.rec.fromarrays([keys(part)[there_B], rows_R, query_R, passage_R]))
    key_R, row_R, query_R, passage_R = (np.concatenate([part[f"f{i}"] for part in found]) for i in range(4))
    order = np.argsort(key_R, kind="stable")
    begins = np.append(True, np.diff(key_R[order]) != 0)
    first = np.repeat(order[begins], np.diff(np.append(np.flatnonzero(begins), len(order))))
    wrong = key_R[order[query_R[order] != query_R[first]]]
    order = np.lexsort((passage_R, key_R))
    equal = (np.diff(key_R[order]) == 0) & (passage_R[order][1:] == passage_R[order][:-1])
    wrong = np.append(wrong, key_R[order[1:][equal]])
    if len(wrong):
        _check_texts(corpus, at, row_R[np.isin(key_R, wrong)], keys)


def _check_texts(
    corpus: ParallelCorpus,
    at: Callable[[int], str],
    rows_R: NDArray[np.int64],
    keys: Callable[[slice], NDArray[np.int64]],
) -> None:
    """The same, of few rows and of the texts themselves."""
    first: dict[int, tuple[int, str]] = {}
    seen: dict[tuple[int, str], int] = {}
    names = ("id", "lang", "query", "passage")
    columns = [corpus.taken(name, rows_R) for name in names]
    for row, *texts in zip(rows_R.tolist(), *columns, strict=True):
        own, key = dict(zip(names, texts, strict=True)), int(keys(slice(row, row + 1))[0])
        first_row, query = first.setdefault(key, (row, own["query"]))
        named = f"{at(row)}: id {own['id']!r} in language {own['lang']!r}"
        if own["query"] != query:
            raise ValueError(f"{named} is already at {at(first_row)}, with another query: {query!r}")
        if (earlier := seen.setdefault((key, own["passage"]), row)) != row:
            raise ValueError(f"{named} is already at {at(earlier)}, with this query and passage")


def check_sources(corpus: ParallelCorpus, at: Callable[[int], str]) -> None:
    """An item is in one source."""
    if len(corpus.sources) == 1:
        return
    source_I = first_of(corpus.source_V, corpus.item_V, corpus.store.empty(corpus.num_items, np.int32))
    for part in slices(len(corpus)):
        strays = np.flatnonzero(source_I[corpus.item_V[part]] != corpus.source_V[part])
        if len(strays):
            stray = part.start + int(strays[0])
            item, source = corpus.item_V[stray], corpus.source_V[stray]
            identifier = corpus.taken("id", np.array([stray]))[0]
            raise ValueError(
                f"{at(stray)}: id {identifier!r} is in source {corpus.sources[source]!r}, "
                f"but in {corpus.sources[source_I[item]]!r} before"
            )
