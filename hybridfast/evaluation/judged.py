"""Texts with ids and judgments that name them, as collections of test queries have them, to an `EvalSet`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridfast.data.columns import language_tag
from hybridfast.data.reading import lines
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["BLANKS", "Judgment", "Tally", "Texts", "fields", "grade", "judged_set", "with_title"]


BLANKS = " \t\n\v\f\r"  # of C's locale, as trec_eval cuts fields: others are part of an id


class Judgment(NamedTuple):
    """How relevant a passage is to a query, and the file and line that say so."""

    query: str
    passage: str
    grade: int
    file: Path | str
    line: int


class Tally:
    """How often something was left out, with the first place where it was."""

    def __init__(self, what: str) -> None:
        self.what, self.count, self.first = what, 0, ""

    def add(self, first: str, count: int = 1) -> None:
        self.first = self.first or first
        self.count += count

    def notes(self) -> list[str]:
        """One line, or none where nothing was counted."""
        return [f"{self.count:,} {self.what}; the first: {self.first}"] if self.count else []


class Texts:
    """Queries or passages with their ids: of those with one id, the first counts."""

    def __init__(self, kind: str, language: str | None = None) -> None:
        """`kind` is "queries" or "passages", `language` that of texts that name none."""
        self.ids: list[str] = []
        self.languages: list[str] = []
        self.texts: list[str] = []
        self.row: dict[str, int] = {}
        self.language = None if language is None else language_tag(language)
        self.repeated = Tally(f"{kind} with an id that was there before are left out")

    def add(self, name: object, text: object, language: object, file: Path | str, line: int) -> None:
        """Raises ValueError naming the file and line for an id, text or language that is none."""
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name.strip(BLANKS):
            raise ValueError(f"{file}:{line}: the id must be text or an integer, got {name!r}")
        if not isinstance(text, str):
            raise ValueError(f"{file}:{line}: the text of {name!r} must be text, got {text!r}")
        name = name.strip(BLANKS)
        if name in self.row:
            self.repeated.add(f"{name!r} at {file}:{line}")
            return
        if language is None or language == "":
            if self.language is None:
                raise ValueError(f"{file}:{line}: {name!r} has no lang (or pass language)")
            language = self.language
        try:
            tag = language_tag(language)
        except ValueError as error:
            raise ValueError(f"{file}:{line}: {error}") from None
        self.row[name] = len(self.ids)
        self.ids.append(name)
        self.languages.append(tag)
        self.texts.append(text)


def judged_set(
    name: str,
    queries: Texts,
    passages: Texts,
    judgments: Iterable[Judgment],
    place: Path | str,
    items: list[str] | None = None,
) -> EvalSet:
    """The set of queries that have a relevant passage, with what is judged for them.

    Left out, counted, and told by ``notes``: judgments that name a query or a passage that is not there
    (trec_eval counts the latter as relevant and never found), second judgments of a pair, and queries without
    a relevant passage, to which no measure applies. `items` are by query, by default the ids.

    Raises ValueError naming `place` where no query is left.
    """
    no_query = Tally("judgments of queries that are not there are left out")
    no_passage = Tally("judgments of passages that are not there are left out")
    again = Tally("judgments of a pair that was judged before are left out")
    no_gold = Tally("queries without a relevant passage are left out")
    query, passage, grades, seen = [], [], [], set()
    for judgment in judgments:
        q, p = queries.row.get(judgment.query), passages.row.get(judgment.passage)
        if q is None or p is None or (q, p) in seen:
            tally = no_query if q is None else no_passage if p is None else again
            tally.add(f"{judgment.query!r}, {judgment.passage!r} at {judgment.file}:{judgment.line}")
            continue
        seen.add((q, p))
        query.append(q)
        passage.append(p)
        grades.append(judgment.grade)
    query_G, passage_G = np.array(query, np.int64), np.array(passage, np.int64)
    grades_G = np.array(grades, np.int64)
    answered_Q = np.zeros(len(queries.ids), bool)
    answered_Q[query_G[grades_G > 0]] = True
    for row in np.flatnonzero(~answered_Q):
        no_gold.add(repr(queries.ids[row]))
    notes = [
        note
        for tally in (queries.repeated, passages.repeated, no_query, no_passage, again, no_gold)
        for note in tally.notes()
    ]
    if not answered_Q.any():
        raise ValueError(
            f"{place}: none of {len(answered_Q):,} queries has a relevant passage among "
            f"{len(passages.ids):,}" + "".join(f"; {note}" for note in notes)
        )
    kept_G = answered_Q[query_G]
    query_G = (np.cumsum(answered_Q) - 1)[query_G[kept_G]]
    order_G = np.lexsort((passage_G[kept_G], query_G))
    kept_Q = np.flatnonzero(answered_Q)
    ids = [queries.ids[row] for row in kept_Q]
    return EvalSet(
        name=name,
        queries=[queries.texts[row] for row in kept_Q],
        query_languages=[queries.languages[row] for row in kept_Q],
        items=ids if items is None else [items[row] for row in kept_Q],
        passages=passages.texts,
        passage_languages=passages.languages,
        gold_indptr=np.concatenate([[0], np.cumsum(np.bincount(query_G, minlength=len(ids)))]),
        gold_indices=passage_G[kept_G][order_G],
        grades=grades_G[kept_G][order_G],
        query_ids=ids,
        passage_ids=passages.ids,
        notes=notes,
    )


def with_title(title: str, text: str, separator: str) -> str:
    """Title, separator, text; one alone where the other is empty."""
    return separator.join(part for part in (title, text) if part)


def fields(path: Path, columns: str, separator: str | None = None) -> Iterable[tuple[int, list[str]]]:
    """Lines that are not blank, cut into as many fields as `columns` names, at blanks or at `separator`.

    With one, the last field is the rest of its line. Raises ValueError with file and line for other counts,
    and for control characters.
    """
    count = len(columns.split())
    for line, text in lines(path):
        text = text.rstrip("\r\n")
        if control := re.search("[\x00-\x08\x0e-\x1f]", text):  # trec_eval's ids would end there
            raise ValueError(f"{path}:{line}: holds the control character {control[0]!r}")
        if separator is None and not text.isascii():
            parts = [part for part in re.split(f"[{BLANKS}]+", text) if part]
        else:
            parts = text.split(separator, -1 if separator is None else count - 1)
        if not any(parts):
            continue
        if len(parts) != count or not all(part.strip(BLANKS) for part in parts):
            raise ValueError(f"{path}:{line}: expected {columns}, got {text.strip()[:60]!r}")
        yield line, parts


def grade(text: object, file: Path | str, line: int) -> int:
    """A grade as an integer, also where it is written 1.0. Raises ValueError with file and line."""
    try:
        number = float(text)  # type: ignore[arg-type]
        if isinstance(text, bool) or not number.is_integer() or abs(number) > 2**31:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{file}:{line}: the grade must be an integer, got {text!r}") from None
    return int(number)
