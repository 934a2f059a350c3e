"""InfoNCE over a batch of queries and passages: the function and the module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from hybridfast.infonce import ops
from hybridfast.infonce.problem import Problem, scalar


class InfoNCEStats(NamedTuple):
    """What a gradient under `grad_tolerance` is made of."""

    kept: float  # share of the (query, passage) pairs that it sums
    dropped: float  # the largest share, over queries, of the negatives' softmax mass that it leaves out


def info_nce(
    queries: Tensor,
    passages: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    targets: Tensor | None = None,
    query_groups: Tensor | None = None,
    passage_groups: Tensor | None = None,
    positives: str = "target",
    bidirectional: bool = False,
    in_batch: bool = True,
    margin: float = 0.0,
    normalize: bool = True,
    reduction: str = "mean",
    grad_tolerance: float = 0.0,
    compute_dtype: torch.dtype | None = None,
    deterministic: bool = True,
    backend: str = "auto",
    return_stats: bool = False,
) -> Any:
    """InfoNCE loss with in-batch negatives, never holding the (Q, N) similarity matrix.

    Query i's loss is -log(e^s_ig / (e^s_ig + sum over its negatives j of e^s_ij)), where s is the similarity
    divided by `temperature` and g its positive (van den Oord et al., 2018, eq. 4). Every passage that is no
    positive of the query is a negative, unless their groups are equal.

    Args:
        queries: (Q, D) float32, bfloat16, float16 or float64.
        passages: (N, D), of the same dtype and device; rows beyond the positives are further negatives.
        temperature: positive float, or a scalar tensor, which gets a gradient.
        targets: (Q,) int64, the row of each query's positive; by default query i's is passage i.
        query_groups, passage_groups: (Q,) and (N,) int64; equal ids are never negatives of each other.
        positives: "target", or "groups": every passage of the query's group is a positive, whatever `targets`
            says, and the query's loss is the mean over them.
        bidirectional: also rank the queries for each positive passage, and average the two directions.
        in_batch: False leaves as negatives only the passages that are no query's positive (Elmahdy et al.,
            2024, eq. 1).
        margin: subtracted from the positive's similarity, before the temperature (Yang et al., 2019).
        normalize: True for cosine similarity, False for inner products.
        reduction: "mean", "sum", or "none" for one loss per query.
        grad_tolerance: share of the softmax mass of each query's negatives that its gradient may leave out,
            where that is faster; 1e-3 suits trained embeddings at temperatures up to 0.03. The loss is exact.
            Both directions, and backends other than "cpu", leave nothing out.
        compute_dtype: dtype in which factors of the products are rounded; sums are float32 or better. By
            default the inputs', or autocast's where it is on.
        deterministic: the same bits on every call. The backends so far always are, within a process. On a CPU
            its kernels are chosen by a measurement; those of HYBRIDFAST_SIMD give every process the same.
        backend: "auto" takes the native kernels on CPUs, on GPUs Triton's where it is installed, and "torch",
            which covers every device and option, for the rest; "cpu", "triton" and "torch" name one. "cuda"
            names the CUDA C++ kernels, for bfloat16 and float16 products, of a build with HYBRIDFAST_CUDA=ON.
        return_stats: also return what the gradients left out.

    Returns:
        A scalar, or (Q,) with reduction="none"; float32, or float64 for float64 inputs. NaN where an
        input is not finite. With `return_stats`, that and an InfoNCEStats.

    Raises:
        ValueError: an argument is out of its range or does not fit the others; the message names it.
    """
    if return_stats and reduction == "none":
        raise ValueError(
            "return_stats needs the gradients formed with the loss: reduction must not be 'none'"
        )
    problem = Problem(
        queries, passages, temperature, targets, query_groups, passage_groups, positives, bidirectional,
        in_batch, margin, normalize, reduction, grad_tolerance, compute_dtype, backend,
    )  # fmt: skip
    loss, stats = ops.info_nce(problem.checked())
    if not return_stats:
        return loss
    kept, dropped = stats.tolist() if isinstance(stats, Tensor) else stats
    return loss, InfoNCEStats(kept, dropped)


class InfoNCE(nn.Module):
    """`info_nce` with its options held, and on request a learnable temperature.

    Args:
        temperature: the temperature, or where it is learned, its initial value.
        learn_temperature: makes log(temperature) a parameter, as CLIP does.
        temperature_range: (low, high) to which a learned temperature is clamped; CLIP's is (0.01, inf).
        **options: what `info_nce` takes by keyword, other than targets and groups.
    """

    function: ClassVar[Callable[..., Any]] = staticmethod(info_nce)  # `distributed.InfoNCE` has another one

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.01, math.inf),
        **options: Any,
    ) -> None:
        super().__init__()
        unknown = set(options) - self._options()
        if unknown:
            raise TypeError(f"InfoNCE takes no option {sorted(unknown)[0]!r}")
        scalar(temperature)
        low, high = temperature_range
        if not 0 < low <= high:
            raise ValueError(f"temperature_range must be 0 < low <= high, got {temperature_range}")
        if learn_temperature and not low <= temperature <= high:
            raise ValueError(
                f"temperature must lie in temperature_range={temperature_range}, got {temperature}"
            )
        self.options = options
        self.log_range = math.log(low), math.log(high)
        self.initial_temperature = float(temperature)
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        )

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use: a float, or the clamped exponential of the parameter."""
        if self.log_temperature is None:
            return self.initial_temperature
        return self.log_temperature.clamp(*self.log_range).exp()

    def forward(
        self,
        queries: Tensor,
        passages: Tensor,
        *,
        targets: Tensor | None = None,
        query_groups: Tensor | None = None,
        passage_groups: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; see `info_nce`."""
        if self.log_temperature is not None:
            with torch.no_grad():  # as CLIP does: beyond its range a step would find no gradient to return by
                self.log_temperature.clamp_(*self.log_range)
        loss = self.function(
            queries,
            passages,
            self.temperature,
            targets=targets,
            query_groups=query_groups,
            passage_groups=passage_groups,
            **self.options,
        )
        return cast(Tensor, loss)

    def extra_repr(self) -> str:
        with torch.no_grad():
            shown = {"temperature": float(self.temperature), "learned": self.log_temperature is not None}
        return ", ".join(f"{name}={value!r}" for name, value in (shown | self.options).items())

    @classmethod
    def _options(cls) -> set[str]:
        """What a module holds: the keywords that neither a batch brings nor change what is returned."""
        brought = inspect.signature(InfoNCE.forward).parameters.keys() | {"temperature", "process_group"}
        return inspect.signature(cls.function).parameters.keys() - brought - {"return_stats"}
