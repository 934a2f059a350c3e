"""What the GPU backends of InfoNCE share: sweeps over tiles, the costs of targets, gradients chunk by chunk.

Nothing here waits for the device, and only sizes decide what is launched: calls repeat to the bit, and can be
captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hybridfast.infonce.blocks import Block, Gradients, OneDirection, Sums, Weights

# Bytes of d(objective)/d(product) and of temporaries held at once. More means fewer, larger matrix products.
WORKSPACE = 512 << 20
COLUMN_PARTS = 128 << 20  # bytes of what tiles of queries sum for each passage, before it is merged
PROGRAMS = 1024  # enough to fill a GPU a few times over; the passages are split until there are so many
# Programs of one time, next to each other, read again and again as many tiles of queries as their number over
# the splits: at 132 programs of 256 x 768 half-precision values 52 MB with one split, more than an H100's
# second-level cache holds, and 7 MB with eight.
LEAST_SPLITS = 8
FAR = 2.0**100  # sums of e^(s - wanted) up to here are used as they are
WHOLE_TILES = 128  # rows of a chunk are a multiple of this, where the workspace holds as many
PRODUCTS_WIDEN = hasattr(torch.ops.aten.mm, "dtype")  # from torch 2.8: half factors, float32 result


class FormWeights(Protocol):
    """Fills out_RN (in the dtype of the products) for some of the block's queries.

    Its rows begin at multiples of eight elements, and what lies between them may be overwritten. Rows where
    `only_Q` (Q,) bool is False stay as they are.

    It gets d(objective)/d(product) = d(objective)/d(logit) / temperature, where `blocks.Kernels.gradients`
    defines the latter, and zero for pairs that are neither positive nor negative. All else is of the whole
    block, not of these queries.
    """

    def __call__(
        self,
        block: Block,
        rows: slice,
        sums: Sums,
        weights: Weights,
        out_RN: Tensor,
        only_Q: Tensor | None = None,
    ) -> None: ...


class FormExps(Protocol):
    """Fills out_QN, as `FormWeights` does, with e^(s - wanted_Q) of negatives and 0; returns its sums (Q,).

    Sums are of what is not yet rounded. The logits that the targets want are references only: those that are
    too far below a negative give infinity.
    """

    def __call__(self, block: Block, wanted_Q: Tensor, out_QN: Tensor) -> Tensor: ...


class NegativeSums(Protocol):
    """`blocks.Kernels.negative_sums`; where `only_Q` (Q,) bool is False, a query's sum may be anything."""

    def __call__(self, block: Block, columns: bool, only_Q: Tensor | None = None) -> Sums: ...


class Tile(NamedTuple):
    """What a program works on at a time: queries, passages, and the column parts that its queries make."""

    queries: int
    passages: int
    parts: int = 1


class Band(NamedTuple):
    """The queries first to last - 1, each tile of them with every split of the passages."""

    first: int
    last: int
    splits: int
    tiles_each: int

    @classmethod
    def of(cls, first: int, last: int, passages: int, tile: Tile) -> Band:
        """So many splits that there is work for the whole GPU."""
        row_tiles, column_tiles = -(-(last - first) // tile.queries), -(-passages // tile.passages)
        tiles_each = -(-column_tiles // max(LEAST_SPLITS, -(-PROGRAMS // row_tiles)))
        return cls(first, last, -(-column_tiles // tiles_each), tiles_each)


def sweep(
    run: Callable[[Band, Tensor, Tensor | None], None],
    block: Block,
    tile: Tile,
    merge: Callable[[Tensor, int], Tensor],
    *,
    nothing: float,
    outputs: int,
    columns: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run a kernel over tiles of queries by splits of the passages, and merge what it writes.

    Row parts (outputs, splits, Q) and, with `columns`, column parts (parts, N) of a band of queries. The
    latter are merged band after band, so that they stay within `COLUMN_PARTS`; `nothing` is that of no query.
    """
    count, width = len(block.queries), len(block.passages)
    rows = max(1, count)
    if columns:
        tiles = COLUMN_PARTS // (tile.parts * width * block.temperature.element_size())
        rows = min(rows, tile.queries * max(1, tiles))
    bands = [Band.of(0, rows, width, tile)]  # as the first is split, so are the others
    bands += [bands[0]._replace(first=at, last=min(at + rows, count)) for at in range(rows, count, rows)]
    row_parts = block.temperature.new_empty((outputs, bands[0].splits, count))
    column_parts = None
    if columns:
        parts = tile.parts * -(-rows // tile.queries)
        column_parts = block.temperature.new_full((1 + parts, width), nothing)  # first, the bands before
    for band in bands:
        run(band, row_parts, None if column_parts is None else column_parts[1:])
        if column_parts is not None:
            parts = tile.parts * -(-(band.last - band.first) // tile.queries)
            column_parts[0] = merge(column_parts[: 1 + parts], 0)
    return merge(row_parts, 1), None if column_parts is None else column_parts[0].clone()


def target_costs(block: Block, sums: Sums, weights_Q: Tensor) -> tuple[Tensor, Weights]:
    """`blocks.Kernels.positive_costs` where each query's positive is its target.

    Targets on a GPU are not checked: one that is no row of the passages, nor -1, costs NaN.
    """
    wanted_Q = _target_logits(block)
    costs_Q, row_weights_Q = _cost(sums.rows_Q, wanted_Q, weights_Q)
    if sums.columns_N is None:
        return costs_Q, Weights(weights_Q, row_weights_Q, None)
    targets_Q = _within(block.targets, len(block.passages))
    column_costs_Q, weights_at_Q = _cost(sums.columns_N[targets_Q], wanted_Q, weights_Q)
    # index_put_ sorts what it accumulates; index_add_ and scatter_add_ add in the order of the moment.
    weights_N = torch.zeros_like(sums.columns_N).index_put_((targets_Q,), weights_at_Q, accumulate=True)
    return costs_Q + column_costs_Q, Weights(weights_Q, row_weights_Q, weights_N)


def of_targets(block: Block, sums: Sums, weights: Weights) -> Weights:
    """The weights with -d(objective)/d(logit) of each query's target, its only positive, for its loss's."""
    targets_Q = weights.rows_Q
    if sums.columns_N is not None:
        at_Q = _within(block.targets, len(block.passages))
        wanted_Q = _target_logits(block)
        targets_Q = targets_Q + _cost(sums.columns_N[at_Q], wanted_Q, weights.losses_Q)[1]
    return weights._replace(losses_Q=targets_Q)


def as_kernels_take_them(sums: Sums, weights: Weights) -> tuple[Tensor | None, ...]:
    """What kernels that form weights read, in the order of their arguments."""
    return sums.rows_Q, weights.rows_Q, sums.columns_N, weights.columns_N, weights.losses_Q


def _within(targets: Tensor, count: int) -> Tensor:
    return targets.clamp(0, count - 1)


def _target_logits(block: Block) -> Tensor:
    """(<query, target> - margin) / temperature; infinity where the target is elsewhere, NaN where nowhere."""
    count, dim = block.passages.shape
    targets_Q = _within(block.targets, count)
    products_Q = block.temperature.new_empty(len(targets_Q))
    for rows in _slices(len(targets_Q), 3 * dim * products_Q.element_size()):
        products = block.queries[rows].to(products_Q.dtype) * block.passages[targets_Q[rows]]
        products_Q[rows] = products.sum(dim=1)
    logits_Q = (products_Q - block.margin) * (1 / block.temperature)  # as the kernels round it
    nowhere_Q = (block.targets < -1) | (block.targets >= count)
    return logits_Q.masked_fill(block.targets == -1, torch.inf).masked_fill(nowhere_Q, torch.nan)


def _cost(sums_Q: Tensor, wanted_Q: Tensor, weights_Q: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + e^(sum - logit)), and its derivative by the sum, times the weights; 0 for an infinite logit."""
    off_Q = (sums_Q - wanted_Q).masked_fill(wanted_Q == torch.inf, -torch.inf)
    return torch.logaddexp(torch.zeros_like(off_Q), off_Q), weights_Q * torch.sigmoid(off_Q)


def gradients(
    form_weights: FormWeights, block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]
) -> Gradients:
    """`blocks.Kernels.gradients` out of weights that a kernel forms and torch's matrix products."""
    return in_range_of_half(partial(_by_chunks, form_weights), block, sums, weights, needs)


def one_direction(
    form_exps: FormExps,
    negative_sums: NegativeSums,
    form_weights: FormWeights,
    block: Block,
    weights_Q: Tensor,
    needs: tuple[bool, bool],
) -> OneDirection:
    """`blocks.Kernels.one_direction` of targets, in products of float32 or bfloat16.

    With e_ij = e^(s_ij - wanted_i) of a query's negatives and S_i their sum, its cost is log(1 + S_i), and
    d(objective)/d(s_ij) = weight_i * e_ij / (1 + S_i): one factor a query, which waits until the products
    have summed e_ij. So those are formed once, for a chunk of queries, before the sum is known. The dtype
    must hold e_ij; queries far below a negative, whose sums do not stay in range, take the usual way.
    """
    wanted_Q = _target_logits(block)
    costs_Q, row_weights_Q = torch.empty_like(wanted_Q), torch.empty_like(wanted_Q)
    total = _Gradients(block, needs)
    for rows, exps_RN in _workspaces(block):
        part = block._replace(queries=block.queries[rows], targets=block.targets[rows])
        if block.query_groups is not None:
            part = part._replace(query_groups=block.query_groups[rows])
        weights_R, wanted_R = weights_Q[rows], wanted_Q[rows]
        sums_R = form_exps(part, wanted_R, exps_RN)
        far_R = ~(sums_R < FAR)  # or NaN
        far_sums = negative_sums(part, False, far_R)
        far_costs_R, far_weights_R = _cost(far_sums.rows_Q, wanted_R, weights_R)
        costs_Q[rows] = torch.where(far_R, far_costs_R, torch.log1p(sums_R))
        share_R = weights_R / (1 + sums_R)
        row_weights_R = torch.where(far_R, far_weights_R, share_R * sums_R)
        row_weights_Q[rows] = row_weights_R
        of_targets_R = Weights(row_weights_R, row_weights_R, None)
        form_weights(part, slice(0, len(wanted_R)), far_sums, of_targets_R, exps_RN, far_R)
        inverse = 1 / block.temperature
        factors = _Factors(
            torch.where(far_R, 1.0, share_R * inverse)[:, None],
            torch.where(far_R, 0.0, row_weights_R * inverse)[:, None],
        )
        total.add(rows, exps_RN, factors)
    return OneDirection(costs_Q, Weights(weights_Q, row_weights_Q, None), total.sums())


def _by_chunks(
    form_weights: FormWeights, block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]
) -> Gradients:
    total = _Gradients(block, needs)
    for rows, weights_RN in _workspaces(block):
        form_weights(block, rows, sums, weights, weights_RN)
        total.add(rows, weights_RN)
    return total.sums()


def _workspaces(block: Block) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of queries, and as many rows (R, N), in the dtype of the products, of one workspace."""
    (count, dim), passages = block.queries.shape, len(block.passages)
    width = -(-passages // 8) * 8
    row_bytes = width * block.queries.element_size() + 2 * dim * block.temperature.element_size()
    workspace: Tensor | None = None
    for rows in _slices(count, row_bytes):
        if workspace is None:  # the first chunk is the largest
            workspace = block.queries.new_empty((rows.stop, width))
        yield rows, workspace[: rows.stop - rows.start, :passages]


class _Factors(NamedTuple):
    """What a query's row of a chunk is meant times, and what its target then weighs less; (R, 1)."""

    row: Tensor
    target: Tensor


class _Gradients:
    """`blocks.Kernels.gradients` out of chunks of d(objective)/d(product)."""

    def __init__(self, block: Block, needs: tuple[bool, bool]) -> None:
        self.block, sums = block, block.temperature.dtype
        self.of_queries = needs[0] or not needs[1]  # the temperature's comes with them
        self.grad_q = block.queries.new_empty(block.queries.shape, dtype=sums) if needs[0] else None
        self.grad_p = block.passages.new_zeros(block.passages.shape, dtype=sums) if needs[1] else None
        self.grad_t = torch.zeros_like(block.temperature)

    def add(self, rows: slice, formed_RN: Tensor, factors: _Factors | None = None) -> None:
        queries, passages = self.block.queries[rows], self.block.passages
        targets = _within(self.block.targets[rows], len(passages))
        if self.of_queries:
            part = _product(formed_RN, passages)
            if factors is not None:
                part = (part * factors.row).addcmul_(factors.target, passages[targets], value=-1)
            self.grad_t += through_temperature(self.block, part, queries)
            if self.grad_q is not None:
                self.grad_q[rows] = part
        if self.grad_p is not None:
            scaled = queries if factors is None else (queries * factors.row).to(queries.dtype)
            _add_product(self.grad_p, formed_RN.T, scaled)
            if factors is not None:  # index_put_ sorts what it accumulates
                self.grad_p.index_put_((targets,), queries * -factors.target, accumulate=True)

    def sums(self) -> Gradients:
        if self.grad_p is not None and not self.of_queries:
            self.grad_t += through_temperature(self.block, self.grad_p, self.block.passages)
        return self.grad_q, self.grad_p, self.grad_t


def through_temperature(block: Block, grads: Tensor, rows: Tensor) -> Tensor:
    """The gradient of the temperature, from that of some queries against all passages, or the converse.

    The sum of d(objective)/d(logit) * logit over their pairs is that of <row, its gradient>.
    """
    total = torch.zeros_like(block.temperature)
    for part in _slices(len(rows), rows.shape[1] * grads.element_size()):
        total -= (grads[part] * rows[part]).sum()
    return total / block.temperature


def in_range_of_half(
    compute: Callable[[Block, Sums, Weights, tuple[bool, bool]], Gradients],
    block: Block,
    sums: Sums,
    weights: Weights,
    needs: tuple[bool, bool],
) -> Gradients:
    """Gradients as `compute` forms them; for float16, whose range ends at 6e-8, from larger weights.

    Their power of two brings the largest, over the temperature, near 2^12: a pair has at most three of them.
    """
    if block.queries.dtype != torch.float16:
        return compute(block, sums, weights, needs)
    largest = torch.stack([w.nan_to_num().abs().amax() for w in weights if w is not None]).amax()
    scale = torch.exp2(12 - (largest / block.temperature).clamp(2.0**-100, 2.0**100).log2().ceil())
    scaled = Weights._make(None if w is None else w * scale for w in weights)
    grads = compute(block, sums, scaled, needs)
    grad_q, grad_p = (None if grad is None else grad.div_(scale) for grad in grads[:2])
    return grad_q, grad_p, grads[2] / scale


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 result, whatever the dtype of the factors."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu" or not PRODUCTS_WIDEN:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, summed in float32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
        return
    try:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):  # some releases of torch want `total` in the dtype of the factors
        total += _product(a, b)


def _slices(count: int, row_bytes: int) -> Iterator[slice]:
    """So many rows in chunks of nearly one size, each within the workspace."""
    most = max(1, WORKSPACE // row_bytes)
    if most > WHOLE_TILES:
        most -= most % WHOLE_TILES
    even = -(-count // -(-count // most))
    size = min(most, -(-even // WHOLE_TILES) * WHOLE_TILES)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
