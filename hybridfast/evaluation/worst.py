"""The questions that a system answers worst, with what it preferred: what a person looks at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import Floats, Integers
from hybridfast.evaluation.toplists import TopLists

__all__ = ["Failure", "failures", "worst"]

_SHOWN, _ABOVE, _LENGTH = 12, 3, 400  # questions, passages above their golds, characters of a text


@dataclass(frozen=True)
class Failure:
    """A query whose golds stand low among all passages; texts are empty where they are unknown.

    `golds` are (language, rank), best first, infinite where not retrieved; `gold` is (language, text) of the
    best in the query's language or else of all; `above` the first passages, (language, text), that stand
    above a gold and are none.
    """

    query_id: str
    language: str
    query: str
    average_precision: float
    golds: list[tuple[str, float]]
    gold: tuple[str, str]
    above: list[tuple[str, str]]

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Failure:
        """From ``asdict`` by way of JSON, which has no tuples."""
        pairs = {name: [tuple(pair) for pair in content[name]] for name in ("golds", "above")}
        return cls(**content | pairs | {"gold": tuple(content["gold"])})


def worst(precision_Q: Floats, clusters_Q: Integers, number: int = _SHOWN) -> list[int]:
    """The queries of least average precision below 1, one of each question, worst first."""
    order = np.argsort(precision_Q, kind="stable")  # NaN is last
    order = order[precision_Q[order] < 1]
    _, first = np.unique(clusters_Q[order], return_index=True)
    return [int(query) for query in order[np.sort(first)[:number]]]


def failures(
    eval_set: EvalSet, precision_Q: Floats, clusters_Q: Integers, ranks_G: Floats, lists: TopLists
) -> list[Failure]:
    """The worst with their texts; arguments are of ``eval_set.relevant()``."""
    found = []
    for query in worst(precision_Q, clusters_Q):
        span = slice(eval_set.gold_indptr[query], eval_set.gold_indptr[query + 1])
        rows, ranks = eval_set.gold_indices[span], ranks_G[span]
        by_rank = np.argsort(ranks, kind="stable")
        golds, seen, above = {*rows.tolist()}, 0, []
        for row in lists.rows_QK[query].tolist():
            if row in golds:
                seen += 1
            elif row >= 0 and seen < len(golds):
                above.append((eval_set.passage_languages[row], _cut(eval_set.passages[row])))
            if len(above) == _ABOVE:
                break
        asked = eval_set.query_languages[query]
        own = [i for i in by_rank if eval_set.passage_languages[rows[i]] == asked]
        best = int(rows[own[0] if own else by_rank[0]])
        found.append(
            Failure(
                eval_set.query_ids[query],
                asked,
                _cut(eval_set.queries[query]),
                float(precision_Q[query]),
                [(eval_set.passage_languages[rows[i]], float(ranks[i])) for i in by_rank],
                (eval_set.passage_languages[best], _cut(eval_set.passages[best])),
                above,
            )
        )
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _LENGTH else text[:_LENGTH].rstrip() + " …"
