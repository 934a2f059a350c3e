"""Gradients averaged over ranks, once a step, while the backward pass is still at work.

Autograd adds up what all chunks of a batch owe to a weight before it hands the gradient over, so that each is
ready once a step: for the last layers when the chunk that comes last in the backward pass begins, for the
first ones at its end. Gradients are copied into flat buckets in that order, and a bucket is on its way as
soon as it is full. Sparse gradients of tables go as rows. Weights without a gradient on any rank keep none,
and the optimizer leaves them alone as it does in one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from hybridfast.training.ranks import Ranks

__all__ = ["Reduction"]

BUCKET_BYTES = 25 << 20  # as DistributedDataParallel has it: Li et al., 2020


class Reduction:
    """A block in which gradients are averaged: what is ready during the pass, the rest by :meth:`finish`.

    Args:
        parameters: all that are trained, in the same order on every rank.
        sparse: those among them that get sparse gradients.
    """

    def __init__(self, parameters: list[Parameter], sparse: Iterable[Parameter], ranks: Ranks) -> None:
        self.parameters, self.ranks = parameters, ranks
        those = {id(parameter) for parameter in sparse}
        self.sparse = [index for index, parameter in enumerate(parameters) if id(parameter) in those]
        self.buckets: list[_Bucket] = []  # in the order in which they fill; the same on every rank
        self.bucket_of: dict[int, _Bucket] = {}
        self.ready: list[int] = []  # parameters whose gradients have come, in this pass
        self.launched = 0
        self._undo = ExitStack()

    def __enter__(self) -> Reduction:
        if not self.ranks.alone:
            for index, parameter in enumerate(self.parameters):
                hook = parameter.register_post_accumulate_grad_hook(partial(self._take, index))
                self._undo.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _take(self, index: int, parameter: Tensor) -> None:
        self.ready.append(index)
        bucket = self.bucket_of.get(index)
        if bucket is None or parameter.grad is None:
            return
        bucket.take(index, parameter.grad)
        while self.launched < len(self.buckets) and not self.buckets[self.launched].missing:
            self._launch()

    def _launch(self) -> None:
        self.buckets[self.launched].launch()
        self.launched += 1

    @torch.no_grad()
    def finish(self) -> None:
        """Gradients are the means over all ranks, to the bit the same on each."""
        if self.ranks.alone:
            return
        if len(set(self.ready)) < len(self.ready):
            raise RuntimeError("a weight got its gradient in two parts: its layer must not be run again by "
                               "reentrant checkpointing")  # fmt: skip
        order, rows = self._meet()
        new = [index for index in order if index not in self.bucket_of and index not in self.sparse]
        for bucket in _buckets(new, self.parameters):
            self.buckets.append(bucket)
            self.bucket_of |= dict.fromkeys(bucket.slices, bucket)
            for index in bucket.slices:
                if (grad := self.parameters[index].grad) is not None:
                    bucket.take(index, grad)
        while self.launched < len(self.buckets):
            self._launch()
        for index, most in zip(self.sparse, rows, strict=True):
            self.parameters[index].grad = self._mean_rows(self.parameters[index], most) if most else None
        have = set(order)
        for bucket in self.buckets:
            bucket.wait(self.ranks.world)
            for index, mean in bucket.slices.items():
                parameter = self.parameters[index]
                parameter.grad = mean.view_as(parameter) if index in have else None
        self.ready.clear()
        self.launched = 0

    def _meet(self) -> tuple[list[int], list[int]]:
        """The parameters with gradients on any rank, in rank 0's order; rows of each table, at most."""
        count = len(self.parameters)
        told = torch.zeros(count + len(self.sparse), dtype=torch.int64)
        for place, index in enumerate(self.ready):
            told[index] = count + 1 - place if self.ranks.is_first else 1
        for place, index in enumerate(self.sparse, start=count):
            grad = self.parameters[index].grad
            if grad is not None:
                self.parameters[index].grad = grad = grad.coalesce()
                told[place] = grad._nnz()
        told = told.to(self.parameters[0].device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        listed = told.tolist()
        order = sorted((index for index in range(count) if listed[index]), key=lambda index: -listed[index])
        return order, listed[count:]

    def _mean_rows(self, table: Parameter, most: int) -> Tensor:
        """All ranks' rows of a table's gradient, added up in the order of the ranks."""
        grad, world = table.grad, self.ranks.world
        rows_U = torch.full((most,), -1, dtype=torch.int64, device=table.device)
        values_UD = table.new_zeros((most, *table.shape[1:]))
        if grad is not None:
            rows_U[: grad._nnz()], values_UD[: grad._nnz()] = grad.indices()[0], grad.values()
        all_rows = [torch.empty_like(rows_U) for _ in range(world)]
        all_values = [torch.empty_like(values_UD) for _ in range(world)]
        works = [
            dist.all_gather(everyone, own, async_op=True)
            for everyone, own in ((all_rows, rows_U), (all_values, values_UD))
        ]
        for work in works:
            work.wait()
        rows, values = torch.cat(all_rows), torch.cat(all_values)
        there = rows >= 0
        return torch.sparse_coo_tensor(
            rows[there][None], values[there] / world, table.shape, check_invariants=False
        ).coalesce()


class _Bucket:
    """Gradients side by side, on their way together."""

    def __init__(self, indices: list[int], parameters: list[Parameter]) -> None:
        first = parameters[indices[0]]
        sizes = [parameters[index].numel() for index in indices]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.slices = dict(zip(indices, self.flat.split(sizes), strict=True))
        self.missing = set(indices)
        self.work: Any = None

    def take(self, index: int, grad: Tensor) -> None:
        self.slices[index].copy_(grad.detach().reshape(-1))
        self.missing.discard(index)

    def launch(self) -> None:
        for index in self.missing:  # no gradient on this rank
            self.slices[index].zero_()
        self.work = dist.all_reduce(self.flat, async_op=True)

    def wait(self, world: int) -> None:
        self.work.wait()
        self.flat /= world
        self.missing = set(self.slices)


def _buckets(indices: list[int], parameters: list[Parameter]) -> list[_Bucket]:
    """Of one dtype each, and of 25 MB at most unless one gradient is larger."""
    cuts: list[list[int]] = []
    used = 0
    for index in indices:
        parameter = parameters[index]
        same = bool(cuts) and parameters[cuts[-1][0]].dtype is parameter.dtype
        if not same or used + parameter.nbytes > BUCKET_BYTES:
            cuts.append([])
            used = 0
        cuts[-1].append(index)
        used += parameter.nbytes
    return [_Bucket(cut, parameters) for cut in cuts]
