"""Work that the ranks of torch.distributed's default group share, and what comes of it, gathered."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["dealt", "from_all", "gathered", "is_sharded", "own", "part"]

T = TypeVar("T")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether FSDP2 has spread its weights over ranks: then all have to call it, equally often."""
    return hasattr(model, "reshard")


def dealt(tasks: list[T], shared: bool) -> list[list[T]]:
    """Tasks in turns, a share for each rank; one of all, unless they are shared and there are ranks."""
    ranks = dist.get_world_size() if shared and dist.is_initialized() else 1
    return [tasks[rank::ranks] for rank in range(ranks)]


def own(shares: list[list[T]]) -> list[T]:
    """This rank's share."""
    return shares[dist.get_rank() if len(shares) > 1 else 0]


def part(rows: int, shared: bool) -> slice:
    """This rank's of so many rows, one rank's after the other's; all, unless they are shared."""
    ranks = dist.get_world_size() if shared and dist.is_initialized() else 1
    rank = dist.get_rank() if ranks > 1 else 0
    return slice(rows * rank // ranks, rows * (rank + 1) // ranks)


def from_all(value: T, shared: bool) -> list[T]:
    """What each rank has, one after the other; this one's, unless it is shared."""
    if not (shared and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gathered(rows_BD: Tensor, counts: list[int]) -> Tensor:
    """The first rows of each rank, so many of each, one rank after the other."""
    if len(counts) == 1:
        return rows_BD
    mine = counts[dist.get_rank()]
    padded = rows_BD.new_zeros(max(counts), rows_BD.shape[1])  # gloo gathers one shape
    padded[:mine] = rows_BD[:mine]
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
