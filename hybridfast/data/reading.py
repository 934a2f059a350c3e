"""Files to rows: each with the file and line that it was read from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

__all__ = ["READERS", "File", "from_disk", "rows_of_file"]


@dataclass
class File:
    """Rows with the place each was read from: ``path`` and a line, or a row where there are no lines."""

    path: Path
    source: str  # of rows that name none
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    unit: str = ""

    def at(self, line: int) -> str:
        return f"{self.path}:{line}" if not self.unit else f"{self.path}: {self.unit}{line}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                ) from None
            yield number, line


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _separated(path: Path, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    line = 1  # where the record being read began: a quoted field may span lines
    try:
        fields = len(reader.fieldnames or ())
        line = reader.line_num + 1
        for row in reader:
            if None in row:
                raise ValueError(f"{path}:{line}: more fields than the header's {fields}")
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: not CSV: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from datasets import Dataset

    try:
        dataset = Dataset.from_parquet(str(path))
    except Exception as error:
        raise ValueError(f"{path}: not Parquet: {error}") from error
    yield from enumerate(dataset, start=1)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".parquet": _parquet,
}


def rows_of_file(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(sorted(READERS))}")
    return reader(path)


def from_disk(path: Path, split: str) -> datasets.Dataset:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"{path}: split must be one of {', '.join(loaded)}, got {split!r}")
    return loaded[split]
