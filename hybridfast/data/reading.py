"""Files and tables to rows: each with the file and line that it was read from."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from hybridfast.data.columns import is_read

if TYPE_CHECKING:
    import datasets

__all__ = [
    "File",
    "Tables",
    "TextRows",
    "files_at",
    "from_disk",
    "is_data_file",
    "lines",
    "rows_in",
    "unread",
]

Rows = Iterator[tuple[int, Any]]  # each with its line, or its number where there are no lines
CHUNK = 16_384  # rows of a table turned into Python at a time


@dataclass(frozen=True)
class TextRows:
    """The rows of a text file, each with its line. Iterating reads the file anew."""

    path: Path
    kind: str  # json, csv or tsv

    def __iter__(self) -> Rows:
        return {"json": _json, "csv": _csv, "tsv": _tsv}[self.kind](self.path)


@dataclass(frozen=True)
class Tables:
    """Rows that come as Arrow tables, each with its number. Iterating asks for the tables anew."""

    tables: Callable[[], Iterable[pa.Table | pa.RecordBatch]]
    path: Path | None = None  # of the file that they are in

    def __iter__(self) -> Rows:
        try:
            yield from enumerate(_rows_of_batches(self.tables()), start=1)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {error}") from None


@dataclass
class File:
    """Rows with the place each was read from, and what the file's name says of them.

    Args:
        path: the file, for messages.
        rows: each with its line, or its number where there are no lines; TextRows and Tables can be read in
            one go.
        name: of the source of rows that name none; see :meth:`source`.
        home: that source's name where the file's own is no more than a language or a shard's number.
        language: of rows that name none.
        unit: put before the number where it is no line.
        kept: what the rows are called in the cache, where they are no file.
    """

    path: Path
    rows: Iterable[tuple[int, Any]]
    name: str
    home: str | None = None
    language: str | None = None
    unit: str = ""
    kept: str | None = None

    def at(self, line: int) -> str:
        return f"{self.path}:{line}" if not self.unit else f"{self.path}: {self.unit}{line}"

    def source(self, languages: Sequence[str]) -> str:
        """Of its rows that name none: the file's name without a shard's number and without its one language.

        news-de.jsonl with German rows alone is of the source news, train-00000-of-00002.parquet of train; of
        de.jsonl nothing is left, which makes all of a folder's de.jsonl, en.jsonl one source: the folder.
        """
        if self.home is None:
            return self.name
        name = self.name
        if len(languages) == 1:
            tag = languages[0].replace("-", "[-_]")
            either = f"(?:{tag}|{languages[0].split('-')[0]})"
            name = re.sub(rf"^{either}(?:[-_.]|$)|[-_.]{either}$", "", name, flags=re.IGNORECASE)
        return name or self.home


def files_at(path: Path, language: str | None = None) -> list[File]:
    """A file or the data files of a folder; `language` is that of rows that name none.

    Without it, the rows of a folder in which every file is called after a language have their file's.

    Raises:
        ValueError: a suffix that has no reader, a folder without data.
    """
    if not path.is_dir():
        home = path.name.split(".")[0]
        return [File(path, _rows_of_file(path), _stem(path), home, language, _unit(path))]
    visible = (file for file in path.iterdir() if not file.name.startswith("."))  # macOS adds hidden twins
    # Sorted: row numbers and the fingerprint must not depend on the file system's order.
    paths = sorted(file for file in visible if is_data_file(file) and file.is_file())
    if not paths:
        raise ValueError(f"{path}: the folder holds none of {', '.join(READERS)}")
    # Resolved, for the name of "." is empty.
    home, names = path.resolve().name, [_stem(file) for file in paths]
    by_language = language is None and all(map(_is_known_language, names))
    return [
        File(file, _rows_of_file(file), name, home, name if by_language else language, _unit(file))
        for file, name in zip(paths, names, strict=True)
    ]


def is_data_file(path: Path) -> bool:
    """Whether a reader knows its suffix, perhaps before ``.gz``, ``.bz2`` or ``.zst``."""
    return _suffix(path) in READERS


def unread(path: Path) -> str:
    """What a data folder has that is not read, or nothing."""
    if not path.is_dir():
        return ""
    others = sorted(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in path.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or not is_data_file(entry))
    )
    named = ", ".join(others[:5]) + (f" and {len(others) - 5:,} more" if len(others) > 5 else "")
    return f"Not read in {path}: {named}" if others else ""


def rows_in(source: Any, split: str | None = None) -> Iterable[tuple[int, Any]]:
    """The rows of what is in memory already, each with its number.

    Args:
        source: a datasets.Dataset or IterableDataset, a dictionary of them, a pyarrow.Table, a
            pandas.DataFrame or an iterable of mappings.
        split: of a dictionary.

    Raises:
        ValueError: anything else, named by its type; no such split; two columns of one name.
    """
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        check_names(source.schema.names)
        return Tables(lambda: [source])
    if isinstance(source, Mapping):
        from datasets import DatasetDict, IterableDatasetDict

        if isinstance(source, (DatasetDict, IterableDatasetDict)):
            return rows_in(_split(source, split))
    elif hasattr(source, "itertuples") and hasattr(source, "columns"):  # a pandas.DataFrame
        check_names(source.columns)
        columns, tuples = source.columns, source.itertuples(index=False, name=None)
        return enumerate((dict(zip(columns, row, strict=True)) for row in tuples), start=1)
    elif hasattr(source, "with_format") and hasattr(source, "data"):  # a datasets.Dataset
        if source.format["type"] == "custom":  # a transform, which arrow's format would undo
            return enumerate(source, start=1)
        return Tables(lambda: source.with_format("arrow").iter(CHUNK))
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        return enumerate(source, start=1)
    raise ValueError(
        "expected a path, a Dataset, a DatasetDict, a pyarrow.Table, a pandas.DataFrame or an iterable of "
        f"mappings, got {type(source).__name__}"
    )


def from_disk(path: Path, split: str) -> datasets.Dataset:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    try:
        return _split(loaded, split) if isinstance(loaded, DatasetDict) else loaded
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _split(splits: Mapping[str, Any], split: str | None) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, got {split!r}")
    return splits[split]


# --- names -------------------------------------------------------------------------------------------------

_SHARD = re.compile(r"[-_.]?\d+-of-\d+(-[0-9a-f]+)?$|^part-\d+.*", re.IGNORECASE)  # datasets' and Spark's


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def _stem(path: Path) -> str:
    """The name without suffixes and without a shard's number."""
    suffixes = path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffixes[-1:]
    return _SHARD.sub("", path.name.removesuffix("".join(suffixes)))


def _is_known_language(stem: str) -> bool:
    from babel import Locale, UnknownLocaleError

    try:
        Locale.parse(stem.replace("_", "-"), sep="-")
    except (ValueError, UnknownLocaleError):
        return False
    return True


def check_names(names: Iterable[Any]) -> None:
    # Separators at the end of a header make columns without a name.
    twice = [name for name, count in Counter(names).items() if count > 1 and name != ""]
    if twice:
        raise ValueError(f"column {twice[0]!r} appears twice")


# --- text --------------------------------------------------------------------------------------------------


def _open_zstd(path: Path) -> IO[bytes]:
    # A NativeFile has no lines by itself. Python's own zstd is of 3.14.
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)


COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _open_zstd}
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, OSError)  # what reading such a file raises


def opened(path: Path) -> Any:
    """A file of bytes, unpacked."""
    return COMPRESSED.get(path.suffix.lower(), lambda path: open(path, "rb"))(path)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, compressed or not, each with its number from 1 and its line break.

    Raises:
        ValueError: not UTF-8 or not gzip, bzip2 or Zstandard, with file and line.
    """
    number, suffix = 0, path.suffix.lower()
    try:
        with opened(path) as file:
            for number, raw in enumerate(file, start=1):
                yield number, _decoded(raw, number, path)
    except DAMAGED as error:
        if suffix not in COMPRESSED or getattr(error, "errno", None):
            raise
        kind = {".gz": "gzip", ".bz2": "bzip2", ".zst": "Zstandard"}[suffix]
        raise ValueError(f"{path}:{number + 1}: not {kind}: {error}") from None


def lines_of(block: bytes, first: int, path: Path) -> Iterator[tuple[int, str]]:
    """The same of some lines of a file, of which the first has that number."""
    for number, raw in enumerate(io.BytesIO(block), start=first):
        yield number, _decoded(raw, number, path)


def _decoded(raw: bytes, number: int, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")  # a byte order mark
    except UnicodeDecodeError as error:
        byte, column = error.object[error.start], error.start + 1
        raise ValueError(f"{path}:{number}: not UTF-8: byte 0x{byte:02x} at column {column}") from None


# --- JSON --------------------------------------------------------------------------------------------------


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        check_names(key for key, _ in pairs)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _json(path: Path) -> Rows:
    """An object a line; or one array of objects, or objects that each span lines."""
    if is_json_lines(lines(path), path):
        yield from json_rows(lines(path), path)
    else:
        yield from _json_document(path, "".join(line for _, line in lines(path)))


def is_json_lines(numbered: Iterable[tuple[int, str]], path: Path) -> bool:
    """Whether the first line that is not blank is a row by itself."""
    for number, line in numbered:
        if line.strip():
            try:
                return not isinstance(_json_row(line, number, path), list)
            except json.JSONDecodeError:
                return False
    return False


def json_rows(numbered: Iterable[tuple[int, str]], path: Path) -> Rows:
    """The rows of lines that hold one each, or nothing."""
    for number, line in numbered:
        if line.strip():
            try:
                yield number, _json_row(line, number, path)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None


def _json_row(line: str, number: int, path: Path) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: {error}") from None


_BLANK = re.compile(r"[ \t\r\n]*")


def _json_document(path: Path, text: str) -> Rows:
    def skip_blanks(place: int) -> int:
        return _BLANK.match(text, place).end()  # type: ignore[union-attr]

    place, number, counted = skip_blanks(0), 1, 0
    array = text.startswith("[", place)
    place = skip_blanks(place + array)
    while place < len(text) and not (array and text[place] == "]"):
        number, counted = number + text.count("\n", counted, place), place
        try:
            row, place = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            message = f"{error.msg} at column {error.colno}"
            raise ValueError(f"{path}:{error.lineno}: not JSON: {message}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        yield number, row
        place = skip_blanks(place)
        if array and text.startswith(",", place):
            place = skip_blanks(place + 1)
        elif array and not text.startswith("]", place):
            break
    if array:
        closed = text.startswith("]", place)
        place = skip_blanks(place + 1) if closed else place
        if not closed or place < len(text):
            line = 1 + text.count("\n", 0, place)
            expected = "nothing after the array" if closed else "',' or ']' in the array"
            raise ValueError(f"{path}:{line}: not JSON: expected {expected}")


# --- separated values --------------------------------------------------------------------------------------


Records = Iterator[tuple[int, list[str]]]  # each with the line it begins on


def csv_records(numbered: Iterable[tuple[int, str]], path: Path, first: int = 1) -> Records:
    """Records as RFC 4180 quotes them, from lines of which the first has that number."""
    csv.field_size_limit(2**31 - 1)  # of the whole process; its default is 131,072
    # strict: a quote that is never closed is an error, and not a field that swallows the file.
    reader = csv.reader((line for _, line in numbered), strict=True)
    begin = first
    try:
        for record in reader:
            yield begin, record
            begin = first + reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}:{begin}: not CSV: {error}") from None


def tsv_records(numbered: Iterable[tuple[int, str]], path: Path, first: int = 1) -> Records:
    """One line, one record: a quote is text, as in the files of MS MARCO, OPUS or NTREX."""
    for number, line in numbered:
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, text.split("\t") if text else []


def under_header(path: Path, records: Records, names: list[str] | None = None) -> Rows:
    """Records with names, which are those of the first record if they are not given."""
    for line, fields in records:
        if not fields:
            continue
        if not names:
            names = fields
            try:
                check_names(names)
            except ValueError as error:
                raise ValueError(f"{path}:{line}: {error}") from None
        elif len(fields) != len(names):
            raise ValueError(f"{path}:{line}: {len(fields)} fields where the header has {len(names)}")
        else:
            yield line, dict(zip(names, fields, strict=True))


def _csv(path: Path) -> Rows:
    return under_header(path, csv_records(lines(path), path))


def _tsv(path: Path) -> Rows:
    return under_header(path, tsv_records(lines(path), path))


# --- tables ------------------------------------------------------------------------------------------------


def _rows_of_batches(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Any]:
    for table in tables:
        # Of other columns the names alone, for messages: embeddings take long, some dates are no Python's.
        others = pa.nulls(table.num_rows)
        columns = [table.column(i) if is_read(name) else others for i, name in enumerate(table.schema.names)]
        known = pa.table(columns, names=table.schema.names)
        for start in range(0, known.num_rows, CHUNK):
            yield from known.slice(start, CHUNK).to_pylist()


def _tables(path: Path, kind: str, batches: Callable[[Path], Iterator[pa.RecordBatch]]) -> Tables:
    def tables() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not {kind}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    return Tables(tables, path)


def _of_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        check_names(file.schema_arrow.names)
        yield from parquet_batches(file, range(file.num_row_groups))


def parquet_batches(file: Any, groups: Iterable[int], rows: int = 2 * CHUNK, **how: Any) -> Iterator[Any]:
    """Of a ParquetFile's row groups: so many rows at a time, of columns that are not read the names alone."""
    names = file.schema_arrow.names
    known = [name for name in names if is_read(name)]
    for batch in file.iter_batches(rows, [*groups], known, **how):
        nulls = pa.nulls(batch.num_rows)
        columns = [batch.column(name) if name in known else nulls for name in names]
        yield pa.RecordBatch.from_arrays(columns, names=names)


def _of_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    """Arrow's file format, or its stream format, as datasets writes it."""
    with pa.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        check_names(reader.schema.names)
        for i in range(reader.num_record_batches) if is_file else ():
            yield reader.get_batch(i)
        if not is_file:
            yield from reader


# The readers of text, row by row, and of tables.
READERS: dict[str, Callable[[Path], TextRows | Tables]] = {
    ".csv": lambda path: TextRows(path, "csv"),
    ".json": lambda path: TextRows(path, "json"),
    ".jsonl": lambda path: TextRows(path, "json"),
    ".parquet": lambda path: _tables(path, "Parquet", _of_parquet),
    ".tsv": lambda path: TextRows(path, "tsv"),
    ".arrow": lambda path: _tables(path, "Arrow", _of_arrow),
}


def _rows_of_file(path: Path) -> TextRows | Tables:
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(READERS)}")
    return reader(path)


def _unit(path: Path) -> str:
    return "row " if _suffix(path) in (".parquet", ".arrow") else ""
