"""XQuAD-R and MLQA-R: the published counts and golds, and what is said of broken folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from evaluation.damage import damaged, refused_or_sound, write
from hypothesis import HealthCheck, given, settings

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


def test_the_context_follows_without_a_blank_and_without_line_breaks(
    eval_set: EvalSet, data_dir: Path
) -> None:
    """As XTREME's reader builds candidates; in XQuAD-R a few sentences hold a line break."""
    with_context = lareqa.load(data_dir / "xquad-r", candidates="context")
    assert (with_context.gold_indices == eval_set.gold_indices).all()
    english = eval_set.passage_languages.index("en")
    sentence, text = eval_set.passages[english], with_context.passages[english]
    assert text.startswith(sentence + sentence)  # the first sentence opens its paragraph
    assert eval_set.passages[english + 1] in text
    assert any("\n" in passage for passage in eval_set.passages)
    assert not any("\n" in passage for passage in with_context.passages)


MLQA_R = {"ar": 2545, "de": 2362, "en": 6264, "es": 1787, "hi": 2426, "vi": 2828, "zh": 2322}


def test_mlqa_r_has_golds_where_a_question_was_asked(data_dir: Path) -> None:
    eval_set = lareqa.load(data_dir / "mlqa-r", dataset="mlqa-r")
    assert Counter(eval_set.passage_languages) == MLQA_R
    assert Counter(eval_set.query_languages) == {
        "en": 1148, "ar": 517, "de": 512, "es": 500, "hi": 507, "vi": 511, "zh": 504
    }  # fmt: skip
    asked: dict[str, list[str]] = {}
    for item, language in zip(eval_set.items, eval_set.query_languages, strict=True):
        asked.setdefault(item, []).append(language)
    assert Counter(map(len, asked.values())) == {4: 820, 3: 263, 2: 65}
    assert eval_set.clusters.max() + 1 == len(asked) == 1148
    for query, item in enumerate(eval_set.items):
        golds = eval_set.gold_indices[eval_set.gold_indptr[query] : eval_set.gold_indptr[query + 1]]
        assert [eval_set.passage_languages[gold] for gold in golds] == asked[item]


def test_some_languages(data_dir: Path) -> None:
    eval_set = lareqa.load(data_dir / "mlqa-r", dataset="mlqa-r", languages=["zh", "de"])
    whole = lareqa.load(data_dir / "mlqa-r", dataset="mlqa-r").of_languages(["de", "zh"])
    for name in ("queries", "query_ids", "items", "passages", "passage_ids", "passage_languages"):
        assert getattr(eval_set, name) == getattr(whole, name)
    assert (eval_set.gold_indptr == whole.gold_indptr).all()
    assert (eval_set.gold_indices == whole.gold_indices).all()


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
    with pytest.raises(ValueError, match=r"th\.json(:1)?: not"):
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


def test_equal_sentences_of_a_paragraph_are_golds_together_with_their_context(tmp_path: Path) -> None:
    """One text then, which no model tells apart. Without contexts the answer's place decides."""
    twice = {"context": "No! Go. No!", "sentences": ["No!", "Go.", "No!"],
             "sentence_breaks": [[0, 3], [4, 7], [8, 11]],
             "qas": [{"id": "a", "question": "Third?", "answers": [{"answer_start": 8}]}]}  # fmt: skip
    write_folder(tmp_path, **twice)
    golds = {}
    for candidates in lareqa.CANDIDATES:
        eval_set = lareqa.load(tmp_path, candidates)
        russian = [row for row in eval_set.gold_indices[:12] if eval_set.passage_languages[row] == "ru"]
        golds[candidates] = [eval_set.passages[row] for row in russian]
    assert golds == {"sentence": ["No!"], "context": ["No!No! Go. No!"] * 2}


def test_languages_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"languages must be of MLQA-R's, ar, de, .* got 'ru'"):
        lareqa.load(tmp_path, dataset="mlqa-r", languages=["de", "ru"])


def test_without_a_folder_the_files_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lareqa.SOURCE.startswith("https://raw.githubusercontent.com/google-research-datasets/lareqa/")
    monkeypatch.setattr(lareqa, "SOURCE", write_folder(tmp_path).as_uri() + "/{language}.json#{dataset}")
    monkeypatch.setenv("HYBRIDFAST_CACHE", str(tmp_path / "cache"))
    assert len(lareqa.load(None, dataset="mlqa-r", languages=["de", "vi"]).passages) == 4
    (tmp_path / "de.json").unlink()
    assert len(lareqa.load(None, dataset="mlqa-r", languages=["de"]).passages) == 2
    with pytest.raises(OSError, match=r"XQuAD-R could not be downloaded \(URLError: .*as data_dir"):
        lareqa.load(None, languages=["de"])
    assert not list((tmp_path / "cache").rglob(".*"))


DOCUMENT = json.dumps({"data": [{"paragraphs": [paragraph(), paragraph(qas=[])]}]}, indent=1).encode()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=damaged({f"{language}.json": DOCUMENT for language in ("de", "en")}))
def test_damaged_files_are_named_or_read_right(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = write(tmp_path, files)
    eval_set = refused_or_sound(lambda: lareqa.load(folder, languages=["de", "en"]), folder)
    if eval_set is None:
        return
    sentences = [
        sentence
        for name in sorted(files)
        for article in json.loads(files[name].decode("utf-8-sig"))["data"]
        for part in article["paragraphs"]
        for sentence in part["sentences"]
    ]
    assert eval_set.passages == sentences
    # Everything else of a question is its id: whatever it has become, golds are of equal ids.
    assert np.diff(eval_set.gold_indptr).tolist() == [eval_set.items.count(item) for item in eval_set.items]
