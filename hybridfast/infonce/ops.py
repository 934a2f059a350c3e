"""torch.library registration of the native ops: schemas, fakes, autograd, and the choice of a backend."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hybridfast._core import info_nce as native_info_nce
from hybridfast.infonce import blocks

BACKENDS = ("auto", "cpu", "triton", "cuda", "torch")
TRITON = importlib.util.find_spec("triton") is not None
CUDA = importlib.util.find_spec("hybridfast._cuda") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MOST_PAIRS = 1 << 20  # positive pairs that the native backend keeps: 16 MB
# Of queries, passages and temperature; None where not asked for. Those of half-precision inputs stay float32
# until the upstream gradient, which may be a loss scale, is in them: they could underflow without it.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Weights = Tensor | float | None  # d(objective)/d(losses), where it is one for all a number
Stats = tuple[float, float]  # share of pairs that gradients sum; largest share of negatives they leave out

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


def _wide(x: Tensor | float) -> torch.dtype:
    return torch.float64 if not isinstance(x, Tensor) else torch.promote_types(x.dtype, torch.float32)


def check_targets(targets: Tensor, passages: int) -> None:
    """A ValueError unless every target is a row of so many passages."""
    low, high = (int(end) for end in torch.aminmax(targets))
    if low < 0 or high >= passages:
        raise ValueError(f"targets must be rows of the {passages} passages, got {low if low < 0 else high}")


def check_temperature(value: float) -> None:
    """A ValueError unless the temperature is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")


def temperature_tensor(temperature: Tensor | float, device: torch.device) -> Tensor:
    """The temperature as a tensor ()."""
    if isinstance(temperature, Tensor):
        return temperature
    return torch.full((), temperature, dtype=torch.float64, device=device)


def targets_tensor(targets: Tensor | None, queries: Tensor, passages: Tensor) -> Tensor:
    """The targets (Q,), by default passage i for query i."""
    if targets is not None:
        return targets
    same_rows = torch.arange(len(queries), device=queries.device)
    if len(queries) > len(passages):  # where groups say what the positives are
        same_rows = same_rows.clamp(max=len(passages) - 1)
    return same_rows


class Problem(NamedTuple):
    """The arguments that both ops share, in their order. `needs`: which of the three gradients are wanted."""

    queries: Tensor
    passages: Tensor
    temperature: Tensor | float
    targets: Tensor | None  # None: query i's is passage i
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

    def in_tensors(self) -> Problem:
        """The same with nothing left out or a number that the ops' schemas call a tensor."""
        return self._replace(
            temperature=temperature_tensor(self.temperature, self.queries.device),
            targets=targets_tensor(self.targets, self.queries, self.passages),
        )

    def check_values(self) -> None:
        """What only the values tell. Those on an accelerator are not read: that would stall its stream."""
        temperature = self.temperature
        if isinstance(temperature, Tensor) and temperature.device.type == "cpu":
            check_temperature(temperature.item())
        if self.positives != "groups" or self.query_groups is None or self.passage_groups is None:
            return
        if self.query_groups.device.type != "cpu":
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


def _run(problem: Problem, weights: Weights, reduction: str = "none") -> tuple[Tensor, Gradients, Stats]:
    """The loss or losses, the gradients that are needed, given weights, and what those left out."""
    problem.check_values()
    gap = problem.native_gap()
    if problem.backend == "cpu" and gap:
        raise ValueError(f"backend='cpu' does not cover {gap}; use backend='auto' or 'torch'")
    native = gap is None and problem.backend in ("auto", "cpu")
    return (_run_native if native else _run_blocks)(problem, weights, reduction)


# Of a small batch's step most is what Python and torch take around the kernels: no op here is one too many.
def _run_native(problem: Problem, weights: Weights, reduction: str) -> tuple[Tensor, Gradients, Stats]:
    queries, passages, temperature = problem.queries, problem.passages, problem.temperature
    of_queries, of_passages, of_temperature = (need and weights is not None for need in problem.needs)
    losses = torch.empty(len(queries)) if reduction == "none" else None
    query_grads = torch.empty(queries.shape) if of_queries or of_temperature else None
    passage_grads = torch.empty(passages.shape) if of_passages else None
    total, temperature_grad, *stats = native_info_nce(
        _rows(queries),
        _rows(passages),
        temperature.item() if isinstance(temperature, Tensor) else temperature,
        None if problem.targets is None else problem.targets.contiguous().numpy(),
        *_dense_groups(problem.query_groups, problem.passage_groups),
        problem.margin,
        problem.normalize,
        problem.in_batch,
        problem.positives == "groups",
        problem.bidirectional,
        (problem.compute_dtype or queries.dtype) == torch.bfloat16,
        _array(losses),
        _array(weights.detach().float().contiguous()) if isinstance(weights, Tensor) else weights,
        _array(query_grads),
        _array(passage_grads),
        problem.grad_tolerance,
        torch.get_num_threads(),
    )
    device = (temperature if isinstance(temperature, Tensor) else queries).device  # it may be on another
    grads = (
        query_grads if of_queries else None,
        passage_grads,
        torch.scalar_tensor(temperature_grad, dtype=_wide(temperature), device=device)
        if of_temperature
        else None,
    )
    if losses is None:
        value = total / len(queries) if reduction == "mean" else total
        losses = torch.scalar_tensor(value, dtype=torch.float32)
    return losses, grads, (stats[0], stats[1])


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()


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
    if backend == "cpu" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    compute_dtype = compute_dtype or dtype
    triton = triton_gap(device, torch.promote_types(dtype, compute_dtype))
    if backend == "auto":
        return "torch" if triton else "triton"
    gap = {"triton": triton, "cuda": cuda_gap(device, dtype, compute_dtype)}.get(backend)
    if gap:
        raise ValueError(f"backend={backend!r} {gap}; use backend='auto' or 'torch'")
    return backend


def block_kernels(
    backend: str, device: torch.device, dtype: torch.dtype, compute_dtype: torch.dtype | None = None
) -> blocks.Kernels:
    """The kernels of `block_backend`, imported when they are first used: not every build has them all."""
    name = block_backend(backend, device, dtype, compute_dtype)
    return cast("blocks.Kernels", importlib.import_module(f"hybridfast.{name}_kernels"))


def _run_blocks(problem: Problem, weights: Weights, reduction: str) -> tuple[Tensor, Gradients, Stats]:
    queries, passages = problem.queries, problem.passages
    temperature = temperature_tensor(problem.temperature, queries.device)
    targets = targets_tensor(problem.targets, queries, passages)
    if targets.device.type == "cpu":
        check_targets(targets, len(passages))
    if isinstance(weights, float):
        weights = queries.new_full((len(queries),), weights, dtype=_wide(queries))
    compute_dtype = problem.compute_dtype or queries.dtype
    kernels = block_kernels(problem.backend, queries.device, queries.dtype, compute_dtype)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        losses, *formed = blocks.info_nce(
            kernels,
            queries,
            passages,
            temperature,
            targets,
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
    grads = [
        grad.to(like.device, _wide(like)) if grad is not None and need else None
        for grad, need, like in zip(formed, problem.needs, (queries, passages, temperature), strict=True)
    ]
    if reduction != "none":
        losses = losses.mean() if reduction == "mean" else losses.sum()
    return losses, (grads[0], grads[1], grads[2]), (1.0, 0.0)


def _form(problem: Problem, reduction: str) -> tuple[Tensor, Gradients, Stats]:
    """The loss or losses; and the gradients, unless the weight of each loss comes with the backward pass."""
    weights = None
    if reduction != "none" and any(problem.needs):
        weights = 1 / len(problem.queries) if reduction == "mean" else 1.0
    return _run(problem, weights, reduction)


@torch.library.impl("hybridfast::info_nce", "CompositeExplicitAutograd")
def _info_nce(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *shared, reduction = arguments
    problem = Problem(*shared)
    loss, grads, stats = _form(problem, reduction)
    # On the device: a tensor of the CPU's would keep torch.compile from using CUDA graphs.
    on_device = [problem.queries.new_full((), value, dtype=torch.float64) for value in stats]
    return loss, *_filled(problem, grads), torch.stack(on_device)


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
def _info_nce_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *shared, weights = arguments
    problem = Problem(*shared)
    return _filled(problem, _run(problem, weights)[1])


def _filled(problem: Problem, grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """What the ops' schemas ask for: an empty tensor in the place of None."""
    inputs = cast("tuple[Tensor, Tensor, Tensor]", problem[:3])
    out = [
        like.new_empty(0, dtype=_wide(like)) if grad is None else grad
        for grad, like in zip(grads, inputs, strict=True)
    ]
    return out[0], out[1], out[2]


@torch.library.register_fake("hybridfast::info_nce_gradients")
def _info_nce_gradients_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(Problem(*arguments[:-1]))


def _fake_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    inputs = cast("tuple[Tensor, Tensor, Tensor]", problem[:3])
    needed = [
        like.new_empty(like.shape, dtype=_wide(like)) if need else None
        for like, need in zip(inputs, problem.needs, strict=True)
    ]
    return _filled(problem, needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *shared, reduction = inputs
    _, *grads, stats = output
    ctx.mark_non_differentiable(*grads, stats)
    _keep(ctx, Problem(*shared), reduction, grads)


def _keep(ctx: Any, problem: Problem, reduction: str, grads: Sequence[Tensor | None]) -> None:
    ctx.set_materialize_grads(False)  # or backward would begin with zeros for outputs without a gradient
    ctx.needs, ctx.arguments = problem.needs, len(problem) + 1
    ctx.dtypes = [
        x.dtype if isinstance(x, Tensor) else None
        for x in (problem.queries, problem.passages, problem.temperature)
    ]
    ctx.recompute = reduction == "none"
    if ctx.recompute:
        tensors, ctx.settings = problem.in_tensors()[:6], problem[6:]
        ctx.save_for_backward(*tensors)
    else:
        ctx.save_for_backward(*grads)


def _scaled(saved: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Saved gradients times the upstream one, in their own memory unless the graph is kept for later."""
    graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    if any(type(x) is not Tensor for x in saved) or graph_is_kept():  # a subclass is tracing
        return [x * grad.to(x.dtype) for x in saved]
    if grad.device.type == "cpu" and grad.item() == 1:  # as they are unless losses are summed or scaled
        return [x.detach() for x in saved]
    return [x.mul_(grad).detach() for x in saved]


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * ctx.arguments
    if torch.is_grad_enabled():
        raise RuntimeError("info_nce has no second derivative: call backward without create_graph=True")
    grads = ctx.saved_tensors
    if ctx.recompute:  # from the arguments, which are what is saved
        grads = torch.ops.hybridfast.info_nce_gradients(*grads, *ctx.settings, grad)
    wanted = [x for x, need in zip(grads, ctx.needs, strict=True) if need]
    scaled = iter(wanted if ctx.recompute else _scaled(wanted, grad))
    kept = [
        next(scaled).to(dtype) if need else None for dtype, need in zip(ctx.dtypes, ctx.needs, strict=True)
    ]
    return (*kept, *[None] * (ctx.arguments - 3))


torch.library.register_autograd("hybridfast::info_nce", _backward, setup_context=_setup_context)


class _InfoNCE(torch.autograd.Function):
    """The op called at once: torch.library's dispatch takes longer than the loss of a small batch."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Stats]:
        *shared, reduction = arguments
        problem = Problem(*shared)
        loss, grads, stats = _form(problem, reduction)
        _keep(ctx, problem, reduction, grads)
        return loss, stats

    backward = staticmethod(_backward)


def info_nce(problem: Problem, reduction: str) -> tuple[Tensor, Stats | Tensor]:
    """`torch.ops.hybridfast.info_nce`, by the shortest way where nothing traces it.

    The loss or losses; and the share of pairs that the gradients sum, with the largest share of a query's
    negatives that they leave out.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        loss, *_, stats = torch.ops.hybridfast.info_nce(*problem.in_tensors(), reduction)
        return loss, stats
    return cast("tuple[Tensor, Stats]", _InfoNCE.apply(*problem, reduction))
