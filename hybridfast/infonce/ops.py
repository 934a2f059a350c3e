"""torch.library registration of the native ops: schemas, fakes, autograd, and the way to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hybridfast._core import info_nce as native_info_nce
from hybridfast.infonce import blocks
from hybridfast.infonce.problem import Problem

MOST_PAIRS = 1 << 20  # positive pairs that the native backend keeps: 16 MB
# Of queries, passages and temperature; None where not asked for. Those of half-precision inputs stay float32
# until the upstream gradient, which may be a loss scale, is in them: they could underflow without it.
InputGradients = tuple[Tensor | None, Tensor | None, Tensor | None]
LossWeights = Tensor | float | None  # d(objective)/d(losses), where it is one for all a number
Stats = tuple[float, float]  # share of pairs that gradients sum; largest share of negatives they leave out

# What torch.library calls the types of a problem's fields.
_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | float: "Tensor",  # see `_in_tensors`
    Tensor | None: "Tensor?",
    str: "str",
    bool: "bool",
    float: "float",
    torch.dtype | None: "ScalarType?",
    tuple[bool, ...]: "bool[]",
}
_FIELDS = {name: _SCHEMA_TYPES[kind] for name, kind in get_type_hints(Problem).items()}
_PROBLEM = ", ".join(f"{kind} {name}" for name, kind in _FIELDS.items())
_TENSORS = sum(kind.startswith("Tensor") for kind in _FIELDS.values())  # which come first
torch.library.define("hybridfast::info_nce", f"({_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "hybridfast::info_nce_gradients", f"({_PROBLEM}, Tensor weights) -> (Tensor, Tensor, Tensor)"
)


def _wide(x: Tensor | float) -> torch.dtype:
    return torch.float64 if not isinstance(x, Tensor) else torch.promote_types(x.dtype, torch.float32)


def _in_tensors(problem: Problem) -> Problem:
    """The same without a number that the ops' schemas call a tensor."""
    return problem._replace(temperature=problem.temperature_tensor())


def _inputs(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """What may get a gradient."""
    return problem.queries, problem.passages, problem.temperature_tensor()


def _native_gap(problem: Problem) -> str | None:
    """What of a problem the native CPU kernels do not cover, in words; None when they cover it."""
    if problem.queries.device.type != "cpu":
        return f"a tensor on {problem.queries.device}"
    if torch.float64 in (problem.queries.dtype, problem.compute_dtype):
        return "float64"
    by_group = problem.positive_groups()
    if by_group is not None:
        groups, sizes = torch.unique(by_group[1], return_counts=True)
        if sizes[torch.searchsorted(groups, by_group[0])].sum() > MOST_PAIRS:
            return f"more than {MOST_PAIRS} positive pairs"
    return None


def _run(problem: Problem, weights: LossWeights) -> tuple[Tensor, InputGradients, Stats]:
    """The loss or losses, the gradients that are needed, given weights, and what those left out."""
    problem.check_values()
    gap = _native_gap(problem)
    if problem.backend == "cpu" and gap:
        raise ValueError(f"backend='cpu' does not cover {gap}; use backend='auto' or 'torch'")
    native = gap is None and problem.backend in ("auto", "cpu")
    return (_run_native if native else _run_blocks)(problem, weights)


# Of a small batch's step most is what Python and torch take around the kernels: no op here is one too many.
def _run_native(problem: Problem, weights: LossWeights) -> tuple[Tensor, InputGradients, Stats]:
    queries, passages, temperature = problem.queries, problem.passages, problem.temperature
    of_queries, of_passages, of_temperature = (need and weights is not None for need in problem.needs)
    losses = torch.empty(len(queries)) if problem.reduction == "none" else None
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
        problem.product_dtype() == torch.bfloat16,
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
        value = total / len(queries) if problem.reduction == "mean" else total
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


def _run_blocks(problem: Problem, weights: LossWeights) -> tuple[Tensor, InputGradients, Stats]:
    problem.check_targets()
    problem, queries = _in_tensors(problem), problem.queries
    if isinstance(weights, float):
        weights = queries.new_full((len(queries),), weights, dtype=_wide(queries))
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        losses, *formed = blocks.info_nce(blocks.kernels_of(problem), problem, weights)
    grads = [
        grad.to(like.device, _wide(like)) if grad is not None and need else None
        for grad, need, like in zip(formed, problem.needs, _inputs(problem), strict=True)
    ]
    if problem.reduction != "none":
        losses = losses.mean() if problem.reduction == "mean" else losses.sum()
    return losses, (grads[0], grads[1], grads[2]), (1.0, 0.0)


def _form(problem: Problem) -> tuple[Tensor, InputGradients, Stats]:
    """The loss or losses; and the gradients, unless the weight of each loss comes with the backward pass."""
    weights = None
    if problem.reduction != "none" and any(problem.needs):
        weights = 1 / len(problem.queries) if problem.reduction == "mean" else 1.0
    return _run(problem, weights)


# One implementation for all devices, which finds the backend itself.
@torch.library.impl("hybridfast::info_nce", "CompositeExplicitAutograd")
def _info_nce(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(*arguments)
    loss, grads, stats = _form(problem)
    # On the device: a tensor of the CPU's would keep torch.compile from using CUDA graphs.
    on_device = [problem.queries.new_full((), value, dtype=torch.float64) for value in stats]
    return loss, *_filled(problem, grads), torch.stack(on_device)


@torch.library.register_fake("hybridfast::info_nce")
def _info_nce_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(*arguments)
    shape: tuple[int, ...] = ()
    if problem.reduction == "none":
        problem, shape = problem._replace(needs=(False,) * 3), (len(problem.queries),)
    loss = problem.queries.new_empty(shape, dtype=_wide(problem.queries))
    return loss, *_fake_gradients(problem), problem.queries.new_empty(2, dtype=torch.float64)


@torch.library.impl("hybridfast::info_nce_gradients", "CompositeExplicitAutograd")
def _info_nce_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, weights = arguments
    problem = Problem(*fields)
    return _filled(problem, _run(problem, weights)[1])


def _filled(problem: Problem, grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """What the ops' schemas ask for: an empty tensor in the place of None."""
    out = [
        like.new_empty(0, dtype=_wide(like)) if grad is None else grad
        for grad, like in zip(grads, _inputs(problem), strict=True)
    ]
    return out[0], out[1], out[2]


@torch.library.register_fake("hybridfast::info_nce_gradients")
def _info_nce_gradients_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(Problem(*arguments[:-1]))


def _fake_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    needed = [
        like.new_empty(like.shape, dtype=_wide(like)) if need else None
        for like, need in zip(_inputs(problem), problem.needs, strict=True)
    ]
    return _filled(problem, needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *grads, stats = output
    ctx.mark_non_differentiable(*grads, stats)
    _keep(ctx, Problem(*inputs), grads)


def _keep(ctx: Any, problem: Problem, grads: Sequence[Tensor | None]) -> None:
    ctx.set_materialize_grads(False)  # or backward would begin with zeros for outputs without a gradient
    ctx.needs = problem.needs
    ctx.dtypes = [x.dtype if isinstance(x, Tensor) else None for x in problem[:3]]
    ctx.recompute = problem.reduction == "none"
    if ctx.recompute:
        problem = _in_tensors(problem)
        ctx.save_for_backward(*problem[:_TENSORS])
        ctx.settings = problem[_TENSORS:]
    else:
        ctx.save_for_backward(*grads)


def _scaled(saved: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Saved gradients times the upstream one, in their own memory unless the graph is kept for later."""
    # Private to torch: a release without it costs a copy.
    graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    if any(type(x) is not Tensor for x in saved) or graph_is_kept():  # a subclass is tracing
        return [x * grad.to(x.dtype) for x in saved]
    if grad.device.type == "cpu" and grad.item() == 1:  # as they are unless losses are summed or scaled
        return [x.detach() for x in saved]
    return [x.mul_(grad).detach() for x in saved]


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(_FIELDS)
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
    return (*kept, *[None] * (len(_FIELDS) - 3))


torch.library.register_autograd("hybridfast::info_nce", _backward, setup_context=_setup_context)


class _InfoNCE(torch.autograd.Function):
    """The op called at once: torch.library's dispatch takes longer than the loss of a small batch."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Stats]:
        problem = Problem(*arguments)
        loss, grads, stats = _form(problem)
        _keep(ctx, problem, grads)
        return loss, stats

    backward = staticmethod(_backward)


def info_nce(problem: Problem) -> tuple[Tensor, Stats | Tensor]:
    """`torch.ops.hybridfast.info_nce` of a checked problem, by the shortest way where nothing traces it.

    The loss or losses; and the share of pairs that the gradients sum, with the largest share of a query's
    negatives that they leave out.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        loss, *_, stats = torch.ops.hybridfast.info_nce(*_in_tensors(problem))
        return loss, stats
    return cast("tuple[Tensor, Stats]", _InfoNCE.apply(*problem))
