"""Which passages of a corpus may be negatives of which query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.mining.topk import Excluded

__all__ = ["Candidates", "Part", "Scope"]

Scope = Literal["all", "same", "other"]


@dataclass(frozen=True)
class Part:
    """Queries that search the same passages: those of one language, or all."""

    name: str
    versions_B: NDArray[np.int64]  # whose queries these are
    queries_Q: NDArray[np.int64]  # rows among the distinct queries, ascending
    passages_N: NDArray[np.int64]  # rows among the distinct passages, ascending


class Candidates:
    """The distinct texts of a tokenized corpus, and what is no negative of what.

    Texts are equal where their token ids are; each is embedded and found once. Distinct queries (U) and
    passages (P) are numbered in the order of the rows where they first stand.

    A *question* is an item with all items that share a query with it, in whatever language. No passage of
    any of its items, in any language, and no equal text, is a negative of its queries.
    """

    def __init__(self, tokens: TokenizedCorpus) -> None:
        self.tokens = tokens
        self.query_V, self.first_version_U = _distinct(tokens.query_hash_V)
        self.passage_V, self.first_version_P = _distinct(tokens.passage_hash_V)
        question_V = _questions(tokens.item_G[tokens.group_V], self.query_V)
        self.question_U = question_V[self.first_version_U]
        passages = len(self.first_version_P)
        own = np.unique(question_V * passages + self.passage_V)
        self.indptr = np.searchsorted(own, np.arange(question_V.max() + 2) * passages)
        self.passages_of_questions = own % passages
        # As sentence-transformers counts them: the passages of one query.
        pairs = np.unique(self.query_V * passages + self.passage_V)
        self.max_positives = int(np.bincount(pairs // passages).max())

    @property
    def query_texts(self) -> NDArray[np.int64]:
        """The number of each distinct query among the corpus's texts."""
        return self.tokens.version_indptr[self.first_version_U]

    @property
    def passage_texts(self) -> NDArray[np.int64]:
        return self.tokens.version_indptr[self.first_version_P] + 1

    def excluded(self, queries_Q: NDArray[np.int64]) -> Excluded:
        return Excluded(self.question_U[queries_Q], self.indptr, self.passages_of_questions)

    def parts(self, scope: Scope) -> Iterator[Part]:
        """Every query with the passages it may search, languages one after the other."""
        language_V = self.tokens.language_V
        languages = range(len(self.tokens.languages)) if scope != "all" else [None]
        for language in languages:
            mine_V = np.ones(len(language_V), bool) if language is None else language_V == language
            yield Part(
                "all" if language is None else self.tokens.languages[language],
                np.flatnonzero(mine_V),
                np.unique(self.query_V[mine_V]),
                np.unique(self.passage_V[~mine_V if scope == "other" else mine_V]),
            )


def _distinct(hash_V: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each distinct text, in order of appearance: each row's, and the first row of each."""
    _, first, number_V = np.unique(hash_V, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[number_V], first[order]


def _questions(item_V: NDArray[np.int32], query_V: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each row's question: items joined by equal queries, the least label spreading."""
    items, place_V = np.unique(item_V, return_inverse=True)
    label_I = np.arange(len(items))
    while True:
        label_U = np.full(query_V.max() + 1, len(items))
        np.minimum.at(label_U, query_V, label_I[place_V])
        spread_I = label_I.copy()
        np.minimum.at(spread_I, place_V, label_U[query_V])
        if (spread_I == label_I).all():
            return np.unique(label_I, return_inverse=True)[1][place_V]
        label_I = spread_I
