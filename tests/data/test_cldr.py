"""The embedded corpus: complete, unambiguous, the same everywhere, and split without leaks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest

from hybridfast.data import cldr
from hybridfast.data.cldr_templates import TEMPLATES
from hybridfast.evaluation.cldr import eval_set
from hybridfast.evaluation.evalset import EvalSet

# What the Unicode name of a language's own letters begins with.
LETTERS = {
    "ar": "ARABIC",
    "de": "LATIN",
    "el": "GREEK",
    "en": "LATIN",
    "es": "LATIN",
    "hi": "DEVANAGARI",
    "ru": "CYRILLIC",
    "th": "THAI",
    "tr": "LATIN",
    "vi": "LATIN",
    "zh": "CJK",
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return cldr.training_rows()


@pytest.fixture(scope="module")
def evaluation() -> EvalSet:
    return eval_set()


@pytest.fixture(scope="module")
def text_in(rows) -> dict[str, str]:
    """All of training's text by language, case-folded: a name's first letter depends on its place."""
    texts = defaultdict(list)
    for row in rows:
        texts[row["lang"]] += [row["query"], row["passage"]]
    return {language: "\n".join(lines).casefold() for language, lines in texts.items()}


def scripts_of(text: str) -> set[str]:
    return {unicodedata.name(character).split()[0] for character in text if character.isalpha()}


def test_every_training_fact_is_complete_in_all_languages(rows):
    languages_of = defaultdict(list)
    for row in rows:
        assert set(row) == {"id", "lang", "query", "passage", "source"}
        assert row["id"].startswith(row["source"] + "/")
        languages_of[row["id"]].append(row["lang"])
    assert all(
        languages == list(cldr.LANGUAGES) for languages in languages_of.values()
    )  # also: no duplicates
    assert set(cldr.LANGUAGES) == set(LETTERS)
    assert {row["source"] for row in rows} == set(TEMPLATES)
    # Babel 2.16 to 2.18 carry CLDR 45 to 47, whose translations differ a little: no exact number here.
    assert len(languages_of) > 2700


def test_texts_are_whole_sentences_in_their_language(rows, evaluation):
    texts = {(row["lang"], row[role]) for row in rows for role in ("query", "passage")}
    texts |= set(zip(evaluation.query_languages, evaluation.queries, strict=True))
    texts |= set(zip(evaluation.passage_languages, evaluation.passages, strict=True))
    for language, text in texts:
        assert not re.search(r"[{}\n]|  | None|^\s|\s$", text), text
        assert text[0] == text[0].upper(), text
        assert LETTERS[language] in scripts_of(text), text


def test_no_name_is_borrowed_from_another_language():
    names = cldr._names()
    kinds = {"city", "currency", "language", "script", "territory", "weekday", "zone"}
    assert {kind for kind, _ in names} == kinds
    for (_, code), name_in in names.items():
        for language, name in name_in.items():
            assert LETTERS[language] in scripts_of(name), (code, language, name)
            if LETTERS[language] == "LATIN":
                assert scripts_of(name) <= {"LATIN", "MODIFIER"}, (code, language, name)
    # Cities are where a Latin-script language may lean on the zone's English name: not if it has its own.
    assert [names["city", "Europe/Vienna"][language] for language in ("de", "es", "tr")] == [
        "Wien",
        "Viena",
        "Viyana",
    ]


@pytest.mark.parametrize("relation", sorted(TEMPLATES))
def test_templates_use_their_names(relation):
    assert tuple(TEMPLATES[relation]) == cldr.LANGUAGES
    for questions, passages in TEMPLATES[relation].values():
        assert min(len(set(questions)), len(set(passages))) >= 2
        fields = [
            [field for _, field, _, _ in string.Formatter().parse(t) if field] for t in questions + passages
        ]
        assert fields[: len(questions)] == [["s"]] * len(questions)
        assert all(sorted(names) == ["o", "s"] for names in fields[len(questions) :])


@pytest.mark.parametrize(
    ("fact_id", "language", "expected"),
    [
        ("territory_currency/CH", "de", "Schweizer Franken"),
        ("territory_code/US", "en", "the United States"),
        ("territory_currency/NL", "en", "the Netherlands"),
        ("territory_currency/DE", "en", "Germany"),
        ("territory_code/GB", "es", "Reino Unido"),
        ("territory_languages/CM", "es", "francés e inglés"),
        ("territory_languages/SG", "vi", "tiếng Anh, tiếng Trung"),
        ("territory_code/IT", "tr", "İtalya"),
        ("language_script/ru", "ru", "кириллица"),
        ("city_territory/Europe/Athens", "el", "Ελλάδα"),
        ("city_zone/Asia/Tokyo", "zh", "日本标准时间"),
    ],
)
def test_known_facts(evaluation, fact_id, language, expected):
    passage = cldr.passage_text(next(fact for fact in cldr.all_facts() if fact.id == fact_id), language)
    assert expected in passage
    assert passage in evaluation.passages


def test_spanish_contracts_its_articles(rows, evaluation):
    spanish = [row[role] for row in rows if row["lang"] == "es" for role in ("query", "passage")]
    assert any(" del Reino Unido" in text for text in spanish)
    assert any(" al Reino Unido" in text for text in [*spanish, *evaluation.passages])
    assert not any(re.search(r"\b(de|a) el\b| y i", text) for text in spanish)


def test_questions_and_passages_are_unique_within_a_language(rows, evaluation):
    """Two facts with the same words would make one of them a false negative."""
    passages = list(zip(evaluation.passage_languages, evaluation.passages, strict=True))
    assert len(set(passages)) == len(passages)
    questions = [(row["lang"], row["query"]) for row in rows]
    questions += zip(evaluation.query_languages, evaluation.queries, strict=True)
    assert [question for question, n in Counter(questions).items() if n > 1] == []


def test_golds_are_the_versions_of_the_same_fact(evaluation):
    n_languages = len(cldr.LANGUAGES)
    fact_ids = [fact.id for fact in cldr.all_facts() for _ in cldr.LANGUAGES]
    assert len(fact_ids) == len(evaluation.passages)
    assert evaluation.languages == list(cldr.LANGUAGES)
    assert evaluation.gold_indices.dtype == evaluation.gold_indptr.dtype == np.int64
    assert len(evaluation.gold_indptr) == len(evaluation.queries) + 1
    for q, item in enumerate(evaluation.items):
        golds = evaluation.gold_indices[evaluation.gold_indptr[q] : evaluation.gold_indptr[q + 1]]
        assert len(golds) == n_languages
        assert (np.diff(golds) > 0).all()
        assert {fact_ids[gold] for gold in golds} == {item}
        assert [evaluation.passage_languages[gold] for gold in golds] == list(cldr.LANGUAGES)
    assert set(Counter(evaluation.items).values()) == {n_languages}
    assert 350 < len(set(evaluation.items)) < 550  # some 400: a tenth of the facts, enough for stable means


def test_no_training_fact_links_what_a_held_out_fact_links():
    training_facts, held_out_facts = cldr.split()
    trained_with = defaultdict(set)
    for fact in training_facts:
        for entity in fact.objects:
            trained_with[fact.subject].add(entity)
            trained_with[entity].add(fact.subject)
    assert len(held_out_facts) > 350
    for fact in held_out_facts:
        assert trained_with[fact.subject].isdisjoint(fact.objects), fact


def test_held_out_words_are_trained(text_in):
    training_facts, held_out_facts = cldr.split()
    names = cldr._names()
    for fact in held_out_facts:
        assert any(
            fact.subject in (other.subject, *other.objects) and other.relation != fact.relation
            for other in training_facts
        ), fact
        for entity in fact.objects:
            assert any(
                entity in other.objects and other.subject != fact.subject for other in training_facts
            ), fact
        for entity in (fact.subject, *fact.objects):
            for language in cldr.LANGUAGES:
                name = names[entity][language] if entity in names else entity[1]
                assert name.casefold() in text_in[language], (fact, language)


def test_held_out_texts_are_not_trained(rows, evaluation):
    trained = {(row["lang"], row[role]) for row in rows for role in ("query", "passage")}
    assert trained.isdisjoint(zip(evaluation.query_languages, evaluation.queries, strict=True))
    held_out = set(evaluation.gold_indices.tolist())
    assert trained.isdisjoint((evaluation.passage_languages[i], evaluation.passages[i]) for i in held_out)


def test_same_corpus_in_every_process():
    """Python salts ``hash`` per process, and with it the order of sets: nothing may depend on either."""
    code = """
import hashlib, json
from hybridfast.data import cldr
from hybridfast.evaluation.cldr import eval_set
e = eval_set()
everything = [cldr.training_rows(), e.items, e.queries, e.passages, e.gold_indices.tolist()]
print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())
"""
    e = eval_set()
    here = [cldr.training_rows(), e.items, e.queries, e.passages, e.gold_indices.tolist()]
    expected = hashlib.sha256(json.dumps(here).encode()).hexdigest()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code]
            if sys.version_info >= (3, 11)
            else [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
