"""HybridSampler: hybrid batches, each a pure function of (seed, epoch, index), built by native threads."""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from hybridfast._core import Corpus, GatherOptions, Pipeline, PlanOptions, Sampler, Schedule
from hybridfast.data.arrays import (
    Tokens,
    check_batches,
    checked_arrays,
    checked_vectors,
    mapped_files,
    version_count,
    without_read_ahead,
)
from hybridfast.data.columns import language_tag

AlphaSchedule = float | Sequence[tuple[float, float]] | Callable[[int], float]
MAX_LANGUAGES = 4096  # as csrc/sampler/plan.h has it
MODES = ("mono", "cross", "same", "rows")  # of batches
# Of a batch, in the order of their places; those of later options after those of earlier ones.
TEXTS = ("queries", "passages", "negatives", "second_queries", "second_passages")
Options = TypeVar("Options", PlanOptions, GatherOptions)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's rows of one batch; B is batch_size / world_size. Tensors view native memory without a copy.

    `queries`, `passages` and `negatives` are what a SentenceTransformer's first module takes:
    layout "padded": {"input_ids": (texts, length), "attention_mask": (texts, length)};
    layout "flat": {"input_ids": (tokens,), "offsets": (texts,)}, the arguments of an EmbeddingBag.
    They are None for a corpus without token ids. `second_queries` and `second_passages`, the same texts in
    other languages, are None unless `second` asks for them. Languages are positions in
    `HybridSampler.languages`.
    A row is flagged that repeats an item, a query or a passage of an earlier row of the global batch; the
    loss wants `mask_groups` as query_groups and passage_groups, so that such rows are no negatives of each
    other, and `negative_mask_groups` as the passage_groups of hard negatives: one that equals a passage of
    the global batch has that passage's, others have -1.
    """

    epoch: int
    index: int
    mode: str  # "mono", "cross" or, with cross="same", "same"; with mix="rows", "rows"
    groups: torch.Tensor  # (B,) int64
    query_languages: torch.Tensor  # (B,) int64
    passage_languages: torch.Tensor  # (B,) int64
    flagged: torch.Tensor  # (B,) bool
    mask_groups: torch.Tensor  # (B,) int64: the item or, where flagged, the earlier row's
    queries: dict[str, torch.Tensor] | None  # B texts
    passages: dict[str, torch.Tensor] | None  # B texts
    negatives: dict[str, torch.Tensor] | None  # M <= B * negatives texts; None when negatives=0
    negative_rows: torch.Tensor | None  # (M,) int64: the row each hard negative belongs to
    negative_mask_groups: torch.Tensor | None  # (M,) int64
    second_queries: dict[str, torch.Tensor] | None = None  # B texts
    second_query_languages: torch.Tensor | None = None  # (B,) int64
    second_passages: dict[str, torch.Tensor] | None = None  # B texts
    second_passage_languages: torch.Tensor | None = None  # (B,) int64
    group_vectors: tuple[torch.Tensor, ...] = ()  # (B, K) each, of the option's dtypes


class HybridSampler:
    """Endless source of hybrid batches; see `sampler.epoch(e)`, `sampler[(epoch, index)]`, `len(sampler)`.

    tokens: a TokenizedCorpus (or anything with its fields).
    batch_size: pairs per global batch; each of `world_size` ranks takes batch_size / world_size of them.
    alpha: probability of a monolingual batch; a float in [0, 1], a list of (step, alpha) points to
        interpolate, or a function of the step (step = epoch * len(sampler) + index).
    cross: what the other batches are: "mixed" (X-Y: languages vary inside the batch, query and passage
        differ), "paired" (one ordered language pair per batch), "same" (LAReQA's X-X: same-language pairs,
        languages mixed inside the batch).
    mix: "batches" (each batch is monolingual or not) or "rows": every row of every batch is same-language
        (one language, drawn as for "same") with probability alpha, and otherwise X-Y. These are rows of the
        groups in two or more languages; needs cross="mixed".
    draw: "bernoulli" (every batch draws its mode and languages) or "stratified" (each block of 100 batches
        holds exactly its share of every mode and language, in random order).
    languages: the languages to draw from, by code; default all of the corpus.
    language_weights: {language: weight}; default uniform.
    sources: "mixed" (every batch holds pairs of all data sets, by weight) or "single" (one per batch).
    source_weights: "size" or {source: weight}; temperature: sizes count as size ** (1 / temperature).
    negatives: at most this many hard negatives per pair, in the passage's language.
    second: "queries", "passages" or "both": every row also has the query (or passage) of its group in another
        language than its own query's (passage's), drawn uniformly; its own where there is no other. Rows and
        languages of the batch are the same as with "none". With dedup="text", rows whose second passage is
        another row's passage are masked alike.
    group_vectors: (G, K) float32 or float16 arrays, C-contiguous, perhaps memory-mapped; a batch has the rows
        of its groups.
    dedup: "group" (an item at most once in a global batch), "text" (nor two equal queries or passages), or
        None.
    dedup_window: rows that would meet their duplicate change places within so many batches of their kind.
    length_buckets: > 1 sorts so many batches of a kind by length and cuts them anew: less padding.
    batches: predefined ones, (N, batch_size, 3) int32 of (group, query language, passage language), languages
        by their positions; every epoch delivers them in this order, and no other option of the plan counts.
    batches_per_epoch: default: as many as the corpus has (group, language) versions / batch_size.
    layout, pad_to_multiple_of, token_dtype: how token ids come out; see Batch.
    pin_memory: copy every batch into page-locked memory, for transfers to a GPU that do not block.
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
        mix: str = "batches",
        draw: str = "bernoulli",
        languages: Sequence[str] | None = None,
        language_weights: Mapping[str, float] | None = None,
        sources: str = "mixed",
        source_weights: str | Mapping[str, float] = "size",
        temperature: float = 1.0,
        negatives: int = 0,
        second: str = "none",
        group_vectors: Sequence[np.ndarray] = (),
        dedup: str | None = "group",
        dedup_window: int = 4,
        length_buckets: int = 1,
        batches_per_epoch: int | None = None,
        batches: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        prefetch: int = 8,
        pin_memory: bool = False,
        layout: str = "padded",
        pad_to_multiple_of: int = 1,
        token_dtype: str = "int64",
    ) -> None:
        # The first statement, since locals() would hold what comes before it.
        self._options = {name: value for name, value in locals().items() if name not in ("self", "tokens")}
        self._tokens = tokens
        self.languages = _chosen_languages(tokens, languages)
        self.sources = list(tokens.sources)
        self.batch_size, self.alpha, self.seed = batch_size, alpha, seed
        self.layout, self.threads, self.prefetch, self.pin_memory = layout, threads, prefetch, pin_memory
        _check_choice("cross", cross, ("mixed", "paired", "same"))
        _check_choice("mix", mix, ("batches", "rows"))
        if mix == "rows" and cross != "mixed":
            raise ValueError(f"mix='rows' needs cross='mixed', got {cross!r}")
        _check_choice("second", second, ("none", "queries", "passages", "both"))
        _check_choice("draw", draw, ("bernoulli", "stratified"))
        _check_choice("sources", sources, ("mixed", "single"))
        _check_choice("dedup", dedup, ("group", "text", None))
        _check_choice("layout", layout, ("padded", "flat"))
        _check_choice("token_dtype", token_dtype, ("int64", "int32"))
        _check_range("seed", seed, 0, 2**64 - 1)
        _check_range("batch_size", batch_size, 1, 2**31 - 1)
        _check_range("world_size", world_size, 1, batch_size)
        _check_range("rank", rank, 0, world_size - 1)
        _check_range("negatives", negatives, 0, 2**16)
        _check_range("threads", threads, 0, 254)  # a slot's word has 8 bits for them and the consumer
        _check_range("prefetch", prefetch, 1, 2**16)
        _check_range("dedup_window", dedup_window, 1, 16)  # four bits a batch in a word of 64
        _check_range("length_buckets", length_buckets, 1, 16)
        _check_range("pad_to_multiple_of", pad_to_multiple_of, 1, 2**16)
        if batches_per_epoch is not None:
            _check_range("batches_per_epoch", batches_per_epoch, 1, 2**32 - 1)
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory=True needs CUDA, which torch does not find here")
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of world_size {world_size}, got {batch_size}")
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive, got {temperature}")
        if dedup == "text" and tokens.passage_hash_V is None:
            raise ValueError("dedup='text' needs passage_hash_V, which the corpus does not have")
        if length_buckets > 1 and tokens.token_ids is None:
            raise ValueError("length_buckets above 1 needs token_ids, which the corpus does not have")

        arrays = checked_arrays(tokens, planned=batches is None)
        group_vectors = [checked_vectors(i, array, tokens) for i, array in enumerate(group_vectors)]
        arrays, group_vectors = without_read_ahead(arrays, group_vectors)
        if batches is not None:
            check_batches(batches, batch_size, tokens, self.languages)
        weights = _weights("source_weights", source_weights, self.sources) if source_weights != "size" else []
        corpus = Corpus(
            **arrays,
            versions=version_count(tokens),
            pad_id=tokens.pad_id,
            files=mapped_files([*arrays.values(), *group_vectors]),
        )
        by_language = {_spelled(name, self.languages): w for name, w in (language_weights or {}).items()}
        named = {
            **self._options,
            "group_vectors": group_vectors,
            "languages": [tokens.languages.index(language) for language in self.languages],
            "language_names": self.languages,
            "language_weights": _weights("language_weights", by_language, self.languages),
            "source_names": self.sources,
            "source_weights": weights,
            "batches_per_epoch": batches_per_epoch or 0 if batches is None else len(batches),
        }
        self._core = Sampler(corpus, _filled(PlanOptions(), named), _filled(GatherOptions(), named))
        if self._core.left_out:
            warnings.warn(f"left out: {'; '.join(self._core.left_out)}", stacklevel=2)
        self._epoch, self._index = 0, 0
        # Weak: an iterator that is dropped takes its threads along.
        self._pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()
        self._closed = False
        self._schedules: dict[int, Schedule] = {}
        if any(self._core.errors):  # a mode that cannot be had is an error here, and so is a wrong alpha
            self._schedule(0)
        else:
            self._alphas(0)
        if not isinstance(alpha, (int, float)) and not callable(alpha) and batches is None:
            needs = any(at > 0 for _, at in alpha), any(at < 1 for _, at in alpha)
            for needed, error in zip(needs, self._core.errors, strict=True):  # in a later epoch
                if needed and error:
                    raise ValueError(error)

    def __len__(self) -> int:
        """Batches of an epoch, exactly."""
        return self._core.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches start .. len(self) - 1 of an epoch, built ahead by `threads` threads."""
        _check_range("epoch", epoch, 0, 2**32 - 1)
        _check_range("start", start, 0, len(self))
        if self._closed:
            raise ValueError("this sampler is closed")
        pipeline = Pipeline(self._core, self._schedule(epoch), start, self.threads, self.prefetch)
        self._pipelines.add(pipeline)
        self._epoch, self._index = epoch, start
        return self._batches(pipeline, epoch, start)

    def _batches(self, pipeline: Pipeline, epoch: int, index: int) -> Iterator[Batch]:
        try:
            while (built := pipeline.next()) is not None:
                index += 1
                self._epoch, self._index = epoch, index
                # By now the position is the next batch's: state_dict() in the loop's body counts this one.
                yield self._batch(built)
            if not self._closed:
                self._epoch, self._index = epoch + 1, 0
        finally:
            pipeline.close()

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, from where state_dict() stands."""
        return self.epoch(self._epoch, self._index)

    def set_epoch(self, epoch: int) -> None:
        """Makes iter(self) start at the beginning of `epoch`."""
        _check_range("epoch", epoch, 0, 2**32 - 1)
        self._epoch, self._index = epoch, 0

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """The batch (epoch, index), built here and now; IndexError beyond len(self)."""
        epoch, index = key
        _check_range("epoch", epoch, 0, 2**32 - 1)
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        return self._batch(self._core.build(self._schedule(epoch), index))

    def _schedule(self, epoch: int) -> Schedule:
        if epoch not in self._schedules:
            self._schedules = {epoch: self._core.schedule(epoch, self._alphas(epoch))}
        return self._schedules[epoch]

    def _alphas(self, epoch: int) -> np.ndarray:
        begin, end = epoch * len(self), (epoch + 1) * len(self)
        if callable(self.alpha):
            given = alphas = np.array([float(self.alpha(step)) for step in range(begin, end)])
        elif isinstance(self.alpha, (int, float)):
            given = alphas = np.array([float(self.alpha)])
        else:
            points_N2 = np.array(self.alpha, np.float64)
            if points_N2.ndim != 2 or points_N2.shape[1] != 2 or (np.diff(points_N2[:, 0]) <= 0).any():
                raise ValueError(f"alpha must be (step, alpha) points in rising order, got {self.alpha!r}")
            given = points_N2[:, 1]
            alphas = np.interp(np.arange(begin, end), *points_N2.T)
        if not (inside := (given >= 0) & (given <= 1)).all():  # NaN is not
            raise ValueError(f"alpha must be in [0, 1], got {given[~inside][0]}")
        return alphas

    def _batch(self, built: tuple[Any, ...]) -> Batch:
        epoch, index, mode, rows, queries, passages, negatives, negative_rows, negative_mask_groups, more = (
            built
        )
        second_queries, second_query_languages, second_passages, second_passage_languages, vectors = more
        beside = "offsets" if self.layout == "flat" else "attention_mask"

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).pin_memory() if self.pin_memory else torch.from_numpy(array)

        def texts(pair: tuple[np.ndarray, np.ndarray] | None) -> dict[str, torch.Tensor] | None:
            return None if pair is None else {"input_ids": tensor(pair[0]), beside: tensor(pair[1])}

        def maybe(array: np.ndarray | None) -> torch.Tensor | None:
            return None if array is None else tensor(array)

        groups, query_languages, passage_languages, flagged, mask_groups = map(tensor, rows)
        return Batch(
            epoch=epoch,
            index=index,
            mode=mode,
            groups=groups,
            query_languages=query_languages,
            passage_languages=passage_languages,
            flagged=flagged,
            mask_groups=mask_groups,
            queries=texts(queries),
            passages=texts(passages),
            negatives=texts(negatives),
            negative_rows=maybe(negative_rows),
            negative_mask_groups=maybe(negative_mask_groups),
            second_queries=texts(second_queries),
            second_query_languages=maybe(second_query_languages),
            second_passages=texts(second_passages),
            second_passage_languages=maybe(second_passage_languages),
            group_vectors=tuple(map(tensor, vectors)),
        )

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch, and the fingerprint of the corpus and options it holds for."""
        ended = self._index == len(self)  # the last batch was delivered, but not yet asked beyond
        position = (self._epoch + 1, 0) if ended else (self._epoch, self._index)
        return {"epoch": position[0], "index": position[1], "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes iter(self) go on where `state` was taken. ValueError: another corpus or another plan."""
        if state["fingerprint"] != self.fingerprint:
            raise ValueError("state is of another corpus or of a sampler with other options")
        _check_range("index", state["index"], 0, len(self))
        self._epoch, self._index = state["epoch"], state["index"]

    @property
    def fingerprint(self) -> str:
        """Names the sequence of batches; independent of ranks, threads, prefetch and layout."""
        plan = {name: value for name, value in self._options.items() if name not in _NOT_THE_PLAN}
        # Left as they are, options that came later leave the names of plans as they were.
        plan = {name: value for name, value in plan.items() if name not in _LATER or value != _LATER[name]}
        # A function is known by its values in the first epoch.
        plan["alpha"] = self._alphas(0).tolist() if callable(self.alpha) else self.alpha
        if plan["batches"] is not None:
            plan["batches"] = hashlib.sha256(plan["batches"]).hexdigest()
        text = json.dumps([self._tokens.fingerprint, plan], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def stats(self) -> dict[str, Any]:
        """Counts over the batches of all iterations so far.

        batches delivered; helped: of them built by the consumer; late: of them not ready when asked for
        (late_share); waits and wait_seconds for late ones; discarded: built twice; flagged rows;
        padding_share of the token places; modes: batches of each; query_languages, passage_languages: rows.
        """
        counts = self._core.stats()
        places = counts["tokens"] + counts.pop("padding")
        counts["padding_share"] = 1 - counts["tokens"] / places if places else 0.0
        counts["late_share"] = counts["late"] / max(counts["batches"], 1)
        counts["modes"] = {mode: counts.pop(mode) for mode in MODES}
        for side in ("query_languages", "passage_languages"):
            counts[side] = dict(zip(self.languages, counts[side], strict=True))
        return counts

    def coverage(self) -> dict[str, float]:
        """Share of the groups that exist in each language."""
        groups = len(self._tokens.source_G)
        return {name: n / groups for name, n in zip(self.languages, self._core.coverage, strict=True)}

    def close(self) -> None:
        """Ends all iterations and their threads. Safe to call twice."""
        self._closed = True
        for pipeline in list(self._pipelines):
            pipeline.close()

    def __enter__(self) -> HybridSampler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"tokens": self._tokens, "options": self._options, "position": (self._epoch, self._index)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tokens"], **state["options"])  # type: ignore[misc]
        self._epoch, self._index = state["position"]


_NOT_THE_PLAN = (
    *("rank", "world_size", "threads", "prefetch", "pin_memory", "layout", "token_dtype", "group_vectors"),
)
_LATER = {"mix": "batches", "second": "none"}


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], got {value!r}")


def _chosen_languages(tokens: Tokens, languages: Sequence[str] | None) -> list[str]:
    given = tokens.languages if languages is None else languages
    chosen = [_spelled(name, tokens.languages) for name in given]
    unknown = [language for language in chosen if language not in tokens.languages]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"languages must be some of {tokens.languages}, each once, got {chosen}")
    if len(chosen) > MAX_LANGUAGES:
        raise ValueError(f"languages must be at most {MAX_LANGUAGES} in one sampler, got {len(chosen)}")
    return chosen


def _spelled(name: str, languages: list[str]) -> str:
    """A language as the corpus spells it, if it has it."""
    return name if name in languages else language_tag(name)


def _weights(name: str, weights: str | Mapping[str, float], keys: list[str]) -> list[float]:
    if isinstance(weights, str) or not set(weights) <= set(keys):
        raise ValueError(f"{name} must map some of {keys} to weights, got {weights!r}")
    for key, weight in weights.items():
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"{name}[{key!r}] must be positive, got {weight}")
    return [float(weights.get(key, 1.0)) for key in keys]


def _filled(options: Options, named: Mapping[str, object]) -> Options:
    """`options`, each of its fields set to what `named` has under that name."""
    for name in vars(type(options)):
        if name in named:
            setattr(options, name, named[name])
    return options
