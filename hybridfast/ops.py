"""torch.library registration of the native ops: schemas, fakes, autograd, and the choice of a backend."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hybridfast import _core, blocks

BACKENDS = ("auto", "cpu", "triton", "cuda", "torch")
TRITON = importlib.util.find_spec("triton") is not None
CUDA = importlib.util.find_spec("hybridfast._cuda") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MOST_PAIRS = 1 << 20  # positive pairs that the native backend keeps: 16 MB
# Of queries, passages and temperature; empty where not asked for. Those of half-precision inputs stay float32
# until the upstream gradient, which may be a loss scale, is in them: they could underflow without it.
Gradients = tuple[Tensor, Tensor, Tensor]
Formed = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # losses, then gradients

_PROBLEM = (
    "Tensor queries, Tensor passages, Tensor temperature, Tensor targets, Tensor? query_groups, "
    "Tensor? passage_groups, str positives, bool bidirectional, bool in_batch, float margin, "
    "bool normalize, float grad_tolerance, ScalarType? compute_dtype, str backend, bool[] needs"
)
torch.library.define(
    "hybridfast::info_nce", f"({_PROBLEM}, str reduction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    "hybridfast::info_nce_gradients", f"({_PROBLEM}, Tensor weights) -> (Tensor, Tensor, Tensor)"
)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def check_targets(targets: Tensor, passages: int) -> None:
    """A ValueError unless every target is a row of so many passages."""
    low, high = (int(end) for end in torch.aminmax(targets))
    if low < 0 or high >= passages:
        raise ValueError(f"targets must be rows of the {passages} passages, got {low if low < 0 else high}")


class Problem(NamedTuple):
    """The arguments that both ops share, in their order. `needs`: which of the three gradients are wanted."""

    queries: Tensor
    passages: Tensor
    temperature: Tensor
    targets: Tensor
    query_groups: Tensor | None
    passage_groups: Tensor | None
    positives: str
    bidirectional: bool
    in_batch: bool
    margin: float
    normalize: bool
    grad_tolerance: float
    compute_dtype: torch.dtype | None
    backend: str
    needs: list[bool]

    def check_values(self) -> None:
        """What only the values tell. Those on an accelerator are not read: that would stall its stream."""
        if self.temperature.device.type == "cpu" and not 0 < self.temperature.item() < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature.item()}")
        if self.targets.device.type != "cpu":
            return
        check_targets(self.targets, len(self.passages))
        if self.positives != "groups" or self.query_groups is None or self.passage_groups is None:
            return
        lonely = ~torch.isin(self.query_groups, self.passage_groups)
        if lonely.any():
            row = int(lonely.nonzero()[0])
            raise ValueError(
                f"query_groups must occur in passage_groups: query {row} of group "
                f"{int(self.query_groups[row])} has no positive"
            )

    def native_gap(self) -> str | None:
        """What of this problem the native CPU kernels do not cover, in words; None when they cover it."""
        if self.queries.device.type != "cpu":
            return f"a tensor on {self.queries.device}"
        if torch.float64 in (self.queries.dtype, self.compute_dtype):
            return "float64"
        if self.positives == "groups" and self.query_groups is not None and self.passage_groups is not None:
            groups, sizes = torch.unique(self.passage_groups, return_counts=True)
            if sizes[torch.searchsorted(groups, self.query_groups)].sum() > MOST_PAIRS:
                return f"more than {MOST_PAIRS} positive pairs"
        return None


def _run(problem: Problem, weights: Tensor | None) -> tuple[Tensor, Gradients, Tensor]:
    """Losses (Q,), the gradients that are needed, given weights = d(objective)/d(losses), and statistics.

    The statistics are two float64: the share of pairs that the gradients sum, and the largest share of a
    query's negatives that they leave out.
    """
    problem.check_values()
    gap = problem.native_gap()
    if problem.backend == "cpu" and gap:
        raise ValueError(f"backend='cpu' does not cover {gap}; use backend='auto' or 'torch'")
    if gap is None and problem.backend in ("auto", "cpu"):
        (losses, *grads), stats = _run_native(problem, weights)
    else:
        (losses, *grads), stats = _run_blocks(problem, weights), (1.0, 0.0)
    inputs = (problem.queries, problem.passages, problem.temperature)
    wanted = [
        like.new_empty(0, dtype=_wide(like))
        if grad is None or not need
        else grad.to(like.device, _wide(like))
        for grad, need, like in zip(grads, problem.needs, inputs, strict=True)
    ]
    device = problem.queries.device  # a tensor of the CPU's would keep torch.compile from using CUDA graphs
    on_device = [torch.full((), value, dtype=torch.float64, device=device) for value in stats]
    return losses, (wanted[0], wanted[1], wanted[2]), torch.stack(on_device)


def _run_native(problem: Problem, weights: Tensor | None) -> tuple[Formed, tuple[float, float]]:
    queries, passages = problem.queries, problem.passages
    losses = torch.empty(len(queries))
    query_grads = passage_grads = None
    if weights is not None and (problem.needs[0] or problem.needs[2]):  # the temperature's comes with them
        query_grads = torch.empty(queries.shape)
    if weights is not None and problem.needs[1]:
        passage_grads = torch.empty(passages.shape)
    temperature_grad, *stats = _core.info_nce(
        _rows(queries),
        _rows(passages),
        problem.temperature.item(),
        problem.targets.contiguous().numpy(),
        *_dense_groups(problem.query_groups, problem.passage_groups),
        problem.margin,
        problem.normalize,
        problem.in_batch,
        problem.positives == "groups",
        problem.bidirectional,
        (problem.compute_dtype or problem.queries.dtype) == torch.bfloat16,
        losses.numpy(),
        None if weights is None else weights.detach().float().contiguous().numpy(),
        None if query_grads is None else query_grads.numpy(),
        None if passage_grads is None else passage_grads.numpy(),
        problem.grad_tolerance,
        torch.get_num_threads(),
    )
    formed = None if weights is None else problem.temperature.new_tensor(temperature_grad)
    return (losses, query_grads, passage_grads, formed), (stats[0], stats[1])


def _rows(embeddings: Tensor) -> Any:
    """As the kernels read them; NumPy lacks bfloat16, whose bits are passed as int16."""
    embeddings = embeddings.detach().contiguous()
    return (embeddings.view(torch.int16) if embeddings.dtype == torch.bfloat16 else embeddings).numpy()


def _dense_groups(query_groups: Tensor | None, passage_groups: Tensor | None) -> tuple[Any, Any]:
    """The groups renumbered from 0, as int32, which the kernels compare."""
    if query_groups is None or passage_groups is None:
        return None, None
    both = np.concatenate([query_groups.numpy(), passage_groups.numpy()])
    dense = np.unique(both, return_inverse=True)[1].astype(np.int32)
    return dense[: len(query_groups)], dense[len(query_groups) :]


def triton_gap(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels do not serve such tensors, in words; None when they do."""
    if not TRITON:
        return "needs the package triton, which torch's CUDA builds bring along"
    if dtype == torch.float64:
        return "does not cover float64"
    if device.type != "cuda" and not (device.type == "cpu" and TRITON_INTERPRETED):
        return f"needs tensors on a GPU, got {device} (for tests, TRITON_INTERPRET=1 runs it on CPUs)"
    return None


def cuda_gap(device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype) -> str | None:
    """Why the CUDA C++ kernels do not serve such tensors, in words; None when they do."""
    if not CUDA:
        return "was built without CUDA; set HYBRIDFAST_CUDA=ON"
    if dtype == torch.float64:
        return "does not cover float64"
    if compute_dtype not in (torch.bfloat16, torch.float16):
        return f"covers products of bfloat16 and float16, got {str(compute_dtype).removeprefix('torch.')}"
    if device.type != "cuda":
        return f"needs tensors on a GPU, got {device}"
    return None


def block_backend(
    backend: str, device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype | None
) -> str:
    """Whose kernels work on blocks of this device, of such inputs and products.

    A ValueError where a backend is named that cannot.
    """
    compute_dtype = compute_dtype or dtype
    triton = triton_gap(device, torch.promote_types(dtype, compute_dtype))
    if backend == "auto":
        return "triton" if device.type == "cuda" and triton is None else "torch"
    gap = {"triton": triton, "cuda": cuda_gap(device, dtype, compute_dtype)}.get(backend)
    if gap:
        raise ValueError(f"backend={backend!r} {gap}; use backend='auto' or 'torch'")
    return "torch" if backend == "cpu" else backend


def block_kernels(
    backend: str, device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype | None = None
) -> blocks.Kernels:
    """The kernels of `block_backend`, imported when they are first used: not every build has them all."""
    name = block_backend(backend, device, dtype, compute_dtype)
    return cast("blocks.Kernels", importlib.import_module(f"hybridfast.{name}_kernels"))


def _run_blocks(problem: Problem, weights: Tensor | None) -> Formed:
    compute_dtype = problem.compute_dtype or problem.queries.dtype
    kernels = block_kernels(problem.backend, problem.queries.device, problem.queries.dtype, compute_dtype)
    with torch.no_grad(), torch.autocast(problem.queries.device.type, enabled=False):
        return blocks.info_nce(
            kernels,
            problem.queries,
            problem.passages,
            problem.temperature,
            problem.targets,
            problem.query_groups,
            problem.passage_groups,
            positives=problem.positives,
            bidirectional=problem.bidirectional,
            in_batch=problem.in_batch,
            margin=problem.margin,
            normalize=problem.normalize,
            compute_dtype=compute_dtype,
            weights=weights,
            needs=(problem.needs[0], problem.needs[1]),
        )


def _info_nce(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *shared, reduction = arguments
    problem = Problem(*shared)
    weights = None
    if reduction != "none" and any(problem.needs):
        weight = 1 / len(problem.queries) if reduction == "mean" else 1.0
        weights = problem.queries.new_full((len(problem.queries),), weight, dtype=_wide(problem.queries))
    losses, grads, stats = _run(problem, weights)
    if reduction != "none":
        losses = losses.mean() if reduction == "mean" else losses.sum()
    return losses, *grads, stats


torch.library.impl("hybridfast::info_nce", "CompositeExplicitAutograd", _info_nce)


@torch.library.register_fake("hybridfast::info_nce")
def _info_nce_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *shared, reduction = arguments
    problem = Problem(*shared)
    if reduction == "none":
        problem = problem._replace(needs=[False] * 3)
    shape = (len(problem.queries),) if reduction == "none" else ()
    loss = problem.queries.new_empty(shape, dtype=_wide(problem.queries))
    return loss, *_fake_gradients(problem), problem.queries.new_empty(2, dtype=torch.float64)


@torch.library.impl("hybridfast::info_nce_gradients", "CompositeExplicitAutograd")
def _info_nce_gradients(*arguments: Any) -> Gradients:
    *shared, weights = arguments
    return _run(Problem(*shared), weights)[1]


@torch.library.register_fake("hybridfast::info_nce_gradients")
def _info_nce_gradients_fake(*arguments: Any) -> Gradients:
    return _fake_gradients(Problem(*arguments[:-1]))


def _fake_gradients(problem: Problem) -> Gradients:
    inputs = (problem.queries, problem.passages, problem.temperature)
    out = [
        like.new_empty(like.shape if need else (0,), dtype=_wide(like))
        for like, need in zip(inputs, problem.needs, strict=True)
    ]
    return out[0], out[1], out[2]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *shared, reduction = inputs
    _, *grads, stats = output
    ctx.mark_non_differentiable(*grads, stats)
    ctx.set_materialize_grads(False)  # or backward would begin with zeros for each of those
    problem = Problem(*shared)
    ctx.needs, ctx.arguments = problem.needs, len(inputs)
    ctx.dtypes = [x.dtype for x in (problem.queries, problem.passages, problem.temperature)]
    ctx.recompute = reduction == "none"  # the weight of each loss comes with the backward pass
    if ctx.recompute:
        ctx.save_for_backward(*shared[:6])
        ctx.settings = shared[6:]
    else:
        ctx.save_for_backward(*grads)


def _scaled(saved: Tensor, grad: Tensor) -> Tensor:
    """A saved gradient times the upstream one, in its own memory unless the graph is kept for later."""
    graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    if type(saved) is not Tensor or graph_is_kept():  # a subclass is tracing
        return saved * grad.to(saved.dtype)
    if grad.device.type == "cpu" and grad.item() == 1:  # as it is unless losses are summed or scaled
        return saved.detach()
    return saved.mul_(grad).detach()


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * ctx.arguments
    if torch.is_grad_enabled():
        raise RuntimeError("info_nce has no second derivative: call backward without create_graph=True")
    if ctx.recompute:
        grads = torch.ops.hybridfast.info_nce_gradients(*ctx.saved_tensors, *ctx.settings, grad)
    else:
        grads = [_scaled(saved, grad) for saved in ctx.saved_tensors]
    kept = [
        grad.to(dtype) if need else None
        for grad, dtype, need in zip(grads, ctx.dtypes, ctx.needs, strict=True)
    ]
    return (*kept, *[None] * (ctx.arguments - 3))


torch.library.register_autograd("hybridfast::info_nce", _backward, setup_context=_setup_context)


class _InfoNCE(torch.autograd.Function):
    """The op called at once: torch.library's dispatch takes longer than the loss of a small batch."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        output = _info_nce(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    backward = staticmethod(_backward)


def info_nce(*arguments: Any) -> tuple[Tensor, ...]:
    """`torch.ops.hybridfast.info_nce`, by the shortest way where nothing traces it."""
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    call = torch.ops.hybridfast.info_nce if traced else _InfoNCE.apply
    return cast("tuple[Tensor, ...]", call(*arguments))
