"""What counts as the same text, and who is found where, by hand."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.inspection.overlap import Held, held_rows, normalised, overlap, read


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is  the\tLouvre?", "where is the louvre"),
        ("„Wo?“ - «Hier!»", "wo hier"),
        ("İSTANBUL'DA KIŞ", "İstanbul’da kış"),  # capitals of the dotted and of the dotless i
        ("ISPARTA", "ısparta"),
        ("Straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),  # the final sigma's capital
        ("ＡＢＣ１２３　全角", "abc123 全角"),  # full-width forms, ideographic blank
        ("ｶﾞｲﾄﾞ", "ガイド"),  # half-width kana with marks of their own
        ("这是什么？", "这是什么"),
        ("ﻻ ﷲ", "لا الله"),  # presentation forms
        ("الســــلام، عليكم", "السلام عليكم"),  # tatweel, Arabic comma
        ("น้ำ", "น้ํา"),  # SARA AM and its parts
        ("e\u0301te\u0301", "été"),
        ("co\u00adoperate\u200b now\u200f", "cooperate now"),  # what is not seen
        ("\ufb01ne ① ½", "fine 1 1⁄2"),
    ],
)
def test_the_same_text(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert normalised(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++", "C"),
        ("ไม", "ไม่"),  # a tone mark
        ("कि", "की"),  # vowel signs, which are no letters to Python
        ("resume", "résumé"),
        ("a b", "ab"),
        ("10", "100"),
        ("علم", "عُلِم"),
    ],
)
def test_another_text(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_once_is_enough(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(unicodedata.normalize("NFC", text))


def corpus() -> ParallelCorpus:
    rows = [
        ("1", "en", "Where is the Louvre?", "In Paris."),
        ("1", "de", "Wo ist der Louvre?", "In Paris."),
        ("2", "en", "WHERE is the Louvre", "Nobody knows."),
        ("3", "en", "Who?", "where is the louvre"),
        ("4", "tr", "KİM?", "?!"),
    ]
    return ParallelCorpus.from_rows(
        [dict(zip(("id", "lang", "query", "passage"), row, strict=True)) for row in rows]
    )


def test_by_hand() -> None:
    held = Held(
        "held out",
        (["Where is the Louvre?", "where is the louvre", "kim"], ["en", "en", "tr"]),
        (["In Paris.", "in paris", "In Paris.", "...", "who"], ["en", "de", "fr", "en", "en"]),
    )
    (found,) = overlap(corpus(), [held])
    assert (found["name"], found["queries"], found["passages"]) == ("held out", 3, 5)

    def told(form: str, kind: str) -> tuple[dict[str, int], dict[str, int]]:
        of = found[form][kind]
        assert of["rows"] == sum(of["languages"].values())
        assert of["evaluation_texts"] == sum(of["evaluation_languages"].values())
        return of["languages"], of["evaluation_languages"]

    assert told("exact", "query_query") == ({"en": 1}, {"en": 1})
    assert told("normalised", "query_query") == ({"en": 2, "tr": 1}, {"en": 2, "tr": 1})
    assert told("exact", "query_passage") == ({}, {})
    assert told("normalised", "query_passage") == ({"en": 1}, {"en": 1})
    assert told("exact", "passage_query") == ({"en": 1}, {"en": 1})
    assert told("normalised", "passage_query") == ({"en": 1}, {"en": 2})
    assert told("exact", "passage_passage") == ({"de": 1, "en": 1}, {"en": 1, "fr": 1})
    assert told("normalised", "passage_passage") == ({"de": 1, "en": 1}, {"de": 1, "en": 1, "fr": 1})
    assert found["exact"]["any"] == {"rows": 3, "languages": {"de": 1, "en": 2}}  # of rows 1, 1, 3
    assert found["normalised"]["any"] == {"rows": 5, "languages": {"de": 1, "en": 3, "tr": 1}}
    assert found["examples"]["query_query"][1] == {
        **{"text": "WHERE is the Louvre", "exact": False, "id": "2", "lang": "en", "source": "rows"}
    }


def test_inside_of_longer_passages() -> None:
    question = "Where did the old king hide his golden crown"  # 44 bytes
    sentence = "国王把他的金冠藏在哪里了呢我们都不知道"
    held = Held(
        "held out", ([question + "?", "Too short"], ["en", "en"]), ([sentence, sentence], ["zh", "ja"])
    )
    passages = [
        ("en", f"They asked: “{question.upper()}?” Too short an answer."),
        ("en", question),  # equal, not longer
        ("en", question[:-1]),
        ("zh", f"书上说：{sentence}。"),
        ("zh", f"{question} - {sentence}"),
    ]
    text = ParallelCorpus.from_rows(
        [
            {"id": str(i), "lang": tag, "query": f"q{i}", "passage": words}
            for i, (tag, words) in enumerate(passages)
        ]
    )
    (found,) = overlap(text, [held])
    inside = found["contained"]
    assert inside["query_in_passage"] == {
        "rows": 2,
        "languages": {"en": 1, "zh": 1},
        "evaluation_texts": 1,
        "evaluation_languages": {"en": 1},
    }
    assert inside["passage_in_passage"] == {
        "rows": 2,
        "languages": {"zh": 2},
        "evaluation_texts": 2,
        "evaluation_languages": {"ja": 1, "zh": 1},
    }
    assert [one["id"] for one in found["examples"]["passage_in_passage"]] == ["3", "4"]
    assert found["normalised"]["passage_query"]["rows"] == 1


def test_nothing_in_common_and_an_empty_set() -> None:
    held = [Held("other", (["no"], ["en"]), (["none"], ["en"])), Held("empty", ([], []), ([], []))]
    for found in overlap(corpus(), held):
        assert found["normalised"]["any"] == {"rows": 0, "languages": {}}
        assert found["examples"] == {}


def test_sets_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "held=out.jsonl"
    row = {"id": "9", "lang": "en", "query": "who", "passage": "In Paris."}
    path.write_text(json.dumps(row) + "\n")
    (found,) = overlap(corpus(), [read(str(path), ["en"])])
    assert found["exact"]["passage_passage"]["rows"] == 2
    assert found["normalised"]["query_query"]["rows"] == 1
    with pytest.raises(FileNotFoundError, match=r"XQuAD-R folder .*none does not exist"):
        read(f"xquad-r={tmp_path / 'none'}", ["en"])
    with pytest.raises(ValueError, match=r"dataset must be .* got 'squad'"):
        read("squad", ["en"])


def test_rows_of_its_own() -> None:
    text = corpus()
    (found,) = overlap(text, [held_rows(text, "itself")])
    assert found["exact"]["any"]["rows"] == 5
    assert found["exact"]["query_query"]["evaluation_texts"] == 5
