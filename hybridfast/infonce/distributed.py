"""InfoNCE whose negatives are the passages of every rank of a process group.

The convention: each rank gets a loss of its own, and the mean over ranks is the loss of one process with the
whole batch. Gradients averaged over ranks, as DistributedDataParallel averages those of the weights, are then
that process's gradients; so are those of a learned temperature. With as many queries on every rank, a rank's
loss is the mean over its own queries; otherwise it is weighted by its share of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridfast.infonce import loss, ops
from hybridfast.infonce.blocks import (
    Block,
    Sums,
    Weights,
    count_in,
    kernels_of,
    scalar_on,
    through_margin,
    through_norm,
    unit_rows,
)
from hybridfast.infonce.problem import DTYPES, Problem

__all__ = ["EXCHANGES", "InfoNCE", "gathered", "info_nce"]

EXCHANGES = ("gather", "ring")


def info_nce(
    queries: Tensor,
    passages: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    exchange: str = "gather",
    process_group: dist.ProcessGroup | None = None,
    targets: Tensor | None = None,
    query_groups: Tensor | None = None,
    passage_groups: Tensor | None = None,
    positives: str = "target",
    bidirectional: bool = False,
    in_batch: bool = True,
    margin: float = 0.0,
    normalize: bool = True,
    grad_tolerance: float = 0.0,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """The loss of this rank's queries against the passages of all ranks, with gradients for both.

    Every rank of the group has to call it, with the same options and, in the backward pass, the same upstream
    gradient. Without an initialised process group, or alone in it, it is `hybridfast.info_nce`.

    Args:
        queries: (Q, D), this rank's own; ranks may hold different numbers of rows.
        passages: (N, D), this rank's own.
        temperature: positive float, or a scalar tensor, which gets a gradient.
        exchange: "gather" holds the passages of all ranks at once; "ring" those of two ranks, passed on while
            the ones before are worked on.
        process_group: of torch.distributed; the default one if None.
        targets: (Q,) int64, rows of this rank's own passages.
        query_groups, passage_groups: int64 ids that mean the same on every rank.
        positives, bidirectional, in_batch, margin, normalize, grad_tolerance, compute_dtype: as for
            `hybridfast.info_nce`. A `grad_tolerance` needs exchange="gather" and one direction.

    Returns:
        A scalar. Averaged over ranks, it is the mean loss over the queries of all ranks.

    Raises:
        ValueError: an argument is out of its range, or differs between ranks; then on every rank.
        RuntimeError: another rank refused its arguments.
    """
    problem = Problem(
        queries, passages, temperature, targets, query_groups, passage_groups, positives, bidirectional,
        in_batch, margin, normalize, grad_tolerance=grad_tolerance, compute_dtype=compute_dtype,
    )  # fmt: skip
    if not dist.is_initialized() or dist.get_world_size(process_group) == 1:
        _check(exchange, problem)
        return ops.info_nce(problem.checked())[0]

    refused: ValueError | None = None
    try:
        _check(exchange, problem)
        problem = problem.checked()
        if positives == "target":
            problem.check_targets()
    except ValueError as error:
        refused = error
    ranks = _Ranks.meet(process_group, problem, exchange, refused)
    if exchange == "gather" and in_batch and not bidirectional:
        total, _ = ops.info_nce(ranks.gathered(problem).checked())
        return total * ranks.loss_scale
    tours = _Ring(ranks) if exchange == "ring" else _Gathered(ranks)
    problem = problem._replace(temperature=problem.temperature_tensor())
    return cast(Tensor, _Exchanged.apply(*problem, tours))


def gathered(rows: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows (N, D) of all ranks, in the order of the ranks, which may have different numbers of them.

    Every rank calls it, and goes backward through it: a rank's rows get the sum of what all ranks' losses
    owe to them, so that gradients averaged over ranks are those of the mean loss.
    """
    if not dist.is_initialized() or dist.get_world_size(process_group) == 1:
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(counts, own, group=process_group)
    held = torch.cat(counts).tolist()
    ranks = _Ranks(process_group, dist.get_rank(process_group), held, held)
    return cast(Tensor, _AllGather.apply(rows, ranks))


class InfoNCE(loss.InfoNCE):
    """`info_nce` of all ranks with its options held; else as :class:`hybridfast.infonce.loss.InfoNCE`."""

    function = staticmethod(info_nce)


def _check(exchange: str, problem: Problem) -> None:
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange must be one of {', '.join(map(repr, EXCHANGES))}, got {exchange!r}")
    dense = exchange == "ring" or problem.bidirectional or not problem.in_batch
    if problem.grad_tolerance and dense:
        raise ValueError(
            f"grad_tolerance {problem.grad_tolerance} needs exchange='gather', one direction and in_batch"
        )


class _Ranks(NamedTuple):
    """The ranks of a group, and how many rows each of them holds."""

    group: dist.ProcessGroup | None
    rank: int
    queries: list[int]
    passages: list[int]

    @property
    def world(self) -> int:
        return len(self.queries)

    @property
    def loss_scale(self) -> float:
        """Of this rank's summed losses, so that the mean over ranks is the mean over all queries."""
        return self.world / sum(self.queries)

    @property
    def first_passage(self) -> int:
        return sum(self.passages[: self.rank])

    @classmethod
    def meet(
        cls, group: dist.ProcessGroup | None, problem: Problem, exchange: str, refused: ValueError | None
    ) -> _Ranks:
        """Tell each other the sizes, so that what does not fit together is an error and not a deadlock."""
        queries = problem.queries
        same = {  # what every rank must have alike, as integers; refused problems may have anything
            "dtype": DTYPES.index(queries.dtype) if queries.dtype in DTYPES else -1,
            "D": queries.shape[-1] if queries.ndim == 2 else -1,
            "exchange": EXCHANGES.index(exchange) if exchange in EXCHANGES else -1,
            "groups": problem.query_groups is not None,
            "positives": problem.positives == "groups",
            "bidirectional": problem.bidirectional,
            "in_batch": problem.in_batch,
            "normalize": problem.normalize,
        }
        header = torch.tensor(
            [refused is None, len(queries), len(problem.passages), *same.values()],
            dtype=torch.int64,
            device=queries.device,
        )
        headers = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
        dist.all_gather(headers, header, group=group)
        if refused is not None:
            raise refused
        told = torch.stack(headers).tolist()
        if culprits := [rank for rank, one in enumerate(told) if not one[0]]:
            raise RuntimeError(f"info_nce was refused on rank {culprits[0]}: see the error there")
        for place, name in enumerate(same, start=3):
            found = [one[place] for one in told]
            if len(set(found)) > 1:
                shown = [str(DTYPES[code]) for code in found] if name == "dtype" else found
                raise ValueError(f"{name} must be the same on every rank, got {shown}")
        return cls(group, dist.get_rank(group), [one[1] for one in told], [one[2] for one in told])

    def gathered(self, problem: Problem) -> Problem:
        """This rank's queries against the passages of all ranks, losses summed."""
        groups_N = None if problem.passage_groups is None else self.gather(problem.passage_groups)
        return problem._replace(
            passages=_AllGather.apply(problem.passages, self),
            targets=problem.targets_tensor() + self.first_passage,
            passage_groups=groups_N,
            reduction="sum",
        )

    def gather(self, rows: Tensor, counts: list[int] | None = None) -> Tensor:
        """The rows of all ranks, one after the other; as many of each as of its passages."""
        counts = counts or self.passages
        # Gloo's all_gather takes tensors of one shape only.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def own(self, rows: Tensor) -> Tensor:
        """Of the rows of all ranks' passages, this rank's."""
        return rows[self.first_passage : self.first_passage + self.passages[self.rank]]

    def send_on(self, tensors: list[Tensor], counts: int) -> tuple[list[Tensor], list[Any]]:
        """Start sending tensors to the next rank and receiving as many, of `counts` rows, from the last."""
        incoming = [tensor.new_empty((counts, *tensor.shape[1:])) for tensor in tensors]
        next_rank, previous = (self._global((self.rank + step) % self.world) for step in (1, -1))
        operations = [
            dist.P2POp(dist.isend, tensor.contiguous(), next_rank, self.group) for tensor in tensors
        ]
        operations += [dist.P2POp(dist.irecv, tensor, previous, self.group) for tensor in incoming]
        return incoming, dist.batch_isend_irecv(operations)

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


class _AllGather(torch.autograd.Function):
    """Every rank's rows. Backward, each rank gets the sum of what all of them owe to its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: _Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.ranks.group)
        return ctx.ranks.own(grad), None


class _Shard(NamedTuple):
    """Some ranks' passages, as they enter the products, and what is known of each."""

    passages: Tensor
    groups: Tensor | None
    excluded: Tensor | None  # uint8, which every process group can send
    column_sums: Tensor | None = None
    column_weights: Tensor | None = None

    def each(self, move: Callable[[Tensor], Tensor]) -> _Shard:
        passages = move(self.passages)
        return _Shard(passages, *(None if tensor is None else move(tensor) for tensor in self[1:]))


# What is done with a shard, given also where this rank's own passages begin in it, if they are there, and
# what has been summed for its passages so far. Returns the new sum.
Visit = Callable[[_Shard, "int | None", "Tensor | None"], "Tensor | None"]


class _Gathered:
    """All shards as one."""

    def __init__(self, ranks: _Ranks) -> None:
        self.ranks = ranks
        self.passages: Tensor | None = None  # gathered once

    def tour(self, own: _Shard, carried: Tensor | None, merge: str, visit: Visit) -> Tensor | None:
        """Visit every shard; what is summed for this rank's passages, over all ranks."""
        if self.passages is None:
            self.passages = self.ranks.gather(own.passages)
        rest = [None if tensor is None else self.ranks.gather(tensor) for tensor in own[1:]]
        if carried is not None:
            nothing_yet = 0.0 if merge == "sum" else -torch.inf
            carried = carried.new_full((len(self.passages), *carried.shape[1:]), nothing_yet)
        carried = visit(_Shard(self.passages, *rest), self.ranks.first_passage, carried)
        if carried is None:
            return None
        if merge == "sum":
            dist.all_reduce(carried, group=self.ranks.group)
            return self.ranks.own(carried)
        top = carried.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self.ranks.group)
        shift = top.masked_fill(top == -torch.inf, 0.0)
        total = torch.exp(carried - shift)
        dist.all_reduce(total, group=self.ranks.group)
        return self.ranks.own(total.log() + shift)


class _Ring:
    """One shard at a time: each is handed from rank to rank while the one before is worked on."""

    def __init__(self, ranks: _Ranks) -> None:
        self.ranks = ranks

    def tour(self, own: _Shard, carried: Tensor | None, merge: str, visit: Visit) -> Tensor | None:
        """As `_Gathered.tour`; the sums travel along with their passages and come home with them."""
        ranks, shard = self.ranks, own
        for step in range(ranks.world):
            following = ranks.passages[(ranks.rank - step - 1) % ranks.world]
            present = [tensor for tensor in shard if tensor is not None]
            incoming: list[Tensor] = []
            requests: list[Any] = []
            if step + 1 < ranks.world:
                incoming, requests = ranks.send_on(present, following)
            carried = visit(shard, 0 if step == 0 else None, carried)
            for request in requests:
                request.wait()
            if carried is not None:
                # Only now: the visit adds to it.
                (carried,), requests = ranks.send_on([carried], following)
                for request in requests:
                    request.wait()
            if incoming:
                arrived = iter(incoming)
                shard = shard.each(lambda _: next(arrived))  # noqa: B023 - called at once
        return carried


class _Exchanged(torch.autograd.Function):
    """The loss out of one tour for the sums, one for positives by group, and one for the gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *fields, tours = arguments
        problem = Problem(*fields)._replace(needs=ctx.needs_input_grad[:3])
        with torch.autocast(problem.queries.device.type, enabled=False):
            loss, *grads = _solve(problem, tours)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [x.dtype for x in fields[:3]]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = [
            None if saved is None or not need else (saved * grad.to(saved.dtype)).to(dtype)
            for saved, need, dtype in zip(ctx.saved_tensors, ctx.needs_input_grad, ctx.dtypes, strict=False)
        ]
        return (*kept, *[None] * (len(ctx.needs_input_grad) - len(kept)))


def _solve(
    problem: Problem, tours: _Gathered | _Ring
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    kernels, ranks = kernels_of(problem), tours.ranks
    unit_q, scale_q = unit_rows(problem.queries, problem.normalize, problem.product_dtype())
    unit_p, scale_p = unit_rows(problem.passages, problem.normalize, problem.product_dtype())
    targets, by_group, wide = problem.targets_tensor(), problem.positive_groups(), scale_q.dtype
    share_Q = scale_q.new_full((len(unit_q),), 0.5 if problem.bidirectional else 1.0)
    excluded = None
    if by_group is not None:
        query_groups, passage_groups = by_group
        all_passage_groups = ranks.gather(passage_groups)
        counts = count_in(query_groups, all_passage_groups)
        all_query_groups = ranks.gather(query_groups, ranks.queries)
        lonely = ~torch.isin(all_query_groups, all_passage_groups)
        if lonely.any():
            raise ValueError(
                "query_groups must occur in passage_groups: "
                f"group {int(all_query_groups[lonely][0])} has no positive"
            )
        share_Q = share_Q / counts
        excluded = None if problem.in_batch else count_in(passage_groups, all_query_groups) > 0
    elif not problem.in_batch:
        excluded = torch.zeros(len(unit_p), dtype=torch.bool, device=unit_p.device)
        excluded[targets] = True
    weights_Q = share_Q * ranks.loss_scale
    shard = _Shard(unit_p, problem.passage_groups, None if excluded is None else excluded.to(torch.uint8))
    temperature = scalar_on(unit_q.device, problem.temperature_tensor(), wide)
    elsewhere = torch.full_like(targets, -1)

    def block(of: _Shard, first: int | None) -> Block:
        return Block(
            unit_q,
            of.passages,
            temperature,
            problem.margin,
            elsewhere if first is None else targets + first,
            problem.query_groups,
            of.groups,
            by_group is not None,
            None if of.excluded is None else of.excluded.bool(),
        )

    row_sums_Q = scale_q.new_full((len(unit_q),), -torch.inf)

    def add_sums(of: _Shard, first: int | None, columns: Tensor | None) -> Tensor | None:
        found = kernels.negative_sums(block(of, first), columns is not None)
        torch.logaddexp(row_sums_Q, found.rows_Q, out=row_sums_Q)
        if columns is None or found.columns_N is None:
            return None
        return torch.logaddexp(columns, found.columns_N)

    nothing_yet = scale_p.new_full((len(unit_p),), -torch.inf) if problem.bidirectional else None
    column_sums_N = tours.tour(shard, nothing_yet, "logsumexp", add_sums)
    shard = shard._replace(column_sums=column_sums_N)

    costs_Q, row_weights_Q = torch.zeros_like(row_sums_Q), torch.zeros_like(row_sums_Q)

    def add_costs(of: _Shard, first: int | None, columns: Tensor | None) -> Tensor | None:
        sums = Sums(row_sums_Q, of.column_sums)
        costs, found = kernels.positive_costs(block(of, first), sums, weights_Q)
        costs_Q.add_(costs)
        row_weights_Q.add_(found.rows_Q)
        return None if columns is None or found.columns_N is None else columns + found.columns_N

    column_weights_N = None if column_sums_N is None else torch.zeros_like(column_sums_N)
    if by_group is not None:
        column_weights_N = tours.tour(shard, column_weights_N, "sum", add_costs)
    else:  # every positive is one of this rank's own passages
        column_weights_N = add_costs(shard, 0, column_weights_N)
    loss = (costs_Q * share_Q).sum() * ranks.loss_scale
    if not any(problem.needs):
        return loss, None, None, None
    shard = shard._replace(column_weights=column_weights_N)

    grad_q, grad_t = torch.zeros_like(unit_q, dtype=wide), torch.zeros_like(temperature)

    def add_gradients(of: _Shard, first: int | None, grad_p: Tensor | None) -> Tensor | None:
        sums = Sums(row_sums_Q, of.column_sums)
        weights = Weights(weights_Q, row_weights_Q, of.column_weights)
        dq, dp, dt = kernels.gradients(block(of, first), sums, weights, (True, True))
        if dq is not None:
            grad_q.add_(dq)
        grad_t.add_(dt)
        return None if grad_p is None or dp is None else grad_p + dp

    grad_p = tours.tour(shard, torch.zeros_like(unit_p, dtype=wide), "sum", add_gradients)
    weights = Weights(weights_Q, row_weights_Q, column_weights_N)
    grad_t += through_margin(temperature, problem.margin, weights)
    if problem.normalize and grad_p is not None:
        grad_q, grad_p = through_norm(grad_q, unit_q, scale_q), through_norm(grad_p, unit_p, scale_p)
    return loss, grad_q, grad_p, grad_t
