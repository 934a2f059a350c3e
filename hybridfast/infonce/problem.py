"""What a call of InfoNCE asks for: the one object that goes from the public functions to the backends."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridfast.infonce import backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
POSITIVES = ("target", "groups")
REDUCTIONS = ("mean", "sum", "none")


class Problem(NamedTuple):
    """The inputs and options of `hybridfast.info_nce`, which documents them, in its order.

    A new option is a field here and an argument of the public functions: the ops' schemas follow the fields,
    whose tensors come first.
    """

    queries: Tensor
    passages: Tensor
    temperature: Tensor | float = 0.05
    targets: Tensor | None = None
    query_groups: Tensor | None = None
    passage_groups: Tensor | None = None
    positives: str = "target"
    bidirectional: bool = False
    in_batch: bool = True
    margin: float = 0.0
    normalize: bool = True
    reduction: str = "mean"
    grad_tolerance: float = 0.0
    compute_dtype: torch.dtype | None = None
    backend: str = "auto"
    needs: tuple[bool, ...] = (False, False, False)  # which of the first three get a gradient

    def checked(self) -> Problem:
        """The same, with autocast's dtype, `needs`, and the temperature as a number or a tensor ().

        A ValueError where an argument is out of its range or does not fit the others, as far as that shows
        without reading a tensor; `check_values` and `check_targets` read them.
        """
        _check_choice("reduction", self.reduction, REDUCTIONS)
        self._check_rows()
        self._check_ids()
        _check_choice("positives", self.positives, POSITIVES)
        _check_choice("backend", self.backend, backends.BACKENDS)
        if self.positives == "groups" and self.query_groups is None:
            raise ValueError("positives='groups' needs query_groups and passage_groups")
        if self.bidirectional and not self.in_batch:
            raise ValueError(
                "in_batch=False leaves the passage-to-query direction no negatives: "
                "bidirectional must be False"
            )
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be finite, got {self.margin}")
        if not 0 <= self.grad_tolerance < 1:
            raise ValueError(f"grad_tolerance must be in [0, 1), got {self.grad_tolerance}")
        queries, passages, compute_dtype = self.queries, self.passages, self.compute_dtype
        if (
            compute_dtype is None
            and queries.dtype != torch.float64  # autocast leaves it alone
            and torch.is_autocast_enabled(queries.device.type)
        ):
            compute_dtype = torch.get_autocast_dtype(queries.device.type)
        if compute_dtype is not None and compute_dtype not in DTYPES:
            raise ValueError(f"compute_dtype must be one of {_names(DTYPES)}, got {compute_dtype}")
        backends.block_backend(self.backend, queries.device, queries.dtype, compute_dtype)
        if self.targets is None and self.positives == "target" and len(queries) > len(passages):
            raise ValueError(
                "targets must be given for more queries than passages, "
                f"got {len(queries)} and {len(passages)}"
            )
        temperature = scalar(self.temperature)
        with_grad = torch.is_grad_enabled()
        return self._replace(
            temperature=temperature,
            margin=float(self.margin),
            compute_dtype=compute_dtype,
            needs=(
                with_grad and queries.requires_grad,
                with_grad and passages.requires_grad,
                with_grad and isinstance(temperature, Tensor) and temperature.requires_grad,
            ),
        )

    def _check_rows(self) -> None:
        queries, passages = self.queries, self.passages
        for name, rows, letter in (("queries", queries, "Q"), ("passages", passages, "N")):
            if rows.ndim != 2:
                raise ValueError(f"{name} must be ({letter}, D), got {tuple(rows.shape)}")
            if 0 in rows.shape:
                raise ValueError(f"{name} must not be empty, got {tuple(rows.shape)}")
            if rows.dtype not in DTYPES:
                raise ValueError(f"{name} must be one of {_names(DTYPES)}, got {rows.dtype}")
        if passages.shape[1] != queries.shape[1]:
            raise ValueError(
                f"passages must be (N, {queries.shape[1]}) like queries, got {tuple(passages.shape)}"
            )
        if passages.dtype != queries.dtype:
            raise ValueError(f"passages must be {queries.dtype} like queries, got {passages.dtype}")
        self._check_device("passages", passages)

    def _check_ids(self) -> None:
        if (self.query_groups is None) != (self.passage_groups is None):
            missing = "query_groups" if self.query_groups is None else "passage_groups"
            raise ValueError(f"{missing} must be given: groups of queries and of passages go together")
        for name, ids, rows in (
            ("targets", self.targets, self.queries),
            ("query_groups", self.query_groups, self.queries),
            ("passage_groups", self.passage_groups, self.passages),
        ):
            if ids is None:
                continue
            if tuple(ids.shape) != (len(rows),):
                raise ValueError(f"{name} must be ({len(rows)},), got {tuple(ids.shape)}")
            if ids.dtype != torch.int64:
                raise ValueError(f"{name} must be torch.int64, got {ids.dtype}")
            self._check_device(name, ids)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.queries.device:
            raise ValueError(f"{name} must be on {self.queries.device} like queries, got {tensor.device}")

    def check_values(self) -> None:
        """What only the values tell. Those on an accelerator are not read: that would stall its stream."""
        temperature = self.temperature
        if isinstance(temperature, Tensor) and temperature.device.type == "cpu":
            _check_temperature(temperature.item())
        groups = self.positive_groups()
        if groups is None or groups[0].device.type != "cpu":
            return
        lonely = ~torch.isin(*groups)
        if lonely.any():
            row = int(lonely.nonzero()[0])
            raise ValueError(
                f"query_groups must occur in passage_groups: query {row} of group "
                f"{int(groups[0][row])} has no positive"
            )

    def check_targets(self) -> None:
        """A ValueError unless every target is a row of the passages; on an accelerator none is read."""
        if self.targets is None or self.targets.device.type != "cpu":
            return
        low, high = (int(end) for end in torch.aminmax(self.targets))
        count = len(self.passages)
        if low < 0 or high >= count:
            raise ValueError(f"targets must be rows of the {count} passages, got {low if low < 0 else high}")

    def positive_groups(self) -> tuple[Tensor, Tensor] | None:
        """The groups of queries and of passages, where equal ones are positives; None where targets are."""
        if self.positives != "groups" or self.query_groups is None or self.passage_groups is None:
            return None
        return self.query_groups, self.passage_groups

    def targets_tensor(self) -> Tensor:
        """The targets (Q,), by default passage i for query i."""
        if self.targets is not None:
            return self.targets
        queries, passages = len(self.queries), len(self.passages)
        same_rows = torch.arange(queries, device=self.queries.device)
        # More queries than passages have positives by group, but kernels may still look a target up.
        return same_rows.clamp(max=passages - 1) if queries > passages else same_rows

    def temperature_tensor(self) -> Tensor:
        """The temperature as a tensor ()."""
        if isinstance(self.temperature, Tensor):
            return self.temperature
        return torch.full((), self.temperature, dtype=torch.float64, device=self.queries.device)

    def product_dtype(self) -> torch.dtype:
        """The dtype in which factors of the products are rounded."""
        return self.compute_dtype or self.queries.dtype


def scalar(temperature: float | Tensor) -> float | Tensor:
    """The temperature as a number, which is checked, or a tensor ()."""
    if not isinstance(temperature, Tensor):
        _check_temperature(temperature)
        return float(temperature)
    if temperature.numel() != 1 or not temperature.is_floating_point():
        raise ValueError(
            "temperature must be a floating scalar, "
            f"got shape {tuple(temperature.shape)} of {temperature.dtype}"
        )
    return temperature.reshape(())


def _check_temperature(value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")


def _names(choices: tuple[Any, ...]) -> str:
    return ", ".join(repr(choice) for choice in choices)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {_names(choices)}, got {value!r}")
