"""An evaluation set from one's own rows, in any form that a training corpus can have."""

from __future__ import annotations

import os

import numpy as np

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["from_corpus", "load"]


def load(source: str | os.PathLike[str], language: str | None = None) -> EvalSet:
    """Each id asks its query in each of its languages; the passages of all of its rows answer it.

    Rows with one passage in one language are one candidate, a gold of every id that has it. `language` is
    that of rows that name none.

    Errors are those of :meth:`hybridfast.data.corpus.ParallelCorpus.load`.
    """
    return from_corpus(ParallelCorpus.load(source, language=language))


def from_corpus(corpus: ParallelCorpus) -> EvalSet:
    """See :func:`load`."""
    ids, languages, queries, passages = (
        corpus.table.column(name).to_pylist() for name in ("id", "lang", "query", "passage")
    )
    candidates: dict[tuple[str, str], int] = {}
    candidate_V = np.array(
        [candidates.setdefault(key, len(candidates)) for key in zip(passages, languages, strict=True)]
    )
    pair_P = np.unique(corpus.item_V.astype(np.int64) * len(candidates) + candidate_V)
    item_P, gold_P = np.divmod(pair_P, len(candidates))  # by item, ascending within one
    size_I = np.bincount(item_P)
    start_I = np.cumsum(size_I) - size_I

    asking_Q = np.flatnonzero(corpus.repeat_V == 0)  # further passages ask nothing new
    item_Q = corpus.item_V[asking_Q]
    size_Q = size_I[item_Q]
    gold_indptr = np.concatenate([[0], np.cumsum(size_Q)]).astype(np.int64)
    within_G = np.arange(gold_indptr[-1]) - np.repeat(gold_indptr[:-1], size_Q)
    return EvalSet(
        name=corpus.name,
        queries=[queries[row] for row in asking_Q],
        query_languages=[languages[row] for row in asking_Q],
        items=[ids[row] for row in asking_Q],
        passages=[passage for passage, _ in candidates],
        passage_languages=[language for _, language in candidates],
        gold_indptr=gold_indptr,
        gold_indices=gold_P[np.repeat(start_I[item_Q], size_Q) + within_G],
    )
