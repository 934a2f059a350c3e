"""What the sampler reads of a corpus: its arrays, checked before they are handed to C++."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Any, Protocol, cast

import numpy as np
import psutil

from hybridfast.data.presence import presence


class Tokens(Protocol):
    """What the sampler reads of a corpus: fields of `hybridfast.data.tokens.TokenizedCorpus`.

    Without token_ids and its offsets, batches are planned (groups and languages) but hold no text. More
    fields may be there: item_G (G,) int32, equal for groups that answer one question, and how many `items`
    there are; negative_hash_H, uint64 hashes of all hard negatives, version by version; and what `presence`
    makes of version_GL and source_G, which are then not read from end to end.
    """

    @property
    def languages(self) -> list[str]: ...
    @property
    def sources(self) -> list[str]: ...
    @property
    def version_GL(self) -> np.ndarray: ...
    @property
    def source_G(self) -> np.ndarray: ...
    @property
    def query_hash_V(self) -> np.ndarray | None: ...
    @property
    def passage_hash_V(self) -> np.ndarray | None: ...
    @property
    def token_ids(self) -> np.ndarray | None: ...
    @property
    def text_indptr(self) -> np.ndarray | None: ...
    @property
    def version_indptr(self) -> np.ndarray | None: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


DTYPES = {
    "version_GL": np.int32,
    "source_G": np.int32,
    "source_indptr": np.int64,
    "order_G": np.int32,
    "present_LW": np.uint64,
    "item_G": np.int32,
    "query_hash_V": np.uint64,
    "passage_hash_V": np.uint64,
    "negative_hash_H": np.uint64,
    "version_indptr": np.int64,
    "text_indptr": np.int64,
    "token_ids": np.int32,  # or uint16
}


CHUNK = 1 << 16  # groups looked at in one go


def version_count(tokens: Tokens) -> int:
    for array in (tokens.passage_hash_V, tokens.version_indptr):
        if array is not None:
            return len(array) - (array is tokens.version_indptr)
    return int(tokens.version_GL.max(initial=-1)) + 1


def checked_arrays(tokens: Tokens, *, planned: bool) -> dict[str, np.ndarray | None]:
    """The arrays that the native sampler reads; those of `presence` only where it plans."""
    text = ("version_indptr", "text_indptr", "token_ids")
    arrays: dict[str, np.ndarray | None] = {}
    for name, dtype in DTYPES.items():
        array = getattr(tokens, name, None)
        if name == "item_G" and array is not None and _are_items(tokens, array):
            array = None  # every group its own item, as where nothing is said
        if name in (*text, "negative_hash_H") and tokens.token_ids is None:
            array = None
        narrow = name == "token_ids" and array is not None and array.dtype == np.uint16
        if array is not None and not ((narrow or array.dtype == dtype) and array.flags.c_contiguous):
            raise ValueError(f"{name} must be a C-contiguous {np.dtype(dtype)} array, got {array.dtype}")
        if array is None and name in ("version_GL", "source_G"):
            raise ValueError(f"{name} must be an array, got None")
        arrays[name] = array
    shape = (len(tokens.source_G), len(tokens.languages))
    if tokens.version_GL.shape != shape:
        raise ValueError(f"version_GL must be (groups, languages) {shape}, got {tokens.version_GL.shape}")
    if planned and arrays["present_LW"] is None:
        sources, versions = len(tokens.sources), version_count(tokens)
        arrays |= presence(tokens.version_GL, tokens.source_G, sources, versions)
    del arrays["source_G"]  # is what they are made of
    return arrays


def _are_items(tokens: Tokens, item_G: np.ndarray) -> bool:
    """Whether it is 0, 1, 2, ..., without another array as long."""
    if items := getattr(tokens, "items", 0):  # a TokenizedCorpus has later groups of items behind all items
        return bool(items == len(item_G))
    parts = (slice(start, start + CHUNK) for start in range(0, len(item_G), CHUNK))
    first_B = np.arange(CHUNK, dtype=np.int32)
    return all(np.array_equal(item_G[part] - part.start, first_B[: len(item_G[part])]) for part in parts)


def checked_vectors(i: int, array: np.ndarray, tokens: Tokens) -> np.ndarray:
    groups = len(tokens.source_G)
    if array.ndim != 2 or len(array) != groups or array.shape[1] < 1:
        raise ValueError(f"group_vectors[{i}] must be ({groups}, K), got {array.shape}")
    if array.dtype not in (np.float32, np.float16) or not array.flags.c_contiguous:
        raise ValueError(
            f"group_vectors[{i}] must be C-contiguous float32 or float16, got {array.dtype}"
            + ("" if array.flags.c_contiguous else " in another order")
        )
    return array


def check_batches(batches: np.ndarray, batch_size: int, tokens: Tokens, languages: list[str]) -> None:
    if batches.dtype != np.int32 or not batches.flags.c_contiguous or batches.shape[1:] != (batch_size, 3):
        raise ValueError(
            f"batches must be C-contiguous int32 (N, {batch_size}, 3), got {batches.dtype} {batches.shape}"
        )
    groups, codes = len(tokens.source_G), [tokens.languages.index(language) for language in languages]
    for i, batch_B3 in enumerate(batches):
        inside = (batch_B3 >= 0).all() and (batch_B3 < (groups, len(codes), len(codes))).all()
        if not inside or (tokens.version_GL[batch_B3[:, :1], np.take(codes, batch_B3[:, 1:])] < 0).any():
            raise ValueError(f"batches[{i}] names a version that the corpus does not have")


def without_read_ahead(
    arrays: dict[str, np.ndarray | None], group_vectors: list[np.ndarray]
) -> tuple[dict[str, np.ndarray | None], list[np.ndarray]]:
    """The same; if their files do not fit into memory, mapped anew for reading here and there.

    Of few bytes that a batch reads, the system would bring the 128 KiB around, which are gone again before
    anyone asks for them. Who else reads an array, from end to end, keeps the mapping that has them.
    """
    every: dict[Any, Any] = {**arrays, **dict(enumerate(group_vectors))}
    files = {
        key: array
        for key, array in every.items()
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename
    }
    files.pop("present_LW", None)  # is read from end to end
    if sum(array.nbytes for array in files.values()) > psutil.virtual_memory().available // 2:
        for key, array in files.items():
            every[key] = again = np.memmap(array.filename, array.dtype, "r", array.offset, array.shape)
            cast(mmap.mmap, again.base).madvise(mmap.MADV_RANDOM)
    return {name: every[name] for name in arrays}, [every[i] for i in range(len(group_vectors))]


def mapped_files(arrays: Iterable[np.ndarray | None]) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time) of every file that one of the arrays maps."""
    paths = {str(array.filename) for array in arrays if isinstance(array, np.memmap) and array.filename}
    return [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in sorted(paths)]
