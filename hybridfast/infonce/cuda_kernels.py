"""The kernels of InfoNCE on GPUs, in CUDA C++ (csrc/cuda): bfloat16 and float16 products.

The same plan as `triton_kernels`, with Hopper's own matrix products and copies. What is not matrix products
comes from torch, and where positives are groups, their costs from `triton_kernels` or `torch_kernels`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from hybridfast._cuda import Block as NativeBlock
from hybridfast._cuda import Sweep
from hybridfast._cuda import form_exps as native_form_exps
from hybridfast._cuda import form_weights as native_form_weights
from hybridfast._cuda import negative_sums as native_negative_sums
from hybridfast._cuda import tile as native_tile
from hybridfast.infonce import gpu
from hybridfast.infonce.blocks import Block, Gradients, OneDirection, Sums, Weights

try:
    from hybridfast.infonce import triton_kernels as others
except ImportError:  # Triton's package is optional
    from hybridfast.infonce import torch_kernels as others  # type: ignore[no-redef]


def negative_sums(block: Block, columns: bool, only_Q: Tensor | None = None) -> Sums:
    """`blocks.Kernels.negative_sums`; where `only_Q` is False, a query's sum may be anything."""
    with torch.cuda.device_of(block.queries):
        native = _Native(block)

        def sweep(band: gpu.Band, row_parts: Tensor, column_parts: Tensor | None) -> None:
            native_negative_sums(
                native.block,
                Sweep(*band, _at(only_Q)),
                _at(row_parts),
                _at(column_parts),
                native.stream,
            )

        (row_sums_Q,), column_sums_N = gpu.sweep(
            sweep, block, native.tile, torch.logsumexp, nothing=-torch.inf, outputs=1, columns=columns
        )
    return Sums(row_sums_Q, column_sums_N)


def positive_costs(block: Block, sums: Sums, weights_Q: Tensor) -> tuple[Tensor, Weights]:
    return (others.positive_costs if block.by_group else gpu.target_costs)(block, sums, weights_Q)


def gradients(block: Block, sums: Sums, weights: Weights, needs: tuple[bool, bool]) -> Gradients:
    if not block.by_group:
        weights = gpu.of_targets(block, sums, weights)
    return gpu.gradients(_form_weights, block, sums, weights, needs)


def one_direction(block: Block, weights_Q: Tensor, needs: tuple[bool, bool]) -> OneDirection | None:
    """`gpu.one_direction`, but for float16, whose range is too small."""
    if block.by_group or block.queries.dtype == torch.float16:
        return None
    return gpu.one_direction(_form_exps, negative_sums, _form_weights, block, weights_Q, needs)


def _form_exps(block: Block, wanted_Q: Tensor, out_QN: Tensor) -> Tensor:
    wanted_Q = wanted_Q.contiguous()
    with torch.cuda.device_of(block.queries):
        native = _Native(block)
        band = gpu.Band.of(0, len(out_QN), len(block.passages), native.tile)
        row_parts = wanted_Q.new_empty((band.splits, len(out_QN)))
        native_form_exps(
            native.block, Sweep(*band), _at(wanted_Q), _at(out_QN), out_QN.stride(0), _at(row_parts),
            native.stream,
        )  # fmt: skip
    return row_parts.sum(dim=0)


def _form_weights(
    block: Block, rows: slice, sums: Sums, weights: Weights, out_RN: Tensor, only_Q: Tensor | None = None
) -> None:
    read = [None if x is None else x.contiguous() for x in gpu.as_kernels_take_them(sums, weights)]
    with torch.cuda.device_of(block.queries):
        native = _Native(block)
        band = gpu.Band.of(rows.start, rows.stop, len(block.passages), native.tile)
        addresses = cast("tuple[int, int, int, int, int]", tuple(_at(x) for x in read))
        native_form_weights(
            native.block, Sweep(*band, _at(only_Q)), block.margin, *addresses,
            _at(out_RN), out_RN.stride(0), native.stream,
        )  # fmt: skip


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Native:
    """A block as the kernels take it, the tensors that it points to, its tiles, and the stream to work on."""

    def __init__(self, block: Block) -> None:
        queries, passages = _aligned(block.queries), _aligned(block.passages)
        inverse = 1 / block.temperature
        by_groups = block.query_groups is not None and block.passage_groups is not None
        groups = (block.query_groups, block.passage_groups) if by_groups else (None, None)
        ids = [None if x is None else x.contiguous() for x in (block.targets, *groups, block.excluded)]
        self.kept = (queries, passages, inverse, ids)
        device = max(queries.get_device(), 0)  # -1 on a CPU, where tests run them
        self.tile = gpu.Tile(*native_tile(device))
        self.block = NativeBlock(
            device=device,
            queries=_at(queries),
            query_stride=queries.stride(0),
            query_count=len(queries),
            passages=_at(passages),
            passage_stride=passages.stride(0),
            passage_count=len(passages),
            dim=queries.shape[1],
            dtype=str(queries.dtype).removeprefix("torch."),
            inverse_temperature=_at(inverse),
            targets=_at(ids[0]),
            query_groups=_at(ids[1]),
            passage_groups=_at(ids[2]),
            excluded=_at(ids[3]),
            by_group=block.by_group,
        )
        self.stream = 0
        if queries.device.type == "cuda":
            self.stream = torch.cuda.current_stream(queries.device).cuda_stream


def _aligned(rows: Tensor) -> Tensor:
    """Rows at multiples of 16 bytes, dimensions next to each other and, filled up by 0, a multiple of 8."""
    if rows.shape[1] % 8:
        return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8))
    if rows.stride(1) == 1 and rows.stride(0) % 8 == 0 and rows.data_ptr() % 16 == 0:
        return rows
    return rows.clone(memory_format=torch.contiguous_format)
