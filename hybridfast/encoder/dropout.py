"""Dropout as a function: of a seed, a step, which dropout of the model it is, and the place in the batch.

Not of a generator's state: a chunk that is encoded again, a run that goes on after it was cut off and another
number of processes see the same masks. Entries are dropped where 16 bits of Philox4x32-10 (Salmon et al.,
2011) say so; on a CPU masks cost about what it takes to read and write what they multiply.

Nothing in the model is replaced. While :class:`Dropout` is entered it answers torch's own functions, which
every module calls: ``dropout`` and ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hybridfast._core import dropout as native_dropout
from hybridfast.encoder.texts import Texts

TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["Dropout", "Key", "out_of_reach"]

Key = tuple[int, int, float]  # of one dropout: its random numbers, of 65536 how many are dropped, the factor


class Dropout(TorchFunctionMode):
    """While entered, dropout of these texts in this step.

    Args:
        seed, step: what the masks are a function of, with the texts' places.
        texts: of the chunk that goes through the model.
    """

    def __init__(self, seed: int, step: int, texts: Texts) -> None:
        super().__init__()
        self.seed, self.step, self.texts = seed, step, texts
        self.site = 0  # how many dropouts of the model came before
        self._moved: dict[int, tuple[Any, Tensor]] = {}
        self.depends_on_chunks: set[str] = set()  # dropouts whose places are not known, as what they see

    def key(self, p: float) -> Key:
        """The key of the model's next dropout."""
        self.site += 1
        digest = hashlib.blake2b(struct.pack("<qqq", self.seed, self.step, self.site), digest_size=8).digest()
        dropped = round(p * 65536)
        return int.from_bytes(digest, "little"), dropped, 65536 / max(1, 65536 - dropped)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.dropout:
            return self._dropout(*args, **kwargs)
        if function is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        return self.drop(input, self.key(p))

    def drop(self, values: Tensor, key: Key) -> Tensor:
        """Dropout of a tensor whose shape says what its rows are: tokens, texts, or pairs of tokens."""
        if not (values.device.type == "cpu" or (values.device.type == "cuda" and TRITON)):
            self.depends_on_chunks.add(f"values on {values.device.type}")
            return functional.dropout(values, key[1] / 65536)
        dropped: Tensor = _Drop.apply(values, key, *self._on(values.device, self._places(values)))
        return dropped

    def _on(self, device: torch.device, places: tuple[Any, Any, Any]) -> tuple[Any, ...]:
        """Places where the values are. They go to a GPU once: each copy would wait for its work."""
        if device.type == "cpu":
            return places
        for array in places:
            if array is not None and id(array) not in self._moved:
                moved = torch.from_numpy(np.ascontiguousarray(array)).to(device)
                self._moved[id(array)] = array, moved  # held, so that no other array gets its id
        return tuple(None if array is None else self._moved[id(array)][1] for array in places)

    def _places(self, values: Tensor) -> tuple[Any, Any, Any]:
        """The places of a tensor's rows, and of attention weights their heads and first entries."""
        texts, shape = self.texts, tuple(values.shape)
        tokens = (1, len(texts.token_places)) if texts.packed else (texts.count, texts.longest)
        if (
            not texts.packed
            and len(shape) == 4
            and (shape[0], *shape[2:]) == (tokens[0], tokens[1], tokens[1])
        ):
            return texts.pair_places(shape[1])
        if shape[:2] == tokens or (texts.packed and shape[:1] == tokens[1:]):
            return texts.token_places, None, None
        if len(shape) == 2 and shape[0] == texts.count:
            return texts.places_B, None, None
        self.depends_on_chunks.add(f"values of shape {shape}")
        rows = shape[0] if len(shape) > 1 else 1
        return int(texts.places_B[0]) + np.arange(rows), None, None

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
        if enable_gqa:
            options["enable_gqa"] = True
        if dropout_p == 0 or query.device.type != "cpu":
            if dropout_p:
                self.depends_on_chunks.add("attention weights, which torch's fused kernel keeps to itself")
            return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -math.inf)
        if attn_mask is not None:
            scores = scores + attn_mask
        return self.drop(torch.softmax(scores, -1), self.key(dropout_p)) @ value


class _Drop(torch.autograd.Function):
    """Keeps no mask: the gradient's is made again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, key: Key, rows: Any, heads: Any, first: Any) -> Tensor:
        ctx.function = key, rows, heads, first
        return _dropped(values, *ctx.function)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(gradient, *ctx.function), None, None, None, None


def _dropped(values: Tensor, key: Key, rows: Any, heads: Any, first: Any) -> Tensor:
    if values.device.type == "cuda":
        from hybridfast.encoder.triton_dropout import dropout

        return dropout(values, key, rows, heads, first)
    single = values.detach().float().contiguous()
    out = torch.empty_like(single)
    native_dropout(single.numpy(), rows, heads, first, key, out.numpy(), torch.get_num_threads())
    return out.to(values.dtype)


def out_of_reach(model: torch.nn.Module) -> list[str]:
    """Names of the modules whose dropout is not torch's own function, and so stays a generator's."""
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, (torch.nn.RNNBase, torch.nn.MultiheadAttention)) and module.dropout > 0)
        or (isinstance(module, torch.nn.modules.dropout._DropoutNd) and type(module) is not torch.nn.Dropout)
    ]
