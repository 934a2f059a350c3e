"""Which entries dropout keeps, by Philox4x32-10 in NumPy: another program for the same function."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(key: int, counter: list[NDArray[np.uint64]]) -> list[NDArray[np.uint64]]:
    """Salmon et al., 2011, figure 3."""
    c, keys = counter, [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (b >> HALF) ^ c[1] ^ np.uint64(keys[0]),
            b & LOW,
            (a >> HALF) ^ c[3] ^ np.uint64(keys[1]),
            a & LOW,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def keeps(key: int, dropped: int, row: int, head: int, first: int, count: int) -> NDArray[np.bool_]:
    """Of entries first, first + 1, ...: entry 64 h + 16 w + l of a group of 128 is half h of word w."""
    entry = np.arange(first, first + count, dtype=np.uint64)
    group, rest = np.divmod(entry, np.uint64(128))
    lane, word, half = rest % 16, rest % 64 // 16, rest // 64
    fixed = [np.full_like(entry, value) for value in (head, row & 0xFFFFFFFF, row >> 32)]
    words = np.stack(philox(key, [group * np.uint64(16) + lane, *fixed]))
    bits = words[word.astype(int), np.arange(count)] >> (half * np.uint64(16)) & np.uint64(0xFFFF)
    return bits >= dropped
