"""A corpus as token ids: tokenized once, memory-mapped from then on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["TokenizedCorpus"]


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as token ids: flat arrays over a memory map, read-only.

    Text ``t`` is ``token_ids[text_indptr[t]:text_indptr[t + 1]]``. Version ``v`` owns the texts
    ``version_indptr[v]`` to ``version_indptr[v + 1] - 1``: its query, its passage, then its hard negatives.
    """

    path: Path
    name: str
    fingerprint: str  # of the data and of every setting that shaped the ids
    settings: dict[str, Any]
    languages: list[str]  # (L,) sorted
    sources: list[str]  # (S,) sorted
    pad_id: int
    negatives_left_out: int  # hard negatives that equal a passage of their own item
    pieces: list[list[Any]] = field(repr=False)  # its files: fingerprint, first row, row behind the last
    samples: list[list[str]] = field(repr=False)  # a few queries and a few passages
    token_ids: NDArray[np.int32] | NDArray[np.uint16] = field(repr=False)  # (T,)
    text_indptr: NDArray[np.int64] = field(repr=False)  # (texts + 1,)
    version_indptr: NDArray[np.int64] = field(repr=False)  # (V + 1,)
    group_V: NDArray[np.int32] = field(repr=False)
    language_V: NDArray[np.int32] = field(repr=False)
    version_GL: NDArray[np.int32] = field(repr=False)  # the version of a group in a language, or -1
    source_G: NDArray[np.int32] = field(repr=False)
    item_G: NDArray[np.int32] = field(repr=False)  # equal for groups that answer one question
    query_hash_V: NDArray[np.uint64] = field(repr=False)  # equal ids have equal hashes
    passage_hash_V: NDArray[np.uint64] = field(repr=False)
    negative_hash_H: NDArray[np.uint64] = field(repr=False)  # of all hard negatives, version by version
    # What an earlier version did not write: how many items there are, and what `presence` makes of arrays.
    items: int = 0
    source_indptr: NDArray[np.int64] | None = field(repr=False, default=None)
    order_G: NDArray[np.int32] | None = field(repr=False, default=None)
    present_LW: NDArray[np.uint64] | None = field(repr=False, default=None)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenizedCorpus:
        """Map a folder that :func:`tokenize` wrote.

        Raises:
            FileNotFoundError: the folder holds no token cache.
            ValueError: a file of it is damaged: its size is not the one recorded.
        """
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"{folder}: no token cache here (meta.json is missing)")
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {}
        for name, (shape, dtype) in meta.pop("arrays").items():
            file = folder / f"{name}.bin"
            expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
            actual = file.stat().st_size if file.is_file() else 0
            if actual != expected:
                raise ValueError(
                    f"{file}: {actual} bytes where {expected} were written; delete {folder} to tokenize again"
                )
            # An empty file cannot be mapped.
            arrays[name] = (
                np.memmap(file, dtype, "r", shape=tuple(shape)) if expected else np.empty(shape, dtype)
            )
        return cls(path=folder, **{"pieces": [], **meta}, **arrays)  # pieces: an earlier version had none

    def __reduce__(self) -> tuple[Callable[[Path], TokenizedCorpus], tuple[Path]]:
        return TokenizedCorpus.open, (self.path,)  # a pickle carries the path, not the data

    def __len__(self) -> int:
        """The number of versions: (group, language) rows."""
        return len(self.group_V)

    def text(self, index: int) -> NDArray[np.int32] | NDArray[np.uint16]:
        """The token ids of one text."""
        return self.token_ids[self.text_indptr[index] : self.text_indptr[index + 1]]

    def group_ids(self) -> list[str]:
        """The ids of the groups as the data spelled them, in the order of their numbers."""
        ids: list[str] = self._group_names().to_pylist()
        return ids

    def group_id(self, group: int) -> str:
        """One of them."""
        name: str = self._group_names()[group].as_py()
        return name

    def _group_names(self) -> pa.ChunkedArray:
        if (self.path / "groups.json").is_file():  # as it once was
            return pa.chunked_array([json.loads((self.path / "groups.json").read_text(encoding="utf-8"))])
        with pa.memory_map(str(self.path / "groups.arrow")) as file:
            return pa.ipc.open_file(file).read_all().column(0)
