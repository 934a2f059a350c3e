"""Attention of packed texts on a CPU: no padding goes through the model, and dropout stays fused.

transformers lets a model's attention be any function of a name. Inside :func:`packed` it is the native one
here, for texts side by side in one row; afterwards it is again what it was.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridfast._core import attend, attend_gradients
from hybridfast.encoder.dropout import Dropout, Key
from hybridfast.encoder.texts import Texts

__all__ = ["Unfit", "packed", "position_offset"]

NAME = "hybridfast"
FAR = 2**31  # tokens: attention over the whole text

_here = threading.local()


class Unfit(ValueError):
    """A layer's attention is of a kind that the native one is not."""


@contextmanager
def packed(model: torch.nn.Module, texts: Texts, dropout: Dropout | None) -> Iterator[list[str]]:
    """Attention of the model's layers is within each of these texts, with this dropout of its weights.

    Yields:
        a list that grows by a layer's class with each that asked for attention.
    """
    from transformers import AttentionInterface, PreTrainedModel

    # A compiler of Python cannot look into it; to say so would load the compiler, where nobody has.
    compiles = "torch._dynamo" in sys.modules
    AttentionInterface.register(NAME, torch.compiler.disable(_attention) if compiles else _attention)
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [config._attn_implementation for config in configs]
    outer, asked = getattr(_here, "pass_", None), list[str]()
    _here.pass_ = texts, dropout, asked
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield asked
    finally:
        _here.pass_ = outer
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def position_offset(model: torch.nn.Module) -> int:
    """The position of a text's first token: RoBERTa and its successors count from beyond their padding."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        learned = isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding)
        if learned and isinstance(padding, int):
            return padding + 1
    return 0


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (1, H, T, d) each, and the output (1, T, H, d)."""
    texts, mode, asked = _here.pass_
    asked.append(type(module).__name__)
    if attention_mask is not None or position_bias is not None or s_aux is not None or softcap:
        raise Unfit(f"{type(module).__name__} has a mask, bias, sink or cap that packed texts cannot have")
    if value.shape[-1] != query.shape[-1] or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise Unfit(f"{type(module).__name__} attends from {tuple(query.shape)} to {tuple(key.shape)}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    before = FAR if sliding_window is None else sliding_window - 1
    after = 0 if causal else before
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    drop = mode.key(dropout) if mode is not None and dropout else None
    out: Tensor = _Attend.apply(
        *(t[0].transpose(0, 1) for t in (query, key, value)), texts, before, after, scale, drop
    )
    return out[None], None


class _Attend(torch.autograd.Function):
    """(T, H, d) queries, and (T, G, d) keys and values, each of their heads for H / G of the queries'."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        texts: Texts,
        before: int,
        after: int,
        scale: float,
        drop: Key | None,
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values)
        ctx.options = texts.starts_B1, texts.places_B, before, after, scale, drop
        out = torch.empty(queries.shape)
        inputs = *_arrays(queries, keys, values), *ctx.options, out.numpy(), torch.get_num_threads()
        attend(*inputs)
        return out.to(queries.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values = ctx.saved_tensors
        grads = [torch.empty(tensor.shape) for tensor in (queries, keys, values)]
        inputs = *_arrays(queries, keys, values), *ctx.options, *_arrays(gradient)
        outputs = *map(Tensor.numpy, grads), torch.get_num_threads()
        attend_gradients(*inputs, *outputs)
        return *(grad.to(queries.dtype) for grad in grads), None, None, None, None, None


def _arrays(*tensors: Tensor) -> Iterator[Any]:
    for tensor in tensors:
        single = tensor.detach().float()
        yield (single if single.stride(-1) == 1 else single.contiguous()).numpy()
