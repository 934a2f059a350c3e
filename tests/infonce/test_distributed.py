"""Several gloo ranks against one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from hybridfast import info_nce
from hybridfast.infonce import distributed

# Rows of each rank: even shards, and uneven ones with further negatives.
EVEN = [(6, 6)] * 4
UNEVEN = [(5, 9), (1, 2), (7, 7), (3, 11)]

OPTIONS = [
    {},
    {"bidirectional": True},
    {"in_batch": False},
    {"margin": 0.2, "normalize": False},
    {"groups": True},
    {"groups": True, "bidirectional": True},
    {"groups": True, "positives": "groups"},
    {"groups": True, "positives": "groups", "bidirectional": True, "margin": 0.1},
    {"groups": True, "positives": "groups", "in_batch": False},
]


def problem(sizes, dtype, options, dim=7):
    """The whole batch and, of each rank, its rows, its targets among its own passages, and its groups."""
    generator = torch.Generator().manual_seed(0)
    options = dict(options)
    grouped = options.pop("groups", False)
    shards, first = [], 0
    for rank, (queries, passages) in enumerate(sizes):
        p = torch.randn(passages, dim, generator=generator)
        targets = torch.randint(passages, (queries,), generator=generator)
        if options.get("in_batch") is False:
            targets = torch.arange(queries) % max(passages - 1, 1)
        q = p[targets] + torch.randn(queries, dim, generator=generator)
        # A group spans ranks; the last passages of each rank are of none.
        query_groups = torch.arange(queries) + rank if grouped else None
        passage_groups = torch.arange(passages) + rank if grouped else None
        if passage_groups is not None:
            passage_groups[queries:] += 1000
        shards.append((q.to(dtype), p.to(dtype), targets, query_groups, passage_groups, first))
        first += passages
    return shards, options


def expected(sizes, dtype, options, temperature):
    """One process's loss and gradients, cut into the ranks' shares."""
    shards, options = problem(sizes, dtype, options)
    q, p = (torch.cat([shard[side] for shard in shards]).requires_grad_() for side in (0, 1))
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    groups = {}
    if shards[0][3] is not None:
        groups = {
            "query_groups": torch.cat([shard[3] for shard in shards]),
            "passage_groups": torch.cat([shard[4] for shard in shards]),
        }
    targets = torch.cat([shard[2] + shard[5] for shard in shards])
    loss = info_nce(q, p, t, targets=targets, backend="torch", **groups, **options)
    loss.backward()
    parts = zip(
        q.grad.split([size[0] for size in sizes]), p.grad.split([size[1] for size in sizes]), strict=True
    )
    return loss.detach(), list(parts), t.grad


def close(got, wanted, tolerance):
    assert got.dtype == wanted.dtype
    assert (got - wanted).norm() <= tolerance * wanted.norm(), f"{got} is not {wanted}"


def check_parity(rank, world, group):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)):
        for sizes in (EVEN[:world], UNEVEN[:world]):
            for options in OPTIONS if dtype != torch.bfloat16 else OPTIONS[:2]:
                whole, parts, t_grad = expected(sizes, dtype, options, 0.3)
                for exchange in distributed.EXCHANGES:
                    shards, arguments = problem(sizes, dtype, options)
                    q, p, targets, query_groups, passage_groups, _ = shards[rank]
                    q.requires_grad_(), p.requires_grad_()
                    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
                    loss = distributed.info_nce(
                        q, p, t, exchange=exchange, process_group=group, targets=targets,
                        query_groups=query_groups, passage_groups=passage_groups, **arguments,
                    )  # fmt: skip
                    (2 * loss).backward()
                    mean, t_mean = loss.detach().clone(), t.grad.clone()
                    for value in (mean, t_mean):
                        dist.all_reduce(value, group=group)
                        value /= world
                    close(mean, whole, tolerance)
                    close(t_mean, 2 * t_grad, 10 * tolerance)
                    # Averaged over ranks, the gradient of a weight that made this row is as in one process.
                    close(q.grad / world, 2 * parts[rank][0], tolerance)
                    close(p.grad / world, 2 * parts[rank][1], tolerance)
                    with torch.no_grad():
                        again = distributed.info_nce(
                            q, p, t, exchange=exchange, process_group=group, targets=targets,
                            query_groups=query_groups, passage_groups=passage_groups, **arguments,
                        )  # fmt: skip
                    close(again, loss.detach(), 1e-6 if dtype != torch.float64 else 1e-14)


def check_errors(rank, world, group):
    q, p = torch.randn(4, 8 if rank else 6), torch.randn(4, 8 if rank else 6)
    with pytest.raises(ValueError, match=r"D must be the same on every rank, got \[6, 8"):
        distributed.info_nce(q, p, process_group=group)
    q, p = torch.randn(4, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match="exchange must be one of 'gather', 'ring', got 'broadcast'"):
        distributed.info_nce(q, p, exchange="broadcast", process_group=group)
    with pytest.raises(ValueError, match=r"grad_tolerance 0\.1 needs exchange='gather'"):
        distributed.info_nce(q, p, exchange="ring", grad_tolerance=0.1, process_group=group)
    mixed = q.double() if rank else q
    with pytest.raises(ValueError, match=r"dtype must be the same on every rank, got .*float32.*float64"):
        distributed.info_nce(mixed, mixed, process_group=group)
    # One rank refuses; the others must not wait for it.
    kind, message = (
        (ValueError, "targets must be rows of the 4") if rank == 0 else (RuntimeError, "on rank 0")
    )
    with pytest.raises(kind, match=message):
        distributed.info_nce(q, p, targets=torch.full((4,), 4 if rank == 0 else 3), process_group=group)
    for exchange in distributed.EXCHANGES:
        with pytest.raises(ValueError, match="group 77 has no positive"):
            distributed.info_nce(
                q, p, exchange=exchange, process_group=group, positives="groups", in_batch=False,
                query_groups=torch.full((4,), 77), passage_groups=torch.arange(4),
            )  # fmt: skip


def main(rank, world, store):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    check_parity(rank, world, None)
    check_errors(rank, world, None)
    if world == 4:  # ranks of a subgroup are not the global ones
        group = dist.new_group([3, 1])  # which sorts them
        if rank in (1, 3):
            check_parity(dist.get_rank(group), 2, group)
    dist.destroy_process_group()
    print("all checks passed")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process(world, tmp_path):
    command = [sys.executable, "-P", __file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all("all checks passed" in output for output in outputs), "\n".join(outputs)


def test_alone_it_is_the_plain_loss():
    shards, _ = problem([(5, 8)], torch.float32, {})
    q, p, targets, *_ = shards[0]
    for exchange in distributed.EXCHANGES:
        alone = distributed.info_nce(q, p, 0.1, targets=targets, exchange=exchange, bidirectional=True)
        assert torch.equal(alone, info_nce(q, p, 0.1, targets=targets, bidirectional=True))
    with pytest.raises(ValueError, match="exchange must be one of"):
        distributed.info_nce(q, p, exchange="send")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
