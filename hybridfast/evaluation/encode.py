"""From a model and an evaluation set to the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from hybridfast.encoder import embedding
from hybridfast.encoder.loading import TASKS, similarity
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
from hybridfast.infonce.backends import TRITON

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["embed", "encode", "evaluate", "rank"]


def evaluate(
    model: SentenceTransformer, eval_set: EvalSet, *, batch_size: int = 256, progress: bool = True
) -> Evaluation:
    """Encode an evaluation set and rank by the model's similarity; see :func:`embed`."""
    queries, passages = embed(model, eval_set, batch_size=batch_size, progress=progress)
    return evaluate_embeddings(eval_set, queries, passages)


def embed(
    model: SentenceTransformer, eval_set: EvalSet, *, batch_size: int = 256, progress: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides, each under the model's own prompt, so that inner products are the model's similarity.

    Raises:
        ValueError: an embedding is not finite, or the model compares in a way that is unknown here.
    """
    queries, passages = encode(
        model, eval_set.queries, eval_set.passages, batch_size=batch_size, progress=progress
    )
    return _comparable(model, eval_set, queries, passages)


def rank(
    model: SentenceTransformer, eval_set: EvalSet, queries: torch.Tensor, passages: torch.Tensor
) -> Evaluation:
    """The figures of a set that the model has embedded: (Q, D) and (N, D) float32, as :func:`encode` does.

    Raises:
        ValueError: an embedding is not finite, or the model compares in a way that is unknown here.
    """
    queries, passages = _comparable(model, eval_set, queries, passages)
    if not (TRITON and queries.device.type == passages.device.type == "cuda"):
        queries, passages = queries.cpu(), passages.cpu()
    return evaluate_embeddings(eval_set, queries, passages)


def _comparable(
    model: SentenceTransformer, eval_set: EvalSet, queries: torch.Tensor, passages: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_finite("queries", eval_set.queries, queries)
    _check_finite("passages", eval_set.passages, passages)
    if similarity(model) == "cosine":
        queries, passages = normalize(queries, dim=-1), normalize(passages, dim=-1)
    return queries, passages


def encode(
    model: SentenceTransformer,
    queries: list[str],
    passages: list[str],
    *,
    batch_size: int,
    progress: bool,
    shared: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed texts for evaluation, each side under its own prompt: (Q, D) and (N, D) float32.

    With `shared`, every rank of torch.distributed embeds a part, and gets all.

    They stay on an NVIDIA GPU that made them, where `gold_ranks` reads them too; else they are on the CPU.
    """
    embeddings = [
        embedding.encode(model, task, texts, batch_size=batch_size, progress=progress, shared=shared)
        for task, texts in zip(TASKS, (queries, passages), strict=True)
    ]
    if not (TRITON and all(rows.device.type == "cuda" for rows in embeddings)):
        embeddings = [rows.cpu() for rows in embeddings]
    return embeddings[0], embeddings[1]


def _check_finite(name: str, texts: list[str], rows: torch.Tensor) -> None:
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"the model embeds {int((~finite).sum()):,} of {len(texts):,} {name} as NaN or infinity, "
            f"the first of them {texts[int(finite.int().argmin())][:60]!r}"
        )
