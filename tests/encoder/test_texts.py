"""Which places of a chunk are whose, and how a batch is cut into chunks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridfast.encoder import texts
from hybridfast.encoder.texts import Texts, cut_into_chunks


@given(st.lists(st.integers(0, 300), min_size=1, max_size=80), st.integers(1, 700), st.booleans())
def test_chunks_hold_every_text_once_within_their_places(
    lengths: list[int], places: int, packed: bool
) -> None:
    lengths_B = torch.tensor(lengths)
    chunks = cut_into_chunks(lengths_B, places, packed=packed)
    assert sorted(row for rows in chunks for row in rows.tolist()) == list(range(len(lengths)))
    used = [int(lengths_B[rows].sum() if packed else len(rows) * lengths_B[rows].max()) for rows in chunks]
    assert all(len(rows) == 1 or size <= places for rows, size in zip(chunks, used, strict=True))
    if packed:  # at most one chunk more than must be, but for texts that fit nowhere
        assert len(chunks) <= 2 * (sum(lengths) // places + 1) + sum(length > places for length in lengths)
    longest = [int(lengths_B[rows].max()) for rows in chunks]
    assert longest == sorted(longest, reverse=True)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=9))
def test_no_other_cuts_cost_less(lengths: list[int]) -> None:
    """Against all ways to cut up to nine sorted texts, of at most 180 places a chunk."""
    ordered = sorted(lengths, reverse=True)

    def cost(chunks: list[list[int]]) -> int:
        return sum(len(chunk) * chunk[0] + texts.CPU_OVERHEAD for chunk in chunks)

    ways = []
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        ends = [*(i + 1 for i, cut in enumerate(cuts) if cut), len(ordered)]
        chunks = [ordered[a:b] for a, b in itertools.pairwise([0, *ends])]
        if all(len(chunk) * chunk[0] <= 180 or len(chunk) == 1 for chunk in chunks):
            ways.append(cost(chunks))
    lengths_B = torch.tensor(lengths)
    found = [lengths_B[rows].tolist() for rows in cut_into_chunks(lengths_B, 180, packed=False)]
    assert cost(found) == min(ways)


def test_a_token_has_the_same_place_however_its_text_is_laid_out() -> None:
    lengths_B, places_B = np.array([3, 1, 2]), np.array([100, 50, 7])
    wanted = [100, 101, 102, 50, 7, 8]
    assert Texts(lengths_B, places_B, packed=True).token_places.tolist() == wanted
    right = Texts(lengths_B, places_B).token_places.reshape(3, 3)
    left = Texts(lengths_B, places_B, left=True).token_places.reshape(3, 3)
    assert [*right[0], *right[1, :1], *right[2, :2]] == wanted
    assert [*left[0], *left[1, 2:], *left[2, 1:]] == wanted
    assert Texts(lengths_B, packed=True).token_places.tolist() == list(range(6))


@pytest.mark.parametrize("left", [False, True])
def test_pairs_of_tokens_have_the_places_that_packed_attention_gives_them(left: bool) -> None:
    """Entry 32 i + j of a text's square of fewer than 33 tokens, in a tensor padded to 5."""
    lengths_B = np.array([5, 2])
    rows, heads, first = (
        array.reshape(2, 3, 5) for array in Texts(lengths_B, np.array([40, 9]), left=left).pair_places(3)
    )
    assert (rows == np.array([40, 9])[:, None, None]).all()
    assert (heads == np.array([1, 2, 3])[None, :, None]).all()
    shift = 3 if left else 0
    for i in range(2):
        # Of the second text's query i: the entry of its key 0, `shift` places into the row.
        assert first[1, 0, shift + i] + shift == 32 * i
    assert first[0, 2].tolist() == [0, 32, 64, 96, 128]
