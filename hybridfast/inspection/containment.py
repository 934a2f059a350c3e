"""Which of many texts stand inside others: found by a rolling hash of their first bytes, compared then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["WINDOW", "Contained"]

WINDOW = 32  # bytes of UTF-8 that a text has at least: six English words, ten Chinese characters
SPAN = 4 << 20  # bytes looked at together; their hashes take eight times as much
BASE = 0x9E3779B97F4A7C15  # odd, and its powers are well spread
BITS = 20  # of a hash, that a table knows: what it does not is not looked for


class Contained:
    """Texts to look for.

    Args:
        texts: distinct ones; those of fewer than `WINDOW` bytes are never found.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.names = texts
        encoded = [text.encode() for text in texts]
        self.index = np.array([i for i, text in enumerate(encoded) if len(text) >= WINDOW], np.int64)
        heads = np.array([_rolling(encoded[i][:WINDOW])[0] for i in self.index], np.uint64)
        order = np.argsort(heads, kind="stable")
        self.index, self.heads = self.index[order], heads[order]
        self.texts = [encoded[i] for i in self.index]
        self.known = np.zeros(1 << BITS, bool)
        self.known[self.heads >> np.uint64(64 - BITS)] = True

    def within(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Pairs of a text here and a longer one there, (which text it is inside of, which was looked for).

        No text may hold a line break.
        """
        begin = 0
        while begin < len(texts):
            size, end = 0, begin
            while end < len(texts) and (end == begin or size < SPAN):
                size, end = size + 1 + len(texts[end].encode()), end + 1
            yield from self._within(texts[begin:end], begin)
            begin = end

    def _within(self, texts: Sequence[str], begin: int) -> Iterator[tuple[int, int]]:
        encoded = [text.encode() for text in texts]
        data = b"\n".join(encoded)
        if not len(self.heads) or len(data) < WINDOW:
            return
        hashes = _rolling(data)
        places = np.flatnonzero(self.known[hashes >> np.uint64(64 - BITS)])
        first = np.searchsorted(self.heads, hashes[places])
        last = np.searchsorted(self.heads, hashes[places], side="right")
        starts = np.cumsum([0, *(1 + len(text) for text in encoded)])
        for hit in np.flatnonzero(last > first).tolist():
            place = int(places[hit])
            row = int(np.searchsorted(starts, place, side="right")) - 1
            for candidate in range(int(first[hit]), int(last[hit])):
                text = self.texts[candidate]
                if len(text) < len(encoded[row]) and data.startswith(text, place):
                    yield begin + row, int(self.index[candidate])


def _rolling(data: bytes) -> NDArray[np.uint64]:
    """A polynomial hash of every window, modulo 2**64, by doubling its width."""
    hashes = np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)
    width, factor = 1, BASE
    while width < WINDOW:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**64
    return hashes * np.uint64(BASE)  # whose upper bits all bytes decide
