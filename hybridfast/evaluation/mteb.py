"""mteb's retrieval tasks on the exact search of this library.

    import mteb
    from hybridfast.evaluation.mteb import exact_search

    mteb.evaluate(exact_search(SentenceTransformer("runs/hybrid-1")), mteb.get_tasks(["BelebeleRetrieval"]))

mteb encodes, with its own prompts, and scores; every passage is ranked by one pass over tiles, not chunk by
chunk through heaps. Needs the package mteb, from 2.0 on, which is imported when `exact_search` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import normalize

from hybridfast.evaluation.search import top_k

if TYPE_CHECKING:
    from mteb.models import SearchEncoderWrapper

__all__ = ["ExactIndex", "exact_search"]


def exact_search(model: Any) -> SearchEncoderWrapper:
    """An mteb ``SearchProtocol`` of a SentenceTransformer or of any encoder of mteb's.

    Raises:
        ImportError: mteb is not installed.
        ValueError: the model compares neither by cosine nor by inner product.
    """
    try:
        from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
    except ImportError as error:
        raise ImportError("mteb.exact_search needs the package mteb from 2.0 on: pip install mteb") from error
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformerEncoderWrapper(model) if isinstance(model, SentenceTransformer) else model
    similarity = encoder.mteb_model_meta.similarity_fn_name
    similarity = getattr(similarity, "value", similarity)
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"the model must compare by cosine or dot, got {similarity!r}")
    return SearchEncoderWrapper(encoder, index_backend=ExactIndex(cosine=similarity == "cosine"))


class ExactIndex:
    """An index backend of mteb's that scores everything, by :func:`hybridfast.evaluation.search.top_k`.

    Passages of equal score stand in trec_eval's order, by descending id.
    """

    def __init__(self, *, cosine: bool) -> None:
        self.cosine = cosine
        self.clear()

    def clear(self) -> None:
        """Forget all passages."""
        self._parts: list[torch.Tensor] = []
        self._ids: list[str] = []

    def add_documents(self, embeddings: Any, idxs: Sequence[str]) -> None:
        """Embeddings (n, D), arrays or tensors, and their ids."""
        self._parts.append(self._rows(embeddings))
        self._ids += idxs

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[..., Any] | None = None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Scores and places of the best, for each row of `embeddings` (Q, D).

        Places are among all passages or, with `top_ranked`, among those that it names for the query whose id
        `query_idx_to_id` gives. `similarity_fn` is mteb's and not needed.
        """
        queries = self._rows(embeddings)
        passages = torch.cat(self._parts)
        if top_ranked is None:
            return _best(queries, passages, self._ids, top_k)
        if query_idx_to_id is None:
            raise ValueError("query_idx_to_id must be given with top_ranked")
        row_of = {name: row for row, name in enumerate(self._ids)}
        scores, places = [], []
        for i in range(len(queries)):
            ids = [*top_ranked.get(query_idx_to_id[i], ())]
            some = passages[[row_of[name] for name in ids]]
            score, place = _best(queries[i : i + 1], some, ids, top_k) if ids else ([[]], [[]])
            scores += score
            places += place
        return scores, places

    def _rows(self, embeddings: Any) -> torch.Tensor:
        rows = torch.as_tensor(embeddings).detach().cpu().float()
        return normalize(rows, dim=-1) if self.cosine else rows


def _best(
    queries: torch.Tensor, passages: torch.Tensor, ids: Sequence[str], k: int
) -> tuple[list[list[float]], list[list[int]]]:
    order_N = np.empty(len(ids), np.int64)
    order_N[np.argsort(np.array(ids, object), kind="stable")] = np.arange(len(ids))
    rows, scores = top_k(queries, passages, k, order_N)
    return scores.tolist(), rows.tolist()
