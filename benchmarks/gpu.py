"""info_nce and gold_ranks on one NVIDIA GPU against what people use there, from ready embeddings.

    python benchmarks/gpu.py                      # builds, checks, times; writes benchmarks/results/gpu.md
    python benchmarks/gpu.py --rows 65536 --dims 768 --seconds 120
    TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --no-build   # rehearses the script on tiny sizes

The loss works on bfloat16. Everyone's loss and gradients are held against float64 first: our error must not
exceed that of eager torch in the same dtype, and others' not 1e-2 more than four times that. Contenders take
turns and a cell is the median of CUDA events. Beside them stand the bare matrix products of the same shapes:
one for a loss; three for one with gradients, or four in both directions. Memory is what a step takes beyond
inputs and gradients.
gold_ranks works on small integers, whose scores are exact: all ranks must be equal to the CPU's. The tables
are written after every row.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bench_info_nce import (
    TEMPERATURE,
    Contender,
    eager,
    eager_bidirectional,
    embeddings,
    run,
    sentence_transformers_cached,
    sentence_transformers_plain,
    torch_loop,
)
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "gpu.md"
OURS = ("triton", "cuda", "torch")
CHUNK = 16384  # rows of a bare product, whose result would not fit otherwise


def build() -> None:
    command = [sys.executable, "-m", "pip", "install", ".", "--no-build-isolation", "--no-deps"]
    if shutil.which("nvcc"):
        command += ["-C", "cmake.define.HYBRIDFAST_CUDA=ON"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def inf_cl(q: Tensor, p: Tensor) -> Tensor:
    from inf_cl import cal_flash_loss
    from torch.nn.functional import normalize

    losses: Tensor = cal_flash_loss(normalize(q.float()), normalize(p.float()), scale=1 / TEMPERATURE)
    return losses.mean()  # one a query, whose dimensions must be a multiple of 256


def contenders(rows: int, both: bool, device: str, free: float) -> dict[str, Contender]:
    """By name; those that hold Q x N, in float32 and several times over, only where `free` bytes take it."""
    from hybridfast import info_nce

    # A rehearsal compiles as far as to PyTorch's operators: C++ for the CPU would take it half a minute.
    compiled = partial(torch.compile, backend="aot_eager" if device == "cpu" else "inductor")

    def ours(q: Tensor, p: Tensor, backend: str) -> Tensor:
        return info_nce(q, p, TEMPERATURE, bidirectional=both, backend=backend)

    field: dict[str, Contender] = {f"hybridfast {name}": partial(ours, backend=name) for name in OURS}
    whole = 20.0 * rows * rows < free
    if both:
        if whole:
            field |= {"eager": eager_bidirectional, "compiled": compiled(eager_bidirectional)}
        return field
    field["torch loop"] = torch_loop
    if importlib.util.find_spec("inf_cl"):
        field["Inf-CL"] = inf_cl
    if whole:
        field |= {"eager": eager, "compiled": compiled(eager), "ST MNRL": sentence_transformers_plain}
    if rows <= 16384:
        field["ST cached"] = sentence_transformers_cached
    return field


def inputs(rows: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    q, p = (x.detach().to(device, torch.bfloat16).requires_grad_() for x in embeddings(rows, dim))
    return q, p


def errors(loss: Contender, reference: Contender, q: Tensor, p: Tensor) -> list[float]:
    """Of the loss and of both gradients, relative to float64."""
    wide = [x.detach().double().requires_grad_() for x in (q, p)]
    wanted = [run(reference, *wide), *(x.grad for x in wide)]
    got = [run(loss, q, p), q.grad, p.grad]
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]


def fit_to_time(rows: int, dim: int, both: bool, device: str, free: float) -> dict[str, Contender]:
    """Those of the contenders that run here and are right; says who is not."""
    q, p = inputs(min(rows, 509), dim, device)
    plain = eager_bidirectional if both else eager
    eager_errors = errors(plain, plain, q, p)
    fit = {}
    for name, loss in contenders(rows, both, device, free).items():
        try:
            found = errors(loss, plain, q, p)
        except (ValueError, ImportError, RuntimeError, AssertionError) as refusal:
            print(f"{name} sits out: {str(refusal).splitlines()[0]}")
            continue
        factor, slack = (1.5, 1e-3) if "hybridfast" in name else (4.0, 1e-2)
        if all(error <= factor * theirs + slack for error, theirs in zip(found, eager_errors, strict=True)):
            fit[name] = loss
        elif "hybridfast" in name:
            raise AssertionError(f"{name}: errors {found} against float64, eager's are {eager_errors}")
        else:
            print(f"{name} sits out: errors {found} against float64, eager's are {eager_errors}")
    return fit


def products(q: Tensor, p: Tensor, passes: int) -> None:
    """The matrix products that a step cannot do without, and nothing else."""
    grad_p = torch.zeros_like(p)
    for part in q.split(CHUNK):
        for _ in range(1 if passes < 4 else 2):
            scores = part @ p.T
        if passes > 1:
            part_grads = scores @ p
            grad_p.addmm_(scores.T, part)
            del part_grads


def timed(call: Callable[[], object], device: str) -> float:
    """Milliseconds."""
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def medians(calls: dict[str, Callable[[], object]], device: str, seconds: float) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    start = time.perf_counter()
    while len(min(times.values(), key=len)) < 3 or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            times[name].append(timed(call, device))
    return {name: statistics.median(values) for name, values in times.items()}


def peak(step: Callable[[], object], kept: int, device: str) -> str:
    """Megabytes that a step takes beyond inputs and the gradients it leaves."""
    if device == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return f"{(torch.cuda.max_memory_allocated() - before - kept) / 2**20:.0f} MB"


def forward(loss: Contender, q: Tensor, p: Tensor) -> Tensor:
    with torch.no_grad():
        return loss(q, p)


def row(count: int, dim: int, both: bool, device: str, seconds: float) -> list[str]:
    free = torch.cuda.mem_get_info()[0] if device != "cpu" else 4e9
    field = fit_to_time(count, dim, both, device, free)
    q, p = inputs(count, dim, device)
    bare = (q.detach(), p.detach())
    lines = []
    for what, passes in (("forward", 1), ("forward + backward", 4 if both else 3)):
        act = forward if passes == 1 else run
        steps: dict[str, Callable[[], object]] = {n: partial(act, loss, q, p) for n, loss in field.items()}
        floor = "bare product" if passes == 1 else f"{passes} bare products"
        took = medians({floor: partial(products, *bare, passes), **steps}, device, seconds)
        for name, milliseconds in sorted(took.items(), key=lambda item: item[1]):
            q.grad = p.grad = None
            kept = 0 if passes == 1 else 2 * q.nbytes
            memory = "" if name == floor else peak(steps[name], kept, device)
            directions = "both" if both else "one"
            lines.append(
                f"| {count:,} | {dim} | {directions} | {what} | {name} | {milliseconds:.2f} | "
                f"{milliseconds / took[floor]:.2f} | {memory} |"
            )
    return lines


def sorted_ranks(queries: Tensor, passages: Tensor, golds_QK: Tensor) -> Tensor:
    """Expected ranks (G,) by a product, a sort and two bisections, a chunk of queries at a time."""
    ranks = []
    for rows, golds in zip(queries.split(2048), golds_QK.split(2048), strict=True):
        scores = rows @ passages.T
        wanted = scores.gather(1, golds)
        scores = scores.sort(dim=1).values
        below = torch.searchsorted(scores, wanted)
        above = torch.searchsorted(scores, wanted, right=True)
        ranks.append(1 + len(passages) - (below + above + 1) / 2)
    return torch.cat(ranks).flatten()


def rank_rows(count: int, dim: int, golds: int, device: str, seconds: float) -> list[str]:
    from hybridfast import gold_ranks

    generator = torch.Generator().manual_seed(0)
    queries, passages = (
        torch.randint(-3, 4, (rows, dim), generator=generator).float() for rows in (count, count + 17)
    )
    golds_QK = torch.stack([torch.randperm(len(passages), generator=generator)[:golds] for _ in queries])
    answers = (torch.arange(0, count * golds + 1, golds).numpy(), golds_QK.flatten().numpy())
    on_device = (queries.to(device), passages.to(device))
    halves = [rows.bfloat16() for rows in on_device]
    there = golds_QK.to(device)
    calls: dict[str, Callable[[], object]] = {
        "gold_ranks": lambda: gold_ranks(*on_device, *answers),
        "gold_ranks, bfloat16": lambda: gold_ranks(*halves, *answers),
        "product, sort, bisect in torch": lambda: sorted_ranks(*on_device, there).cpu(),
    }
    if device != "cpu":
        calls["gold_ranks on the CPU"] = lambda: gold_ranks(queries, passages, *answers)
    wanted = torch.as_tensor(gold_ranks(queries, passages, *answers)).float()
    for name, call in calls.items():
        assert torch.equal(torch.as_tensor(call()).float(), wanted), f"{name} gives other ranks"
    took = medians(calls, device, seconds)
    return [
        f"| {count:,} | {dim} | {golds} | {name} | {took[name]:.2f} | {took[name] / took['gold_ranks']:.2f} |"
        for name in sorted(took, key=lambda name: took[name])
    ]


def check_tracing(device: str) -> str:
    """torch.compile in one graph, and on a GPU capture in a CUDA graph, give what a plain call gives."""
    from hybridfast import info_nce

    q, p = inputs(300, 64, device)
    wanted = info_nce(q, p, TEMPERATURE).detach()
    compiled = torch.compile(lambda q, p: info_nce(q, p, TEMPERATURE), fullgraph=True)(q, p)
    torch.testing.assert_close(compiled.detach(), wanted)
    if device == "cpu":
        return "torch.compile(fullgraph=True): as a plain call."
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            info_nce(q, p, TEMPERATURE).backward()
    torch.cuda.current_stream().wait_stream(stream)
    q.grad = p.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = info_nce(q, p, TEMPERATURE)
        captured.backward()
    graph.replay()
    torch.testing.assert_close(captured.detach(), wanted)
    return "torch.compile(fullgraph=True) and CUDA-graph capture with backward: as a plain call."


def limits(device: str) -> str:
    """The rates that bound everything here, measured."""
    size = 256 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(size, size * 16, device=device)
    target = torch.empty_like(source)
    took = medians(
        {"product": lambda: a @ b, "copy": lambda: target.copy_(source)},
        device,
        0.1 if device == "cpu" else 2,
    )
    rate = 2e-9 * size**3 / took["product"]
    return (
        f"Limits: a bfloat16 product of {size:,} x {size:,} matrices runs at {rate:.1f} TFLOP/s, a copy at "
        f"{2e-9 * source.nbytes / took['copy']:.2f} TB/s, counting bytes read and written."
    )


def machine(device: str) -> str:
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    if importlib.util.find_spec("triton"):
        import triton

        versions += f", triton {triton.__version__}"
    if device == "cpu":
        return f"A rehearsal on the CPU, whose times mean nothing. {versions}."
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{name} (GPU, driver); {versions}."


def write(path: Path, lines: list[str]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[65536, 16384, 262144, 4096])
    parser.add_argument("--dims", nargs="+", type=int, default=[768, 1024, 256])
    parser.add_argument("--seconds", type=float, default=480, help="start no row after so long")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-build", action="store_true", help="measure what is installed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu rehearses the script without one")
    if device == "cpu":
        arguments.rows, arguments.dims = [70], [24]
    if not arguments.no_build:
        build()
    start = time.perf_counter()
    each = 0.05 if device == "cpu" else 2.0
    lines = ["# On a GPU", "", machine(device), "", limits(device), "", check_tracing(device), ""]
    lines += [
        "## gold_ranks",
        "",
        "Median milliseconds; float32 but where said, as many passages as queries and 17 more.",
        "",
        "| queries | D | golds of each | who | ms | x gold_ranks |",
        "| ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for golds in (1, 11):
        lines += rank_rows(70 if device == "cpu" else 13000, arguments.dims[0], golds, device, each)
    lines += ["", "## info_nce", ""]
    lines += [
        "Median milliseconds; `of bare` is the ratio to the bare products of the same shapes.",
        "",
        "| rows | D | directions | what | who | ms | of bare | memory |",
        "| ---: | ---: | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for dim, (count, both) in itertools.product(
        arguments.dims, itertools.product(arguments.rows, (False, True))
    ):
        if time.perf_counter() - start > arguments.seconds:
            lines.append(f"| {count:,} | {dim} | {'both' if both else 'one'} | not reached in time | | | | |")
            continue
        lines += row(count, dim, both, device, each)
        write(arguments.output, lines)
    write(arguments.output, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
