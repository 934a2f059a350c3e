"""The best passages of every query: exactly, or by an index of faiss where one is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from hybridfast.evaluation.ranks import check_scores_finite, kernels_of, matrix_of

__all__ = ["INDEXES", "index_top_k", "on_device", "recall_of_exact", "rows_of", "top_k"]

INDEXES = ("hnsw", "ivf")
QUERIES = 4_096  # at a time on a CPU
QUERY_TILE, PASSAGE_TILE = 256, 32_768  # on a GPU: 64 MB of scores with their rows, whatever Q and N

TopK = tuple[NDArray[np.int64], NDArray[np.float32]]


def top_k(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    k: int,
    order_N: NDArray[np.int64] | None = None,
    progress: bool = False,
) -> TopK:
    """The `k` passages of largest inner product of every query, best first: (Q, K) rows and float32 scores.

    K is `k` or N, whichever is less. Equal passages have equal scores, which are those that `gold_ranks`
    compares on a CPU. Equal scores stand, and are cut, in trec_eval's order: by `order_N`, the place of each
    passage's id among all ids ascending, the last first; by default by row. `queries` (Q, D) and `passages`
    (N, D) are arrays or tensors on one device, and may be memory-mapped; workspace is O(tile).

    Raises ValueError for `k` below 1, for shapes that do not match, and for embeddings that are not finite or
    so large that scores overflow.
    """
    query_QD = matrix_of(rows_of(queries, "queries"), "queries")
    passage_ND = matrix_of(rows_of(passages, "passages"), "passages")
    _check(query_QD, passage_ND, k)
    k, threads = min(k, len(passage_ND)), torch.get_num_threads()
    kernels = kernels_of(query_QD, passage_ND)
    check_scores_finite(kernels, query_QD, passage_ND, threads)
    order = np.arange(len(passage_ND)) if order_N is None else np.asarray(order_N, np.int64)
    row_of = np.empty_like(order)
    row_of[order] = np.arange(len(order))
    rows_QK, scores_QK = np.empty((len(query_QD), k), np.int64), np.empty((len(query_QD), k), np.float32)
    if not rows_QK.size:
        return rows_QK, scores_QK
    if isinstance(query_QD, torch.Tensor) and isinstance(passage_ND, torch.Tensor):
        return on_device(query_QD, passage_ND, k, order, row_of, progress)
    last_first, nobody = np.ascontiguousarray(row_of[::-1]), np.empty(0, np.int64)
    for some in _blocks(len(query_QD), QUERIES, progress):
        scores_QK[some], rows_QK[some] = kernels.top_k(
            query_QD[some], passage_ND, last_first, nobody, nobody, nobody, k, True, threads
        )
    return rows_QK, scores_QK


def on_device(
    queries: torch.Tensor,
    passages: torch.Tensor,
    k: int,
    order_N: NDArray[np.int64],
    row_of: NDArray[np.int64],
    progress: bool = False,
) -> TopK:
    """:func:`top_k` by torch. Equal passages are scored once: a product may give them unlike scores."""
    order = torch.as_tensor(order_N, device=passages.device)
    tiles = [
        [torch.as_tensor(rows, device=passages.device) for rows in tile]
        for tile in _tiles(_equal_rows(passages), PASSAGE_TILE)
    ]
    best = []
    for some in _blocks(len(queries), QUERY_TILE, progress):
        block = queries[some].float()
        keys = torch.empty((len(block), 0), dtype=torch.int64, device=block.device)
        for unique, members, of_unique in tiles:
            scores = block @ passages[unique].float().T
            places = order[members]
            for copies, at in zip(of_unique.split(PASSAGE_TILE), places.split(PASSAGE_TILE), strict=True):
                # + 0.0: -0 equals 0.
                found = _flipped((scores[:, copies] + 0.0).view(torch.int32)).long() << 32 | at
                keys = torch.cat([keys, found], dim=1)
                keys = keys.topk(min(k, keys.shape[1]), dim=1).values
        best.append(keys.cpu())
    keys_QK = torch.cat(best)
    scores_QK = _flipped((keys_QK >> 32).int()).view(torch.float32)
    return row_of[(keys_QK & 0xFFFFFFFF).numpy()], scores_QK.numpy()


def _blocks(rows: int, step: int, progress: bool) -> Iterator[slice]:
    hidden = None if progress else True
    for first in tqdm(range(0, rows, step), desc="top passages", disable=hidden):
        yield slice(first, first + step)


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
    query_QD, passage_ND = rows_of(queries, "queries"), rows_of(passages, "passages")
    _check(query_QD, passage_ND, k)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"index {index} needs the package faiss-cpu: pip install 'hybridfast[index]'"
        ) from error

    rows, asked = (
        np.ascontiguousarray(x.float().cpu().numpy() if isinstance(x, torch.Tensor) else x, np.float32)
        for x in (passage_ND, query_QD)
    )
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


def _equal_rows(passages: torch.Tensor) -> NDArray[np.int64]:
    """(N,) the number of each row's content, by first appearance."""
    number: dict[bytes, int] = {}
    copies = np.empty(len(passages), np.int64)
    for begin in range(0, len(passages), 65536):
        rows = passages[begin : begin + 65536].cpu().contiguous()
        content = rows.view(torch.uint8).numpy()
        for i, row in enumerate(content):
            digest = hashlib.blake2b(row, digest_size=16).digest()
            copies[begin + i] = number.setdefault(digest, len(number))
    return copies


def _tiles(
    copies: NDArray[np.int64], width: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Passages in tiles of `width` contents: a row of each content, all rows, and the content of each."""
    by_content = np.argsort(copies, kind="stable")
    starts = np.flatnonzero(np.diff(copies[by_content], prepend=-1))
    tiles = []
    for begin in range(0, len(starts), width):
        first = starts[begin : begin + width]
        stop = starts[begin + width] if begin + width < len(starts) else len(copies)
        members = by_content[first[0] : stop]
        tiles.append((by_content[first], members, copies[members] - begin))
    return tiles


def _flipped(bits: torch.Tensor) -> torch.Tensor:
    """From the bits of float32 to integers in the order of the floats, and back."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def rows_of(values: ArrayLike | torch.Tensor, name: str) -> NDArray[Any] | torch.Tensor:
    """An array or tensor of at most float32; copied only if it was wider.

    Raises ValueError for other than (rows, D) floats.
    """
    rows = values.detach() if isinstance(values, torch.Tensor) else np.asarray(values)
    if rows.ndim != 2 or "float" not in str(rows.dtype):
        raise ValueError(f"{name} must be (rows, D) floats, got {tuple(rows.shape)} {rows.dtype}")
    if rows.dtype not in (torch.float64, np.float64):
        return rows
    return rows.float() if isinstance(rows, torch.Tensor) else rows.astype(np.float32)


def _check(queries: Any, passages: Any, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(
            "queries and passages must be equally wide, "
            f"got {tuple(queries.shape)} and {tuple(passages.shape)}"
        )
