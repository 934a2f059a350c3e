"""A batch through the encoder: texts of like length together, each chunk padded to its own longest.

Padded to the longest of the batch, most places of a batch of real text are padding. The loss sees the whole
batch; its value and gradients are those of one big chunk but for rounding. Chunks whose activations do not
fit the memory are encoded without them, and again in the backward pass (gradient caching, Gao et al., 2021),
with the same dropout.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridfast.data.sampler import Batch
from hybridfast.encoder import embedding
from hybridfast.encoder.embedding import Features, Side
from hybridfast.encoder.loading import is_static

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Chunks", "rows_of_chunks"]

CPU_PLACES, GPU_PLACES = 2_048, 32_768  # of a chunk, at most
CPU_OVERHEAD, GPU_OVERHEAD = (
    64,
    4_096,
)  # of one more chunk, in places computed meanwhile
FREE_SHARE = 0.5  # of the memory that is free at the first step; the rest is for what grows later


class Chunks:
    """Embeds batches with gradients, so many places at once, within so much memory for activations.

    Args:
        tokens_per_chunk: places, padding counted; a longer text goes alone. None: 2048 on a CPU, 32768 on a
            GPU.
        activation_memory: bytes that chunks may keep for the backward pass, the one at work not counted.
            None: half of what is free when the first chunk has been seen.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        sides: tuple[Side, Side],
        tokens_per_chunk: int | None = None,
        activation_memory: float | None = None,
    ) -> None:
        self.model, self.sides = model, sides
        on_cpu = model.device.type == "cpu"
        self.places = tokens_per_chunk or (CPU_PLACES if on_cpu else GPU_PLACES)
        self.overhead = CPU_OVERHEAD if on_cpu else GPU_OVERHEAD
        self.budget = activation_memory
        self.bytes_per_place = 0.0  # of activations, in the chunk of the longest text that began a batch
        self.longest = 0  # tokens of that text
        self.kept_bytes = 0.0  # of this batch
        self.recomputed = 0  # chunks of this batch
        self.encoded = 0  # places of this batch, padding counted; 0 of a static encoder

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The embeddings of a batch's queries (B, D), and of its passages and then hard negatives (B + M, D).

        Args:
            batch: its texts as flat ids.

        Raises:
            RuntimeError: the memory does not hold one chunk.
        """
        query, document = self.sides
        texts = [(query, batch.queries), (document, batch.passages), (document, batch.negatives)]
        parts = [(side, ids) for side, ids in texts if ids is not None and len(ids["offsets"])]
        if is_static(self.model):  # no padding, and one call for all
            both = embedding.embed_static(self.model, parts)
            rows = len(parts[0][1]["offsets"])
            return both[:rows], both[rows:]
        self.kept_bytes, self.recomputed, self.encoded = 0.0, 0, 0
        # Passages first: the longer texts, which are measured, and which fail where one does not fit.
        passages_ND = self._by_chunks(document, embedding.joined_texts([ids for _, ids in parts[1:]]))
        return self._by_chunks(query, parts[0][1]), passages_ND

    def _by_chunks(self, side: Side, texts: Features) -> Tensor:
        ids_T, starts_B = texts["input_ids"], texts["offsets"]
        lengths_B = torch.diff(starts_B, append=starts_B.new_tensor([len(ids_T)]))
        chunks = rows_of_chunks(lengths_B, self.places, self.overhead)
        embeddings = []
        for rows in chunks:
            lengths = lengths_B[rows]
            offsets = lengths.cumsum(0) - lengths
            at = torch.arange(int(lengths.sum())) + (starts_B[rows] - offsets).repeat_interleave(lengths)
            features = side.features(ids_T[at], offsets, self.model.device)
            self.encoded += len(rows) * int(lengths.max())
            embeddings.append(self._embed_chunk(side, features, len(rows), int(lengths.max())))
        back_B = torch.argsort(torch.cat(chunks))
        return torch.cat(embeddings)[back_B.to(self.model.device)]

    def _embed_chunk(self, side: Side, features: Features, rows: int, longest: int) -> Tensor:
        def run() -> Tensor:
            # A copy: modules add to what they are given, and a second run must not see it.
            return embedding.embed(self.model, side.task, dict(features))

        if not torch.is_grad_enabled():
            return run()
        places = rows * longest
        if not self.bytes_per_place or (not self.kept_bytes and longest > self.longest):
            self.longest = longest
            return self._measure(run, places)
        if self.kept_bytes + self.bytes_per_place * places > self._budget():
            self.recomputed += 1
            embeddings: Tensor = checkpoint(run, use_reentrant=False)
            return embeddings
        self.kept_bytes += self.bytes_per_place * places
        return run()

    def _measure(self, run: Callable[[], Tensor], places: int) -> Tensor:
        """A batch's first chunk, which holds its longest texts, and so the most activations for a place."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        sizes: dict[int, int] = {}

        def seen(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            embeddings = run()
        self.bytes_per_place = max(sum(sizes.values()) / max(places, 1), 1.0)
        self.kept_bytes = self.bytes_per_place * places
        return embeddings

    def _budget(self) -> float:
        if self.budget is None:
            device = self.model.device
            free = (
                torch.cuda.mem_get_info(device)[0]
                if device.type == "cuda"
                else psutil.virtual_memory().available
            )
            self.budget = FREE_SHARE * free
        return self.budget


def rows_of_chunks(lengths_B: Tensor, tokens_per_chunk: int, overhead: int) -> list[Tensor]:
    """Rows of texts with so many tokens, cut into chunks; the longest come first.

    So what does not fit the memory fails at once, and not hours later. Cuts make the places, padding counted,
    and `overhead` for every chunk as few as can be: shorter texts are worth a chunk of their own where
    padding them would cost more.
    """
    order_B = torch.argsort(lengths_B, descending=True, stable=True)
    sorted_B = lengths_B[order_B].numpy()
    count = len(sorted_B)
    least = np.full(count + 1, np.inf)  # cost of the first texts, up to each
    least[0] = 0
    begins = np.zeros(count + 1, np.int64)  # where the last chunk of that begins
    for first, length in enumerate(sorted_B.tolist()):
        rows = np.arange(1, 1 + min(count - first, max(1, tokens_per_chunk // max(1, length))))
        costs = least[first] + rows * length + overhead
        ends = slice(first + 1, first + 1 + len(rows))
        better = costs < least[ends]
        least[ends][better] = costs[better]
        begins[ends][better] = first
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return [order_B[first:last] for last, first in itertools.pairwise(cuts)][::-1]
