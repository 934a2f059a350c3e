"""An evaluation's exact ranks, query by query: all that its figures follow from, and a file that holds it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybridfast.evaluation import bias
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import MEASURES, Floats, Golds, Integers, recall
from hybridfast.evaluation.ranks import RankCounts
from hybridfast.evaluation.significance import Sample
from hybridfast.evaluation.toplists import TopLists
from hybridfast.evaluation.worst import Failure, failures, worst

__all__ = ["OTHER_CUTS", "Ranked", "Values", "read", "write"]

OTHER_CUTS = (10, 100)  # of the recall of golds in other languages
_FORMAT = 1


@dataclass(frozen=True)
class Values:
    """One figure's values, each with its question and the cell it is averaged in; NaN is left out.

    The figure is the mean over cells of the mean of their values: cells are query languages, or ordered pairs
    of languages (query * L + passage), so a language with many questions weighs no more than another.
    """

    values_V: Floats
    clusters_V: Integers
    cells_V: Integers

    def by_cell(self, cells: int) -> Floats:
        """(cells,) their means, NaN where nothing is known."""
        known_V = ~np.isnan(self.values_V)
        sums = np.bincount(self.cells_V[known_V], self.values_V[known_V], cells)
        counts = np.bincount(self.cells_V[known_V], minlength=cells)
        return np.divide(sums, counts, out=np.full(cells, np.nan), where=counts > 0)

    def sample(self, clusters: int, known_V: NDArray[np.bool_] | None = None) -> Sample:
        """What significance needs, of those values alone that are known here and in `known_V`."""
        values_V = self.values_V if known_V is None else np.where(known_V, self.values_V, np.nan)
        return Sample.of(values_V, self.clusters_V, self.cells_V, clusters)


@dataclass(frozen=True)
class Ranked:
    """Where a system puts each query's golds: in the pool of their own language and in that of all.

    Queries are (Q,), golds (G,), languages numbers below L = len(languages). `own` counts passages in each
    gold's language, `everywhere` in all of them; both have one group. `list_values` are bias measures per
    query (Q,) that follow from the first passages of a ranking; empty where those were not searched for.
    """

    name: str
    languages: list[str]
    passages_L: Integers  # in the pool of each language
    ties: str
    query_ids: list[str]
    query_languages_Q: Integers
    questions_Q: list[str]  # equal for translations
    gold_ids: list[str]
    gold_languages_G: Integers
    grades_G: Integers
    own: RankCounts
    everywhere: RankCounts
    list_values: dict[str, Floats]
    failures: list[Failure] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, eval_set: EvalSet, counts: RankCounts, ties: str = "expected", lists: TopLists | None = None
    ) -> Ranked:
        """From counts by language of the golds of ``eval_set.relevant()``, and lists of the whole pool."""
        eval_set = eval_set.relevant()
        languages = eval_set.languages
        passage_language_N = np.searchsorted(languages, eval_set.passage_languages)
        parts = counts.greater_GL, counts.tied_GL, counts.later_GL
        own_G = np.arange(len(counts.gold_groups_G)), counts.gold_groups_G
        ranked = cls(
            name=eval_set.name,
            languages=languages,
            passages_L=np.bincount(passage_language_N, minlength=len(languages)),
            ties=ties,
            query_ids=eval_set.query_ids,
            query_languages_Q=np.searchsorted(languages, eval_set.query_languages),
            questions_Q=eval_set.items,
            gold_ids=[eval_set.passage_ids[row] for row in eval_set.gold_indices.tolist()],
            gold_languages_G=counts.gold_groups_G,
            grades_G=eval_set.grades,
            own=_one_group(counts.gold_indptr, [part[own_G] for part in parts], counts.missing_G),
            everywhere=_one_group(
                counts.gold_indptr, [part.sum(axis=1, dtype=np.int32) for part in parts], counts.missing_G
            ),
            list_values={},
            hashes={"texts": eval_set.fingerprint},
        )
        if lists is None:
            return ranked
        precision_Q, ranks_G = MEASURES["mAP"](ranked.golds), ranked.everywhere.ranks(ties)
        found = failures(eval_set, precision_Q, ranked.clusters_Q, ranks_G, lists)
        return replace(ranked, list_values=ranked._values_of(lists), failures=found)

    def _values_of(self, lists: TopLists) -> dict[str, Floats]:
        size = len(self.languages)
        key_G = self.query_G * size + self.gold_languages_G
        target_QL = np.bincount(key_G, minlength=len(self.query_ids) * size).reshape(-1, size)
        k = lists.rows_QK.shape[1]
        return {
            "own language first": bias.own_language_first(lists, self.query_languages_Q),
            f"AWRF@{k}": bias.awrf(lists, target_QL),
            f"list correlation@{k}": bias.list_correlation(lists, self.clusters_Q),
        }

    @cached_property
    def query_G(self) -> Integers:
        """The query of each gold."""
        return np.repeat(np.arange(len(self.query_ids)), np.diff(self.everywhere.gold_indptr))

    @cached_property
    def clusters_Q(self) -> Integers:
        """The number of each query's question, by first appearance."""
        number: dict[str, int] = {}
        return np.array([number.setdefault(name, len(number)) for name in self.questions_Q], np.int64)

    @property
    def clusters(self) -> int:
        """How many questions there are."""
        return int(self.clusters_Q.max(initial=-1)) + 1

    @cached_property
    def golds(self) -> Golds:
        """In the pool of all languages."""
        return Golds.of(self.everywhere, self.ties, self.grades_G)

    def pools(self) -> tuple[Golds, Integers, Integers]:
        """Golds in the pool of each language, as if a query asked anew in each that holds golds of it, with
        the query (V,) and the language (V,).
        """
        key_G = self.query_G * len(self.languages) + self.gold_languages_G
        by_pool = np.argsort(key_G, kind="stable")
        key_V, start_V = np.unique(key_G[by_pool], return_index=True)
        counts = _taken(self.own, np.append(start_V, len(by_pool)), by_pool)
        query_V, language_V = np.divmod(key_V, max(1, len(self.languages)))
        return Golds.of(counts, self.ties, self.grades_G[by_pool]), query_V, language_V

    @cached_property
    def figures(self) -> dict[str, Values]:
        """Every figure by its name: measures with "mono", "cross" or "multi" for the pool, then bias."""
        figures: dict[str, Values] = {}
        pools, query_V, language_V = self.pools()
        row_V = self.query_languages_Q[query_V]
        cell_V, cluster_V = row_V * len(self.languages) + language_V, self.clusters_Q[query_V]
        mono_V = row_V == language_V
        which = [  # once for all measures, which share them
            (pool, chosen_V, cluster_V[chosen_V], cell_V[chosen_V])
            for pool, chosen_V in (("mono", mono_V), ("cross", ~mono_V))
        ]
        for name, measure in MEASURES.items():
            values_V = measure(pools)
            for pool, chosen_V, *places in which:
                figures[f"{name} {pool}"] = Values(values_V[chosen_V], *places)
            figures[f"{name} multi"] = self._by_language(measure(self.golds))
        for name, values_Q in self._bias_per_query().items():
            figures[name] = self._by_language(values_Q)
        return figures

    def _by_language(self, values_Q: Floats) -> Values:
        return Values(values_Q, self.clusters_Q, self.query_languages_Q)

    def _bias_per_query(self) -> dict[str, Floats]:
        golds, own_G = self.golds, self.gold_languages_G == self.query_languages_Q[self.query_G]
        distance_Q = bias.rank_distance(golds)
        chance_Q = bias.chance_rank_distance(golds.count_Q, int(self.passages_L.sum()))
        others = self._restricted(~own_G)
        values = {
            "rank distance": distance_Q,
            "rank distance / chance": distance_Q / chance_Q,
            "own-language gold first": bias.own_language_gold_first(golds, own_G),
            **{f"R@{k} of other languages": recall(others, k) for k in OTHER_CUTS},
            **self.list_values,
        }
        if "own language first" in values:
            share_L = self.passages_L / max(1, self.passages_L.sum())
            with np.errstate(divide="ignore", invalid="ignore"):
                preference_Q = values["own language first"] / share_L[self.query_languages_Q]
            # A language without passages cannot be preferred.
            values["own-language preference"] = np.where(np.isfinite(preference_Q), preference_Q, np.nan)
        return values

    def _restricted(self, kept_G: NDArray[np.bool_]) -> Golds:
        """Some of the golds, among all passages."""
        kept_before = np.concatenate([[0], np.cumsum(kept_G)])
        counts = _taken(self.everywhere, kept_before[self.everywhere.gold_indptr], kept_G)
        return Golds.of(counts, self.ties, self.grades_G[kept_G])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ranks: what was asked, and all counts."""
        about = self.languages, self.ties, self.query_ids, self.questions_Q, self.gold_ids
        digest = hashlib.sha256(json.dumps(about).encode())
        for numbers in (self.passages_L, self.query_languages_Q, self.gold_languages_G, self.grades_G):
            digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        for counts in (self.own, self.everywhere):
            for part in (counts.gold_indptr, counts.greater_GL, counts.tied_GL, counts.later_GL):
                digest.update(np.ascontiguousarray(part, "<i8").tobytes())
            if counts.missing_G is not None:
                digest.update(counts.missing_G.tobytes())
        return digest.hexdigest()

    def places_QL(self) -> Floats:
        """How many passages stand above the best gold in each language: (Q, L), NaN without any, infinite
        where none was retrieved.
        """
        places = np.full((len(self.query_ids), len(self.languages)), np.nan)
        greater_G = self.everywhere.greater_GL[:, 0].astype(np.float64)
        if self.everywhere.missing_G is not None:
            greater_G[self.everywhere.missing_G] = np.inf
        np.fmin.at(places, (self.query_G, self.gold_languages_G), greater_G)
        return places

    def worst_queries(self) -> list[Failure]:
        """Those that are known with their texts, or else without."""
        if self.failures:
            return self.failures
        indptr, ranks_G = self.everywhere.gold_indptr, self.everywhere.ranks(self.ties)
        found = []
        for query in worst(precision_Q := MEASURES["mAP"](self.golds), self.clusters_Q):
            span = np.arange(indptr[query], indptr[query + 1])
            span = span[np.argsort(ranks_G[span], kind="stable")]
            golds = [(self.languages[self.gold_languages_G[gold]], float(ranks_G[gold])) for gold in span]
            language = self.languages[self.query_languages_Q[query]]
            found.append(
                Failure(
                    self.query_ids[query],
                    language,
                    "",
                    float(precision_Q[query]),
                    golds,
                    (golds[0][0], ""),
                    [],
                )
            )
        return found

    def per_query(self) -> pa.Table:
        """A row a query: query, language, question; each measure in the pools "mono", "cross" (the mean over
        the pools of the other languages) and "multi", as in `figures`; then the bias measures. Float64, null
        where undefined.
        """
        _, query_V, language_V = self.pools()
        mono_V = self.query_languages_Q[query_V] == language_V
        columns = {
            "query": pa.array(self.query_ids, pa.string()),
            "language": pa.array(self.languages, pa.string()).take(pa.array(self.query_languages_Q)),
            "question": pa.array(self.questions_Q, pa.string()),
        }
        for name, figure in self.figures.items():
            if name.endswith((" mono", " cross")):
                of_V = query_V[mono_V if name.endswith(" mono") else ~mono_V]
                values_Q = replace(figure, cells_V=of_V).by_cell(len(self.query_ids))
            else:
                values_Q = figure.values_V
            columns[name] = pa.array(values_Q, mask=np.isnan(values_Q))
        return pa.table(columns)

    def same_questions_as(self, other: Ranked) -> None:
        """Raises ValueError unless both were asked the same, in the same order, with the same golds."""
        for what, of in (
            ("languages", lambda ranked: ranked.languages),
            ("numbers of passages", lambda ranked: ranked.passages_L.tolist()),
            ("queries", lambda ranked: ranked.query_ids),
            ("questions", lambda ranked: ranked.questions_Q),
            ("golds", lambda ranked: (ranked.gold_ids, ranked.everywhere.gold_indptr.tolist())),
            ("grades", lambda ranked: ranked.grades_G.tolist()),
            ("rules for ties", lambda ranked: ranked.ties),
        ):
            if of(self) != of(other):
                raise ValueError(f"{self.name} and {other.name} differ in their {what}")


def write(path: str | os.PathLike[str], ranked: Ranked) -> None:
    """A Parquet file with a row a query, written under a temporary name and renamed.

    Columns: query, language, question; of each gold, as lists: gold, gold_language, grade, missing and how
    many passages score higher, tie, and tie from a later row, in its own language (own_higher, own_tied,
    own_later) and in all (higher, tied, later); then the measures that follow from the first passages of a
    ranking.
    """
    indptr = pa.array(ranked.everywhere.gold_indptr, pa.int32())
    names = pa.array(ranked.languages, pa.string())

    def per_gold(values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(indptr, values if isinstance(values, pa.Array) else pa.array(values))

    missing_G = ranked.everywhere.missing_G
    columns = {
        "query": pa.array(ranked.query_ids, pa.string()),
        "language": names.take(pa.array(ranked.query_languages_Q)),
        "question": pa.array(ranked.questions_Q, pa.string()),
        "gold": per_gold(pa.array(ranked.gold_ids, pa.string())),
        "gold_language": per_gold(names.take(pa.array(ranked.gold_languages_G))),
        "grade": per_gold(ranked.grades_G),
        "missing": per_gold(np.zeros(len(ranked.grades_G), bool) if missing_G is None else missing_G),
    }
    for prefix, counts in (("own_", ranked.own), ("", ranked.everywhere)):
        for what, part in zip(_COUNTS, (counts.greater_GL, counts.tied_GL, counts.later_GL), strict=True):
            columns[prefix + what] = per_gold(np.ascontiguousarray(part[:, 0]))
    columns |= {name: pa.array(values_Q) for name, values_Q in ranked.list_values.items()}
    about = {
        "format": _FORMAT,
        "name": ranked.name,
        "languages": ranked.languages,
        "passages": ranked.passages_L.tolist(),
        "ties": ranked.ties,
        "list_values": list(ranked.list_values),
        "failures": [asdict(failure) for failure in ranked.failures],
        "hashes": ranked.hashes,
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Ranked:
    """What :func:`write` has written.

    Raises ValueError naming the file for anything else, FileNotFoundError if it is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        table = pq.read_table(path, partitioning=None).combine_chunks()
        about = json.loads((table.schema.metadata or {})[_KEY.encode()])
        if about["format"] != _FORMAT:
            raise ValueError(f"{path}: ranks of format {about['format']}, this version reads {_FORMAT}")
        return _from_table(table, about)
    except (pa.ArrowException, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not ranks that this library has written ({error})") from error


_KEY = "hybridfast"
_COUNTS = ("higher", "tied", "later")


def _from_table(table: pa.Table, about: dict[str, Any]) -> Ranked:
    number = {language: i for i, language in enumerate(about["languages"])}

    def flat(name: str) -> Any:
        return table.column(name).combine_chunks().flatten()

    def numbers(names: Iterable[str]) -> Integers:
        return np.array([number[name] for name in names], np.int64)

    sizes = table.column("gold").combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    missing_G = flat("missing").to_numpy(zero_copy_only=False)

    def counts(prefix: str) -> RankCounts:
        parts = [flat(prefix + what).to_numpy() for what in _COUNTS]
        return _one_group(indptr, parts, missing_G if missing_G.any() else None)

    return Ranked(
        name=about["name"],
        languages=about["languages"],
        passages_L=np.array(about["passages"], np.int64),
        ties=about["ties"],
        query_ids=table.column("query").to_pylist(),
        query_languages_Q=numbers(table.column("language").to_pylist()),
        questions_Q=table.column("question").to_pylist(),
        gold_ids=flat("gold").to_pylist(),
        gold_languages_G=numbers(flat("gold_language").to_pylist()),
        grades_G=flat("grade").to_numpy(),
        own=counts("own_"),
        everywhere=counts(""),
        list_values={name: table.column(name).to_numpy() for name in about["list_values"]},
        failures=[Failure.of_json(failure) for failure in about.get("failures", [])],
        hashes=about.get("hashes", {}),
    )


def _one_group(
    indptr: Integers, parts: Sequence[NDArray[np.int32]], missing_G: NDArray[np.bool_] | None
) -> RankCounts:
    """Counts in one pool, from those of higher, tied and later passages, (G,) each."""
    higher, tied, later = (part[:, None] for part in parts)
    return RankCounts(indptr, np.zeros(len(higher), np.int64), higher, tied, later, missing_G)


def _taken(counts: RankCounts, indptr: Integers, which_G: NDArray[Any]) -> RankCounts:
    """The counts of some golds, or of all in another order, cut into queries by `indptr`."""
    parts = [part[which_G, 0] for part in (counts.greater_GL, counts.tied_GL, counts.later_GL)]
    return _one_group(indptr, parts, None if counts.missing_G is None else counts.missing_G[which_G])
