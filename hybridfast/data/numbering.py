"""Rows to numbers: which share an id, and which id and language, in memory that does not grow with them.

Ids are compared by 128 bits of BLAKE2b. Rows are dealt into buckets by the first of these bits, on disk where
there are several, and sorted within each: all rows of an id are in one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridfast.data.parallel import in_order
from hybridfast.data.spool import Store

__all__ = ["Numbers", "first_of", "number", "slices"]

BUCKET = 1 << 17  # rows sorted at a time, by each thread
HELD = 1 << 20  # rows that stay in memory
FILES = 384  # buckets on disk at most, which then hold more: a process may open 1,024 files by default
_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("row", np.int32)])


@dataclass(frozen=True)
class Numbers:
    """Items and groups of rows, numbered in the order of their first rows; later groups behind all items."""

    items: int
    groups: int
    item_V: NDArray[np.int32]
    group_V: NDArray[np.int32]  # the same array where no item has several rows in a language
    repeat_V: NDArray[np.int32]  # earlier rows of the item and language


def slices(rows: int, size: int = 1 << 20) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def number(
    hashes: Iterator[NDArray[np.uint64]], language_V: NDArray[np.int32], languages: int, store: Store
) -> Numbers:
    """Number the rows whose ids have these hashes, (rows, 2) at a time."""
    rows = len(language_V)
    # The first row of each row's item, and of its group: later their numbers.
    item_V, repeat_V = store.empty(rows, np.int32), store.empty(rows, np.int32)
    later: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    ranked = partial(_ranked, language_V=language_V, languages=languages)
    for row_B, first_B, repeat_B in in_order(ranked, _buckets(hashes, rows, store)):
        item_V[row_B], repeat_V[row_B] = first_B, repeat_B
        if (repeat_B > 0).any():
            later.append(_later(row_B, first_B, repeat_B))
    group_V = item_V
    if later:
        group_V = store.empty(rows, np.int32)
        group_V[:] = item_V
        for row_R, first_R in later:
            group_V[row_R] = first_R
    return _dense(item_V, group_V, repeat_V, store)


def _dense(
    item_V: NDArray[np.int32], group_V: NDArray[np.int32], repeat_V: NDArray[np.int32], store: Store
) -> Numbers:
    """First rows to numbers, in place."""
    rows = len(item_V)
    number_V = store.empty(rows, np.int32)
    items = groups = 0
    for part in slices(rows):
        own_B = item_V[part] == np.arange(part.start, part.stop)
        number_V[part] = items - 1 + np.cumsum(own_B)
        items += int(own_B.sum())
    groups = items
    if group_V is not item_V:
        for part in slices(rows):
            own_B = (group_V[part] == np.arange(part.start, part.stop)) & (repeat_V[part] > 0)
            number_B = groups - 1 + np.cumsum(own_B)
            number_V[part] = np.where(own_B, number_B, number_V[part])
            groups += int(own_B.sum())
    for array in [item_V] if group_V is item_V else [item_V, group_V]:
        for part in slices(rows):
            array[part] = number_V[array[part]]
    return Numbers(items, groups, item_V, group_V, repeat_V)


def _buckets(hashes: Iterator[NDArray[np.uint64]], rows: int, store: Store) -> Iterator[NDArray[Any]]:
    """The rows with the hashes of their ids, those of an id in one bucket; ascending in each."""
    count, on_disk = min(-(-rows // BUCKET), FILES), rows > HELD
    parts: list[list[NDArray[Any]]] = [[] for _ in range(count)]
    files: list[Any] = []
    try:
        if on_disk:
            store.cache.mkdir(parents=True, exist_ok=True)
            files = [tempfile.TemporaryFile(dir=store.cache) for _ in range(count)]  # noqa: SIM115
        done = 0
        for hash_B2 in hashes:
            part = np.empty(len(hash_B2), _ROW)
            part["high"], part["low"] = hash_B2.T
            part["row"] = np.arange(done, done + len(part))
            done += len(part)
            bucket_B = (part["high"] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
            order_B = np.argsort(bucket_B.astype(np.uint16), kind="stable")  # by radix
            ends = np.cumsum(np.bincount(bucket_B.astype(np.int64), minlength=count))
            for i, some in enumerate(np.split(part[order_B], ends[:-1])):
                files[i].write(some) if on_disk else parts[i].append(some)
        for i in range(count):
            if on_disk:
                files[i].seek(0)
                parts[i] = [np.fromfile(files[i], _ROW)]
            bucket, parts[i] = np.concatenate(parts[i]), []
            if len(bucket):
                yield bucket
    finally:
        for file in files:
            file.close()


def _ranked(
    bucket: NDArray[Any], language_V: NDArray[np.int32], languages: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The rows of a bucket, the first row of each one's item, and its repeats in its language."""
    row_B, run_B = _runs(bucket)
    begins = np.flatnonzero(np.append(True, run_B[1:] != run_B[:-1]))
    first_B = np.repeat(row_B[begins], np.diff(np.append(begins, len(row_B))))
    return row_B, first_B, _repeats(run_B * languages + language_V[row_B])


def _later(
    row_B: NDArray[np.int32], first_B: NDArray[np.int32], repeat_B: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows that repeat their item and language, and the first row of each one's group."""
    again_B = repeat_B > 0
    row_R, first_R, repeat_R = row_B[again_B], first_B[again_B], repeat_B[again_B]
    order_R = np.lexsort((row_R, repeat_R, first_R))
    row_R, first_R, repeat_R = row_R[order_R], first_R[order_R], repeat_R[order_R]
    begins = np.append(True, (first_R[1:] != first_R[:-1]) | (repeat_R[1:] != repeat_R[:-1]))
    places = np.flatnonzero(begins)
    return row_R, np.repeat(row_R[places], np.diff(np.append(places, len(row_R))))


def _runs(bucket: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The rows of a bucket, those of one id together and ascending, and a number for each one's id."""
    order = np.argsort(bucket["high"], kind="stable")
    high, low = bucket["high"][order], bucket["low"][order]
    same = high[1:] == high[:-1]
    if (same & (low[1:] != low[:-1])).any():  # two ids share 64 bits
        order = np.lexsort((bucket["low"], bucket["high"]))
        high, low = bucket["high"][order], bucket["low"][order]
        same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return bucket["row"][order], np.append(0, np.cumsum(~same))


def _repeats(key_V: NDArray[np.int64]) -> NDArray[np.int32]:
    """How many earlier rows have each row's key, which is not negative."""
    order_V = np.argsort(key_V, kind="stable")  # equal keys keep the order of their rows
    place_V = np.arange(len(key_V), dtype=np.int32)
    begins_V = np.diff(key_V[order_V], prepend=-1) != 0
    repeat_V = np.empty_like(place_V)
    repeat_V[order_V] = place_V - np.maximum.accumulate(np.where(begins_V, place_V, 0))
    return repeat_V


def first_of(
    value_V: NDArray[np.int32], code_V: NDArray[np.int32], value_C: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Fills in the value at each code's first row."""
    # Of several values for one place NumPy keeps the last: backwards, the first row's.
    for part in reversed([*slices(len(code_V))]):
        value_C[code_V[part][::-1]] = value_V[part][::-1]
    return value_C
