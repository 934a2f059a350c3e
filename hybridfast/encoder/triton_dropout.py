# mypy: allow-untyped-defs, allow-incomplete-defs
"""The same masks on a GPU: a group of 128 entries takes 16 counters, each of which gives eight of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["dropout"]

GROUPS = 4  # of a program


@triton.jit
def _drop(
    values_ptr,
    out_ptr,
    rows_ptr,
    heads_ptr,
    first_ptr,
    columns,
    key,
    dropped,
    scale,
    HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(rows_ptr + row)
    head = tl.load(heads_ptr + row) if HEADS else place * 0
    first = tl.load(first_ptr + row) if FIRST else place * 0
    lane = tl.arange(0, 16)[None, :]
    # Entries count from `first`, in whole groups; below 0 they are padding's, and stay.
    group = (first >> 7) + tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None]
    counter = (group * 16 + lane).to(tl.uint32)
    zero = counter * 0
    words = tl.philox(
        key,
        counter,
        zero + head.to(tl.uint32),
        zero + (place & 0xFFFFFFFF).to(tl.uint32),
        zero + ((place >> 32) & 0xFFFFFFFF).to(tl.uint32),
    )
    for half in tl.static_range(2):
        for word in tl.static_range(4):
            entry = group * 128 + half * 64 + word * 16 + lane
            column = entry - first
            inside = (column >= 0) & (column < columns)
            at = row * columns + column
            value = tl.load(values_ptr + at, mask=inside, other=0.0)
            bits = ((words[word] >> (16 * half)) & 0xFFFF).to(tl.int32)
            kept = tl.where(bits >= dropped, value.to(tl.float32) * scale, 0.0).to(value.dtype)
            tl.store(out_ptr + at, tl.where(entry < 0, value, kept), mask=inside)


def dropout(
    values: Tensor,
    key: tuple[int, int, float],
    rows: Tensor,
    heads: Tensor | None,
    first: Tensor | None,
) -> Tensor:
    """Dropout of a tensor's rows, of any float dtype; otherwise as ``hybridfast._core.dropout``.

    Args:
        rows, heads, first: (R,) int64 where the values are, of each of their rows.
    """
    numbers, dropped, scale = key
    values = values.detach().contiguous()
    out = torch.empty_like(values)
    columns = values.numel() // max(1, len(rows))
    if not values.numel():
        return out
    groups = triton.cdiv(columns, 128) + (first is not None)
    _drop[(len(rows), triton.cdiv(groups, GROUPS))](
        values,
        out,
        *(rows if places is None else places for places in (rows, heads, first)),
        columns,
        numbers - (1 << 64) if numbers >= 1 << 63 else numbers,  # as int64, which Triton takes any number for
        dropped,
        scale,
        heads is not None,
        first is not None,
        GROUPS,
    )
    return out
