"""Files to Arrow in one go: many lines at a time, parsed by pyarrow on several threads.

What pyarrow reads here is what the readers of ``reading.py`` read row by row, or it is not read here: a
block that is not plainly so is left to them, and so is a file that is not a row a line or is damaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridfast.data import reading
from hybridfast.data.columns import is_read
from hybridfast.data.reading import Rows, Tables, TextRows
from hybridfast.data.texts import are_utf8

__all__ = ["Block", "RowByRow", "blocks"]

BYTES = 8 << 20  # of a text file that are parsed at a time
ROWS = 65_536  # of a table
GROUP = 64 << 20  # bytes of a Parquet file's row group that is decoded at a time
LONGEST = 256 << 20  # bytes of a row; what is longer is no row but all of a file
DEEP = 500  # brackets of a line: how deep pyarrow's and Python's JSON nest is not asked


class RowByRow(Exception):
    """What is in a file has to be read row by row."""


@dataclass(frozen=True)
class Block:
    """Rows that follow each other.

    Args:
        columns: those that are read, by name; None where pyarrow does not read them as `rows` does.
        number_B: each row's line, or its number where there are no lines.
        rows: the same, row by row.
    """

    columns: dict[str, pa.Array] | None
    number_B: NDArray[np.int64]
    rows: Callable[[], Rows]


def blocks(rows: object) -> Iterator[Callable[[], Block]]:
    """The rows of a file or table; each block is made by a call, on any thread.

    Raises:
        RowByRow: nothing has come yet, or the rows behind what has come cannot be had so.
    """
    if isinstance(rows, Tables):
        if rows.path and rows.path.suffix.lower() == ".parquet":
            yield from _of_parquet(rows.path)
        else:
            yield from _of_tables(rows.tables())
    elif isinstance(rows, TextRows):
        yield from {"json": _json, "csv": _csv, "tsv": _tsv}[rows.kind](rows.path)
    else:
        raise RowByRow


# --- tables ------------------------------------------------------------------------------------------------


def _of_tables(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Callable[[], Block]]:
    done = 0
    try:
        for table in tables:
            for batch in table.to_batches() if isinstance(table, pa.Table) else [table]:
                for start in range(0, batch.num_rows, ROWS):
                    part = batch.slice(start, ROWS)
                    yield partial(_table_block, part, done)
                    done += part.num_rows
    except (ValueError, pa.ArrowException, OSError):
        raise RowByRow from None


def _table_block(batch: pa.RecordBatch, done: int) -> Block:
    columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names) if is_read(name)}
    numbers = np.arange(done + 1, done + 1 + batch.num_rows)
    return Block(columns, numbers, lambda: enumerate(reading._rows_of_batches([batch]), start=done + 1))


def _of_parquet(path: Path) -> Iterator[Callable[[], Block]]:
    """Row groups are decoded by the call; large ones before it, some rows at a time."""
    from pyarrow.parquet import ParquetFile

    done = 0
    try:
        with ParquetFile(path) as file:
            reading.check_names(file.schema_arrow.names)
            for i in range(file.num_row_groups):
                group = file.metadata.row_group(i)
                if 0 < group.num_rows <= 2 * ROWS and group.total_byte_size <= GROUP:
                    yield partial(_row_group, path, file.metadata, i, done)
                    done += group.num_rows
                    continue
                for batch in reading.parquet_batches(file, [i]):
                    yield partial(_table_block, batch, done)
                    done += batch.num_rows
    except (ValueError, pa.ArrowException, OSError):
        raise RowByRow from None


def _row_group(path: Path, metadata: Any, i: int, done: int) -> Block:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, metadata=metadata) as file:
            batches = [*reading.parquet_batches(file, [i], rows=2 * ROWS, use_threads=False)]
        [batch] = batches
    except (ValueError, pa.ArrowException, OSError):
        raise RowByRow from None
    return _table_block(batch, done)


# --- lines -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """Some lines of a file and the number of the first."""

    bytes: bytes
    first: int
    path: Path

    def numbered(self) -> Iterator[tuple[int, str]]:
        return reading.lines_of(self.bytes, self.first, self.path)


def _lines(path: Path, whole: Callable[[bytes], int]) -> Iterator[_Lines]:
    """A file's lines, some at a time; `whole` says how many bytes of its argument are whole rows."""
    first, rest = 1, b""
    try:
        with reading.opened(path) as file:
            while True:
                more = file.read(BYTES)
                text = rest + more
                end = whole(text) if more else len(text)
                if not end and len(text) > LONGEST:
                    raise RowByRow
                if end:
                    yield _Lines(text[:end], first, path)
                    first += text.count(b"\n", 0, end)
                rest = text[end:]
                if not more:
                    return
    except reading.DAMAGED:
        raise RowByRow from None


def _ends(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Behind the last byte of each line, without its line break."""
    ends = np.flatnonzero(text == ord("\n"))
    return ends if len(text) and text[-1] == ord("\n") else np.append(ends, len(text))


# --- JSON --------------------------------------------------------------------------------------------------


def _json(path: Path) -> Iterator[Callable[[], Block]]:
    guess = _JsonGuess()
    for part in _lines(path, lambda text: text.rfind(b"\n") + 1):
        if part.first == 1:
            try:
                if not reading.is_json_lines(part.numbered(), path):
                    raise RowByRow
            except ValueError:
                raise RowByRow from None
        yield partial(_json_block, part, guess)


class _JsonGuess:
    """What ids have been so far, and which columns there were."""

    def __init__(self) -> None:
        self.numbers = False
        self.names = {"id", "lang", "query", "passage", "source", "split"}


def _json_block(part: _Lines, guess: _JsonGuess) -> Block:
    def rows() -> Rows:
        return reading.json_rows(part.numbered(), part.path)

    text = part.bytes.removeprefix(b"\xef\xbb\xbf") if part.first == 1 else part.bytes
    read = _parsed_json(text, guess) if _is_object_a_line(text) and are_utf8(text) else None
    if read is None:
        return Block(None, np.empty(0, np.int64), rows)
    columns = {name: read.column(name).combine_chunks() for name in read.column_names if is_read(name)}
    return Block(columns, np.arange(part.first, part.first + read.num_rows), rows)


def _is_object_a_line(text: bytes) -> bool:
    """Whether no line is blank and none holds a part of a row, unless it is no JSON."""
    bytes_ = np.frombuffer(text, np.uint8)
    ends = _ends(bytes_)
    starts = np.append(0, ends[:-1] + 1)
    if (ends == starts).any() or (bytes_[starts] != ord("{")).any():
        return False
    last = bytes_[ends - 1]
    last = np.where(last == ord("\r"), bytes_[np.maximum(ends - 2, 0)], last)
    if (last != ord("}")).any():
        return False
    if b"[" not in text and text.count(b"{") == len(ends):
        return True
    opening = np.flatnonzero((bytes_ == ord("{")) | (bytes_ == ord("[")))
    return bool(np.diff(np.searchsorted(opening, ends), prepend=0).max() <= DEEP)


def _parsed_json(text: bytes, guess: _JsonGuess) -> pa.Table | None:
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    names = guess.names
    for numbers in (guess.numbers, not guess.numbers):
        table = _json_table(text, names, numbers)
        while table is not None and not names.issuperset(found := _read(table.column_names)):
            names = names | found  # whose types were guessed
            table = _json_table(text, names, numbers)
        if table is not None:
            guess.numbers, guess.names = numbers, names
            return table if table.num_rows == lines else None  # pyarrow takes several rows in one line
    return None


def _json_table(text: bytes, names: set[str], numbers: bool) -> pa.Table | None:
    from pyarrow import json as pajson

    types = {name: pa.list_(pa.string()) if name == "negatives" else pa.string() for name in names}
    if numbers:
        types["id"] = pa.int64()
    try:
        return pajson.read_json(
            pa.BufferReader(text),
            pajson.ReadOptions(use_threads=False, block_size=len(text) + 1),
            # Other columns are read too: one that is there twice is an error.
            pajson.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="infer"),
        )
    except (pa.ArrowException, ValueError):
        return None


def _read(names: Sequence[str]) -> set[str]:
    return {name for name in names if is_read(name)}


# --- separated values --------------------------------------------------------------------------------------


def _csv(path: Path) -> Iterator[Callable[[], Block]]:
    return _separated(path, _whole_records, reading.csv_records, ",")


def _tsv(path: Path) -> Iterator[Callable[[], Block]]:
    return _separated(path, lambda text: text.rfind(b"\n") + 1, reading.tsv_records, "\t")


def _whole_records(text: bytes) -> int:
    """Up to the last line break that is not quoted."""
    end = text.rfind(b"\n") + 1
    # Before a line break in a record stands an odd number of quotes, if they are as RFC 4180 has them.
    quotes = text.count(b'"', 0, end)
    while end and quotes % 2:
        before = text.rfind(b"\n", 0, end - 1) + 1
        quotes -= text.count(b'"', before, end)
        end = before
    return end


def _separated(
    path: Path,
    whole: Callable[[bytes], int],
    records: Callable[..., reading.Records],
    separator: str,
) -> Iterator[Callable[[], Block]]:
    parts = _lines(path, whole)
    first = next(parts, None)
    if first is None:
        return
    names, behind = _header(first, records)
    for part in itertools.chain([behind], parts):
        yield partial(_separated_block, part, names, records, separator)


def _header(part: _Lines, records: Callable[..., reading.Records]) -> tuple[list[str], _Lines]:
    """The names of the columns, and the lines behind them."""
    taken = 0

    def counted() -> Iterator[tuple[int, str]]:
        nonlocal taken
        for line in part.numbered():
            taken += 1
            yield line

    try:
        names = next((fields for _, fields in records(counted(), part.path) if fields), [])
        reading.check_names(names)
    except ValueError:
        raise RowByRow from None
    if len(names) < 2:
        raise RowByRow
    begin = 0
    for _ in range(taken):
        begin = part.bytes.find(b"\n", begin) + 1 or len(part.bytes)
    return names, _Lines(part.bytes[begin:], part.first + taken, part.path)


def _separated_block(
    part: _Lines, names: list[str], records: Callable[..., reading.Records], separator: str
) -> Block:
    def rows() -> Rows:
        return reading.under_header(part.path, records(part.numbered(), part.path, part.first), names)

    left = Block(None, np.empty(0, np.int64), rows)
    text = part.bytes
    if not text.strip(b"\r\n"):
        return Block({}, np.empty(0, np.int64), rows)
    if text.count(b"\r") != text.count(b"\r\n") or not are_utf8(text):
        return left
    bytes_ = np.frombuffer(text, np.uint8)
    ends, quoted = _ends(bytes_), separator == "," and b'"' in text
    lines = np.arange(part.first, part.first + len(ends))
    if quoted:
        quotes = np.flatnonzero(bytes_ == ord('"'))
        if not _are_plain(bytes_, quotes):
            raise RowByRow  # where its records end is not known
        closed = np.searchsorted(quotes, ends) % 2 == 0  # a record ends where no quote is open
        ends, lines = ends[closed], lines[np.append(True, closed[:-1])]
    starts = np.append(0, ends[:-1] + 1)
    sizes = ends - starts - (bytes_[np.maximum(ends - 1, 0)] == ord("\r"))
    read = _parsed_records(text, names, separator)
    if read is None or read.num_rows != (sizes > 0).sum():
        return left
    columns = {name: read.column(name).combine_chunks() for name in read.column_names}
    return Block(columns, lines[sizes > 0], rows)


def _are_plain(text: NDArray[np.uint8], quotes: NDArray[np.int64]) -> bool:
    """Whether quotes are where RFC 4180 has them: around fields, and twice for one that is text."""
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, text[np.maximum(opening - 1, 0)], ord("\n"))
    behind = np.where(closing < len(text) - 1, text[np.minimum(closing + 1, len(text) - 1)], ord("\n"))
    return bool(
        np.isin(before, [ord(c) for c in ',\n"']).all() and np.isin(behind, [ord(c) for c in ',\r\n"']).all()
    )


def _parsed_records(text: bytes, names: list[str], separator: str) -> pa.Table | None:
    from pyarrow import csv as pacsv

    known = [name for name in names if is_read(name)]
    if not known:
        return None
    try:
        return pacsv.read_csv(
            pa.BufferReader(text),
            pacsv.ReadOptions(
                use_threads=False,
                block_size=len(text) + 1,
                column_names=[name if is_read(name) else str(i) for i, name in enumerate(names)],
            ),
            pacsv.ParseOptions(
                delimiter=separator, quote_char='"' if separator == "," else False, newlines_in_values=True
            ),
            pacsv.ConvertOptions(
                include_columns=known,
                column_types={name: pa.string() for name in known},
                null_values=[],
                strings_can_be_null=False,
                check_utf8=False,  # all of it has been
            ),
        )
    except (pa.ArrowException, ValueError):
        return None
