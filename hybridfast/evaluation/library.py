"""The evaluation in one call, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike

from hybridfast.encoder import loading
from hybridfast.evaluation.encode import embed
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["evaluate"]


def evaluate(
    model_or_embeddings: SentenceTransformer | str | Sequence[ArrayLike | torch.Tensor],
    eval_set: EvalSet,
    *,
    ties: str = "expected",
    batch_size: int = 256,
    progress: bool = False,
) -> Evaluation:
    """Every measure of a model, or of embeddings, on a set: in the pools of one language and of all.

    `model_or_embeddings` is a SentenceTransformer, which embeds each side under its own prompt and compares
    by its own similarity; the folder or hub name of one; or a pair of floating arrays, (Q, D) of
    ``eval_set.queries`` and (N, D) of ``eval_set.passages``, compared by inner products. `batch_size` and
    `progress` are of the encoding. For `ties`, dtypes and errors see
    :func:`~hybridfast.evaluation.metrics.evaluate_embeddings`.

    Raises TypeError for anything else, ValueError for an embedding that is not finite.
    """
    if isinstance(model_or_embeddings, (tuple, list)):
        if len(model_or_embeddings) != 2:
            raise TypeError(
                f"model_or_embeddings must be a model or the embeddings of queries and of passages, got "
                f"{len(model_or_embeddings)} arrays"
            )
        queries, passages = model_or_embeddings
        return evaluate_embeddings(eval_set, queries, passages, ties)
    model = loading.load(model_or_embeddings) if isinstance(model_or_embeddings, str) else model_or_embeddings
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            "model_or_embeddings must be a SentenceTransformer, its name or a pair of arrays, got "
            f"{type(model).__name__}"
        )
    queries, passages = embed(model, eval_set, batch_size=batch_size, progress=progress)
    return evaluate_embeddings(eval_set, queries, passages, ties)
