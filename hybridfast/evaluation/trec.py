"""Runs and judgments in TREC's formats: those of other systems in, ours out.

A run has lines ``query Q0 passage rank score tag``, judgments (qrels) ``query 0 passage grade``, both cut at
blanks. As in trec_eval the order of a run is that of its scores as float32, equal ones by passage id
descending; ranks in the file count for nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.judged import BLANKS, Judgment, Tally, Texts, fields, grade, judged_set
from hybridfast.evaluation.ranks import RankCounts
from hybridfast.evaluation.toplists import TopLists

__all__ = [
    "Run",
    "eval_set_of",
    "id_order",
    "read_qrels",
    "read_run",
    "run_counts",
    "run_of",
    "top_lists_of",
    "write_qrels",
    "write_run",
]

LARGEST = float(np.finfo(np.float32).max)
MISSING = 2**30  # how many stand before a passage that was not retrieved, where a rank must be a number


@dataclass(frozen=True)
class Run:
    """What a system retrieved for each query of an `EvalSet`, in trec_eval's order.

    Query q's passages are ``rows[indptr[q]:indptr[q + 1]]``, rows of the set, with ``scores`` beside them.
    """

    indptr: NDArray[np.int64]  # (Q + 1,)
    rows: NDArray[np.int64]  # (R,)
    scores: NDArray[np.float32]  # (R,)
    notes: tuple[str, ...] = ()  # what the reader left out, a line each


def read_run(path: str | os.PathLike[str], eval_set: EvalSet) -> Run:
    """A run of any system, for the queries and passages of a set, by their ids.

    Lines of other queries and passages are left out, and counted in ``notes``: they may be of languages or
    questions that the set was read without. A query that the run lacks has nothing retrieved, so that every
    measure is 0 there: trec_eval's -c.

    Raises FileNotFoundError, and ValueError naming file and line: other than six fields, a score that is no
    finite number, a passage twice in a query's list.
    """
    path = Path(path)
    query_of, passage_of = _numbers(eval_set.query_ids), _numbers(eval_set.passage_ids)
    no_query = Tally("lines of the run name queries that are not in the set; they are left out")
    no_passage = Tally("lines of the run name passages that are not in the set; they are left out")
    query, row, score, places = [], [], [], []
    for line, (name, passage, value) in _run_lines(path):
        q, p = query_of.get(name), passage_of.get(passage)
        if q is None:
            no_query.add(f"{name!r} at {path}:{line}")
        elif p is None:
            no_passage.add(f"{passage!r} at {path}:{line}")
        else:
            query.append(q)
            row.append(p)
            score.append(value)
            places.append(line)
    query_R, row_R = np.array(query, np.int64), np.array(row, np.int64)
    key_R = query_R * len(eval_set.passages) + row_R
    by_key = np.argsort(key_R, kind="stable")
    again = np.flatnonzero(np.diff(key_R[by_key]) == 0)
    if again.size:
        at = by_key[again + 1].min()
        raise ValueError(
            f"{path}:{places[at]}: passage {eval_set.passage_ids[row_R[at]]!r} appears twice for query "
            f"{eval_set.query_ids[query_R[at]]!r}"
        )
    run = _sorted(eval_set, query_R, row_R, np.array(score, np.float64).astype(np.float32))
    notes = (*no_query.notes(), *no_passage.notes())
    return Run(run.indptr, run.rows, run.scores, notes)


def run_of(eval_set: EvalSet, rows_QK: NDArray[np.int64], scores_QK: NDArray[np.float32]) -> Run:
    """What :mod:`hybridfast.evaluation.search` found; rows of -1 were not."""
    found_QK = rows_QK >= 0
    query_QK = np.broadcast_to(np.arange(len(rows_QK))[:, None], rows_QK.shape)
    return _sorted(eval_set, query_QK[found_QK], rows_QK[found_QK], scores_QK[found_QK])


def run_counts(run: Run, eval_set: EvalSet) -> RankCounts:
    """What :func:`hybridfast.evaluation.ranks.rank_counts` counts, for the golds of ``eval_set.relevant()``
    in the run by ``eval_set.languages``, for :func:`hybridfast.evaluation.metrics.evaluate_counts`.

    A pool's ranks are those in the run's passages of that pool. A gold that was not retrieved has an infinite
    rank: it counts among the relevant and is found by no measure, as in trec_eval. A later row is a larger
    id.
    """
    eval_set = eval_set.relevant()
    languages = len(eval_set.languages)
    language_N = np.searchsorted(eval_set.languages, eval_set.passage_languages)
    golds = eval_set.gold_indices
    groups_G = language_N[golds].astype(np.int64)
    greater_GL, tied_GL, later_GL = (np.zeros((len(golds), languages), np.int32) for _ in range(3))
    greater_GL[np.arange(len(golds)), groups_G] = MISSING
    missing_G = np.ones(len(golds), bool)
    for (start, stop), (first, last) in zip(
        pairwise(run.indptr.tolist()), pairwise(eval_set.gold_indptr.tolist()), strict=True
    ):
        if start == stop or first == last:
            continue
        rows, loss = run.rows[start:stop], -run.scores[start:stop]
        by_row = np.argsort(rows)
        place = by_row[np.searchsorted(rows, golds[first:last], sorter=by_row).clip(max=len(rows) - 1)]
        found = np.flatnonzero(rows[place] == golds[first:last])
        place = place[found]
        before_RL = np.zeros((len(rows) + 1, languages), np.int32)  # of each language before each place
        before_RL[np.arange(len(rows)) + 1, language_N[rows]] = 1
        np.cumsum(before_RL, axis=0, out=before_RL)
        better, tied = (np.searchsorted(loss, loss[place], side=side) for side in ("left", "right"))
        g = first + found
        missing_G[g] = False
        greater_GL[g] = before_RL[better]
        tied_GL[g] = before_RL[tied] - before_RL[better]
        tied_GL[g, language_N[rows[place]]] -= 1  # itself
        later_GL[g] = before_RL[place] - before_RL[better]
    return RankCounts(eval_set.gold_indptr, groups_G, greater_GL, tied_GL, later_GL, missing_G)


def top_lists_of(run: Run, eval_set: EvalSet, k: int) -> TopLists:
    """The first `k` passages of each query, for measures of bias; of tied ones the run's first."""
    language_N = np.searchsorted(eval_set.languages, eval_set.passage_languages)
    size_Q = np.diff(run.indptr)
    query_R = np.repeat(np.arange(len(size_Q)), size_Q)
    place_R = np.arange(len(run.rows)) - run.indptr[query_R]
    kept_R = place_R < k
    at = query_R[kept_R], place_R[kept_R]
    rows_QK = np.full((len(size_Q), max(1, min(k, size_Q.max(initial=0)))), -1, np.int64)
    scores_QK = np.full(rows_QK.shape, -np.inf, np.float32)
    rows_QK[at], scores_QK[at] = run.rows[kept_R], run.scores[kept_R]
    beyond_QL = np.zeros((len(size_Q), len(eval_set.languages)), np.int64)
    return TopLists(rows_QK, scores_QK, beyond_QL, language_N)


def read_qrels(path: str | os.PathLike[str]) -> Iterator[Judgment]:
    """The judgments of a file. Raises ValueError with file and line: not four fields, no integer grade."""
    path = Path(path)
    for line, (query, _, passage, value) in fields(path, "query 0 passage grade"):
        yield Judgment(query, passage, grade(value, path, line), path, line)


def eval_set_of(
    qrels: str | os.PathLike[str],
    run: str | os.PathLike[str],
    passage_languages: str | os.PathLike[str] | None = None,
    query_languages: str | os.PathLike[str] | None = None,
    language: str | None = None,
) -> EvalSet:
    """A set without texts, of judgments and a run: its texts are the ids.

    The tables have lines ``id language``, cut at blanks; ids that they lack are in `language`. The pool is
    the passages of the table, the judgments and the run, so that a table of the whole collection gives bias
    measures the true size of each language. Queries that are judged count, whether the run has them or not.

    Raises ValueError naming file and line, also for an id without a language.
    """
    queries, passages = Texts("queries", language), Texts("passages", language)
    for texts, table in ((queries, query_languages), (passages, passage_languages)):
        for line, (name, tag) in fields(Path(table), "id language") if table else ():
            texts.add(name, name, tag, str(table), line)
    judgments = list(read_qrels(qrels))
    for judgment in judgments:
        _add_new(queries, judgment.query, judgment.file, judgment.line)
        _add_new(passages, judgment.passage, judgment.file, judgment.line)
    for line, (name, passage, _) in _run_lines(Path(run)):
        if name in queries.row:
            _add_new(passages, passage, run, line)
    return judged_set(Path(qrels).stem, queries, passages, judgments, str(qrels))


def write_run(path: str | os.PathLike[str], run: Run, eval_set: EvalSet, tag: str = "hybridfast") -> None:
    """Write a run, scores as the shortest text that reads back as the same float32.

    Blanks in ids become ``_``. Raises ValueError where two ids would become one.
    """
    queries, passages = _names(eval_set.query_ids), _names(eval_set.passage_ids)
    tag = "_".join(tag.split()) or "hybridfast"

    def lines() -> Iterator[str]:
        for query, (start, stop) in enumerate(pairwise(run.indptr.tolist())):
            scores = run.scores[start:stop].astype(str).tolist()
            found = zip(run.rows[start:stop].tolist(), scores, strict=True)
            for rank, (row, score) in enumerate(found, start=1):
                yield f"{queries[query]} Q0 {passages[row]} {rank} {score} {tag}\n"

    _write(Path(path), lines())


def write_qrels(path: str | os.PathLike[str], eval_set: EvalSet) -> None:
    """Write what is judged, grades of 0 too. Ids are as in :func:`write_run`."""
    queries, passages = _names(eval_set.query_ids), _names(eval_set.passage_ids)
    query_G = np.repeat(np.arange(len(queries)), np.diff(eval_set.gold_indptr))
    judged = zip(query_G.tolist(), eval_set.gold_indices.tolist(), eval_set.grades.tolist(), strict=True)
    _write(Path(path), (f"{queries[query]} 0 {passages[row]} {value}\n" for query, row, value in judged))


def id_order(eval_set: EvalSet) -> NDArray[np.int64]:
    """(N,) the place of each passage's id among all, ascending by code points as C compares UTF-8."""
    names = _names(eval_set.passage_ids)
    order_N = np.empty(len(names), np.int64)
    order_N[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return order_N


def _sorted(eval_set: EvalSet, query_R: NDArray, row_R: NDArray, score_R: NDArray) -> Run:
    by = np.lexsort((-id_order(eval_set)[row_R], -score_R, query_R))
    sizes_Q = np.bincount(query_R, minlength=len(eval_set.queries))
    return Run(np.concatenate([[0], np.cumsum(sizes_Q)]), row_R[by], score_R[by] + np.float32(0))


def _run_lines(path: Path) -> Iterator[tuple[int, tuple[str, str, float]]]:
    for line, (query, _, passage, _, text, _) in fields(path, "query Q0 passage rank score tag"):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not abs(score) <= LARGEST:
            raise ValueError(f"{path}:{line}: the score must be a finite float32, got {text!r}")
        yield line, (query, passage, score)


def _add_new(texts: Texts, name: str, file: str | os.PathLike[str], line: int) -> None:
    if name not in texts.row:
        texts.add(name, name, None, str(file), line)


def _names(ids: list[str]) -> list[str]:
    names = [re.sub(f"[{BLANKS}]+", "_", name) for name in ids]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"ids must differ by more than blanks in TREC's formats, but two are {twice!r}")
    return names


def _numbers(ids: list[str]) -> dict[str, int]:
    return {name: row for row, name in enumerate(_names(ids))}


def _write(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
