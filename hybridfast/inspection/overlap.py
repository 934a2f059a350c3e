"""Texts of a corpus that occur in evaluation sets: as they are, or but for case, blanks and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.texts import hash_column
from hybridfast.evaluation import miracl, readers
from hybridfast.inspection.containment import Contained
from hybridfast.inspection.duplicates import EXAMPLES, example

__all__ = ["Held", "held_rows", "normalised", "overlap", "read"]

CHUNK = 16_384  # rows looked at together
FORMS = ("exact", "normalised")
INNER = ("query_in_passage", "passage_in_passage")  # the set's, the corpus's
KINDS = ("query_query", "query_passage", "passage_query", "passage_passage")  # the corpus's, the set's


_GAP = re.compile(r"[\W_]+")  # whatever is no letter or digit; the vowel signs of Hindi and Thai are among it


@lru_cache(65_536)  # few are different
def _gap(run: str) -> str:
    """What stands between letters, each run of punctuation and blanks as one blank, and nothing unseen."""
    kept = ""
    for character in run:
        category = unicodedata.category(character)
        if category[0] in "PZ" or category == "Cc":
            kept += "" if kept.endswith(" ") else " "
        elif category != "Cf":  # joiners, soft hyphens, marks of direction
            kept += character
    return kept


def normalised(text: str) -> str:
    """The text by NFKC and without case, each run of punctuation and blanks as one blank.

    What is written but not seen is left out: soft hyphens, joiners, marks of direction, Arabic's tatweel. The
    four i of Turkish are one, since their capitals cross those of other languages. Symbols, digits, accents
    and vowel signs count: C++ is not C.
    """
    # Folding undoes what NFKC composed (Unicode 3.13, D146).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = folded.replace("i\u0307", "i").replace("\u0131", "i").replace("\u0640", "")
    return _GAP.sub(lambda run: _gap(run[0]), folded).strip(" ")


class Held:
    """The texts of an evaluation set by the hashes of both forms, and which of them a corpus has.

    Args:
        queries, passages: texts and the languages of them.
    """

    def __init__(
        self,
        name: str,
        queries: tuple[Iterable[str], Sequence[str]],
        passages: tuple[Iterable[str], Sequence[str]],
    ) -> None:
        self.name = name
        self.languages = [np.array(languages) for _, languages in (queries, passages)]
        hashes, inner = zip(*(_hashed(texts) for texts, _ in (queries, passages)), strict=True)
        # [form][side]: of every text; sorted and distinct, to search in.
        self.hashes = [[of_side[form] for of_side in hashes] for form in range(2)]
        self.keys = [[np.unique(hashes_B) for hashes_B in of_form] for of_form in self.hashes]
        self.met = [[np.zeros(len(keys), bool) for keys in of_form * 2] for of_form in self.keys]
        self.inner = [Contained(list(texts)) for texts in inner]
        self.inner_hashes = [_hashes(texts) for texts in inner]
        self.inside = [np.zeros(len(texts), bool) for texts in inner]
        self.rows: list[list[NDArray[np.int64]]] = []  # [form][kind, and any]: by language
        self.examples: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*KINDS, *INNER)}

    def look(
        self,
        begin: int,
        texts: list[list[str]],
        normal: list[list[str]],
        hashes: list[NDArray[np.uint64]],
        corpus: ParallelCorpus,
    ) -> None:
        """Count the rows from `begin` on that have one of the set's texts; `hashes` are of `normal`."""
        language_B = corpus.language_V[begin : begin + len(texts[0])]
        if not self.rows:
            kinds = ((*KINDS, "any"), (*KINDS, "any"), INNER)
            self.rows = [[np.zeros(len(corpus.languages), np.int64) for _ in of_form] for of_form in kinds]
        any_FB = np.zeros((2, len(language_B)), bool)
        for kind, name in enumerate(KINDS):
            own = kind // 2
            normal_B = self._meet(1, kind, hashes[own])
            places = np.flatnonzero(normal_B)
            exact_B = np.zeros(len(normal_B), bool)
            if len(places):  # what is equal is equal when normalised
                exact = _hashes([texts[own][place] for place in places])
                exact_B[places] = self._meet(0, kind, exact)
            for form, found_B in enumerate((exact_B, normal_B)):
                self.rows[form][kind] += np.bincount(language_B[found_B], minlength=len(corpus.languages))
                any_FB[form] |= found_B
            for place in places[: EXAMPLES - len(self.examples[name])].tolist():
                found = {"text": texts[own][place], "exact": bool(exact_B[place])}
                self.examples[name].append(found | example(corpus, begin + place))
        for form, found_B in enumerate(any_FB):
            self.rows[form][-1] += np.bincount(language_B[found_B], minlength=len(corpus.languages))
        for side, name in enumerate(INNER):
            inside_B = np.zeros(len(language_B), bool)
            for place, inner in self.inner[side].within(normal[1]):
                inside_B[place] = self.inside[side][inner] = True
                if len(self.examples[name]) < EXAMPLES:
                    found = {"text": self.inner[side].names[inner], "exact": False}
                    self.examples[name].append(found | example(corpus, begin + place))
            self.rows[2][side] += np.bincount(language_B[inside_B], minlength=len(corpus.languages))

    def _meet(self, form: int, kind: int, hash_B: NDArray[np.uint64]) -> NDArray[np.bool_]:
        keys = self.keys[form][kind % 2]
        if not len(keys):
            return np.zeros(len(hash_B), bool)
        place_B = np.minimum(np.searchsorted(keys, hash_B), len(keys) - 1)
        found_B = keys[place_B] == hash_B
        found_B &= hash_B != EMPTY
        self.met[form][kind][place_B[found_B]] = True
        return found_B

    def found(self, corpus: ParallelCorpus) -> dict[str, Any]:
        """Rows of the corpus and texts of the set that are equal, for every pair of sides, by language."""
        told: dict[str, Any] = {
            "name": self.name,
            "queries": len(self.languages[0]),
            "passages": len(self.languages[1]),
        }
        for form, form_name in enumerate(FORMS):
            told[form_name] = {
                name: self._rows(corpus, form, kind)
                | self._texts(
                    kind % 2, self.hashes[form][kind % 2], self.keys[form][kind % 2][self.met[form][kind]]
                )
                for kind, name in enumerate(KINDS)
            }
            told[form_name]["any"] = self._rows(corpus, form, -1)
        told["contained"] = {
            name: self._rows(corpus, 2, side)
            | self._texts(side, self.hashes[1][side], self.inner_hashes[side][self.inside[side]])
            for side, name in enumerate(INNER)
        }
        told["examples"] = {kind: of for kind, of in self.examples.items() if of}
        return told

    def _texts(self, side: int, hashes_B: NDArray[np.uint64], met: NDArray[np.uint64]) -> dict[str, Any]:
        """How many of the set's texts have a hash that was met, by language."""
        met_B = np.isin(hashes_B, met)
        counts = zip(*np.unique(self.languages[side][met_B], return_counts=True), strict=True)
        return {
            "evaluation_texts": int(met_B.sum()),
            "evaluation_languages": {str(tag): int(count) for tag, count in counts},
        }

    def _rows(self, corpus: ParallelCorpus, form: int, kind: int) -> dict[str, Any]:
        rows_L = self.rows[form][kind]
        return {
            "rows": int(rows_L.sum()),
            "languages": {tag: int(rows) for tag, rows in zip(corpus.languages, rows_L, strict=True) if rows},
        }


def read(named: str, languages: list[str]) -> Held:
    """An evaluation set by what the command line calls it: NAME, NAME=FOLDER, or a file or folder.

    Args:
        languages: of the corpus; of MIRACL on the hub, these alone are read.

    Errors are those of :func:`hybridfast.evaluation.readers.load`.
    """
    name, _, folder = (named, "", "") if Path(named).exists() else named.partition("=")
    of_hub = (
        [tag for tag in languages if tag in miracl.LANGUAGES] if name == "miracl" and not folder else None
    )
    found = readers.load(name, folder or None, languages=of_hub)
    return Held(
        found.name,
        (found.queries, found.query_languages),
        (found.passages, found.passage_languages),
    )


def held_rows(corpus: ParallelCorpus, name: str) -> Held:
    """Rows of a corpus as such a set: those that training leaves out."""

    def column(side: str) -> Iterable[str]:
        for batch in corpus.table.to_batches(max_chunksize=CHUNK):
            yield from batch.column(side).to_pylist()

    languages = np.array(corpus.languages)[corpus.language_V]
    return Held(name, (column("query"), languages), (column("passage"), languages))  # type: ignore[arg-type]


def overlap(corpus: ParallelCorpus, sets: Sequence[Held], *, progress: bool = True) -> list[dict[str, Any]]:
    """What each of the sets has in common with the corpus, which is read once.

    Equal texts of any two sides, exact and normalised; and, normalised, texts of the set inside of longer
    passages of the corpus, from `hybridfast.inspection.containment.WINDOW` bytes of UTF-8 on.
    """
    bar = tqdm(
        total=len(corpus), desc="comparing", unit=" rows", leave=False, disable=None if progress else True
    )
    begin = 0
    with bar:
        for batch in corpus.table.to_batches(max_chunksize=CHUNK):
            texts = [batch.column(side).to_pylist() for side in ("query", "passage")]
            normal = [[normalised(text) for text in of_side] for of_side in texts]
            hashes = [_hashes(of_side) for of_side in normal]
            for held in sets:
                held.look(begin, texts, normal, hashes, corpus)
            begin += batch.num_rows
            bar.update(batch.num_rows)
    return [held.found(corpus) for held in sets]


def _hashed(
    texts: Iterable[str],
) -> tuple[tuple[NDArray[np.uint64], NDArray[np.uint64]], dict[str, None]]:
    """The hashes of both forms, and the distinct normalised texts."""
    exact = [*texts]
    normal = [normalised(text) for text in exact]
    return (_hashes(exact), _hashes(normal)), dict.fromkeys(normal)


def _hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    return hash_column(pa.array(texts, pa.string()))[:, 0]


EMPTY = _hashes([""])[0]  # of punctuation alone, normalised: no such texts are equal
