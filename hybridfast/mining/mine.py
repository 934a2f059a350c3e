"""From a model and a corpus to hard negatives of every row."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.shards import weights_hash, write_whole
from hybridfast.mining.candidates import Candidates, Part, Scope
from hybridfast.mining.topk import Excluded, FaissIndex, Found, check, load_faiss, search
from hybridfast.mining.vectors import embed_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Mined", "MiningSettings", "mine"]

STEP_PRODUCTS = 5e11  # multiplications between one saving of what was found and the next: seconds
STEP = 2_048  # queries, at least: passages are read anew for each step
SAMPLE = 256  # queries of each part by which an index's recall is told


@dataclass(frozen=True)
class MiningSettings:
    """What is a hard negative; the names and their meaning are those of sentence-transformers.

    A query's candidates are the passages of its scope but those of its question (see
    :class:`hybridfast.mining.candidates.Candidates`), ranked by score from 0, equal scores by row.
    """

    num_negatives: int = 3
    scope: Scope = "all"  # passages of the query's language, of the others, or of all
    range_min: int = 0  # so many of the best are skipped, of those that the margins leave
    range_max: int | None = None  # so many of the best are looked at
    absolute_margin: float | None = None  # score <= positive - margin
    relative_margin: float | None = None  # score <= positive - margin * |positive|
    sampling_strategy: Literal["top", "random"] = "top"
    seed: int = 0  # of "random"
    index: str | None = None  # of faiss, as its index_factory reads it; None: exact

    def __post_init__(self) -> None:
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be >= 1, got {self.num_negatives}")
        if self.range_min < 0:
            raise ValueError(f"range_min must be >= 0, got {self.range_min}")
        if self.range_max is not None and self.range_max < self.range_min + self.num_negatives:
            raise ValueError(
                f"range_max must be at least range_min + num_negatives, "
                f"{self.range_min + self.num_negatives}, got {self.range_max}"
            )
        for name in ("absolute_margin", "relative_margin"):
            margin = getattr(self, name)
            if margin is not None and not math.isfinite(margin):
                raise ValueError(f"{name} must be finite, got {margin}")
        for name, value, choices in (
            ("scope", self.scope, ("all", "same", "other")),
            ("sampling_strategy", self.sampling_strategy, ("top", "random")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    def depth(self, max_positives: int) -> int:
        """``range_max``, or sentence-transformers' default for it."""
        if self.range_max is not None:
            return self.range_max
        margins = self.absolute_margin is not None or self.relative_margin is not None
        return self.range_min + self.num_negatives * (10 if margins else 1) + max_positives


@dataclass(frozen=True)
class Mined:
    """Hard negatives of each row of a corpus (V), best first; -1 and NaN where there are fewer."""

    negative_VK: NDArray[np.int64]  # a row of the corpus whose passage it is
    score_VK: NDArray[np.float32]
    positive_V: NDArray[np.float32]  # the score of the row's own passage
    recall: float | None = None  # of an index, against the exact search, of some queries
    folder: Path | None = None  # what would be used again


def mine(
    model: SentenceTransformer,
    tokens: TokenizedCorpus,
    settings: MiningSettings,
    *,
    folder: str | os.PathLike[str] | None = None,
    tokens_per_chunk: int | None = None,
) -> Mined:
    """The passages of a corpus that the model takes for answers of each row's query, and that are none.

    Memory is a few tiles, what was found and some 100 bytes a row; embeddings are on disk.

    Args:
        model: it is left in the mode it was in.
        tokens: the corpus, as :func:`hybridfast.encoder.embedding.tokenize` makes it for this model.
        settings: what counts as a hard negative.
        folder: where embeddings and what was found are kept, by names that tell model, data and settings: an
            interrupted call is gone on with, and nothing is embedded twice. None: nothing is kept.
        tokens_per_chunk: places that go through the encoder at once. None: 2048 on a CPU, 32768 on a GPU.

    Raises:
        ValueError: no query has a candidate, an embedding is not finite, the tokens are not this model's, or
            another process is at work in the same folder.
        ImportError: an index is asked for, and faiss is not installed.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="hybridfast-mining-") as temporary:
            return mine(model, tokens, settings, folder=temporary, tokens_per_chunk=tokens_per_chunk)
    if settings.scope == "other" and len(tokens.languages) < 2:
        raise ValueError(f"scope 'other' needs two languages, the data has {tokens.languages}")
    if settings.index is not None:
        load_faiss(settings.index)  # where it is missing, that is said before the work
    candidates = Candidates(tokens)
    kept = Path(folder) / f"mining-{_digest([weights_hash(model), tokens.fingerprint])}"
    device = model.device if model.device.type == "cuda" else torch.device("cpu")
    with _alone(kept):
        embeddings = _embeddings(model, candidates, kept, tokens_per_chunk)
        mined = _Search(settings, candidates, *embeddings, device, kept).run()
    if not (mined.negative_VK >= 0).any():
        raise ValueError(f"no row has a hard negative: {', '.join(_limits(settings))} leave no candidate")
    return mined


def _embeddings(
    model: SentenceTransformer, candidates: Candidates, folder: Path, tokens_per_chunk: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the distinct queries and passages, mapped; what is on disk is not made again."""
    unit = loading.similarity(model) == "cosine"
    training = model.training
    try:
        query, document = embedding.sides(model, candidates.tokens)
        return (
            embed_texts(
                query,
                candidates.tokens,
                candidates.query_texts,
                folder / "queries.npy",
                unit=unit,
                tokens_per_chunk=tokens_per_chunk,
            ),
            embed_texts(
                document,
                candidates.tokens,
                candidates.passage_texts,
                folder / "passages.npy",
                unit=unit,
                tokens_per_chunk=tokens_per_chunk,
            ),
        )
    finally:
        model.train(training)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder to oneself, until the process ends at the latest."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is mining with this model and data, in {folder}") from None
        yield


def _limits(settings: MiningSettings) -> list[str]:
    names = ("scope", "range_min", "range_max", "absolute_margin", "relative_margin")
    return [f"{name} {getattr(settings, name)}" for name in names if getattr(settings, name) is not None]


def _digest(what: object) -> str:
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


class _Search:
    def __init__(
        self,
        settings: MiningSettings,
        candidates: Candidates,
        queries_UD: NDArray[np.float32],
        passages_PD: NDArray[np.float32],
        device: torch.device,
        kept: Path,
    ) -> None:
        self.settings, self.candidates, self.device = settings, candidates, device
        self.queries_UD, self.passages_PD, self.kept = queries_UD, passages_PD, kept
        self.depth = settings.depth(candidates.max_positives)
        self.folder = kept / f"found-{_digest(asdict(settings))}"
        check(queries_UD, passages_PD)
        self.positive_V = self._positive_scores()
        # Of several positives the lowest, as sentence-transformers.
        self.least_U = np.full(len(queries_UD), np.inf, np.float32)
        np.minimum.at(self.least_U, candidates.query_V, self.positive_V)

    def _positive_scores(self) -> NDArray[np.float32]:
        query_V, passage_V = self.candidates.query_V, self.candidates.passage_V
        positive_V = np.empty(len(query_V), np.float32)
        for begin in range(0, len(query_V), 1 << 14):
            some = slice(begin, begin + (1 << 14))
            positive_V[some] = np.einsum(
                "vd,vd->v", self.queries_UD[query_V[some]], self.passages_PD[passage_V[some]]
            )
        return positive_V

    def run(self) -> Mined:
        self.folder.mkdir(exist_ok=True)
        count, wanted = len(self.positive_V), self.settings.num_negatives
        negative_VK = np.full((count, wanted), -1, np.int64)
        score_VK = np.full((count, wanted), np.nan, np.float32)
        recalls: list[float] = []
        parts = [part for part in self.candidates.parts(self.settings.scope) if len(part.passages_N)]
        total = sum(len(part.queries_Q) for part in parts)
        with tqdm(total=total, desc="search", unit=" queries", disable=None) as bar:
            for number, part in enumerate(parts):
                row_QK, score_QK, recall = self._part(number, part, bar)
                if recall is not None:
                    recalls.append(recall)
                place_B = np.searchsorted(part.queries_Q, self.candidates.query_V[part.versions_B])
                row_BK = row_QK[place_B]
                negative_VK[part.versions_B] = np.where(
                    row_BK >= 0, self.candidates.first_version_P[row_BK], -1
                )
                score_VK[part.versions_B] = score_QK[place_B]
        return Mined(
            negative_VK,
            score_VK,
            self.positive_V,
            float(np.mean(recalls)) if recalls else None,
            self.kept,
        )

    def _part(
        self, number: int, part: Part, bar: tqdm
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], float | None]:
        products = max(1, len(part.passages_N) * self.passages_PD.shape[1])
        step = max(STEP, int(STEP_PRODUCTS / products))
        find: Callable[[NDArray[np.float32], Excluded], Found] | None = None
        rows, scores, recall = [], [], None
        for begin in range(0, len(part.queries_Q), step):
            queries_Q = part.queries_Q[begin : begin + step]
            file = self.folder / f"{number}-{begin}.npz"
            found = _load(file)
            if found is None:
                find = find or self._finder(part)
                embeddings, excluded = self.queries_UD[queries_Q], self.candidates.excluded(queries_Q)
                candidates = find(embeddings, excluded)
                row_QK, score_QK = self._choose(queries_Q, *candidates, number, begin)
                found = {"rows": row_QK, "scores": score_QK}
                if self.settings.index and not begin:
                    some = slice(SAMPLE)
                    exact = self._exact(part)(embeddings[some], excluded.of(some))
                    found["recall"] = np.array(_recall(candidates[1][some], exact[1]))
                _save(file, found)
            rows.append(found["rows"])
            scores.append(found["scores"])
            if "recall" in found:
                recall = float(found["recall"])
            bar.update(len(queries_Q))
        return np.concatenate(rows), np.concatenate(scores), recall

    def _exact(self, part: Part) -> Callable[[NDArray[np.float32], Excluded], Found]:
        return lambda queries, excluded: search(
            queries, self.passages_PD, self.depth, part.passages_N, excluded, device=self.device
        )

    def _finder(self, part: Part) -> Callable[[NDArray[np.float32], Excluded], Found]:
        if self.settings.index is None:
            return self._exact(part)
        index = FaissIndex(self.settings.index, self.passages_PD, part.passages_N)
        return lambda queries, excluded: index.top_k(queries, self.depth, excluded)

    def _choose(
        self,
        queries_Q: NDArray[np.int64],
        score_QN: NDArray[np.float32],
        row_QN: NDArray[np.int64],
        number: int,
        begin: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of each query's candidates, best first, those that the settings take."""
        settings = self.settings
        positive_Q = self.least_U[queries_Q][:, None]
        valid_QN = row_QN >= 0
        if settings.absolute_margin is not None:
            valid_QN &= ~(score_QN + np.float32(settings.absolute_margin) > positive_Q)
        if settings.relative_margin is not None:
            valid_QN &= ~(score_QN > positive_Q - np.abs(positive_Q) * np.float32(settings.relative_margin))
        rank_QN = np.cumsum(valid_QN, axis=1) - 1
        valid_QN &= rank_QN >= settings.range_min
        key_QN = np.arange(score_QN.shape[1])[None].repeat(len(queries_Q), 0).astype(np.float64)
        if settings.sampling_strategy == "random":
            key_QN = np.random.default_rng([settings.seed, number, begin]).random(score_QN.shape)
        key_QN[~valid_QN] = np.inf
        taken_QK = np.argsort(key_QN, axis=1, kind="stable")[:, : settings.num_negatives]
        there_QK = np.take_along_axis(valid_QN, taken_QK, 1)
        taken_QK = np.sort(np.where(there_QK, taken_QK, score_QN.shape[1]), axis=1)  # best first again
        there_QK = taken_QK < score_QN.shape[1]
        taken_QK = np.where(there_QK, taken_QK, 0)
        return (
            np.where(there_QK, np.take_along_axis(row_QN, taken_QK, 1), -1),
            np.where(there_QK, np.take_along_axis(score_QN, taken_QK, 1), np.float32(np.nan)),
        )


def _recall(found_QK: NDArray[np.int64], exact_QK: NDArray[np.int64]) -> float:
    pairs = zip(found_QK, exact_QK, strict=True)
    hits = sum(int(np.isin(exact[exact >= 0], found).sum()) for found, exact in pairs)
    return hits / max(1, int((exact_QK >= 0).sum()))


def _save(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_whole(path, data.getvalue())


def _load(path: Path) -> dict[str, NDArray[np.generic]] | None:
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)
