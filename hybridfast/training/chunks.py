"""A batch through the encoder: texts of like length together, each chunk padded to its own longest.

Padded to the longest of the batch, most places of a batch of real text are padding. The loss sees the whole
batch; its value and gradients are those of one big chunk but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridfast.data.sampler import Batch
from hybridfast.encoder import embedding
from hybridfast.encoder.embedding import Features, Side
from hybridfast.encoder.loading import is_static

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["embed_batch", "rows_of_chunks"]


def embed_batch(
    model: SentenceTransformer, sides: tuple[Side, Side], batch: Batch, tokens_per_chunk: int
) -> tuple[Tensor, Tensor]:
    """The embeddings of a batch's queries (B, D) and of its passages and then hard negatives (B + M, D).

    Args:
        batch: its texts as flat ids.
        tokens_per_chunk: places, padding counted, that go through the encoder at once; a longer text goes
            alone.
    """
    query, document = sides
    texts = [(query, batch.queries), (document, batch.passages), (document, batch.negatives)]
    parts = [(side, ids) for side, ids in texts if ids is not None and len(ids["offsets"])]
    if is_static(model):  # no padding, and one call for all
        queries_QD, *passages = embedding.embed_ids(model, parts)
        return queries_QD, torch.cat(passages)
    queries_QD = _by_chunks(model, query, parts[0][1], tokens_per_chunk)
    documents = _joined([ids for _, ids in parts[1:]])
    return queries_QD, _by_chunks(model, document, documents, tokens_per_chunk)


def rows_of_chunks(lengths_B: Tensor, tokens_per_chunk: int) -> Iterator[Tensor]:
    """Rows of texts with so many tokens, cut into chunks; the longest come first.

    So what does not fit the memory fails at once, and not hours later.
    """
    order_B = torch.argsort(lengths_B, descending=True, stable=True)
    sorted_B = lengths_B[order_B].tolist()
    first = 0
    while first < len(sorted_B):
        rows = max(1, tokens_per_chunk // max(1, sorted_B[first]))
        yield order_B[first : first + rows]
        first += rows


def _by_chunks(model: SentenceTransformer, side: Side, texts: Features, tokens_per_chunk: int) -> Tensor:
    ids_T, starts_B = texts["input_ids"], texts["offsets"]
    lengths_B = torch.diff(starts_B, append=starts_B.new_tensor([len(ids_T)]))
    chunks = list(rows_of_chunks(lengths_B, tokens_per_chunk))
    embeddings = []
    for rows in chunks:
        lengths = lengths_B[rows]
        offsets = lengths.cumsum(0) - lengths
        places = torch.arange(int(lengths.sum())) + (starts_B[rows] - offsets).repeat_interleave(lengths)
        features = side.features(ids_T[places], offsets, model.device)
        embeddings.append(embedding.embed(model, side.task, features))
    back_B = torch.argsort(torch.cat(chunks))
    return torch.cat(embeddings)[back_B.to(model.device)]


def _joined(parts: list[Features]) -> Features:
    """Texts of several batches as those of one."""
    starts = torch.tensor([0, *(len(ids["input_ids"]) for ids in parts[:-1])]).cumsum(0).tolist()
    offsets = [ids["offsets"] + start for ids, start in zip(parts, starts, strict=True)]
    return {"input_ids": torch.cat([ids["input_ids"] for ids in parts]), "offsets": torch.cat(offsets)}
