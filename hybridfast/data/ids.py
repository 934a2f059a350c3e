"""Token ids of texts: what gives them, and how they lie in arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ids", "TextIds", "joined", "spans"]

Ids = tuple[NDArray[np.int32], NDArray[np.int64]]  # of all texts, one after the other; how many each has


class TextIds(Protocol):
    """How one side's texts become token ids."""

    def ids(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts, one after the other (T,), and how many each has (B,)."""

    @property
    def pad_id(self) -> int: ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that shapes the ids, for JSON: part of the cache's key."""


def joined(rows: Sequence[Sequence[int]]) -> Ids:
    """The ids of some texts as two arrays."""
    lengths_B = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths_B.sum()), lengths_B


def spans(starts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places start, start + 1, ... of every span, one span after the other."""
    ends_B = np.cumsum(lengths_B)
    return np.arange(lengths_B.sum()) + np.repeat(starts_B - (ends_B - lengths_B), lengths_B)
