"""Files and tables to rows: each with the file and line that it was read from."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hybridfast.data.columns import is_read

if TYPE_CHECKING:
    import datasets

__all__ = ["File", "files_at", "from_disk", "is_data_file", "lines", "rows_in"]

Rows = Iterator[tuple[int, Any]]  # each with its line, or its number where there are no lines
CHUNK = 16_384  # rows of a table turned into Python at a time


@dataclass
class File:
    """Rows with the place each was read from, and what the file's name says of them.

    Args:
        path: the file, for messages.
        rows: each with its line, or its number where there are no lines.
        name: of the source of rows that name none; see :meth:`source`.
        home: that source's name where the file's own is no more than a language or a shard's number.
        language: of rows that name none.
        unit: put before the number where it is no line.
    """

    path: Path
    rows: Iterable[tuple[int, Any]]
    name: str
    home: str | None = None
    language: str | None = None
    unit: str = ""

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
        raise ValueError(f"{path}: the folder holds none of {', '.join(sorted(READERS))}")
    # Resolved, for the name of "." is empty.
    home, names = path.resolve().name, [_stem(file) for file in paths]
    by_language = language is None and all(map(_is_known_language, names))
    return [
        File(file, _rows_of_file(file), name, home, name if by_language else language, _unit(file))
        for file, name in zip(paths, names, strict=True)
    ]


def is_data_file(path: Path) -> bool:
    """Whether a reader knows its suffix, perhaps before ``.gz``."""
    return _suffix(path) in READERS


def rows_in(source: Any, split: str | None = None) -> Iterable[Any]:
    """The rows of what is in memory already.

    Args:
        source: a datasets.Dataset or IterableDataset, a dictionary of them, a pyarrow.Table, a
            pandas.DataFrame or an iterable of mappings.
        split: of a dictionary.

    Raises:
        ValueError: anything else, named by its type; no such split; two columns of one name.
    """
    if isinstance(source, (pa.Table, pa.RecordBatch)):
        _check_names(source.schema.names)
        return _rows_of_batches([source])
    if isinstance(source, Mapping):
        from datasets import DatasetDict, IterableDatasetDict

        if isinstance(source, (DatasetDict, IterableDatasetDict)):
            return rows_in(_split(source, split))
    elif hasattr(source, "itertuples") and hasattr(source, "columns"):  # a pandas.DataFrame
        _check_names(source.columns)
        return (
            dict(zip(source.columns, row, strict=True)) for row in source.itertuples(index=False, name=None)
        )
    elif hasattr(source, "with_format") and hasattr(source, "data"):  # a datasets.Dataset
        if source.format["type"] == "custom":  # a transform, which arrow's format would undo
            return iter(source)
        return _rows_of_batches(source.with_format("arrow").iter(CHUNK))
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        return source
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
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    """The name without suffixes and without a shard's number."""
    suffixes = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    return _SHARD.sub("", path.name.removesuffix("".join(suffixes)))


def _is_known_language(stem: str) -> bool:
    from babel import Locale, UnknownLocaleError

    try:
        Locale.parse(stem.replace("_", "-"), sep="-")
    except (ValueError, UnknownLocaleError):
        return False
    return True


def _check_names(names: Iterable[Any]) -> None:
    # Separators at the end of a header make columns without a name.
    twice = [name for name, count in Counter(names).items() if count > 1 and name != ""]
    if twice:
        raise ValueError(f"column {twice[0]!r} appears twice")


# --- text --------------------------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, gzipped or not, each with its number from 1 and its line break.

    Raises:
        ValueError: not UTF-8 or not gzip, with file and line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")  # a byte order mark
    except UnicodeDecodeError as error:
        byte, column = error.object[error.start], error.start + 1
        raise ValueError(f"{path}:{number}: not UTF-8: byte 0x{byte:02x} at column {column}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}:{number + 1}: not gzip: {error}") from None


# --- JSON --------------------------------------------------------------------------------------------------


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        _check_names(key for key, _ in pairs)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _json(path: Path) -> Rows:
    """An object a line; or one array of objects, or objects that each span lines."""
    first = True
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            if first:
                break
            raise ValueError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if first and isinstance(row, list):
            break
        first = False
        yield number, row
    if first:
        yield from _json_document(path, "".join(line for _, line in lines(path)))


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


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records as RFC 4180 quotes them, each with the line it begins on."""
    csv.field_size_limit(2**31 - 1)  # of the whole process; its default is 131,072
    # strict: a quote that is never closed is an error, and not a field that swallows the file.
    reader = csv.reader((line for _, line in lines(path)), strict=True)
    begin = 1
    try:
        for record in reader:
            yield begin, record
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{begin}: not CSV: {error}") from None


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """One line, one record: a quote is text, as in the files of MS MARCO, OPUS or NTREX."""
    for number, line in lines(path):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, text.split("\t") if text else []


def _under_header(path: Path, records: Iterator[tuple[int, list[str]]]) -> Rows:
    names: list[str] = []
    for line, fields in records:
        if not fields:
            continue
        if not names:
            names = fields
            try:
                _check_names(names)
            except ValueError as error:
                raise ValueError(f"{path}:{line}: {error}") from None
        elif len(fields) != len(names):
            raise ValueError(f"{path}:{line}: {len(fields)} fields where the header has {len(names)}")
        else:
            yield line, dict(zip(names, fields, strict=True))


# --- tables ------------------------------------------------------------------------------------------------


def _rows_of_batches(tables: Iterable[pa.Table | pa.RecordBatch]) -> Iterator[Any]:
    for table in tables:
        # Of other columns the names alone, for messages: embeddings take long, some dates are no Python's.
        others = pa.nulls(table.num_rows)
        columns = [table.column(i) if is_read(name) else others for i, name in enumerate(table.schema.names)]
        known = pa.table(columns, names=table.schema.names)
        for start in range(0, known.num_rows, CHUNK):
            yield from known.slice(start, CHUNK).to_pylist()


def _parquet(path: Path) -> Rows:
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _check_names(file.schema_arrow.names)
            yield from enumerate(_rows_of_batches(file.iter_batches(CHUNK)), start=1)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": lambda path: _under_header(path, _csv(path)),
    ".tsv": lambda path: _under_header(path, _tsv(path)),
    ".parquet": _parquet,
}


def _rows_of_file(path: Path) -> Rows:
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(sorted(READERS))}")
    return reader(path)


def _unit(path: Path) -> str:
    return "row " if _suffix(path) == ".parquet" else ""
