"""The Triton kernels against the torch kernels in float64, and what a call does to the device.

Where TRITON_INTERPRET=1 (tests/conftest.py) they run on the CPU; with TRITON_INTERPRET=0, on a GPU.
"""

import contextlib
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from hybridfast import gpu, info_nce, loss, ops, torch_kernels
from hybridfast.blocks import Block

triton_kernels = pytest.importorskip("hybridfast.triton_kernels", reason="needs the package triton")

if not (ops.TRITON_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
DEVICE = "cpu" if ops.TRITON_INTERPRETED else "cuda"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that 37 x 101 pairs are several, in splits, bands and chunks with an odd last one."""
    tiles = triton_kernels.Tiles(16, 32, 16, 4, 2)
    for name in ("HOPPER_HALF", "HALF", "TF32", "FLOAT32", "SMALL_HALF"):
        monkeypatch.setattr(triton_kernels, name, tiles)
    monkeypatch.setattr(triton_kernels, "PROGRAMS", 4)
    monkeypatch.setattr(triton_kernels, "LEAST_SPLITS", 2)
    monkeypatch.setattr(triton_kernels, "COLUMN_PARTS", 2 * 101 * 4)
    monkeypatch.setattr(gpu, "WORKSPACE", 1 << 14)


def block(queries, passages, dim, dtype=torch.float32, groups=False, by_group=False, excluded=False, seed=0):
    """Unit rows, queries near their targets; some targets are elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(passages, dim, generator=generator)
    targets = torch.randint(-1, passages, (queries,), generator=generator)
    q = p[targets] + torch.randn(queries, dim, generator=generator)
    out = torch.rand(passages, generator=generator) < 0.3 if excluded else None
    ids = (torch.arange(queries) % 11, torch.arange(passages) % 23) if groups else (None, None)
    rows = (F.normalize(x).to(dtype) for x in (q, p))
    return on_device(Block(*rows, torch.tensor(0.1), 0.05, targets, *ids, by_group, out))


def on_device(block):
    return Block(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in block))


def doubled(block):
    rows = (block.queries.double(), block.passages.double(), block.temperature.double())
    return block._replace(queries=rows[0], passages=rows[1], temperature=rows[2])


def solve(kernels, block, columns, needs=(True, True)):
    """All that the kernels compute of a block, for given weights of the losses."""
    generator = torch.Generator().manual_seed(3)
    weights_Q = torch.rand(len(block.queries), generator=generator).to(block.temperature)
    row_sums_Q, column_sums_N = kernels.negative_sums(block, columns)
    costs_Q, row_weights_Q, column_weights_N = kernels.positive_costs(
        block, row_sums_Q, column_sums_N, weights_Q
    )
    grads = kernels.gradients(
        block, row_sums_Q, row_weights_Q, column_sums_N, column_weights_N, weights_Q, needs
    )
    return row_sums_Q, column_sums_N, costs_Q, row_weights_Q, column_weights_N, *grads


def check(block, columns):
    sums = solve(triton_kernels, block, columns)
    exact = solve(torch_kernels, doubled(block), columns)
    # Rows are exact in both: sums, costs and weights err as float32 does; gradients sum rounded weights.
    tolerances = [2e-6] * 5 + [max(1e-5, 8 * torch.finfo(block.queries.dtype).eps)] * 3
    for value, wanted, tolerance in zip(sums, exact, tolerances, strict=True):
        assert (value is None) == (wanted is None)
        if value is not None:
            empty = wanted == -torch.inf
            assert torch.equal(value == -torch.inf, empty)
            value, wanted = value.masked_fill(empty, 0), wanted.masked_fill(empty, 0)
            assert (value - wanted).norm() <= tolerance * wanted.norm()


MASKS = [
    {"groups": groups, "by_group": by_group, "excluded": excluded}
    for groups, by_group, excluded in itertools.product((False, True), repeat=3)
    if groups or not by_group
]


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masks", MASKS, ids=str)
@pytest.mark.parametrize("dim", [19, 131])
@pytest.mark.usefixtures("small_tiles")
def test_every_mask_and_dtype(dim, masks, dtype, columns):
    """Dimension 19 has its gradients formed on the chip where products are half precision, 131 by chunks."""
    check(block(37, 101, dim, dtype, **masks), columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("queries", "passages", "dim"), [(1, 1, 1), (1, 200, 3), (129, 1, 16), (64, 128, 128), (65, 129, 252)]
)
def test_odd_shapes_in_whole_tiles(queries, passages, dim, dtype):
    """The tiles as they are: sizes at, below and above them."""
    check(block(queries, passages, dim, dtype), True)


@pytest.mark.parametrize("dim", [19, 131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_nothing_is_read_around_a_view(dtype, dim):
    """Rows, dimensions and ids lie in storage that is otherwise NaN, or ids of other rows."""

    def within(rows):
        poisoned = rows.new_full((len(rows) + 40, rows.shape[1] + 24), torch.nan)
        poisoned[8:-32, 8:-16] = rows
        return poisoned[8:-32, 8:-16]

    def every_other(ids):
        return torch.stack([ids, ids.flip(0)], dim=1)[:, 0]

    plain = block(37, 101, dim, dtype, groups=True, excluded=True)
    odd = plain._replace(
        queries=within(plain.queries),
        passages=within(plain.passages.T).T,
        targets=every_other(plain.targets),
        query_groups=every_other(plain.query_groups),
        passage_groups=every_other(plain.passage_groups),
        excluded=every_other(plain.excluded),
    )
    for got, wanted in zip(solve(triton_kernels, odd, True), solve(triton_kernels, plain, True), strict=True):
        torch.testing.assert_close(got, wanted)  # library products sum other layouts in another order


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
    monkeypatch.setattr(ops, "block_kernels", lambda *_: triton_kernels)
    q, p = (torch.empty(rows, dim, dtype=dtype, device="meta") for rows in (64, 128))
    groups = [torch.empty(rows, dtype=torch.int64, device="meta") for rows in (64, 128)]
    t = {"float": 0.1, "of the CPU": torch.tensor(0.1), "of the device": torch.empty((), device="meta")}
    with NoCopies():
        scalar, targets, compute_dtype = loss.prepare(
            q, p, t[temperature], targets=None, query_groups=groups[0], passage_groups=groups[1],
            positives=positives, bidirectional=in_batch, in_batch=in_batch, margin=0.1,
            grad_tolerance=0.0, compute_dtype=None, backend="auto",
        )  # fmt: skip
        problem = ops.Problem(
            q, p, scalar, targets, *groups, positives, in_batch, in_batch, 0.1, True, 0.0, compute_dtype,
            "auto", [True, True, temperature == "of the device"],
        )  # fmt: skip
        losses, grads, stats = ops._run(problem, torch.empty(64, device="meta"))
    assert {x.device.type for x in (losses, stats, *grads[:2])} == {"meta"}
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
from hybridfast import triton_kernels, triton_ranks
from hybridfast.blocks import Block

capability, shared_memory = int(sys.argv[1]), int(sys.argv[2])
POINTERS = {torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
            torch.uint8: "*u8"}

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

for name in ("_sums_kernel", "_group_costs_kernel", "_weights_kernel", "_gradient_kernel"):
    setattr(triton_kernels, name, Ahead(getattr(triton_kernels, name)))
for name in ("_gold_scores_kernel", "_count_kernel"):
    setattr(triton_ranks, name, Ahead(getattr(triton_ranks, name)))
golds = np.array([0, 2, 2, 3]), np.array([4, 0, 1])
for dtype in (torch.float16, torch.float32):
    rows = [torch.zeros(count, 40, dtype=dtype) for count in (3, 5)]
    triton_ranks.rank_counts(*rows, np.array([0, 2, 5]), np.arange(5), *golds)
if capability == 90:
    triton_kernels.HALF = triton_kernels.HOPPER_HALF
for queries, passages, dim, dtype, groups, by_group in (
    (512, 1024, 256, torch.float16, False, False),
    (512, 1024, 64, torch.float16, True, False),
    (1, 1, 131, torch.float32, True, True),
):
    ids = [torch.zeros(rows, dtype=torch.int64) for rows in (queries, passages)]
    block = Block(
        torch.zeros(queries, dim, dtype=dtype), torch.zeros(passages, dim, dtype=dtype), torch.ones(()), 0.1,
        ids[0], *(ids if groups else (None, None)), by_group, ids[1].bool() if groups else None,
    )
    weights = torch.ones(queries)
    sums = triton_kernels.negative_sums(block, groups)
    _, rows, columns = triton_kernels.positive_costs(block, *sums, weights)
    triton_kernels.gradients(block, sums[0], rows, sums[1], columns, weights, (True, True))
"""


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
