"""XQuAD-R: the published counts and golds, and what is said of broken folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hybridfast.evaluation import lareqa
from hybridfast.evaluation.evalset import EvalSet

SENTENCES = {
    "ar": 1222, "de": 1276, "el": 1234, "en": 1180, "es": 1215, "hi": 1244,
    "ru": 1219, "th": 852, "tr": 1167, "vi": 1209, "zh": 1196,
}  # fmt: skip


@pytest.fixture(scope="module")
def eval_set(data_dir: Path) -> EvalSet:
    return lareqa.load(data_dir / "xquad-r")


def test_counts(eval_set: EvalSet) -> None:
    assert Counter(eval_set.passage_languages) == SENTENCES
    assert Counter(eval_set.query_languages) == dict.fromkeys(SENTENCES, 1190)
    assert len(eval_set.queries) == len(eval_set.items) == 13_090
    assert len(eval_set.passages) == 13_014
    assert eval_set.languages == sorted(SENTENCES)


def test_every_question_has_one_gold_per_language(eval_set: EvalSet) -> None:
    golds_Q11 = eval_set.gold_indices.reshape(13_090, 11)
    assert (eval_set.gold_indptr == np.arange(13_091) * 11).all()
    languages_Q11 = np.array(eval_set.passage_languages)[golds_Q11]
    assert (languages_Q11 == np.array(sorted(SENTENCES))).all()


def test_translations_share_their_golds(eval_set: EvalSet) -> None:
    golds_of_item: dict[str, bytes] = {}
    for query, item in enumerate(eval_set.items):
        golds = eval_set.gold_indices[query * 11 : query * 11 + 11].tobytes()
        assert golds_of_item.setdefault(item, golds) == golds
    assert len(golds_of_item) == 1190


def test_golds_hold_their_answers(eval_set: EvalSet, data_dir: Path) -> None:
    """Answers were marked before sentences were cut, so a handful run on into the next sentence."""
    answers: dict[tuple[str, str], str] = {}
    for language in SENTENCES:
        document = json.loads((data_dir / "xquad-r" / f"{language}.json").read_text(encoding="utf-8"))
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers[language, question["id"]] = question["answers"][0]["text"]
    held = 0
    for query, item in enumerate(eval_set.items):
        for gold in eval_set.gold_indices[query * 11 : query * 11 + 11]:
            held += answers[eval_set.passage_languages[gold], item] in eval_set.passages[gold]
    assert held / (13_090 * 11) > 0.99


def test_context_follows_the_sentence(eval_set: EvalSet, data_dir: Path) -> None:
    with_context = lareqa.load(data_dir / "xquad-r", candidates="context")
    assert (with_context.gold_indices == eval_set.gold_indices).all()
    english = eval_set.passage_languages.index("en")
    sentence, text = eval_set.passages[english], with_context.passages[english]
    assert text.startswith(sentence + " " + sentence)  # the first sentence opens its paragraph
    assert eval_set.passages[english + 1] in text


QUESTION = {"id": "a", "question": "Second?", "answers": [{"answer_start": 5, "text": "Two"}]}


def paragraph(**changes: object) -> dict[str, object]:
    return {
        "context": "One. Two.",
        "sentences": ["One.", "Two."],
        "sentence_breaks": [[0, 4], [5, 9]],
        "qas": [QUESTION],
    } | changes


def write_folder(folder: Path, **changes: object) -> Path:
    for language in SENTENCES:
        own = paragraph(**changes) if language == "ru" else paragraph()
        document = {"data": [{"paragraphs": [own]}]}
        (folder / f"{language}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_small_folder(tmp_path: Path) -> None:
    eval_set = lareqa.load(write_folder(tmp_path))
    assert eval_set.passages == ["One.", "Two."] * 11
    assert eval_set.gold_indices.tolist() == list(range(1, 22, 2)) * 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qas": [{"id": "a", "question": "Gap?", "answers": [{"answer_start": 4}]}]}, "question a is in no"),
        ({"qas": [{"id": "a", "question": "None?", "answers": []}]}, "question a has no answer"),
        ({"qas": [QUESTION, QUESTION]}, "question a appears twice"),
        ({"qas": [{**QUESTION, "answers": None}]}, "question a has no answer"),
        ({"qas": [{**QUESTION, "answers": [{}]}]}, "layout"),
        ({"qas": [{**QUESTION, "answers": 7}]}, "layout"),
        ({"qas": [{"question": "No id?", "answers": []}]}, "layout"),
        ({"sentences": ["One. Two."]}, "1 sentences but 2 sentence_breaks"),
        ({"sentence_breaks": None}, "layout"),
    ],
)
def test_broken_paragraph_names_the_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"ru\.json.*{message}"):
        lareqa.load(write_folder(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"data": 3}'])
def test_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (write_folder(tmp_path) / "th.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"th\.json: not"):
        lareqa.load(tmp_path)


def test_a_question_twice_in_two_paragraphs_is_named(tmp_path: Path) -> None:
    document = {"data": [{"paragraphs": [paragraph()]}, {"paragraphs": [paragraph()]}]}
    (write_folder(tmp_path) / "zh.json").write_text(json.dumps(document), encoding="utf-8-sig")
    with pytest.raises(ValueError, match=r"zh\.json: question a appears twice"):
        lareqa.load(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        lareqa.load(tmp_path / "nowhere")
    write_folder(tmp_path)
    (tmp_path / "el.json").unlink()
    (tmp_path / "zh.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks el\.json, zh\.json"):
        lareqa.load(tmp_path)


def test_unknown_candidates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"candidates must be one of sentence, context, got 'document'"):
        lareqa.load(tmp_path, candidates="document")
