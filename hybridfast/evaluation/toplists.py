"""The first passages of every query, exactly, in one pass over tiles of scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

__all__ = ["TopLists", "top_lists"]

_QUERIES, _PASSAGES = 512, 16_384  # of one tile: 32 MB of scores


@dataclass(frozen=True)
class TopLists:
    """The K best passages of each query among all languages, and who else has the score of the last of them.

    ``rows_QK`` are passage rows by descending score, equal scores by descending row, -1 where a list is
    shorter; ``scores_QK`` their scores, -inf there. ``passage_languages_N`` numbers each passage's language.
    ``beyond_QL`` counts the passages of each language that tie with a list's last score and found no place in
    it: which of them did is chance, and measures of a list take that into account.
    """

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    beyond_QL: NDArray[np.int64]
    passage_languages_N: NDArray[np.int64]

    @property
    def languages_QK(self) -> NDArray[np.int64]:
        """The language of each place; -1 where a list is shorter."""
        return np.where(self.rows_QK < 0, -1, self.passage_languages_N[self.rows_QK])

    @property
    def chance_QK(self) -> NDArray[np.bool_]:
        """Places whose passage is there by chance: those that tie with passages beyond the list."""
        last_Q1 = self.scores_QK[:, -1:]
        return (self.scores_QK == last_Q1) & (self.beyond_QL.sum(axis=1) > 0)[:, None]

    def renumbered(self, rows_N: NDArray[np.int64]) -> TopLists:
        """The lists with passage row n called ``rows_N[n]``; the order within them stays."""
        languages_N = np.empty_like(self.passage_languages_N)
        languages_N[rows_N] = self.passage_languages_N
        rows_QK = np.where(self.rows_QK < 0, -1, rows_N[self.rows_QK])
        return replace(self, rows_QK=rows_QK, passage_languages_N=languages_N)


def top_lists(
    queries: ArrayLike | torch.Tensor,
    passages: ArrayLike | torch.Tensor,
    k: int,
    passage_languages: ArrayLike,
    languages: int,
) -> TopLists:
    """Search by brute force: inner products in float32, on the device where the embeddings are.

    `queries` (Q, D) and `passages` (N, D) are floating; `passage_languages` (N,) is below `languages`. Equal
    passages get equal scores, which a matrix product does not promise: each is scored once. Memory is some
    150 MB beyond the lists, whatever Q x N.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    query_rows, passage_rows = torch.as_tensor(queries), torch.as_tensor(passages)
    device = query_rows.device
    language_N = torch.as_tensor(np.asarray(passage_languages, np.int64), device=device)
    k = min(k, len(passage_rows))
    # One place more than asked for: what stands there tells whether a list's end is a matter of chance.
    rows_QK = torch.full((len(query_rows), k + 1), -1, device=device)
    scores_QK = torch.full((len(query_rows), k + 1), -torch.inf, device=device)
    beyond_QL = torch.zeros((len(query_rows), languages), dtype=torch.int64, device=device)
    for unique, members, of_unique in _tiles(_equal_rows(passage_rows), _PASSAGES):
        tile = passage_rows[unique].float().T
        spread = torch.as_tensor(of_unique, device=device) if len(members) > len(unique) else None
        member_rows = torch.as_tensor(members, device=device)
        height = max(1, min(_QUERIES, _QUERIES * _PASSAGES // len(members)))
        for begin in range(0, len(query_rows), height):
            block = slice(begin, begin + height)
            scores = _product(query_rows[block].float(), tile)
            if spread is not None:
                scores = scores[:, spread]
            _merge(rows_QK[block], scores_QK[block], beyond_QL[block], scores, member_rows, language_N)
    rows, values = rows_QK[:, :k].cpu().numpy(), scores_QK[:, :k].cpu().numpy()
    order_QK = np.lexsort((-rows, -values), axis=1)
    return TopLists(
        np.take_along_axis(rows, order_QK, axis=1),
        np.take_along_axis(values, order_QK, axis=1),
        beyond_QL.cpu().numpy(),
        language_N.cpu().numpy(),
    )


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.device.type != "cpu":
        return left @ right
    # By OpenBLAS, which on AMD's CPUs takes two thirds of the time of torch's library.
    return torch.from_numpy(left.numpy() @ right.numpy())


def _merge(
    rows: torch.Tensor,
    values: torch.Tensor,
    beyond: torch.Tensor,
    scores: torch.Tensor,
    members: torch.Tensor,
    languages: torch.Tensor,
) -> None:
    """Put a tile's scores into the lists of its queries, in place."""
    k = rows.shape[1] - 1
    new, at = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    all_values, all_rows = torch.cat([values, new], dim=1), torch.cat([rows, members[at]], dim=1)
    merged, kept = all_values.topk(k + 1, dim=1)
    merged_rows = all_rows.gather(1, kept)
    last = merged[:, k - 1 : k]
    # Passages seen before that tie with a last score that has risen stood above the old one: all are listed.
    beyond[values[:, k - 1] < last[:, 0]] = 0
    some = torch.nonzero((merged[:, k] == last[:, 0]) & last[:, 0].isfinite())[:, 0]
    for listed, where, sign in (
        (values[:, :k], rows, 1),
        (scores, members, 1),
        (merged[:, :k], merged_rows, -1),
    ):
        query, place = torch.nonzero(listed[some] == last[some], as_tuple=True)
        tied = where[place] if where.ndim == 1 else where[some][query, place]
        one = torch.full((len(tied),), sign, dtype=torch.int64, device=tied.device)
        beyond.index_put_((some[query], languages[tied]), one, accumulate=True)
    rows.copy_(merged_rows)
    values.copy_(merged)


def _equal_rows(passages: torch.Tensor) -> NDArray[np.int64]:
    """(N,) the number of each row's content, by first appearance."""
    number: dict[int, int] = {}
    copies = np.empty(len(passages), np.int64)
    for begin in range(0, len(passages), 65536):
        rows = passages[begin : begin + 65536].cpu().contiguous()
        content = rows.view(torch.uint8).numpy()
        for i, row in enumerate(content):
            copies[begin + i] = number.setdefault(hash(row.tobytes()), len(number))
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
