"""Equal texts: within an item, between items, between sources; and texts that hardly are any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from hybridfast.data.corpus import ParallelCorpus

__all__ = ["duplicates", "example", "unlike_texts"]

CHUNK = 65_536  # rows looked at together
EXAMPLES = 3
WORDS = r"[\p{L}\p{N}]"  # a letter or a digit of any script


def duplicates(corpus: ParallelCorpus) -> dict[str, Any]:
    """Equal queries, equal passages, and queries that items answer differently; by 64-bit hashes of texts.

    Rows that repeat an earlier row's text are counted once, by the nearest: in another language of their
    item, in another item of the source, in another source. Further passages of an item repeat its query by
    what they are, and are not counted among queries.
    """
    asked_R = np.flatnonzero(corpus.repeat_V == 0)
    query, passage = corpus.query_hash_V, corpus.passage_hash_V
    queries = _Equal(corpus, query, asked_R)
    passages = _Equal(corpus, passage, np.arange(len(corpus)))
    return {
        "queries": queries.counts("query"),
        "passages": passages.counts("passage"),
        "queries_of_several_items_with_different_passages": queries.answered_differently(passage),
    }


class _Equal:
    """Rows that have an equal text in common with others: all arrays are of these rows, (R,).

    Args:
        hash_V: of all rows' texts.
        rows: those that count.
    """

    def __init__(self, corpus: ParallelCorpus, hash_V: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        _, text_R, rows_T = np.unique(hash_V[rows], return_inverse=True, return_counts=True)
        shared_R = rows_T[text_R] > 1
        self.corpus, self.of, self.distinct = corpus, len(rows), len(rows_T)
        self.rows = rows[shared_R]
        _, self.text = np.unique(text_R[shared_R], return_inverse=True)  # numbered without gaps
        self.texts = int(self.text.max(initial=-1)) + 1
        items, sources = len(corpus.items), len(corpus.sources)
        pair_P, self.pair, self.rows_of_pair = np.unique(
            self.text * items + corpus.item_V[self.rows], return_inverse=True, return_counts=True
        )
        self.items_of_text = np.bincount(pair_P // items, minlength=self.texts)
        self.in_source_P = np.unique(self.text * sources + corpus.source_V[self.rows])
        # The rows that other items share: what a batch would take for negatives of each other.
        self.across = self.items_of_text[self.text] > 1

    def counts(self, column: str) -> dict[str, Any]:
        rows, pairs, in_sources = len(self.rows), len(self.rows_of_pair), len(self.in_source_P)
        untranslated = self.rows_of_pair[self.pair] > 1
        return {
            "rows": self.of,
            "distinct": self.distinct,
            "repeats": rows - self.texts,
            "repeats_in_other_languages_of_the_item": rows - pairs,
            "repeats_in_other_items_of_the_source": pairs - in_sources,
            "repeats_in_other_sources": in_sources - self.texts,
            "rows_shared_with_other_items": int(self.across.sum()),
            "rows_equal_in_another_language_of_the_item": self._by_language(untranslated),
            "texts_shared_by_sources": self._between_sources(),
            "most_shared": self._examples(column, self.items_of_text),
        }

    def answered_differently(self, passage_hash_V: NDArray[np.uint64]) -> dict[str, Any]:
        """Texts that several items ask and not all rows answer with one passage."""
        # Were all pairs of rows of different items equal in their passages, there would be one passage.
        _, passage_R = np.unique(passage_hash_V[self.rows], return_inverse=True)
        answers = int(passage_R.max(initial=-1)) + 1
        answer_P = np.unique(self.text * max(answers, 1) + passage_R)
        answers_of_text = np.bincount(answer_P // max(answers, 1), minlength=self.texts)
        several_T = (self.items_of_text > 1) & (answers_of_text > 1)
        return {
            "queries": int(several_T.sum()),
            "rows": int(several_T[self.text].sum()),
            "examples": self._examples("query", np.where(several_T, answers_of_text, 0)),
        }

    def _by_language(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        languages = self.corpus.languages
        counts = np.bincount(self.corpus.language_V[self.rows[chosen]], minlength=len(languages))
        return {name: int(count) for name, count in zip(languages, counts, strict=True) if count}

    def _between_sources(self) -> dict[str, int]:
        """How many texts each two sources have in common."""
        text_P, source_P = np.divmod(self.in_source_P, len(self.corpus.sources))
        shape = self.texts, len(self.corpus.sources)
        there_TS = sparse.csr_matrix((np.ones(len(text_P), np.int64), (text_P, source_P)), shape)
        common = sparse.triu(there_TS.T @ there_TS, k=1).tocoo()
        pairs = sorted(zip(common.row.tolist(), common.col.tolist(), common.data.tolist(), strict=True))
        return {f"{self.corpus.sources[i]} & {self.corpus.sources[j]}": n for i, j, n in pairs}

    def _examples(self, column: str, size_T: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The texts of the largest sizes above 1, with two of their rows."""
        largest = np.argsort(-size_T, kind="stable")[:EXAMPLES]
        found = []
        for text in largest[size_T[largest] > 1].tolist():
            rows = self.rows[self.text == text]
            _, first = np.unique(self.corpus.item_V[rows], return_index=True)
            two = [example(self.corpus, int(row)) for row in rows[np.sort(first)[:2]]]
            size = {"rows": len(rows), "items": int(self.items_of_text[text])}
            words = self.corpus.table.slice(int(rows[0]), 1).column(column)[0].as_py()
            found.append({"text": words, **size, "of": two})
        return found


def example(corpus: ParallelCorpus, row: int) -> dict[str, str]:
    """Where a row is to be found: its id, language and source."""
    found = corpus.table.slice(row, 1).select(["id", "lang", "source"]).to_pylist()[0]
    return {name: str(value) for name, value in found.items()}


def unlike_texts(corpus: ParallelCorpus) -> dict[str, Any]:
    """Queries that equal their passage, and texts without a letter or digit, counted, with examples."""
    found: dict[str, dict[str, Any]] = {
        name: {"rows": 0, "examples": []}
        for name in ("query_equals_passage", "query_without_letters", "passage_without_letters")
    }
    begin = 0
    for batch in corpus.table.to_batches(max_chunksize=CHUNK):
        query, passage = batch.column("query"), batch.column("passage")
        for name, chosen_B in (
            ("query_equals_passage", pc.equal(query, passage)),
            ("query_without_letters", pc.invert(pc.match_substring_regex(query, WORDS))),
            ("passage_without_letters", pc.invert(pc.match_substring_regex(passage, WORDS))),
        ):
            places = pc.indices_nonzero(chosen_B)
            of = found[name]
            of["rows"] += len(places)
            texts = passage if name.startswith("passage") else query
            for place in places[: EXAMPLES - len(of["examples"])].to_pylist():
                of["examples"].append({"text": texts[place].as_py(), **example(corpus, begin + place)})
        begin += batch.num_rows
    return found
