"""What every evaluation data set is turned into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hybridfast.data.columns import language_tag

__all__ = ["EvalSet"]


@dataclass(frozen=True)
class EvalSet:
    """Questions and candidate passages in several languages, with the relevant passages of every question.

    ``gold_indices[gold_indptr[q]:gold_indptr[q + 1]]`` are the rows of ``passages`` that are judged for query
    ``q``, in any language, and ``grades`` beside them says how relevant each is; one of grade 0 or below was
    judged and found not relevant, and :meth:`relevant` is the set without those. A pool is a set of passage
    rows, and a query's golds in it are those that lie inside. ``items`` names the parallel item behind each
    query: equal names are translations of one question, which are one unit of significance (``clusters``).

    Raises ValueError where two of the lists should be of one length and are not.
    """

    name: str
    queries: list[str]  # (Q,)
    query_languages: list[str]  # (Q,) as `hybridfast.data.columns.language_tag` spells them
    items: list[str]  # (Q,)
    passages: list[str]  # (N,)
    passage_languages: list[str]  # (N,)
    gold_indptr: NDArray[np.int64]  # (Q + 1,)
    gold_indices: NDArray[np.int64]  # (G,), ascending within a query
    grades: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # (G,); default: 1
    query_ids: list[str] = field(default_factory=list)  # (Q,) distinct; default: of item and language
    passage_ids: list[str] = field(default_factory=list)  # (N,) distinct; default: row numbers of equal width
    notes: list[str] = field(default_factory=list)  # what the reader left out and why, a line each

    def __post_init__(self) -> None:
        # Filled here, not by every user of them.
        if not len(self.grades):
            object.__setattr__(self, "grades", np.ones(len(self.gold_indices), np.int64))
        if not self.query_ids:
            object.__setattr__(self, "query_ids", self._names_of_queries())
        if not self.passage_ids:  # names that sort as rows do
            width = len(str(max(0, len(self.passages) - 1)))
            object.__setattr__(self, "passage_ids", [f"{row:0{width}}" for row in range(len(self.passages))])
        for one, others in (
            ("queries", ("query_languages", "items", "query_ids")),
            ("passages", ("passage_languages", "passage_ids")),
            ("gold_indices", ("grades",)),
        ):
            for other in others:
                if len(getattr(self, other)) != len(getattr(self, one)):
                    raise ValueError(
                        f"{other} must have one entry for each of the {len(getattr(self, one))} {one}, "
                        f"got {len(getattr(self, other))}"
                    )
        if len(self.gold_indptr) != len(self.queries) + 1:
            raise ValueError(
                f"gold_indptr must have {len(self.queries) + 1} entries for {len(self.queries)} queries, "
                f"got {len(self.gold_indptr)}"
            )

    @property
    def languages(self) -> list[str]:
        """The languages of queries or passages, sorted."""
        return sorted({*self.query_languages, *self.passage_languages})

    @property
    def clusters(self) -> NDArray[np.int64]:
        """(Q,) the number of each query's item, by first appearance: translations of a question share it."""
        number: dict[str, int] = {}
        return np.array([number.setdefault(item, len(number)) for item in self.items], np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all texts, languages, ids and judgments: equal for equal sets alone."""
        digest = hashlib.sha256()
        for texts in (
            self.queries,
            self.query_languages,
            self.items,
            self.query_ids,
            self.passages,
            self.passage_languages,
            self.passage_ids,
        ):
            for text in texts:
                content = text.encode("utf-8", "surrogatepass")
                digest.update(len(content).to_bytes(8, "little") + content)
            digest.update(b"\xff" * 8)  # no text is that long: the list ends
        for numbers in (self.gold_indptr, self.gold_indices, self.grades):
            digest.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        return digest.hexdigest()

    def relevant(self) -> EvalSet:
        """The set with the judgments of grade 1 and above alone; itself if there are no others."""
        kept_G = self.grades > 0
        return self if kept_G.all() else self._judged(kept_G)

    def of_languages(self, languages: Sequence[str]) -> EvalSet:
        """The queries and passages in these languages, with what is judged among them.

        A query whose relevant passages are all in others stays, without one. Raises ValueError for a language
        that the set does not have.
        """
        tags = [language_tag(language) for language in languages]
        unknown = [tag for tag in tags if tag not in self.languages]
        if unknown or not tags:
            raise ValueError(
                f"languages must be of {self.name}'s, {', '.join(self.languages)}, got "
                f"{', '.join(unknown) or 'none'}"
            )
        kept_Q, kept_N = np.isin(self.query_languages, tags), np.isin(self.passage_languages, tags)
        query_G = np.repeat(np.arange(len(self.queries)), np.diff(self.gold_indptr))
        judged = self._judged(kept_Q[query_G] & kept_N[self.gold_indices])
        rows_Q, rows_N = np.flatnonzero(kept_Q), np.flatnonzero(kept_N)
        return replace(
            judged,
            queries=_at(self.queries, rows_Q),
            query_languages=_at(self.query_languages, rows_Q),
            items=_at(self.items, rows_Q),
            query_ids=_at(self.query_ids, rows_Q),
            passages=_at(self.passages, rows_N),
            passage_languages=_at(self.passage_languages, rows_N),
            passage_ids=_at(self.passage_ids, rows_N),
            # No judgment is left of other queries: their entries repeat the one before.
            gold_indptr=judged.gold_indptr[np.concatenate([[0], rows_Q + 1])],
            gold_indices=(np.cumsum(kept_N) - 1)[judged.gold_indices],
        )

    def _judged(self, kept_G: NDArray[np.bool_]) -> EvalSet:
        kept_before = np.concatenate([[0], np.cumsum(kept_G)])
        return replace(
            self,
            gold_indptr=kept_before[self.gold_indptr],
            gold_indices=self.gold_indices[kept_G],
            grades=self.grades[kept_G],
        )

    def _names_of_queries(self) -> list[str]:
        names = [
            f"{item}-{language}" for item, language in zip(self.items, self.query_languages, strict=False)
        ]
        if len(set(names)) < len(names):
            names = [f"{row}-{name}" for row, name in enumerate(names)]
        return names


def _at(values: list[str], rows: NDArray[np.int64]) -> list[str]:
    return [values[row] for row in rows]
