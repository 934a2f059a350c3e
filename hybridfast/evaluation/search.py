"""The best passages of every query: exactly, or by an index of faiss where one is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

__all__ = ["INDEXES", "index_top_k", "recall_of_exact", "top_k"]

INDEXES = ("hnsw", "ivf")
# 64 MB of scores with their rows, whatever Q and N.
QUERY_TILE, PASSAGE_TILE = 256, 32_768

TopK = tuple[NDArray[np.int64], NDArray[np.float32]]


def top_k(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    k: int,
    order_N: NDArray[np.int64] | None = None,
    progress: bool = False,
) -> TopK:
    """The `k` passages of largest inner product of every query, best first: (Q, K) rows and float32 scores.

    K is `k` or N, whichever is less. Equal scores stand, and are cut, in trec_eval's order: by `order_N`, the
    place of each passage's id among all ids ascending, the last first; by default by row. Scores are those of
    a matrix product, in which equal passages may differ by the last bit. `queries` (Q, D) and `passages`
    (N, D) are arrays or tensors on one device, and may be memory-mapped; workspace is O(tile).

    Raises ValueError for `k` below 1, for shapes that do not match, and for scores that are not finite.
    """
    query_QD, passage_ND = _rows(queries, "queries"), _rows(passages, "passages")
    _check(query_QD, passage_ND, k)
    order = torch.as_tensor(np.arange(len(passage_ND)) if order_N is None else order_N, dtype=torch.int64)
    order = order.to(query_QD.device)
    best = []
    hidden = None if progress else True
    for first in tqdm(range(0, len(query_QD), QUERY_TILE), desc="top passages", disable=hidden):
        tile = query_QD[first : first + QUERY_TILE].float()
        keys = torch.empty((len(tile), 0), dtype=torch.int64, device=tile.device)
        for start in range(0, len(passage_ND), PASSAGE_TILE):
            scores = tile @ passage_ND[start : start + PASSAGE_TILE].float().T
            if not scores.isfinite().all():
                raise ValueError(
                    "scores must be finite: queries or passages hold NaN or infinity, or are huge"
                )
            # + 0.0: -0 equals 0.
            found = (
                _flipped((scores + 0.0).view(torch.int32)).long() << 32 | order[start : start + PASSAGE_TILE]
            )
            keys = torch.cat([keys, found], dim=1)
            keys = keys.topk(min(k, keys.shape[1]), dim=1).values
        best.append(keys.cpu())
    keys_QK = torch.cat(best) if best else torch.empty((0, min(k, len(passage_ND))), dtype=torch.int64)
    row_of = np.empty(len(passage_ND), np.int64)
    row_of[order.cpu().numpy()] = np.arange(len(passage_ND))
    scores_QK = _flipped((keys_QK >> 32).int()).view(torch.float32)
    return row_of[(keys_QK & 0xFFFFFFFF).numpy()], scores_QK.numpy()


def index_top_k(
    queries: ArrayLike | torch.Tensor, passages: ArrayLike | torch.Tensor, k: int, index: str
) -> TopK:
    """As :func:`top_k`, but by an approximate index of faiss; rows are -1 where it finds fewer than K.

    "hnsw": 32 links, a beam of max(k, 128). "ivf": about 4 sqrt(N) cells, of which a sixteenth, and 16 at
    least, are looked through. Both hold the embeddings in float32.

    Raises ValueError for another name and as top_k does, ImportError where faiss is not installed.
    """
    if index not in INDEXES:
        raise ValueError(f"index must be one of {', '.join(INDEXES)}, got {index!r}")
    query_QD, passage_ND = _rows(queries, "queries"), _rows(passages, "passages")
    _check(query_QD, passage_ND, k)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"index {index} needs the package faiss-cpu: pip install 'hybridfast[index]'"
        ) from error

    rows, asked = (np.ascontiguousarray(x.float().cpu().numpy()) for x in (passage_ND, query_QD))
    k = min(k, len(rows))
    faiss.omp_set_num_threads(torch.get_num_threads())
    built: Any
    if index == "hnsw":
        built = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efSearch = max(k, 128)
    else:
        cells = max(1, min(len(rows) // 39, round(4 * len(rows) ** 0.5)))  # faiss asks for 39 rows a cell
        flat = faiss.IndexFlatIP(rows.shape[1])
        built = faiss.IndexIVFFlat(flat, rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        built.nprobe = min(cells, max(16, cells // 16))
        built.train(rows)
    built.add(rows)
    scores_QK, rows_QK = built.search(asked, k)
    return rows_QK, scores_QK


def recall_of_exact(rows_QK: NDArray[np.int64], exact_QK: NDArray[np.int64]) -> float:
    """The mean share of the exact best K that an approximate search found: recall@K against exact search."""
    if not exact_QK.size:
        return float("nan")
    found = [
        len(np.intersect1d(some, all_)) / len(all_) for some, all_ in zip(rows_QK, exact_QK, strict=True)
    ]
    return float(np.mean(found))


def _flipped(bits: torch.Tensor) -> torch.Tensor:
    """From the bits of float32 to integers in the order of the floats, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _rows(values: ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
    rows = values.detach() if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be (rows, D) floats, got {tuple(rows.shape)} {rows.dtype}")
    return rows


def _check(queries: torch.Tensor, passages: torch.Tensor, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(
            "queries and passages must be equally wide, "
            f"got {tuple(queries.shape)} and {tuple(passages.shape)}"
        )
