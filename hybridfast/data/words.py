"""The ids of texts by those of their words: a corpus says the same words again and again.

Most tokenizers cut a text at its blanks before anything else, so that a word has the ids that it has alone.
Where that is so, by how the tokenizer is made and by what it gives for a few texts, each distinct word goes
through it once. Texts in which something does not stand for itself go through it whole, as do those of
scripts without blanks, whose pieces do not come again.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unicodedata import category

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridfast._core import WordTable
from hybridfast.data.ids import Ids, spans

__all__ = ["MANY", "ByWords", "WordIds", "by_words", "copied"]

MANY = 16_384  # texts; for fewer, to prepare it takes longer than it saves

# What a normalizer may do: characters become others, whatever stands beyond a blank.
LOCAL = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Strip",
    "StripAccents",
}  # fmt: skip
# What cuts at blanks and drops them, and what may come after it.
AT_BLANKS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
WITHIN = AT_BLANKS | {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
GPT = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
}  # fmt: skip
LONGEST = 9_000  # words of a text that shows where texts are cut
BETWEEN = "\ue0f0\ue0f1"  # characters for private use, which no text should hold
# What a normalizer may drop, take for a blank, or read together with what stands beside it.
DOUBTFUL = re.compile(
    r"[\x00-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2581\u3000\ufeff\ufff0-\uffff\U000e0000-\U000e0fff]"
)
JOINING = {"\u0e33", "\u0eb3", "\uff9e", "\uff9f"}  # at a word's begin, besides marks: these join the blank
TOGETHER = 64  # words that are asked for in one text
PROBES = [
    "", " ", "a", "A B", "a  b", " a", "b ", "a\tb", "a\nb", "a\r\nb", "x" * 300,
    "Straße, ΟΔΟΣ; İstanbul! don't 3.14-x", "ﬁ ½ Å Ａ１ e\u0301 \u0301e a\u200db \u200d \u3000x",
    "見る 東京、 ไทย한국어 हिन्दी العربية 🙂👍🏽 🏳️‍🌈",
]  # fmt: skip


class ByWords:
    """The ids of texts by `read`; once there are many of them word by word, where that gives the same.

    The tokenizer is taken as it is by then: what is changed of it afterwards does not count.
    """

    def __init__(
        self,
        tokenizer: Any,
        prefix: str,
        read: Callable[[Sequence[str]], Ids],
        samples: Sequence[str] = (),
    ) -> None:
        self.make = partial(by_words, tokenizer, prefix, read, samples)
        self.whole = self.read = read
        self.texts, self.tried = 0, False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "read": self.whole, "tried": False}  # what was made cannot be pickled

    def __call__(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts, one after the other (T,), and how many each has (B,)."""
        self.texts += len(texts)
        if not self.tried and self.texts >= MANY:
            self.tried = True
            self.read = self.make() or self.read
        return self.read(texts)


def by_words(
    tokenizer: Any, prefix: str, read: Callable[[Sequence[str]], Ids], samples: Sequence[str] = ()
) -> WordIds | None:
    """What gives the same ids as `read`, sooner; None if words do not stand for themselves.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` that `read` asks, or a transformers tokenizer of one.
        prefix: stands before every text.
        read: the ids of texts, with special tokens and cut if they are to be.
        samples: a few texts like those to come.

    Returns:
        a function of texts: their ids int32 (T,), and how many each has, int64 (B,), as `read` gives them.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        return None
    definition = json.loads(backend.to_str())
    separators = _separators(definition)
    if separators is None or _is_in_several_words(definition["added_tokens"], backend.normalizer):
        return None
    texts = [*samples, *(text.upper() for text in samples), *PROBES]
    try:
        words = _Words(copied(backend), definition, " " if separators[2] else "")
        if backend.id_to_token(words.between) is not None:  # of a vocabulary with gaps, another's number
            return None
        if not words.ids(["a", words.blank + "a"])[1].all():
            return None
        some = " ".join(texts).split()
        plain = [word for word, is_plain in zip(some, words.ids(some)[1], strict=True) if is_plain]
        texts.append(" ".join(plain) + " a" * LONGEST)  # not read whole; its begin and its end differ
        ends = _ends(words, prefix, read, texts[-1])
        ids = ends and WordIds(words, WordTable(*separators), prefix, read, *ends)
        return ids if ids and _alike(ids(texts), read(texts)) else None
    except Exception:  # a text that it cannot read: whatever it says, `read` is to say
        return None


def copied(tokenizer: Any) -> Any:
    """The same ``tokenizers.Tokenizer`` with settings of its own, without padding and truncation.

    With the very same model, where that can be: through JSON, scores change by a last digit.
    """
    from tokenizers import AddedToken, Tokenizer

    own = Tokenizer(tokenizer.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(tokenizer, name)) is not None:
            setattr(own, name, part)
    definition = tokenizer.to_str()
    for token in json.loads(definition)["added_tokens"]:
        settings = {name: value for name, value in token.items() if name not in ("id", "content")}
        add = own.add_special_tokens if token["special"] else own.add_tokens
        add([AddedToken(token["content"], **settings)])
    # Before the tokens stands how it pads and cuts.
    if own.to_str().partition('"added_tokens":')[2] != definition.partition('"added_tokens":')[2]:
        own = Tokenizer.from_str(definition)
    own.no_padding()
    own.no_truncation()
    return own


def _types(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The parts of a sequence of sequences, in order."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for member in part[members] for inner in _types(member, members)]


def _separators(definition: dict[str, Any]) -> tuple[str, bool, bool] | None:
    """What stands between words, and how a tokenizer takes it; see Separators in csrc/words.h."""
    for part in _types(definition["normalizer"], "normalizers"):
        if part["type"] not in LOCAL and not (part["type"] == "Replace" and _stays_within_words(part)):
            return None
    if definition["model"].get("dropout"):
        return None
    parts = _types(definition["pre_tokenizer"], "pretokenizers")
    schemes = [part.get("prepend_scheme", "always") for part in parts if part["type"] == "Metaspace"]
    match [part["type"] for part in parts]:
        case ["Metaspace"] if parts[0].get("split", True) and schemes == ["always"]:
            found = " ", False, False
        case ["ByteLevel"] if parts[0]["use_regex"]:
            found = " ", False, True
        case ["Split", "ByteLevel"] if _is_byte_level(*parts):
            found = " ", False, True
        case [first, *others] if first in AT_BLANKS and WITHIN.issuperset(others) and "first" not in schemes:
            found = " \t\n\r", True, False
        case _:
            return None
    # A token that is more than one word would be missed; but not where blanks in a row are read whole.
    texts = (token["content"] for token in definition["added_tokens"])
    joining = [text for text in texts if text.split() != [text] and (found[1] or "  " not in text)]
    return None if joining else found


def _is_byte_level(split: dict[str, Any], byte_level: dict[str, Any]) -> bool:
    """Whether words are cut as for GPT-4 and its followers, such as Qwen: before a blank, if there is one."""
    pattern, isolated = split["pattern"].get("Regex"), split["behavior"] == "Isolated" and not split["invert"]
    return isolated and not byte_level["use_regex"] and pattern in GPT


def _stays_within_words(replace: dict[str, Any]) -> bool:
    if "String" in replace["pattern"]:
        return not any(map(str.isspace, replace["pattern"]["String"] + replace["content"]))
    return (replace["pattern"], replace["content"]) == ({"Regex": " {2,}"}, " ")  # and blanks stay blanks


def _is_in_several_words(added_tokens: list[dict[str, Any]], normalizer: Any) -> bool:
    """Whether a token that is looked for in normalized text has blanks by then."""
    for token in added_tokens:
        if token["normalized"] and normalizer is not None:
            text = normalizer.normalize_str(token["content"])
            if text != token["content"] and any(map(str.isspace, text)):
                return True
    return False


def _unknown(definition: dict[str, Any]) -> tuple[set[int], list[str]]:
    """The token of what is unknown, which words may well have; and its own text, which they may not."""
    names = definition["model"].get("unk_token"), definition["model"].get("unk_id")
    found = [
        token
        for token in definition["added_tokens"]
        if (token["content"] in names or token["id"] in names) and not token["normalized"]
    ]
    return {token["id"] for token in found}, [token["content"] for token in found]


class _Words:
    """A tokenizer, asked for the ids of words."""

    def __init__(self, tokenizer: Any, definition: dict[str, Any], blank: str) -> None:
        from tokenizers import AddedToken

        self.tokenizer, self.blank = tokenizer, blank  # which words behind others begin with
        unknown, self.unknown_text = _unknown(definition)
        self.special = np.array(
            sorted({token["id"] for token in definition["added_tokens"]} - unknown), np.int32
        )
        # Between two words it begins anew, as at a text's begin: many words are one text, which takes a
        # fraction of the time.
        tokenizer.add_special_tokens([AddedToken(BETWEEN, normalized=False, special=True)])
        self.between = tokenizer.token_to_id(BETWEEN)
        # Whether a character stands for itself at a word's begin, behind a blank; and at its end, before one.
        self.begins: dict[str, bool] = {}
        self.ends: dict[str, bool] = {}

    def ids(self, words: Sequence[str]) -> tuple[Ids, NDArray[np.uint8]]:
        """The ids of words, and whether a word has them wherever it stands."""
        ids_T, lengths = self.encode(words)
        edges = [(word[word[0] == " " :][0], word[-1]) for word in words]
        for known, column, patterns in ((self.begins, 0, ("a", "{0}a")), (self.ends, 1, ("a{0}", "a"))):
            if fresh := {edge[column] for edge in edges} - known.keys():
                self._look(fresh, known, *patterns)
        is_plain = np.array([self.begins[first] and self.ends[last] for first, last in edges], np.uint8)
        word_T = np.repeat(np.arange(len(words)), lengths)
        is_plain[word_T[np.isin(ids_T, self.special)]] = 0
        doubtful = [
            i
            for i, (word, (first, _)) in enumerate(zip(words, edges, strict=True))
            if is_plain[i] and (category(first)[0] == "M" or first in JOINING or DOUBTFUL.search(word))
        ]
        if doubtful:
            is_plain[doubtful] = self._among_words([words[i] for i in doubtful])
        together = "\n".join(words)
        for text in (*self.unknown_text, BETWEEN):
            if text in together:
                is_plain[[i for i, word in enumerate(words) if text in word]] = 0
        return (ids_T, lengths), is_plain

    def encode(self, words: Sequence[str]) -> Ids:
        """The ids of texts, each by itself."""
        texts = [
            BETWEEN.join(
                word.replace(BETWEEN[0], "") if BETWEEN in word else word for word in words[i : i + TOGETHER]
            )
            for i in range(0, len(words), TOGETHER)
        ]
        # "fast" leaves out the characters' offsets, which nobody asks for.
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids_T = np.concatenate(
            [part for row in encodings for part in (np.array(row.ids, np.int32), [self.between])]
        ).astype(np.int32)
        ends = np.flatnonzero(ids_T == self.between)
        return np.delete(ids_T, ends), np.diff(ends, prepend=-1) - 1

    def _among_words(self, words: Sequence[str]) -> list[bool]:
        """Whether words have behind one and before one what they have alone."""
        behind = ["" if self.blank and word[0] != " " else "a" + " " * (not self.blank) for word in words]
        texts = [*words, *(f"{first}{word} a" for first, word in zip(behind, words, strict=True))]
        ids_T, lengths = self.encode(["a", self.blank + "a", *texts])
        first, last, *rows = [row.tolist() for row in np.split(ids_T, np.cumsum(lengths)[:-1])]
        size = len(words)
        return [
            rows[size + i] == [*(first if behind[i] else []), *rows[i], *last] and bool(rows[i])
            for i in range(size)
        ]

    def _look(self, characters: set[str], known: dict[str, bool], first: str, second: str) -> None:
        """Whether words with a character at that place are for themselves: an accent would join the blank."""
        some = sorted(characters)
        patterns = first, self.blank + second, f"{first} {second}", "a{0}", "{0}"
        texts = [pattern.format(character) for pattern in patterns for character in some]
        ids_T, lengths = self.encode([*texts, "a", ""])
        rows = [row.tolist() for row in np.split(ids_T, np.cumsum(lengths)[:-1])]
        size = len(some)
        for i, character in enumerate(some):
            are_both = rows[i] + rows[size + i] == rows[2 * size + i]
            # Where it vanishes, another is at the edge.
            is_dropped = [rows[3 * size + i], rows[4 * size + i]] == rows[-2:]
            known[character] = are_both and not is_dropped and not character.isspace()  # which may join more


def _ends(
    words: _Words, prefix: str, read: Callable[[Sequence[str]], Ids], long: str
) -> tuple[list[int], list[int], int, bool] | None:
    """What stands before and behind a text's ids, how many these are at most, and whether others are cut."""
    wanted_T, _ = read(["a"])
    own_T, (size, uncut) = words.encode([f"{prefix}a", prefix + long])
    wanted, own = wanted_T.tolist(), own_T[:size].tolist()
    places = [start for start in range(len(wanted) - size + 1) if wanted[start : start + size] == own]
    if not own or len(places) != 1:
        return None
    head, tail = wanted[: places[0]], wanted[places[0] + size :]
    room = len(read([long])[0]) - len(head) - len(tail)
    return head, tail, room, room < uncut


class WordIds:
    """The ids of texts, made of those of their words; see :func:`by_words`."""

    def __init__(
        self,
        words: _Words,
        table: WordTable,
        prefix: str,
        read: Callable[[Sequence[str]], Ids],
        head: list[int],
        tail: list[int],
        room: int,
        cuts: bool,
    ) -> None:
        self.words, self.table, self.prefix, self.read = words, table, prefix, read
        self.head, self.tail = np.array(head, np.int32), np.array(tail, np.int32)
        self.room, self.cuts = room, cuts
        self._alone = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Ids:
        """The ids of all texts, one after the other (T,), and how many each has (B,)."""
        try:
            column = pa.array([self.prefix + text for text in texts], pa.large_string())
        except UnicodeEncodeError:  # half a character
            return self.read(texts)
        _, offsets, buffer = column.buffers()
        data = np.frombuffer(buffer, np.uint8) if buffer else np.empty(0, np.uint8)
        indptr = np.frombuffer(offsets, np.int64, len(texts) + 1) if len(texts) else np.zeros(1, np.int64)
        with self._alone:
            words, word_indptr, is_whole, fresh = self.table.find(data, indptr)
            if len(fresh):
                bounds = zip(fresh[::2].tolist(), fresh[1::2].tolist(), strict=True)
                spelled = [data[begin:end].tobytes().decode() for begin, end in bounds]
                (own_T, lengths), is_plain = self.words.ids(spelled)
                self.table.add(own_T, np.append(0, np.cumsum(lengths)), is_plain)
            ids_T, lengths_B = self.table.gather(
                words, word_indptr, is_whole, self.head, self.tail, self.room
            )
        is_left = lengths_B < 0
        if not self.cuts:
            is_left |= lengths_B >= self.room
        return _put(ids_T, lengths_B, np.flatnonzero(is_left), texts, self.read)


def _put(
    ids_T: NDArray[np.int32],
    lengths_B: NDArray[np.int64],
    left: NDArray[np.int64],
    texts: Sequence[str],
    read: Callable[[Sequence[str]], Ids],
) -> Ids:
    """The ids of some texts among those of the others."""
    if not len(left):
        return ids_T, lengths_B
    more_T, more_lengths = read([texts[i] for i in left.tolist()])
    had_B = np.maximum(lengths_B, 0)
    starts_B = np.cumsum(had_B) - had_B
    starts_B[left] = len(ids_T) + np.cumsum(more_lengths) - more_lengths
    had_B[left] = more_lengths
    return np.concatenate([ids_T, more_T])[spans(starts_B, had_B)], had_B


def _alike(ours: Ids, theirs: Ids) -> bool:
    return np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
