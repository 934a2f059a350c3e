"""The evaluation of one system on one data set: every measure in the pools of all languages, and its bias."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from hybridfast.encoder.gathering import from_all, part
from hybridfast.evaluation import bias
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import MEASURES, Floats
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.ranks import RankCounts, rank_counts
from hybridfast.evaluation.toplists import TopLists, top_lists

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LIST_DEPTH", "Evaluation", "evaluate_counts", "evaluate_embeddings", "evaluate_ranked"]

LIST_DEPTH = 100  # of the lists that some measures of bias read


@dataclass(frozen=True)
class Evaluation:
    """Every measure in every pool of one evaluation; NaN where no query counts.

    `pairs[measure]` is (L, L): query language by row, the language of the passages ranked by column; its
    diagonal is monolingual, the rest cross-lingual. `multilingual[measure]` is (L,), by query language, over
    the passages of all languages together; so is `rank_distance`. `median_rank` (L, L) is the median rank, in
    that same pool, of the golds in the column's language for the queries in the row's. The measures are the
    keys of :data:`~hybridfast.evaluation.measures.MEASURES`. `bias` holds the measures of language bias, as
    :func:`language_bias` gives them, and `ranked` the ranks that all of it follows from.
    """

    name: str
    languages: list[str]
    pairs: dict[str, Floats]
    multilingual: dict[str, Floats]
    rank_distance: Floats
    median_rank: Floats
    bias: dict[str, Any] = field(default_factory=dict)
    ranked: Ranked | None = None

    def mono(self, measure: str) -> float:
        """Monolingual: mean over languages."""
        return _mean(np.diagonal(self.pairs[measure]))

    def cross(self, measure: str) -> float:
        """Cross-lingual: mean over ordered pairs of different languages."""
        return _mean(self.pairs[measure][~np.eye(len(self.languages), dtype=bool)])

    def multi(self, measure: str) -> float:
        """Multilingual: mean over query languages."""
        return _mean(self.multilingual[measure])

    def summary(self) -> dict[str, float]:
        """The columns of the paper's tables."""
        return {
            "mAP mono": self.mono("mAP"),
            "mAP cross": self.cross("mAP"),
            "mAP multi": self.multi("mAP"),
            "R@1 mono": self.mono("R@1"),
            "R@1 cross": self.cross("R@1"),
            "R@10 multi": self.multi("R@10"),
            "rank distance": _mean(self.rank_distance),
        }

    def to_arrow(self) -> pa.Table:
        """The figures of every query, a row each: see :meth:`Ranked.per_query`.

        Raises ValueError for an evaluation that was made without ranks.
        """
        if self.ranked is None:
            raise ValueError(
                f"the evaluation of {self.name} holds no ranks, which figures per query follow from"
            )
        return self.ranked.per_query()

    def to_pandas(self) -> pd.DataFrame:
        """As :meth:`to_arrow`, NaN where undefined; pandas is imported here."""
        return self.to_arrow().to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain lists and numbers, None for NaN."""
        return {
            "name": self.name,
            "languages": list(self.languages),
            "summary": _plain(self.summary()),
            "macro": {
                measure: _plain(
                    {"mono": self.mono(measure), "cross": self.cross(measure), "multi": self.multi(measure)}
                )
                for measure in self.pairs
            },
            "pairs": _plain(self.pairs),
            "multilingual": _plain(self.multilingual),
            "rank_distance": _plain(self.rank_distance),
            "median_rank": _plain(self.median_rank),
            "bias": _plain(self.bias),
        }


def evaluate_embeddings(
    eval_set: EvalSet,
    query_embeddings: ArrayLike | torch.Tensor,
    passage_embeddings: ArrayLike | torch.Tensor,
    ties: str = "expected",
    threads: int | None = None,
    list_depth: int = LIST_DEPTH,
    *,
    shared: bool = False,
) -> Evaluation:
    """All measures in the monolingual, cross-lingual and multilingual pools, from one pass over the
    scores, and from a second one those of language bias that read the first `list_depth` passages (0: none).

    `query_embeddings` (Q, D) and `passage_embeddings` (N, D) are the embeddings of ``eval_set.queries`` and
    ``eval_set.passages`` in order. Scores are inner products: normalise the rows first where cosine is meant.
    A query counts only in pools that hold a gold of it. With ``ties="expected"`` a measure is its expectation
    over the orders of tied passages, with "best" and "worst" its largest and smallest value, with "trec" that
    of trec_eval's order, by descending ``eval_set.passage_ids``. With `shared`, every rank of
    torch.distributed calls this with the same embeddings, ranks for a part of the queries, and gets all.
    Dtypes, `threads` and errors are those of :func:`hybridfast.gold_ranks`.
    """
    for name, embeddings, texts in (
        ("query_embeddings", query_embeddings, eval_set.queries),
        ("passage_embeddings", passage_embeddings, eval_set.passages),
    ):
        if np.shape(embeddings)[:1] != (len(texts),):
            raise ValueError(
                f"{name} must have one row for each of the {len(texts)} texts of {eval_set.name}, "
                f"got shape {tuple(np.shape(embeddings))}"
            )
    eval_set = eval_set.relevant()
    language_N = np.searchsorted(eval_set.languages, eval_set.passage_languages)
    order_N = np.arange(len(language_N))
    if ties == "trec":  # strings sort as their UTF-8 does, which is what trec_eval compares
        order_N = np.array(sorted(order_N.tolist(), key=eval_set.passage_ids.__getitem__), np.int64)
    if (np.diff(order_N) > 0).all():
        ordered: Any = passage_embeddings
    else:
        ordered = passage_embeddings[order_N]  # type: ignore[index]
    place_N = np.empty_like(order_N)
    place_N[order_N] = np.arange(len(order_N))
    own = part(len(eval_set.queries), shared)
    first_G, last_G = eval_set.gold_indptr[[own.start, own.stop]]
    golds = (
        eval_set.gold_indptr[own.start : own.stop + 1] - first_G,
        place_N[eval_set.gold_indices[first_G:last_G]],
    )
    queries: Any = query_embeddings[own]  # type: ignore[index]
    counts = rank_counts(queries, ordered, *golds, language_N[order_N], threads)
    counts = RankCounts.joined(from_all(counts, shared))
    lists = None
    if list_depth:
        lists = top_lists(queries, ordered, list_depth, language_N[order_N], len(eval_set.languages))
        lists = TopLists.joined(from_all(lists, shared)).renumbered(order_N)
    return evaluate_counts(eval_set, counts, ties, lists)


def evaluate_counts(
    eval_set: EvalSet, counts: RankCounts, ties: str = "expected", lists: TopLists | None = None
) -> Evaluation:
    """All measures from counts: of embeddings, as above, or of a run (:mod:`hybridfast.evaluation.trec`).

    `counts` are those of the golds of ``eval_set.relevant()``, grouped by ``eval_set.languages``; `lists` the
    first passages of each query, without which some measures of bias are left out.
    """
    return evaluate_ranked(Ranked.of(eval_set, counts, ties, lists))


def evaluate_ranked(ranked: Ranked) -> Evaluation:
    """All measures from ranks, of whatever origin; those of a file too."""
    size, figures = len(ranked.languages), ranked.figures

    def pairs(measure: str) -> Floats:
        mono, cross = (figures[f"{measure} {pool}"].by_cell(size**2) for pool in ("mono", "cross"))
        return np.where(np.isnan(mono), cross, mono).reshape(size, size)

    row_G = ranked.query_languages_Q[ranked.query_G]
    ranks_G = ranked.everywhere.ranks(ranked.ties)
    return Evaluation(
        name=ranked.name,
        languages=ranked.languages,
        pairs={measure: pairs(measure) for measure in MEASURES},
        multilingual={measure: figures[f"{measure} multi"].by_cell(size) for measure in MEASURES},
        rank_distance=figures["rank distance"].by_cell(size),
        median_rank=_median_per_pair(ranks_G, row_G, ranked.gold_languages_G, size),
        bias=language_bias(ranked),
        ranked=ranked,
    )


def language_bias(ranked: Ranked) -> dict[str, Any]:
    """The measures of :mod:`hybridfast.evaluation.bias` in the pool of all languages.

    Those per query as {"mean", "by_query_language"}, a mean over languages and each language's; beside them
    what chance gives, the tests over languages of golds, within the queries of each language ("friedman") and
    over questions, whose translations' ranks are averaged first ("friedman_questions"), and PEER or the
    reason why it has none.
    """
    size = len(ranked.languages)
    known = {
        name: values.by_cell(size)
        for name, values in ranked.figures.items()
        if not name.endswith((" mono", " cross", " multi"))
    }
    result: dict[str, Any] = {
        name: {"mean": _mean(by_language), "by_query_language": by_language}
        for name, by_language in known.items()
    }
    total = int(ranked.passages_L.sum())
    golds_Q = ranked.golds.count_Q
    chance_Q = bias.chance_rank_distance(golds_Q, total)
    result["chance rank distance"] = _mean(chance_Q)
    result["golds"] = int(golds_Q.sum())
    result["golds not retrieved"] = int(ranked.golds.missing_Q.sum())
    result["pool share"] = ranked.passages_L / max(1, total)
    places_QL = ranked.places_QL()
    result["friedman"] = {
        language: asdict(bias.language_test(places_QL[ranked.query_languages_Q == i]))
        for i, language in enumerate(ranked.languages)
    }
    result["Kendall's W"] = _mean(np.array([test["w"] for test in result["friedman"].values()]))
    within_QL = bias.places_within(places_QL)
    within_CL = [_mean_per_label(within_QL[:, i], ranked.clusters_Q, ranked.clusters) for i in range(size)]
    if size:
        result["friedman_questions"] = asdict(bias.language_test(np.stack(within_CL, axis=1)))
    try:
        peer_Q = bias.peer(
            ranked.everywhere.ranks(ranked.ties),
            ranked.everywhere.gold_indptr,
            ranked.gold_languages_G,
            ranked.grades_G,
        )
        by_language = _mean_per_label(peer_Q, ranked.query_languages_Q, size)
        result["PEER"] = {"mean": _mean(by_language), "by_query_language": by_language}
    except ValueError as error:
        result["PEER"] = {"refused": str(error)}
    return result


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _mean_per_label(values_Q: Floats, label_Q: NDArray[Any], labels: int) -> Floats:
    known_Q = ~np.isnan(values_Q)
    sums = np.bincount(label_Q[known_Q], weights=values_Q[known_Q], minlength=labels)
    counts = np.bincount(label_Q[known_Q], minlength=labels)
    return np.divide(sums, counts, out=np.full(labels, np.nan), where=counts > 0)


def _median_per_pair(values_G: Floats, row_G: NDArray[Any], column_G: NDArray[Any], languages: int) -> Floats:
    pair_G = row_G * languages + column_G
    order_G = np.argsort(pair_G, kind="stable")
    values_G, bounds = values_G[order_G], np.searchsorted(pair_G[order_G], np.arange(languages**2 + 1))
    medians = [
        float(np.median(values_G[start:stop])) if start < stop else np.nan for start, stop in pairwise(bounds)
    ]
    return np.array(medians).reshape(languages, languages)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
