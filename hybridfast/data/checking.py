"""What the columns of many rows mean: :func:`hybridfast.data.columns.version` by Arrow's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from hybridfast.data import columns
from hybridfast.data.columns import language_tag
from hybridfast.data.texts import are_utf8

__all__ = ["SCHEMA", "versions"]

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


class _Odd(Exception):
    """A value that is wrong, or of a kind that is rare."""


def versions(
    given: Mapping[str, pa.Array],
    number_B: NDArray[np.int64],
    *,
    language: str | None,
    file_name: str,
    id_needed: bool,
) -> pa.RecordBatch | None:
    """The rows of SCHEMA that ``columns.version`` makes of each row, without a source where it names none.

    Args:
        given: columns by name, those that are read.
        number_B: each row's line or number, which names rows without an id.

    Returns:
        None where it would raise for one of the rows, or might.
    """
    try:
        return _versions(given, number_B, language, file_name, id_needed)
    except (_Odd, pa.ArrowException, ValueError):  # offsets that do not ascend are a ValueError
        return None


def _versions(
    given: Mapping[str, pa.Array],
    number_B: NDArray[np.int64],
    language: str | None,
    file_name: str,
    id_needed: bool,
) -> pa.RecordBatch:
    rows = len(number_B)

    def column(name: str) -> pa.Array:
        return given[name] if name in given else pa.nulls(rows, pa.string())

    query, anchored = "query", False
    if "anchor" in given:
        anchored_B = pc.and_(_is_missing(_text(column("query"))), _is_there(_text(column("anchor"))))
        anchored = rows > 0 and pc.all(anchored_B).as_py()
        query = "anchor" if anchored else "query"
        if not anchored and pc.any(anchored_B).as_py():
            raise _Odd
    batch = pa.RecordBatch.from_arrays(
        [
            _ids(column("id"), number_B, file_name, id_needed and not anchored),
            _languages(column("lang"), language),
            _required(column(query)),
            _required(column("positive" if anchored else "passage")),
            _negatives(given, rows),
            _sources(column("source")),
            _splits(column("split")),
        ],
        schema=SCHEMA,
    )
    batch.validate()
    texts = (column.values if pt.is_list(column.type) else column for column in batch.columns)
    if not all(map(are_utf8, texts)):  # Parquet may hold anything
        raise _Odd
    return batch


def _text(array: pa.Array) -> pa.StringArray:
    if pt.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pt.is_string(array.type):
        return array
    if pt.is_large_string(array.type) or pt.is_null(array.type):
        return array.cast(pa.string())
    raise _Odd


def _is_there(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)


def _is_missing(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.invert(_is_there(texts))


def _without_blank(texts: pa.StringArray) -> pa.StringArray:
    if pc.any(pc.utf8_is_space(texts)).as_py():
        raise _Odd
    return texts


def _required(array: pa.Array) -> pa.StringArray:
    texts = _text(array)
    if texts.null_count or not pc.all(_is_there(texts)).as_py():
        raise _Odd
    return _without_blank(texts)


def _ids(array: pa.Array, number_B: NDArray[np.int64], file_name: str, needed: bool) -> pa.StringArray:
    if pt.is_integer(array.type):
        ids = array.cast(pa.string())
    elif pt.is_floating(array.type):  # so a column with gaps holds 7
        numbers = pc.if_else(pc.is_nan(array), None, array).cast(pa.float64())
        # As in columns.py: from 2**53 on, floats skip integers.
        whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), 2.0**53))
        if not pc.all(pc.fill_null(whole, True)).as_py():
            raise _Odd
        ids = numbers.cast(pa.int64()).cast(pa.string())
    else:
        texts = _without_blank(_text(array))
        ids = pc.utf8_trim_whitespace(pc.if_else(_is_there(texts), texts, None))
    if not ids.null_count:
        return ids
    if needed:
        raise _Odd
    # Of a file whose name begins with a blank, too.
    places = pc.binary_join_element_wise(f"{file_name}:".lstrip(), pa.array(number_B).cast(pa.string()), "")
    return pc.if_else(pc.is_valid(ids), ids, places)


def _mapped(texts: pa.StringArray, change: Callable[[str], str]) -> pa.StringArray:
    """What `change` makes of each text, of which few differ."""
    encoded = texts.dictionary_encode()
    changed = pa.array([change(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return changed.take(encoded.indices)


def _languages(array: pa.Array, language: str | None) -> pa.StringArray:
    texts = _text(array)
    missing = _is_missing(texts)
    if pc.any(missing).as_py():
        if language is None:
            raise _Odd
        texts = pc.if_else(missing, language, texts)
    try:
        return _mapped(texts, language_tag)
    except ValueError:
        raise _Odd from None


def _sources(array: pa.Array) -> pa.StringArray:
    texts = _text(array)
    return _without_blank(pc.if_else(_is_there(texts), texts, None))


def _splits(array: pa.Array) -> pa.StringArray:
    try:
        texts = _text(array)
    except _Odd:  # whatever such a column may say
        texts = pa.nulls(len(array), pa.string())
    return _mapped(pc.fill_null(texts, ""), columns._split)


def _negatives(given: Mapping[str, pa.Array], rows: int) -> pa.ListArray:
    """Lists of what the columns hold, in the order of ``columns._negatives``."""
    names = columns._negative_columns(tuple(given))
    if len({int(name.partition("_")[2] or 0) for name in names}) < len(names):
        raise _Odd  # negative_1 and negative_01: their order is that of a row
    parts: list[tuple[NDArray[Any], pa.StringArray]] = []
    if (listed := given.get("negatives")) is not None:
        parts += _of_lists(listed)
    parts += [(np.arange(rows), _text(given[name])) for name in names]
    kept = [(row_H, _is_there(texts)) for row_H, texts in parts]
    texts_H = [
        _without_blank(texts.filter(there)) for (_, texts), (_, there) in zip(parts, kept, strict=True)
    ]
    row_H = np.concatenate(
        [row_H[there.to_numpy(zero_copy_only=False)] for row_H, there in kept] or [np.empty(0, np.int64)]
    )
    values = pa.concat_arrays([*texts_H, pa.array([], pa.string())])
    if len(parts) > 1:
        values = values.take(pa.array(np.argsort(row_H, kind="stable")))
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(np.bincount(row_H, minlength=rows), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _of_lists(listed: pa.Array) -> list[tuple[NDArray[Any], pa.StringArray]]:
    if pt.is_list(listed.type) or pt.is_large_list(listed.type) or pt.is_fixed_size_list(listed.type):
        parents = pc.list_parent_indices(listed).to_numpy(zero_copy_only=False)
        return [(parents, _text(pc.list_flatten(listed)))]
    if pc.any(_is_there(_text(listed))).as_py():  # a text where a list should be
        raise _Odd
    return []
