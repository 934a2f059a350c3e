"""The native attention of packed texts against its formula in float64, with and without dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from encoder.philox import keeps
from torch import Tensor

from hybridfast._core import attend
from hybridfast.encoder.attention import FAR, _Attend
from hybridfast.encoder.texts import Texts

KEY = 0x123456789ABCDEF0


def by_formula(
    tensors: list[Tensor], texts: Texts, before: int, after: int, scale: float, dropped: int
) -> Tensor:
    queries, keys, values = tensors
    heads, outs = queries.shape[1], []
    for begin, end, place in zip(texts.starts_B1, texts.starts_B1[1:], texts.places_B, strict=False):
        length = int(end - begin)
        q, k, v = (t[begin:end].transpose(0, 1) for t in (queries, keys, values))
        k, v = (t.repeat_interleave(heads // t.shape[0], 0) for t in (k, v))
        distance = torch.arange(length) - torch.arange(length)[:, None]
        unseen = (distance < -before) | (distance > after)
        shares = (q @ k.transpose(1, 2) * scale).masked_fill(unseen, -math.inf).softmax(-1)
        if dropped:
            width = -(-length // 32) * 32
            kept = [keeps(KEY, dropped, int(place), head + 1, 0, length * width) for head in range(heads)]
            kept_HLL = np.stack(kept).reshape(heads, length, width)[..., :length]
            shares = shares * torch.from_numpy(kept_HLL) * (65536 / (65536 - dropped))
        outs.append((shares @ v).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("dropped", [0, 6554])
@pytest.mark.parametrize(
    ("lengths", "heads", "key_heads", "dim", "before", "after"),
    [
        ([5, 40, 1, 0, 64], 4, 4, 32, FAR, FAR),  # BERT
        ([33, 7], 4, 2, 16, FAR, 0),  # a decoder that shares keys
        ([100, 300], 2, 1, 64, 20, 20),  # a window, over several blocks of queries
        ([700, 10], 2, 2, 8, 30, 0),
        ([513], 1, 1, 50, FAR, FAR),  # a width that no register divides
    ],
)
def test_attention_and_its_gradients_are_the_formula(
    lengths: list[int], heads: int, key_heads: int, dim: int, before: int, after: int, dropped: int
) -> None:
    texts = Texts(np.array(lengths), np.cumsum(lengths) + 2**33, packed=True)
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    shapes = [(tokens, heads, dim), (tokens, key_heads, dim), (tokens, key_heads, dim)]
    wide = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    single = [tensor.detach().float().requires_grad_() for tensor in wide]
    key = (KEY, dropped, 65536 / (65536 - dropped)) if dropped else None
    scale = dim**-0.5
    wanted = by_formula(wide, texts, before, after, scale, dropped)
    got = _Attend.apply(*single, texts, before, after, scale, key)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=3e-6)
    gradient = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    wanted.backward(gradient)
    got.backward(gradient.float())
    for one, other in zip(single, wide, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=5e-6)


def test_heads_may_lie_anywhere() -> None:
    """As linear layers and rotary embeddings leave them: by token or by head."""
    texts = Texts(np.array([9, 4]), packed=True)
    by_head = [torch.randn(3, 13, 8) for _ in range(3)]
    wanted = _Attend.apply(*(t.transpose(0, 1).contiguous() for t in by_head), texts, FAR, FAR, 0.3, None)
    got = _Attend.apply(*(t.transpose(0, 1) for t in by_head), texts, FAR, FAR, 0.3, None)
    assert torch.equal(got, wanted)


def test_bfloat16_is_computed_in_float32() -> None:
    texts = Texts(np.array([9, 4]), packed=True)
    half = [torch.randn(13, 2, 8).bfloat16() for _ in range(3)]
    got = _Attend.apply(*half, texts, FAR, FAR, 0.3, None)
    wanted = _Attend.apply(*(t.float() for t in half), texts, FAR, FAR, 0.3, None)
    assert torch.equal(got, wanted.bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": np.zeros((4, 2, 8), np.float64)}, "queries must be float32"),
        ({"keys": np.zeros((4, 2, 4), np.float32)}, "differ in heads or width"),
        ({"keys": np.zeros((3, 2, 8), np.float32)}, "keys must be float32"),
        ({"starts": np.array([0, 3, 2, 4])}, "starts must"),
        ({"starts": np.array([1, 4])}, "starts must begin with 0"),
        ({"out": np.zeros((4, 1, 8), np.float32)}, "out has another shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    inputs = {name: np.zeros((4, 2, 8), np.float32) for name in ("queries", "keys", "values", "out")}
    inputs |= {"starts": np.array([0, 4]), "places": np.array([0])} | changes
    with pytest.raises(ValueError, match=message):
        attend(**inputs, before=9, after=9, scale=1.0, dropout=None, threads=1)
