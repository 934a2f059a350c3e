"""Columns of text as their bytes: what is made of each text without a Python object for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridfast._core import text_hashes, text_json, texts_are_utf8

__all__ = ["are_utf8", "column_json", "hash_column", "hash_spans"]


def hash_column(texts: pa.StringArray, words: int = 1) -> NDArray[np.uint64]:
    """BLAKE2b of each text, of so many words: (texts, words). Equal texts have equal ones, everywhere."""
    return text_hashes(*_spans(texts), words)


def hash_spans(data: NDArray[np.generic], indptr: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 bits of each span of an array: (spans,). Span i is data[indptr[i]:indptr[i + 1]]."""
    return text_hashes(data.view(np.uint8), indptr * data.itemsize, 1)[:, 0]


def are_utf8(texts: pa.StringArray | bytes) -> bool:
    """Whether each text is UTF-8; Arrow's own check takes several times as long."""
    if isinstance(texts, bytes):
        return texts_are_utf8(np.frombuffer(texts, np.uint8), np.array([0, len(texts)]))
    return texts_are_utf8(*_spans(texts))


def column_json(column: pa.StringArray | pa.ListArray) -> bytes:
    """What json.dumps makes of the column's list, without its brackets."""
    if not pa.types.is_list(column.type):
        return text_json(*_spans(column))
    data, indptr = _spans(column.values)
    return text_json(data, indptr, _offsets(column))


def _spans(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    buffer = texts.buffers()[2]
    data = np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
    return data, _offsets(texts)


def _offsets(array: pa.StringArray | pa.ListArray) -> NDArray[np.int64]:
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array) + 1, np.int64)
    offsets = np.frombuffer(buffer, np.int32, len(array) + 1, 4 * array.offset)
    return offsets.astype(np.int64)
