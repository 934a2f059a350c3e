"""Blocks for the tests of kernels, and what kernels make of one against the torch kernels in float64."""

import itertools

import torch
import torch.nn.functional as F

from hybridfast.infonce import torch_kernels
from hybridfast.infonce.blocks import Block


def block(
    queries,
    passages,
    dim,
    dtype=torch.float32,
    groups=False,
    by_group=False,
    excluded=False,
    seed=0,
    device="cpu",
):
    """Unit rows, queries near their targets; some targets are elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(passages, dim, generator=generator)
    targets = torch.randint(-1, passages, (queries,), generator=generator)
    q = p[targets] + torch.randn(queries, dim, generator=generator)
    out = torch.rand(passages, generator=generator) < 0.3 if excluded else None
    ids = (torch.arange(queries) % 11, torch.arange(passages) % 23) if groups else (None, None)
    rows = (F.normalize(x).to(dtype) for x in (q, p))
    made = Block(*rows, torch.tensor(0.1), 0.05, targets, *ids, by_group, out)
    return Block(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in made))


def doubled(block):
    rows = (block.queries.double(), block.passages.double(), block.temperature.double())
    return block._replace(queries=rows[0], passages=rows[1], temperature=rows[2])


def solve(kernels, block, columns, needs=(True, True)):
    """All that the kernels compute of a block, for given weights of the losses."""
    generator = torch.Generator().manual_seed(3)
    weights_Q = torch.rand(len(block.queries), generator=generator).to(block.temperature)
    sums = kernels.negative_sums(block, columns)
    costs_Q, weights = kernels.positive_costs(block, sums, weights_Q)
    assert weights.losses_Q is weights_Q
    return *sums, costs_Q, *weights[1:], *kernels.gradients(block, sums, weights, needs)


def check(kernels, block, columns):
    sums = solve(kernels, block, columns)
    exact = solve(torch_kernels, doubled(block), columns)
    # Rows are exact in both: sums, costs and weights err as float32 does; gradients sum rounded weights.
    tolerances = [2e-6] * 5 + [max(1e-5, 8 * torch.finfo(block.queries.dtype).eps)] * 3
    for value, wanted, tolerance in zip(sums, exact, tolerances, strict=True):
        assert (value is None) == (wanted is None)
        if value is not None:
            empty = wanted == -torch.inf
            assert torch.equal(value == -torch.inf, empty)
            value, wanted = value.masked_fill(empty, 0), wanted.masked_fill(empty, 0)
            least = 0.1 if not wanted.ndim else 0.0  # the temperature's gradient, whose terms may cancel
            assert (value - wanted).norm() <= tolerance * wanted.norm().clamp(min=least)


def check_one_direction(kernels, block, needs=(True, True)):
    """One product less, and what three kernels make of the same block, but for what rounds the weights."""
    weights_Q = torch.linspace(0.5, 2, len(block.queries)).to(block.temperature)
    got = kernels.one_direction(block, weights_Q, needs)
    exact = doubled(block)
    sums = torch_kernels.negative_sums(exact, False)
    costs_Q, weights = torch_kernels.positive_costs(exact, sums, weights_Q.double())
    grads = torch_kernels.gradients(exact, sums, weights, (True, True))
    rounded = max(1e-5, 8 * torch.finfo(block.queries.dtype).eps)
    pairs = [(got.costs_Q, costs_Q, 2e-6), (got.weights.rows_Q, weights.rows_Q, 2e-6)]
    pairs += [(grad, wanted, rounded) for grad, wanted in zip(got.gradients, grads, strict=True)]
    for (value, wanted, tolerance), need in zip(pairs, (True, True, *needs, True), strict=True):
        assert (value is not None) == need
        if value is not None:
            assert (value - wanted).norm() <= tolerance * wanted.norm()


def with_far_queries(block):
    """At a low temperature, every third query far below a negative: e^(s - wanted) is no float32."""
    queries = block.queries.clone()
    queries[::3] = block.passages[(block.targets[::3] + 1) % len(block.passages)]
    return block._replace(queries=queries, temperature=torch.full_like(block.temperature, 0.008))


MASKS = [
    {"groups": groups, "by_group": by_group, "excluded": excluded}
    for groups, by_group, excluded in itertools.product((False, True), repeat=3)
    if groups or not by_group
]
# Masks, and whether the passages' own direction is asked for: without it, no mask and every mask will do.
MASKS_AND_COLUMNS = [(masks, True) for masks in MASKS] + [(masks, False) for masks in (MASKS[0], MASKS[-1])]


def poisoned(block):
    """The same block; around its rows, dimensions and ids lie NaN and ids of other rows."""

    def within(rows):
        storage = rows.new_full((len(rows) + 40, rows.shape[1] + 24), torch.nan)
        storage[8:-32, 8:-16] = rows
        return storage[8:-32, 8:-16]

    def every_other(ids):
        return None if ids is None else torch.stack([ids, ids.flip(0)], dim=1)[:, 0]

    return block._replace(
        queries=within(block.queries),
        passages=within(block.passages.T).T,
        targets=every_other(block.targets),
        query_groups=every_other(block.query_groups),
        passage_groups=every_other(block.passage_groups),
        excluded=every_other(block.excluded),
    )
