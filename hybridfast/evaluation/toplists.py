"""The first passages of every query, and who ties with the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hybridfast.evaluation.ranks import rank_counts
from hybridfast.evaluation.search import rows_of, top_k

__all__ = ["TopLists", "top_lists"]


@dataclass(frozen=True)
class TopLists:
    """The K best passages of each query among all languages, and who else has the score of the last of them.

    ``rows_QK`` are passage rows by descending score, equal scores by descending row, -1 where a list is
    shorter; ``scores_QK`` their scores, -inf there. ``passage_languages_N`` numbers each passage's language.
    ``beyond_QL`` counts the passages of each language that tie with a list's last score and found no place in
    it: which of them did is chance, and measures of a list take that into account.
    """

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    beyond_QL: NDArray[np.int64]
    passage_languages_N: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[TopLists]) -> TopLists:
        """Those of some queries, and then of others over the same passages."""
        rows_QK, scores_QK, beyond_QL = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("rows_QK", "scores_QK", "beyond_QL")
        )
        return cls(rows_QK, scores_QK, beyond_QL, parts[0].passage_languages_N)

    @property
    def languages_QK(self) -> NDArray[np.int64]:
        """The language of each place; -1 where a list is shorter."""
        return np.where(self.rows_QK < 0, -1, self.passage_languages_N[self.rows_QK])

    @property
    def chance_QK(self) -> NDArray[np.bool_]:
        """Places whose passage is there by chance: those that tie with passages beyond the list."""
        last_Q1 = self.scores_QK[:, -1:]
        return (self.scores_QK == last_Q1) & (self.beyond_QL.sum(axis=1) > 0)[:, None]

    def renumbered(self, rows_N: NDArray[np.int64]) -> TopLists:
        """The lists with passage row n called ``rows_N[n]``; the order within them stays."""
        languages_N = np.empty_like(self.passage_languages_N)
        languages_N[rows_N] = self.passage_languages_N
        rows_QK = np.where(self.rows_QK < 0, -1, rows_N[self.rows_QK])
        return replace(self, rows_QK=rows_QK, passage_languages_N=languages_N)


def top_lists(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    k: int,
    passage_languages: ArrayLike,
    languages: int,
) -> TopLists:
    """Search by brute force: inner products in float32, on the device where the embeddings are.

    `queries` (Q, D) and `passages` (N, D) are floating; `passage_languages` (N,) is below `languages`. Equal
    passages have equal scores. Memory is some 100 MB beyond the lists, whatever Q x N.

    Raises ValueError as :func:`~hybridfast.evaluation.search.top_k` does.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    query_QD, passage_ND = rows_of(queries, "queries"), rows_of(passages, "passages")
    language_N = np.asarray(passage_languages, np.int64)
    # One place more than asked for: what stands there tells whether a list's end is a matter of chance.
    rows_QK, scores_QK = top_k(query_QD, passage_ND, k + 1)
    k = min(k, len(passage_ND))
    beyond_QL = np.zeros((len(rows_QK), languages), np.int64)
    if rows_QK.shape[1] > k:
        some = np.flatnonzero(scores_QK[:, k] == scores_QK[:, k - 1])
        if some.size:
            last = np.arange(len(some) + 1), rows_QK[some, k - 1]
            tied_SL = rank_counts(query_QD[some], passage_ND, *last, language_N).tied_GL
            beyond_QL[some, : tied_SL.shape[1]] = tied_SL
            # The others that tie with the last and are in the list are not beyond it.
            query, place = np.nonzero(scores_QK[some, : k - 1] == scores_QK[some, k - 1 : k])
            np.subtract.at(beyond_QL, (some[query], language_N[rows_QK[some[query], place]]), 1)
    return TopLists(rows_QK[:, :k], scores_QK[:, :k], beyond_QL, language_N)
