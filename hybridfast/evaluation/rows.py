"""An evaluation set from one's own rows, in any form that a training corpus can have."""

from __future__ import annotations

import os

import numpy as np

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["from_corpus", "load"]


def load(source: str | os.PathLike[str]) -> EvalSet:
    """Every row's query asks, every row's passage is a candidate; rows of one ``id`` answer each other.

    Errors are those of :meth:`hybridfast.data.corpus.ParallelCorpus.load`.
    """
    return from_corpus(ParallelCorpus.load(source))


def from_corpus(corpus: ParallelCorpus) -> EvalSet:
    """See :func:`load`."""
    languages = corpus.table.column("lang").to_pylist()
    order_V = np.argsort(corpus.group_V, kind="stable")  # versions by group, rows ascending within one
    size_G = np.bincount(corpus.group_V)
    start_G = np.cumsum(size_G) - size_G
    golds = [order_V[start_G[group] : start_G[group] + size_G[group]] for group in corpus.group_V]
    return EvalSet(
        name=corpus.name,
        queries=corpus.table.column("query").to_pylist(),
        query_languages=languages,
        items=corpus.table.column("id").to_pylist(),
        passages=corpus.table.column("passage").to_pylist(),
        passage_languages=languages,
        gold_indptr=np.concatenate([[0], np.cumsum(size_G[corpus.group_V])]).astype(np.int64),
        gold_indices=np.concatenate(golds).astype(np.int64),
    )
