"""The texts that go through a model at once: which places of its tensors are theirs, and how they are cut."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Texts", "cut_into_chunks", "default_places"]

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

CPU_PLACES, GPU_PLACES = 2_048, 32_768  # of a chunk, at most
CPU_OVERHEAD, GPU_OVERHEAD = 64, 4_096  # of one more padded chunk, in places computed meanwhile


class Texts:
    """Texts in a tensor of tokens: packed, one after the other as (1, T, ...), or padded, as (B, L, ...).

    Args:
        lengths_B: tokens of each text.
        places_B: of each text's first token in the whole batch, whose texts lie side by side. Default: as if
            these were all.
        packed: without padding.
        left: padding comes before a text.
    """

    def __init__(
        self,
        lengths_B: NDArray[np.int64],
        places_B: NDArray[np.int64] | None = None,
        *,
        packed: bool = False,
        left: bool = False,
    ) -> None:
        self.lengths_B, self.packed, self.left = lengths_B, packed, left
        self.starts_B1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_B)])
        self.places_B = self.starts_B1[:-1].copy() if places_B is None else places_B
        self._pairs: dict[int, Pairs] = {}

    @property
    def count(self) -> int:
        return len(self.lengths_B)

    @cached_property
    def longest(self) -> int:
        return max(1, int(self.lengths_B.max(initial=1)))

    @cached_property
    def token_places(self) -> NDArray[np.int64]:
        """The place of each of the tensor's tokens in the batch: of T packed ones, or of (B * L)."""
        if self.packed:
            within_T = np.arange(self.starts_B1[-1]) - np.repeat(self.starts_B1[:-1], self.lengths_B)
            return np.repeat(self.places_B, self.lengths_B) + within_T
        return (self.places_B[:, None] + self._within_BL).ravel()

    @property
    def _within_BL(self) -> NDArray[np.int64]:
        """A padded place's distance from its text's first token; negative before it."""
        padding_B = self.longest - self.lengths_B if self.left else np.zeros_like(self.lengths_B)
        return np.arange(self.longest) - padding_B[:, None]

    def pair_places(self, heads: int) -> Pairs:
        """Of padded attention weights (B, heads, L, L), each row's text, head from 1, and first entry.

        Entry ``i * width + j`` is of a text's query i and key j, its width the length rounded up to 32; where
        padding comes first, so do entries below a row's own.
        """
        if heads in self._pairs:  # every layer asks anew
            return self._pairs[heads]
        width_B = -(-self.lengths_B // 32) * 32
        within_BL = self._within_BL
        first_BL = within_BL * width_B[:, None] + within_BL[:, :1]
        shape = (self.count, heads, self.longest)
        rows = np.broadcast_to(self.places_B[:, None, None], shape)
        heads_ = np.broadcast_to(np.arange(1, heads + 1)[None, :, None], shape)
        first = np.broadcast_to(first_BL[:, None], shape)
        self._pairs[heads] = rows.ravel(), heads_.ravel(), first.ravel()
        return self._pairs[heads]


def default_places(device: torch.device) -> int:
    """How many places a chunk has at most, unless somebody says otherwise."""
    return CPU_PLACES if device.type == "cpu" else GPU_PLACES


def cut_into_chunks(lengths_B: Tensor, places: int, *, packed: bool, on_cpu: bool = True) -> list[Tensor]:
    """Rows of texts with so many tokens, cut into chunks of so many places; the longest texts come first.

    So what does not fit the memory fails at once, and not hours later. A longer text goes alone. Packed
    chunks are about equal. Cuts of padded ones make the places, and an overhead for every chunk, as few as
    can be: shorter texts are worth a chunk of their own where padding them would cost more.
    """
    order_B = torch.argsort(lengths_B, descending=True, stable=True)
    sorted_B = lengths_B[order_B].numpy()
    if packed:
        cuts = _packed_cuts(sorted_B, places)
    else:
        cuts = _padded_cuts(sorted_B, places, CPU_OVERHEAD if on_cpu else GPU_OVERHEAD)
    return [order_B[begin:end] for begin, end in pairwise(cuts)]


def _packed_cuts(sorted_B: NDArray[np.int64], places: int) -> list[int]:
    total = int(sorted_B.sum())
    share = total / max(1, -(-total // places))
    cuts, used = [0], 0
    for row, length in enumerate(sorted_B.tolist()):
        # A chunk ends where its share is reached, or before what would not fit it.
        if row > cuts[-1] and (used + length > places or used + length / 2 > share):
            cuts.append(row)
            used = 0
        used += length
    return [*cuts, len(sorted_B)] if len(sorted_B) else [0]


def _padded_cuts(sorted_B: NDArray[np.int64], places: int, overhead: int) -> list[int]:
    count = len(sorted_B)
    least = np.full(count + 1, np.inf)  # cost of the first texts, up to each
    least[0] = 0
    begins = np.zeros(count + 1, np.int64)  # where the last chunk of that begins
    for first, length in enumerate(sorted_B.tolist()):
        rows = np.arange(1, 1 + min(count - first, max(1, places // max(1, length))))
        costs = least[first] + rows * length + overhead
        ends = slice(first + 1, first + 1 + len(rows))
        better = costs < least[ends]
        least[ends][better] = costs[better]
        begins[ends][better] = first
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return cuts[::-1]
