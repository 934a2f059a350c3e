"""Ids word by word against the tokenizer's own, for tokenizers of all kinds and texts of all sorts."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hybridfast._core import WordTable
from hybridfast.data import words
from hybridfast.data.ids import Ids, joined
from hybridfast.data.tokenizer import TokenizerIds
from hybridfast.data.words import WordIds, by_words

TEXTS = [
    "the red fox, the sea",
    "roter Fuchs und das Meer",
    "ทะเลสีฟ้า 東京の海 море море",
    "fox's 3.14 fo xes",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def made(
    model: str, normalizer: Any, pre_tokenizer: Any, special: Sequence[str | AddedToken] = SPECIAL
) -> Tokenizer:
    """A tokenizer trained on TEXTS, with a template as BERT's."""
    kinds: dict[str, Callable[[], tuple[Any, Any]]] = {
        "wordpiece": lambda: (
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=120, special_tokens=[*special], show_progress=False),
        ),
        "bpe": lambda: (
            models.BPE(unk_token="[UNK]"),
            trainers.BpeTrainer(vocab_size=120, special_tokens=[*special], show_progress=False),
        ),
        "unigram": lambda: (
            models.Unigram(),
            trainers.UnigramTrainer(
                vocab_size=120, special_tokens=[*special], unk_token="[UNK]", show_progress=False
            ),
        ),
    }
    core, trainer = kinds[model]()
    tokenizer = Tokenizer(core)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def at_blanks(*others: Any) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *others])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "BERT": lambda: made(
        "wordpiece", normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    ),
    "BERT uncased": lambda: made(
        "wordpiece", normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    ),
    "XLM-R": lambda: made(
        "unigram",
        normalizers.Sequence([normalizers.Nmt(), normalizers.Replace("é", "e"), normalizers.NFKC()]),
        at_blanks(pre_tokenizers.Metaspace()),
    ),
    "XLM-R, newer": lambda: made(
        "unigram",
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
    ),
    "blanks that others become": lambda: made(
        "unigram",
        normalizers.Sequence(
            [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        ),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
    ),
    "marks that vanish": lambda: made(
        "unigram",
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
        pre_tokenizers.Metaspace(prepend_scheme="always"),
    ),
    "own": lambda: made(
        "bpe",
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(".{1,9}"), "isolated")]
        ),
    ),
    "GPT-2": lambda: made("bpe", None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "RoBERTa": lambda: made("bpe", None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "Qwen": lambda: made(
        "bpe",
        normalizers.NFC(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(sorted(words.GPT)[0]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        [*SPECIAL, "  "],
    ),
    "a mask that takes blanks": lambda: made(
        "unigram",
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
        [*SPECIAL[:4], AddedToken("[MASK]", lstrip=True, rstrip=True)],
    ),
}


def read_by(tokenizer: Tokenizer, prefix: str, longest: int) -> Callable[[Sequence[str]], Ids]:
    return TokenizerIds(PreTrainedTokenizerFast(tokenizer_object=tokenizer), prefix, longest)._read


def word_by_word(
    kind: str, prefix: str = "", longest: int = 64
) -> tuple[WordIds, Callable[[Sequence[str]], Ids]]:
    """What reads word by word, and what reads texts."""
    tokenizer = KINDS[kind]()
    read = read_by(tokenizer, prefix, longest)
    ids = by_words(tokenizer, prefix, read, TEXTS)
    assert ids is not None
    return ids, read


def check(got: Ids, wanted: Ids) -> None:
    assert got[1].tolist() == wanted[1].tolist()
    assert got[0].tolist() == wanted[0].tolist()
    assert got[0].dtype == np.int32
    assert got[1].dtype == np.int64


@pytest.fixture(scope="module", params=KINDS)
def readers(request: pytest.FixtureRequest) -> tuple[WordIds, Callable[[Sequence[str]], Ids]]:
    """What reads word by word, kept over all texts of a test, and what reads texts."""
    return word_by_word(request.param, "query: ", 12)


PIECES = [
    "ab", "A", "é", "Σς", "İ", "ﬁ", "½", "見", "海", "ท", "ำ", "ั", "मि", "က", "ា", "🙂", "🏽", "🏳", "ﾞ",
    *"\u0301\u0308\u200d\ufe0f\u00a0\u3000\u00ad\ufffd\ufeff\u0600\u2028\x00\x0b\x85",
    *(" ", " ", " ", "  ", "\n", "\t", "\r\n"),
    *SPECIAL, words.BETWEEN, "[mask]", "fox", "the", "sea,", "море", "x" * 40, "東京の海" * 4,
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=6))
@example([" \u0301a", "a \u0301", "a\u0301 a", "\u0301"])
@example(["a [MASK] a", "[MASK]", "a [MASK]", "a[MASK] a", "[UNK] a [UNK]"])
@example(["fox " * 20, "x" * 40 + " a", "a" + "x" * 40, "東京の海東京の海東京の海 a"])
@example(["fox\n \nfox", "fox \u3000 fox", "\n fox \n"])
@example(["a \x01", "a \x01 a", "a\xa0\u0301 a", "a \u0e33\u0488", "a \uff9e\u0301", "a \ufe0f"])
@example([words.BETWEEN[0] + words.BETWEEN + words.BETWEEN[1], "a" + words.BETWEEN])
@example(["", " ", "  ", "\n", "a ", " a"])
def test_ids_are_the_tokenizers(
    readers: tuple[WordIds, Callable[[Sequence[str]], Ids]], texts: list[str]
) -> None:
    ids, read = readers
    check(ids(texts), read(texts))
    check(ids(texts), read(texts))  # and when all words are known


def counted(ids: WordIds) -> list[int]:
    """How many texts each call to the tokenizer had, from now on."""
    calls: list[int] = []
    read, encode = ids.read, ids.words.encode
    ids.read = lambda texts: (calls.append(len(texts)), read(texts))[1]
    ids.words.encode = lambda texts: (calls.append(len(texts)), encode(texts))[1]
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_asked_for_once(kind: str) -> None:
    ids, read = word_by_word(kind)
    texts = [f"the fox of {i % 10}" for i in range(1000)]
    ids(["the sea"])  # the characters' edges
    calls = counted(ids)
    check(ids(texts), read(texts))
    assert sum(calls) < 200  # of the 1,000, with what finds out about the words' edges
    calls.clear()
    check(ids(texts), read(texts))
    assert calls == []


def test_texts_without_blanks_are_read_whole() -> None:
    ids, read = word_by_word("XLM-R")
    texts = ["東京の海" * 5 + str(i) for i in range(100)]
    calls = counted(ids)
    check(ids(texts), read(texts))
    assert calls == [100]


def test_uncut_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "LONGEST", 300)
    tokenizer = KINDS["BERT"]()

    def read(texts: Sequence[str]) -> Ids:
        return joined([row.ids for row in tokenizer.encode_batch(list(texts))])

    ids = by_words(tokenizer, "", read)
    assert ids is not None
    assert not ids.cuts
    texts = ["fox " * n for n in (1, 298, 300, 1000)]
    check(ids(texts), read(texts))


def test_words_are_forgotten_at_the_limit() -> None:
    ids, read = word_by_word("BERT")
    ids.table = WordTable(" \t\n\r", True, most=20)
    for start in range(0, 400, 7):
        texts = [f"fox number {i}" for i in range(start, start + 9)]
        check(ids(texts), read(texts))


def test_a_tokenizer_that_fails_leaves_no_words_without_ids() -> None:
    ids, read = word_by_word("BERT")
    encode = ids.words.encode

    def fails(texts: list[str]) -> Ids:
        raise KeyboardInterrupt

    ids.words.encode = fails
    with pytest.raises(KeyboardInterrupt):
        ids(["the red fox and the sea"])
    ids.words.encode = encode
    check(ids(TEXTS), read(TEXTS))


def test_half_a_character_is_the_readers_to_refuse() -> None:
    ids, _ = word_by_word("BERT")
    with pytest.raises((TypeError, UnicodeEncodeError)):
        ids(["fine", "\ud800"])


def test_a_vocabulary_with_a_gap() -> None:
    """Its size is the number of a token: what is added gets that number too."""
    vocabulary = {"[UNK]": 0, "the": 1, "fox": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert by_words(tokenizer, "", TokenizerIds(tokenizer, "", 64)._read) is None


def test_the_model_is_not_copied_through_json() -> None:
    """There, scores change by a last digit, which decides between equally good ways to cut a word."""
    scores = np.random.default_rng(0).uniform(-12, -2, 5000).astype(np.float32)
    pieces = [("[UNK]", 0.0), *((f"{i:x}", float(score)) for i, score in enumerate(scores))]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Tokenizer.from_str(tokenizer.to_str()).to_str() != tokenizer.to_str()
    assert words.copied(tokenizer).to_str() == tokenizer.to_str()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    own = words.copied(tokenizer)
    assert (own.truncation, own.padding) == (None, None)
    assert tokenizer.truncation["max_length"] == 3


def test_it_can_be_pickled_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MANY", 2)
    ids = TokenizerIds(KINDS["BERT"](), "", 64)
    wanted = ids.ids(TEXTS)
    assert isinstance(ids._words.read, WordIds)
    check(pickle.loads(pickle.dumps(ids)).ids(TEXTS), wanted)


def with_dropout() -> Tokenizer:
    tokenizer = made("bpe", None, pre_tokenizers.WhitespaceSplit())
    tokenizer.model.dropout = 0.1
    return tokenizer


def with_token(token: AddedToken) -> Tokenizer:
    tokenizer = KINDS["XLM-R"]()
    tokenizer.add_tokens([token])
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: made("bpe", normalizers.Replace(" ", "▁"), None),
        lambda: made("bpe", None, None),
        lambda: made("bpe", normalizers.Replace("a b", "c"), pre_tokenizers.WhitespaceSplit()),
        lambda: made("bpe", normalizers.Replace(Regex("a.b"), "c"), pre_tokenizers.WhitespaceSplit()),
        lambda: made("bpe", None, pre_tokenizers.ByteLevel(use_regex=False)),
        lambda: made(
            "bpe",
            None,
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"\\S+ |."), "isolated"),
                    pre_tokenizers.ByteLevel(use_regex=False),
                ]
            ),
        ),
        lambda: made("bpe", normalizers.Prepend("▁"), pre_tokenizers.WhitespaceSplit()),
        lambda: made("unigram", None, pre_tokenizers.Metaspace(prepend_scheme="never")),
        lambda: made("unigram", None, pre_tokenizers.Metaspace(prepend_scheme="first")),
        lambda: made("unigram", None, pre_tokenizers.Metaspace(split=False)),
        lambda: made("unigram", None, at_blanks(pre_tokenizers.Metaspace(prepend_scheme="first"))),
        lambda: with_token(AddedToken("red fox")),
        lambda: with_token(AddedToken("\ufdfa", normalized=True)),  # several words in normal form
        with_dropout,
        lambda: object(),
        lambda: None,
    ],
)
def test_what_does_not_read_word_by_word(make: Callable[[], Any]) -> None:
    tokenizer = make()
    assert by_words(tokenizer, "", lambda texts: (np.zeros(0, np.int32), np.zeros(0, np.int64))) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: (ids[0] + 1, ids[1]),
        lambda ids: (ids[0][::-1].copy(), ids[1]),
        lambda ids: (np.repeat(ids[0], 2), ids[1] * 2),
    ],
)
def test_a_reader_that_gives_other_ids_is_left_alone(change: Callable[[Ids], Ids]) -> None:
    tokenizer = KINDS["BERT"]()
    read = read_by(tokenizer, "", 64)
    assert by_words(tokenizer, "", lambda texts: change(read(texts))) is None


def test_many_texts_are_read_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MANY", 50)
    tokenizer = KINDS["BERT"]()
    ids = words.ByWords(tokenizer, "", read_by(tokenizer, "", 64))
    ids(TEXTS)
    assert not isinstance(ids.read, WordIds)
    check(ids(TEXTS * 20), read_by(tokenizer, "", 64)(TEXTS * 20))
    assert isinstance(ids.read, WordIds)
    check(ids(TEXTS), read_by(tokenizer, "", 64)(TEXTS))


# --- the table ---------------------------------------------------------------------------------------------


def arrays(*texts: str) -> tuple[np.ndarray, np.ndarray]:
    parts = [text.encode() for text in texts]
    return np.frombuffer(b"".join(parts), np.uint8), np.append(0, np.cumsum([len(part) for part in parts]))


def test_a_table_by_hand() -> None:
    table = WordTable(" \n", True)
    found, indptr, is_whole, fresh = table.find(*arrays("a bb\na", "", " bb  ccc "))
    assert found.tolist() == [0, 1, 0, 1, 2]
    assert indptr.tolist() == [0, 3, 3, 5]
    assert is_whole.tolist() == [0, 0, 0]
    assert fresh.tolist() == [0, 1, 2, 4, 11, 14]
    table.add(np.array([7, 8, 8, 9], np.int32), np.array([0, 1, 3, 4]), np.array([1, 1, 0], np.uint8))
    ids, lengths = table.gather(found, indptr, is_whole, np.array([1], np.int32), np.array([2], np.int32), 3)
    assert lengths.tolist() == [5, 2, -1]  # the last has a word that is not plain
    assert ids.tolist() == [1, 7, 8, 8, 2, 1, 2]


def test_words_can_begin_with_their_blank() -> None:
    found, indptr, is_whole, fresh = WordTable(" ", False, True).find(
        *arrays("a b b", "b", "a  b", "a ", " a", "")
    )
    assert found.tolist() == [0, 1, 1, 2]
    assert np.diff(indptr).tolist() == [3, 1, 0, 0, 0, 0]
    assert is_whole.tolist() == [0, 0, 1, 1, 1, 0]
    assert fresh.tolist() == [0, 1, 1, 3, 5, 6]


def test_blanks_in_a_row_can_count() -> None:
    found, indptr, is_whole, _ = WordTable(" ", False).find(*arrays("a b", "a  b", "a ", " a", "", "a\nb"))
    assert is_whole.tolist() == [0, 1, 1, 1, 0, 0]
    assert np.diff(indptr).tolist() == [2, 0, 0, 0, 0, 1]
    assert found.tolist() == [0, 1, 2]


NOTHING = np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: WordTable("é", True), "separators must be ASCII"),
        (lambda table: WordTable(" ", True, most=0), "most must be >= 1, got 0"),
        (lambda table: table.find(np.zeros(2, np.uint8), np.array([0, 3])), "indptr must ascend"),
        (
            lambda table: table.add(NOTHING, np.array([0, 0]), np.ones(1, np.uint8)),
            "of the 0 fresh words, got 1 and 1",
        ),
        (
            lambda table: table.gather(
                np.array([0], np.int32), np.array([0, 1]), np.zeros(1, np.uint8), NOTHING, NOTHING, 1
            ),
            "words must be known, got 0",
        ),
        (
            lambda table: table.gather(NOTHING, np.array([0]), np.zeros(1, np.uint8), NOTHING, NOTHING, 1),
            "one place more",
        ),
        (
            lambda table: table.gather(NOTHING, np.array([0]), np.zeros(0, np.uint8), NOTHING, NOTHING, -1),
            "room must be >= 0, got -1",
        ),
    ],
)
def test_bad_arguments(call: Callable[[WordTable], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(WordTable(" ", True))
