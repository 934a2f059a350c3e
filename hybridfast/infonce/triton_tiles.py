# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the Triton kernels of InfoNCE and of ranks share: tiles, their inner products, and how to launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridfast.infonce.blocks import Block


class Tiles(NamedTuple):
    """What a program works on at a time: queries, passages and dimensions; its warps and pipeline stages."""

    queries: int
    passages: int
    dims: int
    warps: int
    stages: int


# Hopper's tensor cores want the largest tiles whose products fit the registers; half of that fits any GPU's
# shared memory. True float32 products run on the ordinary units.
HOPPER_HALF, HALF = Tiles(256, 128, 64, 8, 4), Tiles(128, 128, 32, 8, 3)
TF32, FLOAT32 = Tiles(128, 128, 32, 8, 3), Tiles(64, 64, 32, 4, 3)


@triton.jit
def tile_products(
    queries, passages, at_rows, at_columns, D, query_stride, passage_stride,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The inner products of some queries with some passages, summed in float32."""
    dims = tl.arange(0, BLOCK_D)
    at_q = queries + at_rows.to(tl.int64)[:, None] * query_stride + dims[None, :]
    at_p = passages + at_columns.to(tl.int64)[None, :] * passage_stride + dims[:, None]
    products = tl.zeros((BLOCK_Q, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_D):
        q = tl.load(at_q + start, mask=(dims < D - start)[None, :], other=0.0)
        p = tl.load(at_p + start, mask=(dims < D - start)[:, None], other=0.0)
        products = tl.dot(q, p, products, input_precision=PRECISION)
    return products


def precision() -> str:
    """How float32 products are formed, as torch is set to form its own."""
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # from torch 2.9
    tf32 = torch.backends.cuda.matmul.allow_tf32 if setting is None else setting == "tf32"
    return "tf32" if tf32 else "ieee"


def tiles_of(block: Block) -> Tiles:
    """As large as the products' dtype and the GPU allow."""
    if block.queries.dtype == torch.float32:
        return TF32 if precision() == "tf32" else FLOAT32
    device = block.queries.device
    hopper = device.type == "cuda" and torch.version.hip is None
    hopper = hopper and torch.cuda.get_device_capability(device)[0] == 9
    return HOPPER_HALF if hopper and not block.by_group else HALF  # by group, there is more to hold


def launch(kernel: Any, programs: int, tiles: Tiles, *arguments: Any, **constants: Any) -> None:
    """Run a kernel that works by tiles, on the device of its first argument, a tensor."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](
            *arguments,
            BLOCK_Q=tiles.queries,
            BLOCK_N=tiles.passages,
            BLOCK_D=tiles.dims,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            **constants,
        )


def as_rows(rows: Tensor) -> Tensor:
    """Rows whose dimensions are next to each other; Triton's interpreter has no products of bfloat16."""
    if rows.device.type == "cpu" and rows.dtype == torch.bfloat16:
        rows = rows.float()
    return rows if rows.stride(1) == 1 else rows.contiguous()
