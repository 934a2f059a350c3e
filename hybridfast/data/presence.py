"""Which groups there are in each language, as bits: what a plan reads in place of the table of versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["presence"]

CHUNK = 1 << 17  # groups looked at in one go; a multiple of 64


def presence(
    version_GL: NDArray[np.int32],
    source_G: NDArray[np.int32],
    sources: int,
    versions: int,
    empty: Callable[..., NDArray[Any]] = np.empty,
) -> dict[str, NDArray[Any]]:
    """The groups by source, and their bits.

    Args:
        version_GL, source_G: of each group: its version in each language, or -1; its source.
        empty: makes an array of that shape and dtype.

    Returns:
        ``source_indptr`` (S + 1,) int64: the groups of source s are at places source_indptr[s] to
        source_indptr[s + 1] - 1. ``order_G`` int32: the group at each place; empty where places are groups.
        ``present_LW`` (L, groups / 64, rounded up) uint64: bit i % 64 of word i // 64 says whether the group
        at place i is there in a language; behind the last place they are 0.

    Raises:
        ValueError: a source or a version that does not exist.
    """
    source_indptr, ascends = _sizes(source_G, sources)
    order_G = empty(0 if ascends else len(source_G), np.int32)
    if not ascends:
        _sort(source_G, source_indptr, order_G)
    groups, languages = version_GL.shape
    present_LW = empty((languages, -(-groups // 64)), np.uint64)
    present_LW[:, -1:] = 0
    bytes_LY = present_LW.view(np.uint8)  # little-endian words, like everything in the cache
    highest = -1
    for begin in range(0, groups, CHUNK):
        part = slice(begin, begin + CHUNK)
        version_BL = version_GL[part] if ascends else version_GL[order_G[part]]
        version_LB = np.ascontiguousarray(version_BL.T)
        highest = max(highest, int(version_LB.max(initial=-1)))
        bits = np.packbits(version_LB >= 0, axis=1, bitorder="little")
        bytes_LY[:, begin // 8 : begin // 8 + bits.shape[1]] = bits
    if highest >= versions:
        raise ValueError(f"version_GL holds {highest}, not one of {versions} versions")
    return {"source_indptr": source_indptr, "order_G": order_G, "present_LW": present_LW}


def _sizes(source_G: NDArray[np.int32], sources: int) -> tuple[NDArray[np.int64], bool]:
    """Where each source begins among the sorted ones, and whether they are sorted."""
    indptr = np.zeros(sources + 1, np.int64)
    ascends, last = True, 0
    for begin in range(0, len(source_G), CHUNK):
        source_B = source_G[begin : begin + CHUNK]
        low, high = int(source_B.min()), int(source_B.max())
        if low < 0 or high >= sources:
            wrong = begin + int(np.flatnonzero((source_B < 0) | (source_B >= sources))[0])
            raise ValueError(f"source_G[{wrong}] is {source_G[wrong]}, not one of {sources} sources")
        if low == high:  # as nearly all of them are where they are sorted
            indptr[low + 1] += len(source_B)
        else:
            indptr[1:] += np.bincount(source_B, minlength=sources)
            ascends &= not (source_B[1:] < source_B[:-1]).any()
        ascends &= last <= int(source_B[0])
        last = int(source_B[-1])
    return np.cumsum(indptr), ascends


def _sort(source_G: NDArray[np.int32], source_indptr: NDArray[np.int64], order_G: NDArray[np.int32]) -> None:
    """Fills in the groups of each source, ascending."""
    next_S = source_indptr[:-1].copy()
    for begin in range(0, len(source_G), CHUNK):
        source_B = source_G[begin : begin + CHUNK]
        order_B = np.argsort(source_B, kind="stable")
        size_S = np.bincount(source_B, minlength=len(next_S))
        before_S = np.cumsum(size_S) - size_S
        order_G[np.repeat(next_S - before_S, size_S) + np.arange(len(source_B))] = begin + order_B
        next_S += size_S
