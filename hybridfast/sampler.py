"""HybridSampler: hybrid batches, each a pure function of (seed, epoch, index), built by native threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from hybridfast import _core

AlphaSchedule = float | Sequence[tuple[int, float]] | Callable[[int], float]


class Tokens(Protocol):
    """What the sampler reads of a corpus: the fields of `hybridfast.corpus.TokenizedCorpus`."""

    languages: list[str]
    sources: list[str]
    token_ids: np.ndarray | None  # None: plan batches (groups and languages) without their text
    text_indptr: np.ndarray | None
    version_indptr: np.ndarray | None
    version_GL: np.ndarray
    source_G: np.ndarray
    passage_hash_V: np.ndarray | None
    pad_id: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of one batch; B is batch_size / world_size. Tensors view native memory without a copy.

    `queries`, `passages` and `negatives` are what a SentenceTransformer's first module takes:
    layout "padded": {"input_ids": (texts, length), "attention_mask": (texts, length)};
    layout "flat": {"input_ids": (tokens,), "offsets": (texts,)}, the arguments of an EmbeddingBag.
    They are None for a corpus without token ids.
    """

    epoch: int
    index: int
    mode: str  # "mono", "cross" or, with cross="same", "same"
    groups: torch.Tensor  # (B,) int64
    query_languages: torch.Tensor  # (B,) int64, positions in HybridSampler.languages
    passage_languages: torch.Tensor  # (B,) int64
    flagged: torch.Tensor  # (B,) bool: repeats a group or a passage of an earlier row of the global batch
    mask_groups: torch.Tensor  # (B,) int64: the group or, where flagged, that earlier row's; for the loss's masks
    queries: dict[str, torch.Tensor] | None  # B texts
    passages: dict[str, torch.Tensor] | None  # B texts
    negatives: dict[str, torch.Tensor] | None  # M <= B * negatives texts; None when negatives=0
    negative_rows: torch.Tensor | None  # (M,) int64: the row each hard negative belongs to


class HybridSampler:
    """Endless source of hybrid batches; see `sampler.epoch(e)`, `sampler[(epoch, index)]`, `len(sampler)`.

    tokens: a TokenizedCorpus (or anything with its fields).
    batch_size: pairs per global batch; each of `world_size` ranks takes batch_size / world_size of them.
    alpha: probability of a monolingual batch; a float in [0, 1], a list of (step, alpha) points to
        interpolate, or a function of the step (step = epoch * len(sampler) + index).
    cross: what the other batches are: "mixed" (X-Y: languages vary inside the batch, query and passage
        differ), "paired" (one ordered language pair per batch), "same" (LAReQA's X-X: same-language pairs,
        languages mixed inside the batch).
    draw: "bernoulli" (every batch draws its mode and languages) or "stratified" (each block of 100 batches
        holds exactly its share of every mode and language, in random order).
    languages: the languages to draw from, by code; default all of the corpus.
    language_weights: {language: weight}; default uniform.
    sources: "mixed" (every batch holds pairs of all data sets, by weight) or "single" (one data set per batch).
    source_weights: "size" or {source: weight}; temperature: sizes count as size ** (1 / temperature).
    negatives: at most this many hard negatives per pair, in the passage's language.
    dedup: "group" (a group at most once in a global batch), "text" (nor two equal passages), or None.
    dedup_window: rows that would meet their duplicate change places within so many batches of their kind.
    length_buckets: > 1 sorts so many batches of a kind by length and cuts them anew: less padding.
    batches_per_epoch: default: as many as the corpus has (group, language) versions / batch_size.
    layout, pad_to_multiple_of, token_dtype: how token ids come out; see Batch.
    Raises ValueError naming the argument, before any thread starts.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int = 1024,
        alpha: AlphaSchedule = 0.5,
        seed: int = 0,
        *,
        cross: str = "mixed",
        draw: str = "bernoulli",
        languages: Sequence[str] | None = None,
        language_weights: Mapping[str, float] | None = None,
        sources: str = "mixed",
        source_weights: str | Mapping[str, float] = "size",
        temperature: float = 1.0,
        negatives: int = 0,
        dedup: str | None = "group",
        dedup_window: int = 4,
        length_buckets: int = 1,
        batches_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        prefetch: int = 8,
        pin_memory: bool = False,
        layout: str = "padded",
        pad_to_multiple_of: int = 1,
        token_dtype: str = "int64",
    ) -> None:
        raise NotImplementedError

    # for batch in sampler.epoch(3): ...; for batch in sampler: (the epoch and index of state_dict(), to its end)
    # sampler[(epoch, index)] -> Batch; len(sampler); sampler.set_epoch(e)
    # sampler.state_dict() -> {"epoch", "index", "fingerprint"}; sampler.load_state_dict(state)
    # sampler.stats(); sampler.coverage(); sampler.close(); with HybridSampler(...) as sampler: ...
