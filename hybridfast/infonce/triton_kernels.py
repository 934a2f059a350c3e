# mypy: allow-untyped-defs, allow-incomplete-defs
"""The kernels of InfoNCE on GPUs, in Triton.

Forward, one pass over tiles of logits: a program keeps the running log-sum-exp of its tile of queries in
registers while it walks the passages, and writes that of each passage over its queries; torch merges the
parts in a fixed order. Backward, a kernel forms d(objective)/d(product) for a chunk of queries, and library
products turn it into gradients (`gpu.py`); where the dimension is small, that matrix would be most of
the traffic, and two passes keep it on the chip. One direction with gradients needs no forward pass: a kernel
forms exponentials, and their sums, for a chunk of queries (`gpu.one_direction`).

Nothing is read out of bounds: rows past the last are read as the last and masked, dimensions past D are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridfast.infonce import gpu
from hybridfast.infonce.blocks import Block, Gradients, OneDirection, Sums, Weights
from hybridfast.infonce.triton_tiles import Tiles, as_rows, launch, precision, tile_products, tiles_of

LOG2_E = tl.constexpr(1.4426950408889634)
# Below this a sum may miss terms, since exp2 ends at 2^-126. Only the lowest temperatures get there.
FADED = tl.constexpr(2.0**-96)

SMALL_DIM = 128  # up to here the gradients of half-precision products are formed on the chip
SMALL_HALF = Tiles(128, 64, SMALL_DIM, 8, 2)


@triton.jit
def _row_ids(targets, query_groups, at_rows, N):
    """Of some queries the targets, -1 where they are no passage, and the groups."""
    target = tl.load(targets + at_rows)
    target = tl.where((target >= 0) & (target < N), target, -1).to(tl.int32)
    group = target
    if query_groups is not None:
        group = tl.load(query_groups + at_rows)
    return target, group


@triton.jit
def _pairs(rows, columns, target, group, passage_groups, excluded, Q, N, BY_GROUP: tl.constexpr):
    """Which pairs of some queries and passages are positive and which are negative."""
    at_columns = tl.minimum(columns, N - 1)
    positive = columns[None, :] == target[:, None]
    negative = ~positive
    if passage_groups is not None:
        alike = group[:, None] == tl.load(passage_groups + at_columns)[None, :]
        negative = negative & ~alike
        if BY_GROUP:
            positive = alike
            negative = ~alike
    if excluded is not None:
        negative = negative & (tl.load(excluded + at_columns) == 0)[None, :]
    inside = (rows < Q)[:, None] & (columns < N)[None, :]
    return positive & inside, negative & inside


@triton.jit
def _any(only, at_rows):
    """Whether a program has anything to do: `only` has the queries that are asked for, where not all are."""
    some = True
    if only is not None:
        some = tl.max(tl.load(only + at_rows).to(tl.int32)) > 0
    return some


@triton.jit
def _finite(top):
    """The maximum to subtract before exp2: 0 for that of nothing."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _sums_kernel(
    queries, passages, inverse, targets, query_groups, passage_groups, excluded,
    Q, N, D, query_stride, passage_stride,
    only, row_parts, column_parts, first_row, splits, tiles_each,
    BY_GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp over negatives, of a tile of queries over a split of the passages, and the converse.

    One exp2 a logit serves both: 2^(s_ij - top_i) is summed over j, and times 2^(top_i - peak) over i.
    """
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    rows = first_row + tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_rows = tl.minimum(rows, Q - 1)
    if not _any(only, at_rows):
        return
    target, group = _row_ids(targets, query_groups, at_rows, N)
    by_temperature = tl.load(inverse)
    scale = by_temperature * LOG2_E
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    last_tile = tl.minimum((split + 1) * tiles_each, tl.cdiv(N, BLOCK_N))
    for column_tile in range(split * tiles_each, last_tile):
        columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        products = tile_products(
            queries, passages, at_rows, tl.minimum(columns, N - 1), D, query_stride, passage_stride,
            BLOCK_Q, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        _, negative = _pairs(rows, columns, target, group, passage_groups, excluded, Q, N, BY_GROUP)
        products = tl.where(negative, products, float("-inf"))
        new_top = tl.maximum(top, tl.max(products, 1))
        shift = _finite(new_top)
        exps = tl.exp2((products - shift[:, None]) * scale)
        total = total * tl.exp2((top - shift) * scale) + tl.sum(exps, 1)
        top = new_top
        if column_parts is not None:
            peak = _finite(tl.max(top, 0))
            sums = tl.sum(exps * tl.exp2((top - peak) * scale)[:, None], 0)
            part = peak * by_temperature + tl.log(sums)
            if tl.min(tl.where(columns < N, sums, 1.0), 0) < FADED:
                own = _finite(tl.max(products, 0))
                part = own * by_temperature + tl.log(tl.sum(tl.exp2((products - own[None, :]) * scale), 0))
            # 64 bits: tiles times passages may pass 2^31.
            tl.store(column_parts + tile.to(tl.int64) * N + columns, part, mask=columns < N)
    tl.store(row_parts + split.to(tl.int64) * Q + rows, top * by_temperature + tl.log(total), mask=rows < Q)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """log(1 + e^x), where 1 + e^x may round to 1: log(u) / (u - 1) errs as little as u does."""
    e = tl.exp(-tl.abs(x))
    u = 1 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def _group_costs_kernel(
    queries, passages, inverse, targets, query_groups, passage_groups, excluded,
    Q, N, D, query_stride, passage_stride,
    margin, row_sums, column_sums, weights,
    row_parts, column_parts, first_row, splits, tiles_each,
    BY_GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What the positives of a tile of queries cost and weigh in a split of the passages."""
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    rows = first_row + tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_rows = tl.minimum(rows, Q - 1)
    target, group = _row_ids(targets, query_groups, at_rows, N)
    row_sum = tl.load(row_sums + at_rows)
    weight = tl.load(weights + at_rows)
    cost = tl.zeros((BLOCK_Q,), tl.float32)
    row_weight = tl.zeros((BLOCK_Q,), tl.float32)
    last_tile = tl.minimum((split + 1) * tiles_each, tl.cdiv(N, BLOCK_N))
    for column_tile in range(split * tiles_each, last_tile):
        columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        at_columns = tl.minimum(columns, N - 1)
        positive, _ = _pairs(rows, columns, target, group, passage_groups, excluded, Q, N, BY_GROUP)
        column_weight = tl.zeros((BLOCK_N,), tl.float32)
        if tl.max(positive.to(tl.int32)) > 0:  # most tiles hold none, and need no products
            products = tile_products(
                queries, passages, at_rows, at_columns, D, query_stride, passage_stride,
                BLOCK_Q, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            wanted = (products - margin) * tl.load(inverse)
            off = row_sum[:, None] - wanted
            cost += tl.sum(tl.where(positive, _softplus(off), 0.0), 1)
            row_weight += tl.sum(tl.where(positive, weight[:, None] * _sigmoid(off), 0.0), 1)
            if column_parts is not None:
                off = tl.load(column_sums + at_columns)[None, :] - wanted
                cost += tl.sum(tl.where(positive, _softplus(off), 0.0), 1)
                column_weight = tl.sum(tl.where(positive, weight[:, None] * _sigmoid(off), 0.0), 0)
        if column_parts is not None:
            tl.store(column_parts + tile.to(tl.int64) * N + columns, column_weight, mask=columns < N)
    tl.store(row_parts + split.to(tl.int64) * Q + rows, cost, mask=rows < Q)
    tl.store(row_parts + (splits + split).to(tl.int64) * Q + rows, row_weight, mask=rows < Q)


@triton.jit
def _exp_off(products, by_temperature, logsumexp):
    """e^(product / temperature - logsumexp), the difference rounded once."""
    return tl.exp2(tl.fma(products, by_temperature, -logsumexp) * LOG2_E)


@triton.jit
def _weights(
    products, rows, columns, at_rows, at_columns,
    inverse, targets, query_groups, passage_groups, excluded, Q, N,
    margin, row_sums, row_weights, column_sums, column_weights, weights, BY_GROUP: tl.constexpr,
):  # fmt: skip
    """d(objective)/d(product) of some pairs, whose products are given.

    `weights` are those of the queries' losses, or without groups of positives what their targets weigh.
    """
    target, group = _row_ids(targets, query_groups, at_rows, N)
    positive, negative = _pairs(rows, columns, target, group, passage_groups, excluded, Q, N, BY_GROUP)
    by_temperature = tl.load(inverse)
    row_sum = tl.load(row_sums + at_rows)
    row_weight = tl.load(row_weights + at_rows) * by_temperature
    weight = tl.load(weights + at_rows) * by_temperature
    formed = row_weight[:, None] * _exp_off(products, by_temperature, row_sum[:, None])
    column_sum = tl.zeros_like(columns).to(tl.float32)
    if column_sums is not None:
        column_sum = tl.load(column_sums + at_columns)
        column_weight = tl.load(column_weights + at_columns) * by_temperature
        formed += column_weight[None, :] * _exp_off(products, by_temperature, column_sum[None, :])
    formed = tl.where(negative, formed, 0.0)
    if BY_GROUP:
        if tl.max(positive.to(tl.int32)) > 0:  # few tiles hold any
            wanted = products - margin
            off = 1 / (1 + _exp_off(wanted, by_temperature, row_sum[:, None]))
            if column_sums is not None:
                off += 1 / (1 + _exp_off(wanted, by_temperature, column_sum[None, :]))
            formed = tl.where(positive, -weight[:, None] * off, formed)
    else:
        formed = tl.where(positive, -weight[:, None], formed)
    return formed


@triton.jit
def _tile(rows, N, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which tile a program has: those of one time share 16 tiles of queries, which the L2 cache keeps."""
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_Q), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    return tl.swizzle2d(program // column_tiles, program % column_tiles, row_tiles, column_tiles, 16)


@triton.jit
def _weights_kernel(
    queries, passages, inverse, targets, query_groups, passage_groups, excluded,
    Q, N, D, query_stride, passage_stride,
    margin, row_sums, row_weights, column_sums, column_weights, weights,
    only, out, out_stride, first_row, last_row,
    BY_GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """d(objective)/d(product) of the queries from first_row to last_row with all passages."""
    row_tile, column_tile = _tile(last_row - first_row, N, BLOCK_Q, BLOCK_N)
    rows = first_row + row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at_rows, at_columns = tl.minimum(rows, Q - 1), tl.minimum(columns, N - 1)
    if not _any(only, at_rows):
        return
    products = tile_products(
        queries, passages, at_rows, at_columns, D, query_stride, passage_stride,
        BLOCK_Q, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    formed = _weights(
        products, rows, columns, at_rows, at_columns,
        inverse, targets, query_groups, passage_groups, excluded, Q, N,
        margin, row_sums, row_weights, column_sums, column_weights, weights, BY_GROUP,
    )  # fmt: skip
    at_out = out + (rows - first_row).to(tl.int64)[:, None] * out_stride + columns[None, :]
    stored = rows < last_row
    if only is not None:
        stored = stored & (tl.load(only + at_rows) != 0)
    tl.store(at_out, formed.to(out.dtype.element_ty), mask=stored[:, None] & (columns < N)[None, :])


@triton.jit
def _exps_kernel(
    queries, passages, inverse, targets, query_groups, passage_groups, excluded,
    Q, N, D, query_stride, passage_stride,
    wanted, out, out_stride, row_parts,
    BY_GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """e^(product / temperature - wanted) of negatives, 0 of others, and a tile of passages' sums of it."""
    row_tile, column_tile = _tile(Q, N, BLOCK_Q, BLOCK_N)
    rows = row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    at_rows, at_columns = tl.minimum(rows, Q - 1), tl.minimum(columns, N - 1)
    products = tile_products(
        queries, passages, at_rows, at_columns, D, query_stride, passage_stride,
        BLOCK_Q, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    target, group = _row_ids(targets, query_groups, at_rows, N)
    _, negative = _pairs(rows, columns, target, group, passage_groups, excluded, Q, N, BY_GROUP)
    exps = _exp_off(products, tl.load(inverse), tl.load(wanted + at_rows)[:, None])
    exps = tl.where(negative, exps, 0.0)
    at_out = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at_out, exps.to(out.dtype.element_ty), mask=(rows < Q)[:, None] & (columns < N)[None, :])
    tl.store(row_parts + column_tile.to(tl.int64) * Q + rows, tl.sum(exps, 1), mask=rows < Q)


@triton.jit
def _gradient_kernel(
    queries, passages, inverse, targets, query_groups, passage_groups, excluded,
    Q, N, D, query_stride, passage_stride,
    margin, row_sums, row_weights, column_sums, column_weights, weights,
    grads, splits, tiles_each, OF_QUERIES: tl.constexpr,
    BY_GROUP: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries from a split of the passages, or the converse; all of D at once."""
    tile, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    dims = tl.arange(0, BLOCK_D)
    inside = (dims < D)[None, :]
    if OF_QUERIES:
        count, others = Q, tl.cdiv(N, BLOCK_N)
        own = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
        rows, at_rows = own, tl.minimum(own, Q - 1)
        q = tl.load(
            queries + at_rows.to(tl.int64)[:, None] * query_stride + dims[None, :], mask=inside, other=0.0
        )
        total = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    else:
        count, others = N, tl.cdiv(Q, BLOCK_Q)
        own = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        columns, at_columns = own, tl.minimum(own, N - 1)
        p = tl.load(
            passages + at_columns.to(tl.int64)[:, None] * passage_stride + dims[None, :],
            mask=inside,
            other=0.0,
        )
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for other in range(split * tiles_each, tl.minimum((split + 1) * tiles_each, others)):
        if OF_QUERIES:
            columns = other * BLOCK_N + tl.arange(0, BLOCK_N)
            at_columns = tl.minimum(columns, N - 1)
            p = tl.load(
                passages + at_columns.to(tl.int64)[:, None] * passage_stride + dims[None, :],
                mask=inside,
                other=0.0,
            )
        else:
            rows = other * BLOCK_Q + tl.arange(0, BLOCK_Q)
            at_rows = tl.minimum(rows, Q - 1)
            q = tl.load(
                queries + at_rows.to(tl.int64)[:, None] * query_stride + dims[None, :], mask=inside, other=0.0
            )
        formed = _weights(
            tl.dot(q, tl.trans(p), input_precision=PRECISION), rows, columns, at_rows, at_columns,
            inverse, targets, query_groups, passage_groups, excluded, Q, N,
            margin, row_sums, row_weights, column_sums, column_weights, weights, BY_GROUP,
        ).to(q.dtype)  # fmt: skip
        if OF_QUERIES:
            total = tl.dot(formed, p, total, input_precision=PRECISION)
        else:
            total = tl.dot(tl.trans(formed), q, total, input_precision=PRECISION)
    at_grads = grads + (split.to(tl.int64) * count + own)[:, None] * D + dims[None, :]
    tl.store(at_grads, total, mask=(own < count)[:, None] & inside)


def _launch(
    kernel: Any, programs: int, tiles: Tiles, block: Block, *arguments: Any, **constants: Any
) -> None:
    """Run a kernel whose first arguments are the block's."""
    queries, passages = (as_rows(rows) for rows in (block.queries, block.passages))
    by_groups = block.query_groups is not None and block.passage_groups is not None
    launch(
        kernel,
        programs,
        tiles,
        queries,
        passages,
        1 / block.temperature,  # formed once: a rounding that differs between kernels would not cancel
        block.targets.contiguous(),
        block.query_groups.contiguous() if block.query_groups is not None and by_groups else None,
        block.passage_groups.contiguous() if block.passage_groups is not None and by_groups else None,
        _flags(block.excluded),
        len(queries),
        len(passages),
        queries.shape[1],
        queries.stride(0),
        passages.stride(0),
        *arguments,
        BY_GROUP=block.by_group,
        PRECISION=precision(),
        **constants,
    )


def _flags(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def _sweep(
    kernel: Any,
    block: Block,
    merge: Callable[[Tensor, int], Tensor],
    nothing: float,
    outputs: int,
    columns: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """`gpu.sweep` by a kernel that takes such arguments."""
    tiles = tiles_of(block)

    def run(band: gpu.Band, row_parts: Tensor, column_parts: Tensor | None) -> None:
        programs = triton.cdiv(band.last - band.first, tiles.queries) * band.splits
        parts = (row_parts, column_parts, band.first, band.splits, band.tiles_each)
        _launch(kernel, programs, tiles, block, *arguments, *parts)

    tile = gpu.Tile(tiles.queries, tiles.passages)
    return gpu.sweep(run, block, tile, merge, nothing=nothing, outputs=outputs, columns=columns)


def negative_sums(block: Block, columns: bool, only_Q: Tensor | None = None) -> Sums:
    """`blocks.Kernels.negative_sums`; where `only_Q` is False, a query's sum may be anything."""
    (row_sums_Q,), column_sums_N = _sweep(
        _sums_kernel, block, torch.logsumexp, -torch.inf, 1, columns, _flags(only_Q)
    )
    return Sums(row_sums_Q, column_sums_N)


def positive_costs(block: Block, sums: Sums, weights_Q: Tensor) -> tuple[Tensor, Weights]:
    if not block.by_group:
        return gpu.target_costs(block, sums, weights_Q)
    (costs_Q, row_weights_Q), column_weights_N = _sweep(
        _group_costs_kernel, block, torch.sum, 0.0, 2, sums.columns_N is not None,
        block.margin, *sums, weights_Q,
    )  # fmt: skip
    return costs_Q, Weights(weights_Q, row_weights_Q, column_weights_N)


def gradients(block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]) -> Gradients:
    if not block.by_group:
        weights = gpu.of_targets(block, sums, weights)
    if block.queries.dtype != torch.float32 and block.queries.shape[1] <= SMALL_DIM:
        return gpu.in_range_of_half(_small_gradients, block, sums, weights, needs)
    return gpu.gradients(_form_weights, block, sums, weights, needs)


def one_direction(block: Block, weights_Q: Tensor, needs: tuple[bool, bool]) -> OneDirection | None:
    """`gpu.one_direction`, but for float16, whose range is too small, and gradients formed on the chip."""
    half, dim = block.queries.dtype != torch.float32, block.queries.shape[1]
    if block.by_group or block.queries.dtype == torch.float16 or (half and dim <= SMALL_DIM):
        return None
    return gpu.one_direction(_form_exps, negative_sums, _form_weights, block, weights_Q, needs)


def _form_exps(block: Block, wanted_Q: Tensor, out_QN: Tensor) -> Tensor:
    tiles = tiles_of(block)
    row_tiles, column_tiles = (
        triton.cdiv(len(block.queries), tiles.queries),
        triton.cdiv(len(block.passages), tiles.passages),
    )
    row_parts = wanted_Q.new_empty((column_tiles, len(block.queries)))
    _launch(
        _exps_kernel, row_tiles * column_tiles, tiles, block, wanted_Q, out_QN, out_QN.stride(0), row_parts
    )
    return row_parts.sum(dim=0)


def _form_weights(
    block: Block, rows: slice, sums: Sums, weights: Weights, out_RN: Tensor, only_Q: Tensor | None = None
) -> None:
    tiles = tiles_of(block)
    programs = triton.cdiv(len(out_RN), tiles.queries) * triton.cdiv(len(block.passages), tiles.passages)
    _launch(
        _weights_kernel, programs, tiles, block, block.margin, *gpu.as_kernels_take_them(sums, weights),
        _flags(only_Q), out_RN, out_RN.stride(0), rows.start, rows.stop,
    )  # fmt: skip


def _small_gradients(block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]) -> Gradients:
    tiles = SMALL_HALF._replace(dims=max(16, triton.next_power_of_2(block.queries.shape[1])))

    def gradient(own: Tensor, own_tile: int, others: Tensor, other_tile: int) -> Tensor:
        own_tiles, other_tiles = triton.cdiv(len(own), own_tile), triton.cdiv(len(others), other_tile)
        tiles_each = triton.cdiv(other_tiles, triton.cdiv(gpu.PROGRAMS, own_tiles))
        splits = triton.cdiv(other_tiles, tiles_each)
        parts = sums.rows_Q.new_empty((splits, *own.shape))
        _launch(
            _gradient_kernel, own_tiles * splits, tiles, block, block.margin,
            *gpu.as_kernels_take_them(sums, weights),
            parts, splits, tiles_each, OF_QUERIES=own is block.queries,
        )  # fmt: skip
        return parts.sum(dim=0) if splits > 1 else parts[0]

    grad_q = grad_p = None
    if needs[0] or not needs[1]:  # the temperature's comes with them
        grad_q = gradient(block.queries, tiles.queries, block.passages, tiles.passages)
    if needs[1]:
        grad_p = gradient(block.passages, tiles.passages, block.queries, tiles.queries)
    if grad_q is not None:
        grad_t = gpu.through_temperature(block, grad_q, block.queries)
    elif grad_p is not None:
        grad_t = gpu.through_temperature(block, grad_p, block.passages)
    return (grad_q if needs[0] else None), grad_p, grad_t
