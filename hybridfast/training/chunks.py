"""A batch through the encoder: texts of like length together, each chunk packed, or padded to its longest.

Padded to the longest of the batch, most places of a batch of real text are padding. The loss sees the whole
batch; its value and gradients are those of one big chunk but for rounding. Chunks whose activations do not
fit the memory are encoded without them, and again in the backward pass (gradient caching, Gao et al., 2021),
with the same dropout, which is a function of seed, step and place.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridfast.data.sampler import TEXTS, Batch
from hybridfast.encoder import embedding
from hybridfast.encoder.dropout import out_of_reach
from hybridfast.encoder.embedding import Features, Side
from hybridfast.encoder.forward import keep_checkpointing
from hybridfast.encoder.loading import is_static
from hybridfast.encoder.texts import cut_into_chunks, default_places
from hybridfast.training.sharding import Rounds, local

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Chunks", "Embedded", "lengths_of", "with_places"]

FREE_SHARE = 0.5  # of the memory that is free at the first step; the rest is for what grows later
GROWTH = 5e8  # bytes of the process, at which the C library has to return what it holds and nobody uses


class Embedded(NamedTuple):
    """The embeddings of a batch's texts, with gradients."""

    queries: Tensor  # (B, D)
    passages: Tensor  # (B + M, D): hard negatives after the positives
    second_queries: Tensor | None = None  # (B, D), in other languages; where the batch has them
    second_passages: Tensor | None = None  # (B, D)


class Chunks:
    """Embeds batches with gradients, so many places at once, within so much memory for activations.

    Args:
        tokens_per_chunk: places, padding counted; a longer text goes alone. None: 2048 on a CPU, 32768 on a
            GPU.
        activation_memory: bytes that chunks may keep for the backward pass, the one at work not counted.
            None: half of what is free when the first chunk has been seen.
        seed: of the masks of dropout.
        processes: that share a CPU's memory.
        rounds: of a sharded model, of which all ranks embed equally many chunks.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        sides: tuple[Side, Side],
        tokens_per_chunk: int | None = None,
        activation_memory: float | None = None,
        seed: int = 0,
        processes: int = 1,
        rounds: Rounds | None = None,
    ) -> None:
        keep_checkpointing(model)
        self.model, self.sides, self.seed = model, sides, seed
        self.together = sides[0].together  # both sides' texts in the same chunks
        self.places = tokens_per_chunk or default_places(model.device)
        self.budget, self.processes, self.rounds = activation_memory, processes, rounds
        self.bytes_per_place = 0.0  # of activations, in the chunk of the longest text that began a batch
        self.longest = 0  # tokens of that text
        self.kept_bytes = 0.0  # of this batch
        self.recomputed = 0  # chunks of this batch
        self.resident = 0  # bytes of the process, when memory was last given back
        self.encoded = 0  # places of this batch, padding counted; 0 of a static encoder
        self._unreached, self._warned = out_of_reach(model), False

    def embed(self, batch: Batch, step: int = 0) -> Embedded:
        """The embeddings of all texts of a batch.

        Args:
            batch: its texts as flat ids; with a rank's share of a batch (`Ranks.share`), ``places`` (texts,)
                too, where each text's first token is in the whole batch, for the same masks.
            step: of the run; dropout's masks differ from step to step.

        Raises:
            RuntimeError: the memory does not hold one chunk.
        """
        if is_static(self.model):  # no padding, and one call for all
            parts = [(side, ids) for side, ids, _ in self._parts(batch)]
            all_TD = embedding.embed_static(self.model, parts)
        else:
            self.kept_bytes, self.recomputed, self.encoded = 0.0, 0, 0
            embeddings = [self._by_chunks(*part, step) for part in self._parts(batch)]
            all_TD = torch.cat(embeddings[::-1]) if len(embeddings) > 1 else embeddings[0]
            self._warn_once()
        rows = len(batch.query_languages)
        seconds = [0 if ids is None else rows for ids in (batch.second_queries, batch.second_passages)]
        queries_BD, second_queries_BD, passages_ND, second_passages_BD = all_TD.split(
            [rows, seconds[0], len(all_TD) - rows - sum(seconds), seconds[1]]
        )
        return Embedded(
            queries_BD,
            passages_ND,
            None if batch.second_queries is None else second_queries_BD,
            None if batch.second_passages is None else second_passages_BD,
        )

    def places_of(self, batch: Batch) -> tuple[int, int]:
        """The tokens of a batch's texts, and the places of its chunks."""
        tokens = places = 0
        for side, texts, _ in self._parts(batch):
            lengths_B = lengths_of(texts)
            tokens += int(lengths_B.sum())
            for rows in self._cut(lengths_B, side):
                places += _places(side, lengths_B[rows])
        return tokens, places

    def _parts(self, batch: Batch) -> list[tuple[Side, Features, Tensor]]:
        """A side, its texts, and their places in the batch: one part, or passages and then queries.

        Passages first: the longer texts, which are measured, and which fail where one does not fit.
        """
        query, document = self.sides
        asks, told = (
            [ids for ids in side if ids and len(ids["offsets"])] for side in _sides(with_places(batch))
        )
        parts = [(document, [*asks, *told])] if self.together else [(document, told), (query, asks)]
        return [
            (side, embedding.joined_texts(texts), torch.cat([ids["places"] for ids in texts]))
            for side, texts in parts
        ]

    def _cut(self, lengths_B: Tensor, side: Side) -> list[Tensor]:
        on_cpu = self.model.device.type == "cpu"
        return cut_into_chunks(lengths_B, self.places, packed=side.packed, on_cpu=on_cpu)

    def _by_chunks(self, side: Side, texts: Features, places_B: Tensor, step: int) -> Tensor:
        ids_T, starts_B = texts["input_ids"], texts["offsets"]
        lengths_B = lengths_of(texts)
        chunks = self._cut(lengths_B, side)
        rounds, kept = len(chunks), None
        if self.rounds is not None:
            rounds, kept = self.rounds.agree(rounds, self._fit(_places(side, lengths_B[c]) for c in chunks))
        embeddings = []
        # What is missing of a round is made up for by the shortest text, whose embedding nobody gets.
        for number, rows in enumerate([*chunks, *[chunks[-1][-1:]] * (rounds - len(chunks))]):
            taken_T = embedding.taken(ids_T, starts_B[rows], lengths_B[rows])
            keep = None if kept is None else number < kept
            found_BD = self._embed_chunk(side, taken_T, lengths_B[rows], places_B[rows], step, keep)
            embeddings.append(found_BD if number < len(chunks) else found_BD[:0])
        back_B = torch.argsort(torch.cat(chunks))
        return torch.cat(embeddings)[back_B.to(self.model.device)]

    def _embed_chunk(
        self,
        side: Side,
        ids_T: Tensor,
        lengths_B: Tensor,
        places_B: Tensor,
        step: int,
        keep: bool | None,  # its activations, as ranks have agreed; None: where they fit
    ) -> Tensor:
        def run() -> Tensor:
            return side.embed(ids_T, lengths_B, places_B, randomness=(self.seed, step))

        longest, places = int(lengths_B.max()), _places(side, lengths_B)
        self.encoded += places
        if not torch.is_grad_enabled():
            return run()
        first = not self.bytes_per_place or (not self.kept_bytes and longest > self.longest)
        if self.rounds is not None and keep is not None:
            measured = partial(self._measure, run, places) if first and keep else run
            self.longest = max(longest, self.longest) if first and keep else self.longest
            self.kept_bytes += self.bytes_per_place * places * keep
            self.recomputed += not keep
            return self.rounds.embed(measured, keep=keep)
        if first:
            self.longest = longest
            return self._measure(run, places)
        if self.kept_bytes + self.bytes_per_place * places > self._budget():
            self.recomputed += 1
            embeddings: Tensor = checkpoint(lambda: self._passing(run), use_reentrant=False)
            return embeddings
        self.kept_bytes += self.bytes_per_place * places
        return run()

    def _passing(self, run: Callable[[], Tensor]) -> Tensor:
        """A chunk that is not kept, in the forward pass or the backward pass.

        Chunks differ by a few places, so that one's freed memory is often a little too small for the next
        one's, and the heap of a batch of thousands of pairs grows to several times what is in use.
        """
        process = psutil.Process()
        if process.memory_info().rss > self.resident + GROWTH:
            _give_memory_back()
            self.resident = process.memory_info().rss
        return run()

    def _fit(self, places: Iterable[int]) -> int:
        """Of chunks with so many places, how many of the first may keep their activations."""
        kept_bytes = self.kept_bytes
        if not self.bytes_per_place:
            return 1  # and is measured
        for count, more in enumerate(places):
            kept_bytes += self.bytes_per_place * more
            if kept_bytes > self._budget():
                return count
        return sys.maxsize

    def _measure(self, run: Callable[[], Tensor], places: int) -> Tensor:
        """A batch's first chunk, which holds its longest texts, and so the most activations for a place."""
        own = {local(parameter).untyped_storage().data_ptr() for parameter in self.model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}

        def seen(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            embeddings = run()
        # Looked at now: weights that were gathered for the pass are gone, and have no bytes any more.
        size = sum(storage.nbytes() for storage in storages.values())
        self.bytes_per_place = max(size / max(places, 1), 1.0)
        self.kept_bytes = self.bytes_per_place * places
        return embeddings

    def _budget(self) -> float:
        if self.budget is None:
            device = self.model.device
            free = (
                torch.cuda.mem_get_info(device)[0]
                if device.type == "cuda"
                else psutil.virtual_memory().available / self.processes
            )
            self.budget = FREE_SHARE * free
        return self.budget

    def _warn_once(self) -> None:
        """What dropout's function does not reach is a generator's, or depends on how the batch is cut."""
        seen = set().union(*(side.depends_on_chunks for side in self.sides))
        unreached = [*self._unreached, *sorted(seen)]
        if unreached and self.model.training and not self._warned:
            warnings.warn(
                f"dropout of {', '.join(unreached)}: its masks depend on chunks and processes, not on seed, "
                "step and place alone; set it to 0 in the model's configuration to be independent of them",
                stacklevel=3,
            )
            self._warned = True


def _give_memory_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def with_places(batch: Batch) -> list[Features | None]:
    """A batch's `TEXTS`, side by side, each text with its place in the whole batch."""
    sides, place = [], 0
    for ids in (getattr(batch, name) for name in TEXTS):
        sides.append(None if ids is None else {"places": ids["offsets"] + place} | ids)
        place += 0 if ids is None else len(ids["input_ids"])
    return sides


def _sides(texts: list[Features | None]) -> tuple[list[Features | None], list[Features | None]]:
    """Of a batch's `TEXTS`: queries and their seconds; passages, hard negatives and second passages."""
    queries, passages, negatives, second_queries, second_passages = texts
    return [queries, second_queries], [passages, negatives, second_passages]


def lengths_of(texts: Features) -> Tensor:
    """Tokens of each text."""
    starts_B = texts["offsets"]
    return torch.diff(starts_B, append=starts_B.new_tensor([len(texts["input_ids"])]))


def _places(side: Side, lengths_B: Tensor) -> int:
    return int(lengths_B.sum()) if side.packed else len(lengths_B) * int(lengths_B.max())
