"""What every evaluation data set is turned into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EvalSet"]


@dataclass(frozen=True)
class EvalSet:
    """Questions and candidate passages in several languages, with the relevant passages of every question.

    ``gold_indices[gold_indptr[q]:gold_indptr[q + 1]]`` are the rows of ``passages`` that answer query ``q``,
    in any language; a pool is a set of passage rows, and a query's golds in it are those that lie inside.
    ``items`` names the parallel item behind each query: equal names are translations of one question.
    """

    name: str
    queries: list[str]  # (Q,)
    query_languages: list[str]  # (Q,) as `hybridfast.data.columns.language_tag` spells them
    items: list[str]  # (Q,)
    passages: list[str]  # (N,)
    passage_languages: list[str]  # (N,)
    gold_indptr: NDArray[np.int64]  # (Q + 1,)
    gold_indices: NDArray[np.int64]  # (G,), ascending within a query

    @property
    def languages(self) -> list[str]:
        """The languages of queries or passages, sorted."""
        return sorted({*self.query_languages, *self.passage_languages})
