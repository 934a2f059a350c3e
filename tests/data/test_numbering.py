"""Numbers of items and groups against dictionaries; buckets hold few rows, so that ids meet again in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data import numbering
from hybridfast.data.numbering import number
from hybridfast.data.spool import Store


def by_dictionaries(rows: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    """Item, group and repeat of rows (id, language)."""
    items: dict[int, int] = {}
    seen: Counter[tuple[int, int]] = Counter()
    repeats = []
    for row in rows:
        items.setdefault(row[0], len(items))
        repeats.append(seen[row])
        seen[row] += 1
    later: dict[tuple[int, int], int] = {}
    groups = [
        items[item] if not repeat else later.setdefault((item, repeat), len(items) + len(later))
        for (item, _), repeat in zip(rows, repeats, strict=True)
    ]
    return [items[item] for item, _ in rows], groups, repeats


@pytest.mark.parametrize(("bucket", "held"), [(3, 0), (3, 100), (1 << 22, 100)])
@pytest.mark.parametrize("bits", [64, 1])
def test_numbers_are_those_of_dictionaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int, held: int, bits: int
) -> None:
    """With one bit, half of all ids have the first 64 bits of their hashes in common."""
    monkeypatch.setattr(numbering, "BUCKET", bucket)
    monkeypatch.setattr(numbering, "HELD", held)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=40), st.integers(1, 7)
    )
    def check(rows: list[tuple[int, int]], size: int) -> None:
        keys = np.random.default_rng(0).integers(0, 2**63, (9, 2), np.uint64)
        keys[:, 0] >>= np.uint64(63 - bits if bits == 1 else 0)
        hash_V2 = keys[[item for item, _ in rows]]
        language_V = np.array([language for _, language in rows], np.int32)
        chunks = (hash_V2[start : start + size] for start in range(0, len(rows), size))
        numbers = number(chunks, language_V, 3, Store(tmp_path))
        item, group, repeat = by_dictionaries(rows)
        assert numbers.item_V.tolist() == item
        assert numbers.group_V.tolist() == group
        assert numbers.repeat_V.tolist() == repeat
        assert (numbers.items, numbers.groups) == (max(item) + 1, max(group) + 1)
        assert (numbers.group_V is numbers.item_V) == (not any(repeat))

    check()
    assert list(tmp_path.iterdir()) == []  # no bucket stays on disk
