"""Embeddings of a corpus's texts, on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from hybridfast.data.ids import spans
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, shards
from hybridfast.encoder.embedding import Side

__all__ = ["embed_texts"]


def embed_texts(
    side: Side,
    tokens: TokenizedCorpus,
    texts: NDArray[np.int64],
    path: Path,
    *,
    unit: bool,
    tokens_per_chunk: int | None = None,
) -> NDArray[np.float32]:
    """Embed some of a corpus's texts into a file, as :func:`shards.stored`: (texts, D) float32, mapped.

    Args:
        texts: numbers of distinct texts, as :meth:`TokenizedCorpus.text` counts.
        path: the .npy file.
        unit: normalize, for cosines.
        tokens_per_chunk: places that go through the encoder at once. None: 2048 on a CPU, 32768 on a GPU.

    Raises:
        ValueError: an embedding is not finite.
    """

    def embed(number_B: NDArray[np.int64], told: Callable[[int], Any]) -> NDArray[np.float32]:
        some = texts[number_B]
        rows_BD = _embed(side, tokens, some, tokens_per_chunk, told)
        shards.check_finite(
            rows_BD.numpy(),
            "texts",
            lambda row: f"a {side.task} of the token ids {tokens.text(some[row])[:8].tolist()} ...",
        )
        return (normalize(rows_BD, dim=-1) if unit else rows_BD).numpy()

    return shards.stored(path, np.arange(len(texts)), embed, name=side.task)


def _embed(
    side: Side,
    tokens: TokenizedCorpus,
    texts: NDArray[np.int64],
    tokens_per_chunk: int | None,
    told: Callable[[int], Any],
) -> torch.Tensor:
    """(B, D) float32 on the CPU."""
    starts_B, lengths_B = tokens.text_indptr[texts], np.diff(tokens.text_indptr)[texts]
    ids_T = torch.from_numpy(tokens.token_ids[spans(starts_B, lengths_B)].astype(np.int64))
    lengths = torch.from_numpy(lengths_B)
    return embedding.encode_ids(side, ids_T, lengths, places=tokens_per_chunk, told=told).cpu()
