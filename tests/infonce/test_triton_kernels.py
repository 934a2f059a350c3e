"""The Triton kernels against the torch kernels in float64, and what a call does to the device.

Where TRITON_INTERPRET=1 (tests/conftest.py) they run on the CPU; with TRITON_INTERPRET=0, on a GPU.
"""

import contextlib
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from infonce.kernel_checks import (
    MASKS,
    MASKS_AND_COLUMNS,
    check,
    check_one_direction,
    doubled,
    poisoned,
    solve,
    with_far_queries,
)
from infonce.kernel_checks import block as block_on
from torch.utils._pytree import tree_leaves

from hybridfast import info_nce
from hybridfast.infonce import backends, blocks, gpu, ops, torch_kernels
from hybridfast.infonce.problem import Problem

triton_kernels = pytest.importorskip("hybridfast.infonce.triton_kernels", reason="needs the package triton")
triton_tiles = pytest.importorskip("hybridfast.infonce.triton_tiles", reason="needs the package triton")

if not (backends.TRITON_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
DEVICE = "cpu" if backends.TRITON_INTERPRETED else "cuda"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
block = partial(block_on, device=DEVICE)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that 37 x 101 pairs are several, in splits, bands and chunks with an odd last one."""
    tiles = triton_tiles.Tiles(16, 32, 16, 4, 2)
    for name in ("HOPPER_HALF", "HALF", "TF32", "FLOAT32"):
        monkeypatch.setattr(triton_tiles, name, tiles)
    monkeypatch.setattr(triton_kernels, "SMALL_HALF", tiles)
    monkeypatch.setattr(gpu, "PROGRAMS", 4)
    monkeypatch.setattr(gpu, "LEAST_SPLITS", 2)
    monkeypatch.setattr(gpu, "COLUMN_PARTS", 2 * 101 * 4)
    monkeypatch.setattr(gpu, "WORKSPACE", 1 << 14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("masks", "columns"), MASKS_AND_COLUMNS, ids=str)
@pytest.mark.parametrize("dim", [19, 131])
@pytest.mark.usefixtures("small_tiles")
def test_every_mask_and_dtype(dim, masks, dtype, columns):
    """Dimension 19 has its gradients formed on the chip where products are half precision, 131 by chunks."""
    check(triton_kernels, block(37, 101, dim, dtype, **masks), columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("queries", "passages", "dim"), [(1, 1, 1), (1, 200, 3), (129, 1, 16), (64, 128, 128), (65, 129, 252)]
)
def test_odd_shapes_in_whole_tiles(queries, passages, dim, dtype):
    """The tiles as they are: sizes at, below and above them."""
    check(triton_kernels, block(queries, passages, dim, dtype), True)


@pytest.mark.parametrize("dim", [19, 131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_nothing_is_read_around_a_view(dtype, dim):
    plain = block(37, 101, dim, dtype, groups=True, excluded=True)
    odd = poisoned(plain)
    for got, wanted in zip(solve(triton_kernels, odd, True), solve(triton_kernels, plain, True), strict=True):
        torch.testing.assert_close(got, wanted)  # library products sum other layouts in another order


@pytest.mark.parametrize(
    ("masks", "needs"),
    [(masks, (True, True)) for masks in MASKS if not masks["by_group"]]
    + [(MASKS[-1] | {"by_group": False}, needs) for needs in ((False, True), (True, False), (False, False))],
    ids=str,
)
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize(("dim", "dtype"), [(131, torch.bfloat16), (19, torch.float32)], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_one_direction(dim, dtype, far, needs, masks):
    problem = block(37, 101, dim, dtype, **masks)
    if far:
        problem = with_far_queries(problem)
    check_one_direction(triton_kernels, problem, needs)


def test_one_direction_needs_range_and_one_positive():
    """float16 ends at 65,504; groups have several positives; small dimensions stay on the chip."""
    for problem in (
        block(37, 101, 131, torch.float16),
        block(37, 101, 131, torch.bfloat16, groups=True, by_group=True),
        block(37, 101, 64, torch.bfloat16),
    ):
        weights_Q = torch.ones(37, device=DEVICE)
        assert triton_kernels.one_direction(problem, weights_Q, (True, True)) is None


@pytest.mark.parametrize("temperature", [1e-3, 10.0])
@pytest.mark.usefixtures("small_tiles")
def test_extreme_temperatures(temperature):
    """At 1e-3 logits reach 1,000 and the terms of most columns underflow next to their rows' largest."""
    problem = block(37, 101, 19)
    problem = problem._replace(temperature=torch.full_like(problem.temperature, temperature))
    got = solve(triton_kernels, problem, True)
    wanted = solve(torch_kernels, doubled(problem), True)
    for value, exact in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    # Products of unit rows err by 2^-24 or so; that is what a gradient's weights may err by.
    unit = 2**-24 / temperature
    for value, exact in zip(got[5:], wanted[5:], strict=True):
        assert (value - exact).norm() <= 8 * max(unit, 2**-20) * exact.norm()


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_queries_without_negatives(dtype, columns):
    """Everything in one group: sums are empty, and neither cost nor weigh anything."""
    problem = block(37, 101, 19, dtype, groups=True)
    problem.query_groups.fill_(5)
    problem.passage_groups.fill_(5)
    rows, column_sums, *rest = solve(triton_kernels, problem, columns)
    assert (rows == -torch.inf).all()
    assert column_sums is None or (column_sums == -torch.inf).all()
    for value in rest:
        assert value is None or not value.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [19, 131])
@pytest.mark.usefixtures("small_tiles")
def test_temperature_alone_gets_its_gradient(dim, dtype):
    problem = block(37, 101, dim, dtype)
    *_, grad_t = solve(triton_kernels, problem, True)
    tolerance = 4 * torch.finfo(dtype).eps
    for needs in ((False, False), (False, True), (True, False)):
        *_, grad_q, grad_p, alone = solve(triton_kernels, problem, True, needs)
        assert ((grad_q is not None), (grad_p is not None)) == needs
        torch.testing.assert_close(alone, grad_t, rtol=tolerance, atol=0)


@pytest.mark.usefixtures("small_tiles")
def test_targets_out_of_range_reach_no_memory():
    """A GPU's targets are not checked. Theirs is NaN; other queries' losses do not change."""
    problem = block(37, 101, 19)
    wrong = problem._replace(targets=problem.targets.clone())
    wrong.targets[3], wrong.targets[20] = 1 << 40, -(1 << 40)
    *_, costs_Q = solve(triton_kernels, problem, False)[:3]
    *_, wrong_Q = solve(triton_kernels, wrong, False)[:3]
    assert wrong_Q.isnan().nonzero().flatten().tolist() == [3, 20]
    kept = ~wrong_Q.isnan()
    assert torch.equal(wrong_Q[kept], costs_Q[kept])


def test_compiled_is_eager():
    q, p = (torch.randn(rows, 20, device=DEVICE, requires_grad=True) for rows in (9, 11))

    def step(q, p):
        return info_nce(q * 2, p, 0.1, backend="triton", bidirectional=True) * 3

    value, compiled = step(q, p), torch.compile(step, fullgraph=True)(q, p)
    torch.testing.assert_close(compiled, value)
    for got, wanted in zip(
        torch.autograd.grad(compiled, (q, p)), torch.autograd.grad(value, (q, p)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


class NoCopies(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what copies between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        assert len({x.device for x in tensors}) <= 1, f"{func} copies between devices"
        return out


@pytest.mark.parametrize("temperature", ["float", "of the CPU", "of the device"])
@pytest.mark.parametrize("positives", ["target", "groups"])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize(("dim", "dtype"), [(16, torch.float16), (256, torch.bfloat16), (16, torch.float32)])
def test_no_call_waits_for_the_device(monkeypatch, dim, dtype, in_batch, positives, temperature):
    """All but the kernels, on tensors without values: to read one, or to need one for a size, is an error."""
    launched = []
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it does not know such a device
    monkeypatch.setattr(torch, "autocast", lambda *_, **options: contextlib.nullcontext())
    monkeypatch.setattr(triton_kernels, "_launch", lambda kernel, *_, **constants: launched.append(kernel))
    monkeypatch.setattr(blocks, "kernels_of", lambda problem: triton_kernels)
    q, p = (torch.empty(rows, dim, dtype=dtype, device="meta") for rows in (64, 128))
    groups = [torch.empty(rows, dtype=torch.int64, device="meta") for rows in (64, 128)]
    t = {"float": 0.1, "of the CPU": torch.tensor(0.1), "of the device": torch.empty((), device="meta")}
    with NoCopies():
        problem = Problem(
            q, p, t[temperature], None, *groups, positives, bidirectional=in_batch, in_batch=in_batch,
            margin=0.1, reduction="none",
        ).checked()  # fmt: skip
        problem = problem._replace(needs=(True, True, temperature == "of the device"))
        losses, grads, _ = ops._run(problem, torch.empty(64, device="meta"))
    assert {x.device.type for x in (losses, *grads[:2])} == {"meta"}
    assert triton_kernels._sums_kernel in launched


@on_a_gpu
@pytest.mark.parametrize("dim", [64, 256])
def test_replays_in_a_cuda_graph(dim):
    """Captured once with gradients and replayed on new values, it gives what a call gives, to the bit."""
    q, p = (torch.randn(rows, dim, device="cuda", requires_grad=True) for rows in (300, 500))

    def step():
        value = info_nce(q, p, bidirectional=True, compute_dtype=torch.bfloat16)
        return value, *torch.autograd.grad(value, (q, p))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.copy_(torch.randn_like(q))
    graph.replay()
    for got, wanted in zip(captured, step(), strict=True):
        assert torch.equal(got, wanted)


@on_a_gpu
def test_repeats_to_the_bit_on_a_gpu():
    problem = block(3_000, 5_000, 256, torch.bfloat16)
    first = solve(triton_kernels, problem, True)
    for _ in range(3):
        for got, wanted in zip(solve(triton_kernels, problem, True), first, strict=True):
            assert torch.equal(got, wanted)


COMPILE = """
import sys
import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hybridfast.infonce import triton_kernels, triton_tiles
from hybridfast.evaluation import triton_ranks
from hybridfast.infonce.blocks import Block

capability, shared_memory = int(sys.argv[1]), int(sys.argv[2])
POINTERS = {torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
            torch.uint8: "*u8", torch.bfloat16: "*bf16"}

class Ahead:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, num_warps, num_stages, **constants):
        kinds, aligned = {}, {}
        for place, (name, value) in enumerate(zip(self.kernel.arg_names, arguments)):
            if value is None or type(value) is int and value == 1:  # as launches do
                constants[name] = value
            elif isinstance(value, torch.Tensor):
                kinds[name] = POINTERS[value.dtype]
                aligned[(place,)] = [["tt.divisibility", 16]]
            else:
                kinds[name] = "fp32" if isinstance(value, float) else "i32"
                if value % 16 == 0 and kinds[name] == "i32":
                    aligned[(place,)] = [["tt.divisibility", 16]]
        kinds = {name: kinds.get(name, "constexpr") for name in self.kernel.arg_names}
        compiled = triton.compile(
            ASTSource(self.kernel, kinds, constants, aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        assert compiled.metadata.shared <= shared_memory, (self.kernel.__name__, compiled.metadata.shared)
        assert compiled.asm["cubin"]

for name in ("_sums_kernel", "_group_costs_kernel", "_exps_kernel", "_weights_kernel", "_gradient_kernel"):
    setattr(triton_kernels, name, Ahead(getattr(triton_kernels, name)))
for name in ("_gold_scores_kernel", "_count_kernel"):
    setattr(triton_ranks, name, Ahead(getattr(triton_ranks, name)))
triton_kernels.as_rows = lambda rows: rows  # the interpreter alone has no bfloat16
golds = np.array([0, 2, 2, 3]), np.array([4, 0, 1])
for dtype in (torch.float16, torch.float32):
    rows = [torch.zeros(count, 40, dtype=dtype) for count in (3, 5)]
    triton_ranks.rank_counts(*rows, np.array([0, 2, 5]), np.arange(5), *golds, 1)
if capability == 90:
    triton_tiles.HALF = triton_tiles.HOPPER_HALF
for queries, passages, dim, dtype, groups, by_group in (
    (512, 1024, 256, torch.float16, False, False),
    (512, 1024, 64, torch.float16, True, False),
    (512, 1024, 256, torch.bfloat16, True, False),
    (1, 1, 131, torch.float32, True, True),
):
    ids = [torch.zeros(rows, dtype=torch.int64) for rows in (queries, passages)]
    block = Block(
        torch.zeros(queries, dim, dtype=dtype), torch.zeros(passages, dim, dtype=dtype), torch.ones(()), 0.1,
        ids[0], *(ids if groups else (None, None)), by_group, ids[1].bool() if groups else None,
    )
    weights_Q = torch.ones(queries)
    sums = triton_kernels.negative_sums(block, groups)
    _, weights = triton_kernels.positive_costs(block, sums, weights_Q)
    triton_kernels.gradients(block, sums, weights, (True, True))
    triton_kernels.one_direction(block, weights_Q, (True, True))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "shared_memory"), [(80, 163 << 10), (90, 227 << 10)], ids=["A100", "H100"]
)
def test_compiles_for_gpus_that_need_not_be_there(tmp_path, capability, shared_memory):
    """The compiler itself, without its interpreter, and the tiles as they are: both fit the shared memory."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-P", "-c", COMPILE, str(capability), str(shared_memory)]
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
