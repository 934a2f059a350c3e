"""The CUDA C++ kernels: compiled for GPUs that need not be there, and run.

They run on a CPU as well: tests/native/cuda_on_cpu has fibers for CUDA's threads and, instruction by
instruction, what csrc/cuda/ptx.h has in PTX. With TRITON_INTERPRET=0, on a GPU and in a build with
HYBRIDFAST_CUDA=ON, they run there.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from infonce.kernel_checks import (
    MASKS,
    MASKS_AND_COLUMNS,
    block,
    check,
    check_one_direction,
    doubled,
    poisoned,
    solve,
    with_far_queries,
)

from hybridfast import info_nce
from hybridfast.infonce import backends, gpu, torch_kernels
from hybridfast.infonce.blocks import Sums, Weights

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "csrc/cuda/infonce.cu", ROOT / "csrc/cuda/bind.cpp"]
ON_A_GPU = torch.cuda.is_available() and backends.CUDA and not backends.TRITON_INTERPRETED
DEVICE = "cuda" if ON_A_GPU else "cpu"
DTYPES = [torch.bfloat16, torch.float16]
# The GPU whose kernels run, and whether what goes on in the background ends as early or as late as it may.
ENGINES = ["GPU"] if ON_A_GPU else ["A100, early", "A100, late", "H100, early", "H100, late"]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """`hybridfast._cuda`, or the same for a CPU."""
    if ON_A_GPU:
        return importlib.import_module("hybridfast._cuda")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    pybind11 = pytest.importorskip("pybind11")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C++ compiler on Linux")
    library = tmp_path_factory.mktemp("cuda_on_cpu") / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    folders = [ROOT / "tests/native/cuda_on_cpu", ROOT / "csrc", pybind11.get_include()]
    command = [
        compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror",
        "-Wno-unknown-pragmas", "-march=native", "-ffp-contract=off",  # half precision in hardware, same bits
        "-U_FORTIFY_SOURCE",  # which forbids jumps between stacks
        *(f"-I{folder}" for folder in (*folders, sysconfig.get_path("include"))),
        "-x", "c++", *SOURCES, "-o", library,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("hybridfast._cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=ENGINES)
def kernels(request, native, monkeypatch):
    """The backend, a few tiles of passages to a split."""
    monkeypatch.setitem(sys.modules, "hybridfast._cuda", native)
    monkeypatch.setattr(sys.modules["hybridfast"], "_cuda", native, raising=False)
    monkeypatch.delitem(sys.modules, "hybridfast.infonce.cuda_kernels", raising=False)
    monkeypatch.setenv("HYBRIDFAST_CPU_CAPABILITY", "9" if "H100" in request.param else "8")
    monkeypatch.setenv("HYBRIDFAST_CPU_LATE", "1" if "late" in request.param else "0")
    monkeypatch.setattr(gpu, "PROGRAMS", 4)
    monkeypatch.setattr(gpu, "LEAST_SPLITS", 2)
    return importlib.import_module("hybridfast.infonce.cuda_kernels")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("masks", "columns"), MASKS_AND_COLUMNS, ids=str)
def test_every_mask_and_dtype(kernels, masks, dtype, columns):
    """Two tiles of queries, one of them not full, and several tiles of passages in two splits."""
    check(kernels, block(150, 530, 40, dtype, device=DEVICE, **masks), columns)


@pytest.mark.parametrize(
    ("queries", "passages", "dim"),
    [(1, 1, 1), (1, 700, 3), (129, 1, 16), (128, 256, 64), (257, 129, 65), (129, 513, 330)],
)
def test_odd_shapes(kernels, queries, passages, dim):
    """At, below and above a tile; 330 dimensions are more than a pipeline holds."""
    check(kernels, block(queries, passages, dim, torch.bfloat16, device=DEVICE), True)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 600), st.integers(1, 150), st.sampled_from(MASKS), st.booleans())
def test_drawn_shapes(kernels, queries, passages, dim, masks, columns):
    check(kernels, block(queries, passages, dim, torch.bfloat16, device=DEVICE, **masks), columns)


@pytest.mark.parametrize("masks", [masks for masks in MASKS if not masks["by_group"]], ids=str)
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_one_direction(kernels, monkeypatch, far, masks):
    """Two chunks of queries; in the far ones, the tiles from the middle on hold no far query."""
    problem = block(290, 530, 40, torch.bfloat16, device=DEVICE, **masks)
    if far:
        near = problem.queries[128:256].clone()
        problem = with_far_queries(problem)
        problem.queries[128:256] = near
    monkeypatch.setattr(gpu, "WORKSPACE", 256 * (536 * 2 + 2 * 40 * 4))
    check_one_direction(kernels, problem)


def test_one_direction_needs_range_and_one_positive(kernels, native):
    weights_Q = torch.ones(9, device=DEVICE)
    for problem in (
        block(9, 20, 24, torch.float16, device=DEVICE),
        block(9, 20, 24, torch.bfloat16, groups=True, by_group=True, device=DEVICE),
    ):
        assert kernels.one_direction(problem, weights_Q, (True, True)) is None


def test_bands_and_chunks(kernels, monkeypatch):
    """Column parts are merged band after band, and gradients summed chunk after chunk."""
    monkeypatch.setattr(gpu, "COLUMN_PARTS", 1)
    monkeypatch.setattr(gpu, "WORKSPACE", 100 * (304 * 2 + 2 * 24 * 4))
    check(kernels, block(300, 300, 24, torch.bfloat16, device=DEVICE), True)


@pytest.mark.parametrize("dim", [24, 37])
def test_nothing_is_read_around_a_view(kernels, dim):
    plain = block(150, 300, dim, torch.bfloat16, groups=True, excluded=True, device=DEVICE)
    for got, wanted in zip(solve(kernels, poisoned(plain), True), solve(kernels, plain, True), strict=True):
        torch.testing.assert_close(got, wanted)  # library products sum other layouts in another order


@pytest.mark.parametrize("queries", [100, 130, 300])
def test_nothing_is_written_around(kernels, queries):
    """300 queries are an odd number of tiles, of which Hopper's clusters take two at a time."""
    passages, mark = 301, torch.nan
    problem = block(queries, passages, 24, torch.bfloat16, device=DEVICE)
    native = kernels._Native(problem)
    band = gpu.Band.of(0, queries, passages, native.tile)
    parts = native.tile.parts * -(-queries // native.tile.queries)
    rows = torch.full((band.splits + 2, queries), mark, device=DEVICE)
    columns = torch.full((parts + 2, passages), mark, device=DEVICE)
    kernels.native_negative_sums(
        native.block, kernels.Sweep(*band), rows[1].data_ptr(), columns[1].data_ptr(), native.stream
    )
    for written in (rows, columns):
        assert written[[0, -1]].isnan().all()
        assert not written[1:-1].isnan().any()
    width = 304  # passages up to a multiple of 8
    sums = torch.zeros(queries, device=DEVICE)
    for form in ("weights", "exps"):
        storage = torch.full((queries + 4, width + 16), mark, dtype=torch.bfloat16, device=DEVICE)
        out = storage[2:-2, 8 : 8 + passages]
        if form == "weights":
            weights = Weights(sums + 1, sums + 1, None)
            kernels._form_weights(problem, slice(0, queries), Sums(sums, None), weights, out)
        else:
            kernels._form_exps(problem, sums, out)
        assert not out.isnan().any()
        storage[2:-2, 8 : 8 + width] = mark
        assert storage.isnan().all()


def test_repeats_to_the_bit(kernels):
    problem = block(150, 300, 24, torch.bfloat16, device=DEVICE)
    for got, wanted in zip(solve(kernels, problem, True), solve(kernels, problem, True), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("temperature", [1e-3, 10.0])
@pytest.mark.parametrize("excluded", [False, True])
def test_extreme_temperatures(kernels, temperature, excluded):
    """At 1e-3 logits reach 1,000 and the terms of most columns underflow next to their rows' largest."""
    problem = block(150, 300, 24, torch.bfloat16, excluded=excluded, device=DEVICE)
    problem = problem._replace(temperature=torch.full_like(problem.temperature, temperature))
    got = solve(kernels, problem, True)
    wanted = solve(torch_kernels, doubled(problem), True)
    for value, exact in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    for value, exact in zip(got[5:], wanted[5:], strict=True):
        assert (value - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_queries_without_negatives(kernels, columns):
    """Everything in one group: sums are empty, and neither cost nor weigh anything."""
    problem = block(150, 300, 24, torch.bfloat16, groups=True, device=DEVICE)
    problem.query_groups.fill_(5)
    problem.passage_groups.fill_(5)
    rows, column_sums, *rest = solve(kernels, problem, columns)
    assert (rows == -torch.inf).all()
    assert column_sums is None or (column_sums == -torch.inf).all()
    for value in rest:
        assert value is None or not value.any()


def test_targets_out_of_range_reach_no_memory(kernels):
    """A GPU's targets are not checked. Theirs is NaN; other queries' losses do not change."""
    problem = block(150, 300, 24, torch.bfloat16, device=DEVICE)
    wrong = problem._replace(targets=problem.targets.clone())
    wrong.targets[3], wrong.targets[20] = 1 << 40, -(1 << 40)
    *_, costs_Q = solve(kernels, problem, False)[:3]
    *_, wrong_Q = solve(kernels, wrong, False)[:3]
    assert wrong_Q.isnan().nonzero().flatten().tolist() == [3, 20]
    kept = ~wrong_Q.isnan()
    assert torch.equal(wrong_Q[kept], costs_Q[kept])


def test_nan_reaches_the_sums_it_touches(kernels):
    problem = block(150, 300, 24, torch.bfloat16, device=DEVICE)
    problem.queries[7] = torch.nan
    rows, columns = kernels.negative_sums(problem, True)
    assert rows.isnan().nonzero().flatten().tolist() == [7]
    wanted = torch.arange(300, device=DEVICE) != problem.targets[7]  # of which it is no negative
    assert torch.equal(columns.isnan(), wanted)


def test_rows_that_are_not_aligned_are_refused(native):
    sizes = {
        "device": 0,
        "query_count": 1,
        "passage_count": 1,
        "dim": 8,
        "dtype": "bfloat16",
        "by_group": False,
    }
    ids = dict.fromkeys(("inverse_temperature", "targets", "query_groups", "passage_groups", "excluded"), 0)
    for queries, stride in ((8, 8), (16, 12)):
        with pytest.raises(ValueError, match="rows must begin at multiples of 16 bytes"):
            native.Block(queries=queries, query_stride=stride, passages=16, passage_stride=8, **sizes, **ids)
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, got float32"):
        native.Block(
            queries=16, query_stride=8, passages=16, passage_stride=8, **{**sizes, "dtype": "float32"}, **ids
        )


@pytest.mark.parametrize(
    ("built", "dtype", "compute_dtype", "message"),
    [
        (False, torch.bfloat16, None, "was built without CUDA; set HYBRIDFAST_CUDA=ON"),
        (True, torch.float32, None, "covers products of bfloat16 and float16, got float32"),
        (True, torch.bfloat16, torch.float32, "covers products of bfloat16 and float16, got float32"),
        (True, torch.float64, torch.bfloat16, "does not cover float64"),
        (True, torch.float32, torch.float16, "needs tensors on a GPU, got cpu"),
    ],
)
def test_says_what_it_lacks(monkeypatch, built, dtype, compute_dtype, message):
    monkeypatch.setattr(backends, "CUDA", built)
    rows = torch.ones(3, 8, dtype=dtype)
    with pytest.raises(ValueError, match=f"backend='cuda' {message}; use backend='auto' or 'torch'"):
        info_nce(rows, rows, backend="cuda", compute_dtype=compute_dtype)


def tool(name):
    """A program of the CUDA toolkit, or of those that triton brings along."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else ROOT
    found = shutil.which(name) or shutil.which(name, path=str(bundled))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def compiled_for(architecture, folder):
    """A file with the kernels' machine code: of the installed library or, without one, compiled here."""
    if installed := importlib.util.find_spec("hybridfast._cuda"):
        return installed.origin
    cubin = folder / "infonce.cubin"
    command = [
        tool("nvcc"), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", SOURCES[0], "-o", cubin,
        "-Xcompiler=-Wall,-Wextra,-Werror", "-Werror=all-warnings",
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return cubin


@pytest.mark.parametrize(
    ("architecture", "instructions"),
    [
        ("80", ["HMMA.16816.F32.BF16", "HMMA.16816.F32 ", "LDGSTS", "LDSM.16.M88.4"]),
        ("90a", ["HGMMA.64x256x16.F32.BF16", "HGMMA.64x256x16.F32 ", "UTMALDG.2D.MULTICAST", "USETMAXREG"]),
    ],
)
def test_compiles_to_the_instructions_meant(tmp_path, architecture, instructions):
    """For GPUs that need not be there: without a register in memory, and with products kept in flight."""
    cuobjdump, binary = tool("cuobjdump"), compiled_for(architecture, tmp_path)

    def shown(what):
        command = [cuobjdump, what, "-arch", f"sm_{architecture}", binary]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    memory = re.findall(r"STACK:(\d+) .*LOCAL:(\d+)", shown("-res-usage"))
    if not memory and backends.CUDA:
        pytest.skip(f"the installed library is not for sm_{architecture}")
    assert set(memory) == {("0", "0")}
    listed = shown("-sass")
    for instruction in instructions:
        assert instruction in listed
    for function in listed.split("Function : ")[1:]:  # where ptxas serializes products, each ends a group
        products = re.findall("HGMMA.*", function)
        assert not products or not all("gsb0" in product for product in products), function[:200]
