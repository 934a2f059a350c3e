"""The processes that train one model together, each a rank, as torchrun starts them.

Every rank plans the same batches and takes its share of each. What has to be decided once, and what is
written, is rank 0's. A process that runs by itself is a rank as well, alone: then nothing here does anything.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from hybridfast.data.sampler import Batch
from hybridfast.encoder.embedding import Features, taken
from hybridfast.training.chunks import lengths_of, with_places

__all__ = ["Ranks", "Told"]

T = TypeVar("T")
# How long a rank waits for the others in a step: one that ends is noticed at once, so this is for machines
# that vanish without a word. And how long for what rank 0 does by itself, such as tokenizing.
TIMEOUT, PATIENCE = timedelta(minutes=10), timedelta(days=1)
ENDED = "hybridfast: the first rank that ended"
ROWS = (  # of a batch: tensors with an element a row
    *("groups", "query_languages", "passage_languages", "flagged", "mask_groups"),
    *("second_query_languages", "second_passage_languages"),
)
SECONDS = ("second_queries", "second_passages")


class Ranks:
    """One rank and what it knows of the others; as a block, it tells them how it ended.

    Args:
        rank, world: which one of how many.
        local_rank: which one on its machine.
        patient: the group for what may take long; by gloo, so that a rank that ends is noticed at once.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, local_rank: int = 0, patient: dist.ProcessGroup | None = None
    ) -> None:
        self.rank, self.world, self.local_rank, self.patient = rank, world, local_rank, patient
        self.is_first, self.alone = rank == 0, world == 1
        self.neighbours = 1 if world == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", world))  # and this one
        self._leaves = False  # the process group when the block ends

    @classmethod
    def join(cls, device: str | None = None) -> Ranks:
        """The rank that the environment tells of (WORLD_SIZE, RANK, LOCAL_RANK, as torchrun sets them).

        Tensors of a GPU go by nccl, others by gloo; a rank's GPU is the one of its LOCAL_RANK. A process
        group that is there already, such as Ray Train's, is used as it is.

        Args:
            device: the one that the settings ask for, if any.

        Raises:
            ValueError: a device that cannot serve several ranks, or fewer GPUs than ranks on this machine.
        """
        if dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        else:
            rank, world = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        if world == 1:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type not in ("cpu", "cuda") or chosen.index is not None:
            raise ValueError(f"device must be cpu or cuda for {world} ranks, got {device}")
        if chosen.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"LOCAL_RANK {local_rank} has no GPU: there are {torch.cuda.device_count()} here; start "
                    "as many ranks on a machine, or set --device cpu"
                )
            torch.cuda.set_device(local_rank)
        leaves = not dist.is_initialized()
        if leaves:
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
        ranks = cls(rank, world, local_rank, dist.new_group(backend="gloo", timeout=PATIENCE))
        ranks._leaves = leaves
        return ranks

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alone:
            return
        if error is None or (isinstance(error, SystemExit) and not error.code):
            if self._leaves:
                dist.destroy_process_group()
            return
        code = error.code if isinstance(error, SystemExit) else 1
        text = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        try:  # the store is torchrun's, or rank 0's and gone with it
            store = dist.distributed_c10d._get_default_store()
            first = json.loads(store.compare_set(ENDED, "", json.dumps([self.rank, code, text])))
        except (RuntimeError, ValueError):
            return
        if first[0] != self.rank and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            why = f": {first[2]}" if first[2] else f" with exit code {first[1]}"
            print(f"rank {self.rank} ends, since rank {first[0]} did{why}", file=sys.stderr)
            raise SystemExit(first[1]) from None

    # --- what is done once --------------------------------------------------------------------------------

    def by_first(self, work: Callable[[], T]) -> T:
        """What rank 0's work gives, on every rank; the others wait.

        Raises:
            SystemExit: with code 2, on other ranks, where the work has failed on rank 0, which says how.
        """
        if self.alone:
            return work()
        held: list[Any] = [False, None]
        try:
            if self.is_first:
                held = [True, work()]
        finally:
            dist.broadcast_object_list(held, src=0, group=self.patient)
        if not held[0]:
            raise SystemExit(2)
        value: T = held[1]
        return value

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """A block that one rank of each machine is through with before the others begin it."""
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def wait(self) -> None:
        """Until all ranks are here."""
        if not self.alone:
            dist.barrier(group=self.patient)

    def agree(self, named: dict[str, Any]) -> None:
        """ValueError, on the rank that it is about, where something is not as on rank 0."""
        for name, value in self.by_first(lambda: named).items():
            if named[name] != value:
                raise ValueError(f"rank {self.rank} has {name} {named[name]!r}, rank 0 has {value!r}")

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values into every rank's tensors."""
        for tensor in () if self.alone else tensors:
            dist.broadcast(tensor.detach(), src=0)

    # --- what is done in every step -----------------------------------------------------------------------

    def share(self, batch: Batch) -> Batch:
        """The pairs of a batch that are this rank's, balanced by tokens, with their texts' places in it.

        A function of the batch, the same on all ranks, which have as many pairs each, to one more or less.
        """
        if self.alone:
            return batch
        queries, passages, negatives, *seconds = with_places(batch)
        assert queries is not None  # there are, in a batch of flat ids
        assert passages is not None
        lengths_B = lengths_of(queries) + lengths_of(passages)
        if negatives is not None and batch.negative_rows is not None:
            lengths_B = lengths_B.index_add(0, batch.negative_rows, lengths_of(negatives))
        for second in seconds:
            lengths_B = lengths_B if second is None else lengths_B + lengths_of(second)
        if len(lengths_B) < self.world:
            raise ValueError(f"a batch must have a pair for each of {self.world} ranks, got {len(lengths_B)}")
        rows = torch.from_numpy(np.flatnonzero(dealt(lengths_B.numpy(), self.world) == self.rank))
        own: dict[str, Any] = {
            name: getattr(batch, name)[rows] for name in ROWS if getattr(batch, name) is not None
        }
        own |= {"queries": _chosen(queries, rows), "passages": _chosen(passages, rows)}
        own["group_vectors"] = tuple(vectors_BK[rows] for vectors_BK in batch.group_vectors)
        for name, second in zip(SECONDS, seconds, strict=True):
            own[name] = None if second is None else _chosen(second, rows)
        if negatives is not None:
            assert batch.negative_rows is not None
            assert batch.negative_mask_groups is not None
            place_B = torch.full((len(lengths_B),), -1).index_copy_(0, rows, torch.arange(len(rows)))
            own_M = (place_B[batch.negative_rows] >= 0).nonzero()[:, 0]
            own |= {
                "negatives": _chosen(negatives, own_M),
                "negative_rows": place_B[batch.negative_rows[own_M]],
                "negative_mask_groups": batch.negative_mask_groups[own_M],
            }
        return replace(batch, **own)

    def tell(self, loss: Tensor, places: int, asked: bool, terms: Mapping[str, Tensor] | None = None) -> Told:
        """Begin to add up over the ranks what each of them has to tell of a step."""
        return Told(self, loss, places, asked, terms or {})


class Told:
    """Numbers of a step on their way over the ranks and from the device, which goes on with its work."""

    def __init__(
        self, ranks: Ranks, loss: Tensor, places: int, asked: bool, terms: Mapping[str, Tensor]
    ) -> None:
        self.names = [*terms]
        loss, *parts = (value.detach().float() for value in (loss, *terms.values()))
        # Filled where they are: a copy to the device would wait for it.
        self.numbers = torch.stack(
            [
                *(value / ranks.world for value in (loss, *parts)),
                torch.full_like(loss, places),
                torch.full_like(loss, asked),
            ]
        )
        self.work = None if ranks.alone else dist.all_reduce(self.numbers, async_op=True)
        self.arrived = None
        if self.numbers.device.type == "cuda":
            if self.work is not None:
                self.work.wait()  # the stream does, not this thread
            self.numbers = self.numbers.to("cpu", non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> tuple[float, int, bool, dict[str, float]]:
        """The batch's loss, the places encoded, whether any rank was asked to stop, the loss's terms."""
        if self.arrived is not None:
            self.arrived.synchronize()
        elif self.work is not None:
            self.work.wait()
        loss, *parts, places, asked = self.numbers.tolist()
        return loss, round(places), asked > 0, dict(zip(self.names, parts, strict=True))


def dealt(lengths_B: NDArray[np.int64], world: int) -> NDArray[np.int64]:
    """The rank (B,) of each row: the longest rows, one for each rank, then the next ones.

    Of every such round, the longest goes to the rank that has least so far.
    """
    loads_W, rank_B = np.zeros(world, np.int64), np.empty(len(lengths_B), np.int64)
    order_B = np.argsort(-lengths_B, kind="stable")
    for begin in range(0, len(order_B), world):
        rows = order_B[begin : begin + world]
        takers = np.argsort(loads_W, kind="stable")[: len(rows)]
        rank_B[rows] = takers
        loads_W[takers] += lengths_B[rows]
    return rank_B


def _chosen(ids: Features, rows: Tensor) -> Features:
    """Some of the texts, with the places that they have among all."""
    lengths_B = lengths_of(ids)[rows]
    return {
        "input_ids": taken(ids["input_ids"], ids["offsets"][rows], lengths_B),
        "offsets": lengths_B.cumsum(0) - lengths_B,
        "places": ids["places"][rows],
    }
