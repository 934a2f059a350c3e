"""Dropout as a function: its masks, their statistics, and where it reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoder.philox import keeps, philox
from torch.nn import functional

from hybridfast._core import dropout
from hybridfast.encoder.dropout import Dropout, out_of_reach
from hybridfast.encoder.texts import Texts

KEY = 0x123456789ABCDEF0


def test_the_reference_is_philox() -> None:
    """The paper's own test vectors."""
    ones = [np.array([0xFFFFFFFF], np.uint64)] * 4
    got = [int(word[0]) for word in philox(0xFFFFFFFFFFFFFFFF, ones)]
    assert got == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    zeros = [np.zeros(1, np.uint64)] * 4
    assert [int(word[0]) for word in philox(0, zeros)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("threads", [1, 2])
def test_masks_are_the_function(threads: int) -> None:
    rows, heads, first = np.array([3, 2**33 + 5, 7, 8]), np.array([0, 2, 3, 1]), np.array([0, 5, 131, -40])
    values = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    out = np.empty_like(values)
    dropout(values, rows, heads, first, (KEY, 6554, 1.25), out, threads)
    for row in range(3):
        kept = keeps(KEY, 6554, int(rows[row]), int(heads[row]), int(first[row]), 300)
        np.testing.assert_array_equal(out[row], np.where(kept, values[row] * np.float32(1.25), 0))
    np.testing.assert_array_equal(out[3, :40], values[3, :40])
    kept = keeps(KEY, 6554, 8, 1, 0, 260)
    np.testing.assert_array_equal(out[3, 40:], np.where(kept, values[3, 40:] * np.float32(1.25), 0))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_have_the_mean_and_variance_of_independent_draws(p: float) -> None:
    """Of a million entries; and no two of rows, columns, steps or sites tell of each other (5 sigma)."""
    texts = Texts(np.full(64, 64), packed=True)
    masks = []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        mode = Dropout(seed, step, texts)
        if len(masks) == 1:
            mode.key(p)  # another site of the same step
        with mode:
            masks.append(functional.dropout(torch.ones(1, 4096, 256), p)[0].double())
    size = masks[0].numel()
    scale = 1 / (1 - p)
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0, scale], rel=1e-4)
        assert abs(mask.mean() - 1) < 5 * (p * scale / size) ** 0.5
        assert abs(mask.var() - p * scale) < 5 * abs(1 - 2 * p) * scale**1.5 * (p / size) ** 0.5 + 1e-3
        # Rows' and columns' means vary as those of independent entries do.
        for axis, count in ((0, 4096), (1, 256)):
            spread = mask.mean(dim=axis).var() / (p * scale / count)
            others = size // count
            assert abs(spread - 1) < 5 * (2 / others) ** 0.5
    centred = [(mask - mask.mean()).flatten() / mask.std() for mask in masks]
    pairs = [(a, b) for i, a in enumerate(centred) for b in centred[:i]]
    square = centred[0].view(4096, 256)
    pairs += [(square[:, :-lag], square[:, lag:]) for lag in (1, 16, 64, 128)]
    pairs += [(square[:-lag], square[lag:]) for lag in (1, 2, 64)]
    for one, other in pairs:
        assert abs(float((one * other).mean())) < 5 / one.numel() ** 0.5


def test_masks_do_not_depend_on_how_texts_are_laid_out() -> None:
    """Packed, padded either way, alone or with others: a token's values are dropped alike."""
    lengths_B, places_B = np.array([3, 5]), np.array([70, 11])

    def dropped(texts: Texts, shape: tuple[int, ...]) -> torch.Tensor:
        with Dropout(3, 4, texts):
            return functional.dropout(torch.ones(shape), 0.5)

    packed = dropped(Texts(lengths_B, places_B, packed=True), (1, 8, 40))[0]
    right = dropped(Texts(lengths_B, places_B), (2, 5, 40))
    left = dropped(Texts(lengths_B, places_B, left=True), (2, 5, 40))
    alone = dropped(Texts(lengths_B[1:], places_B[1:], packed=True), (1, 5, 40))[0]
    assert torch.equal(right[0, :3], packed[:3])
    assert torch.equal(left[0, 2:], packed[:3])
    assert torch.equal(right[1], packed[3:])
    assert torch.equal(left[1], packed[3:])
    assert torch.equal(alone, packed[3:])
    pairs = dropped(Texts(lengths_B, places_B), (2, 4, 5, 5))
    shifted = dropped(Texts(lengths_B, places_B, left=True), (2, 4, 5, 5))
    assert torch.equal(pairs[0, :, :3, :3], shifted[0, :, 2:, 2:])
    assert torch.equal(pairs[1], shifted[1])
    by_text = dropped(Texts(lengths_B, places_B), (2, 64))
    assert torch.equal(by_text[1:], dropped(Texts(lengths_B[1:], places_B[1:]), (1, 64)))


def test_gradients_are_dropped_alike() -> None:
    values = torch.randn(1, 6, 20, requires_grad=True)
    with Dropout(0, 0, Texts(np.array([6]), packed=True)):
        out = functional.dropout(values, 0.3)
    out.sum().backward()
    torch.testing.assert_close(values.grad * values, out)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (False, True), (True, False)])
def test_torch_attention_with_dropout_is_its_formula(causal: bool, masked: bool) -> None:
    """The share of each pair that is kept is that of dropout on the weights."""
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = torch.rand(2, 1, 6, 6) > 0.2 if masked else None
    if mask is not None:
        mask |= torch.eye(6, dtype=torch.bool)
    texts = Texts(np.array([6, 6]))
    options = {"attn_mask": mask, "is_causal": causal, "scale": 0.2}
    with Dropout(0, 0, texts):
        got = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.25, **options)
    identity = torch.eye(6).expand(2, 4, 6, 6)  # the weights themselves
    weights = functional.scaled_dot_product_attention(q, k, identity, **options)
    with Dropout(0, 0, texts):
        wanted = functional.dropout(weights, 0.25) @ v
    torch.testing.assert_close(got, wanted)


def test_nothing_is_dropped_in_evaluation_or_outside() -> None:
    layer, values = torch.nn.Dropout(0.5), torch.ones(1, 4, 8)
    texts = Texts(np.array([4]), packed=True)
    layer.eval()
    with Dropout(0, 0, texts):
        assert torch.equal(layer(values), values)
    layer.train()
    with Dropout(0, 0, texts):
        inside = layer(values)
    torch.manual_seed(0)
    assert not torch.equal(layer(values), inside)


def test_what_is_out_of_reach_is_named() -> None:
    model = torch.nn.Sequential(
        torch.nn.LSTM(4, 4, 2, dropout=0.1),
        torch.nn.Dropout(0.1),
        torch.nn.Dropout1d(0.1),
        torch.nn.MultiheadAttention(4, 2, dropout=0.1),
    )
    assert out_of_reach(model) == ["0", "2", "3"]
    mode = Dropout(0, 0, Texts(np.array([4]), packed=True))
    with mode:
        functional.dropout(torch.ones(3, 2, 2, 2, 2), 0.5)
    assert mode.depends_on_chunks == {"values of shape (3, 2, 2, 2, 2)"}
