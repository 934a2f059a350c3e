"""Native hashes and JSON against Python's."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybridfast._core import text_hashes, text_json
from hybridfast.data.texts import are_utf8, column_json, hash_column, hash_spans

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


def sliced(values: list[object], type_: pa.DataType) -> pa.Array:
    """An array that begins within its buffers."""
    padded = [["x"], *values] if pa.types.is_list(type_) else ["x", *values]
    return pa.array(padded, type_)[1:]


@pytest.mark.parametrize("words", [1, 2, 8])
@pytest.mark.parametrize("length", [0, 1, 63, 127, 128, 129, 255, 256, 257, 1000])
def test_hashes_are_blake2b(words: int, length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    found = hash_column(sliced([text, text, "", text], pa.string()), words)
    wanted = hashlib.blake2b(text.encode(), digest_size=8 * words).digest()
    assert found.shape == (4, words)
    assert [found[i].tobytes() for i in (0, 1, 3)] == [wanted] * 3


@given(texts)
def test_hashes_of_any_text(values: list[str]) -> None:
    found = hash_column(sliced([*values], pa.string()))[:, 0]
    wanted = [int.from_bytes(hashlib.blake2b(v.encode(), digest_size=8).digest(), "little") for v in values]
    assert found.tolist() == wanted


def test_hashes_of_numbers_are_those_of_their_bytes() -> None:
    ids = np.arange(10, dtype=np.int32)
    found = hash_spans(ids, np.array([0, 3, 3, 10]))
    wanted = [
        hashlib.blake2b(part.tobytes(), digest_size=8).digest() for part in (ids[:3], ids[3:3], ids[3:])
    ]
    assert [value.tobytes() for value in found] == wanted


@given(texts, st.lists(texts))
@example(['"\\\n\r\t\b\f\x00\x1f\x7f\x80\u2028\uffff\U00010000\U0010ffff /'], [[], ["a"], []])
def test_json_is_python_s(values: list[str], lists: list[list[str]]) -> None:
    assert b"[" + column_json(sliced([*values], pa.string())) + b"]" == json.dumps(values).encode()
    column = sliced([*lists], pa.list_(pa.string()))
    assert b"[" + column_json(column) + b"]" == json.dumps(lists).encode()


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode))), st.integers(0, 300))
@example([b"\xc3", b"\xa9"], 0)
@example([b"\xc3\xa9", b"", b"\xa9"], 255)
def test_utf8_is_what_python_decodes(parts: list[bytes], before: int) -> None:
    """In a column whose texts may end within a character, behind so much ASCII."""
    values = [b"x" * before, *parts]
    column = pa.array(values, pa.binary()).view(pa.string())
    assert are_utf8(column) == all(map(is_utf8, values))
    assert are_utf8(column[1:]) == all(map(is_utf8, parts))
    assert are_utf8(b"".join(values)) == is_utf8(b"".join(values))


def test_every_beginning_of_a_character() -> None:
    for first in range(0x7F, 256):
        for second in (0, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF):
            for rest in (b"", b"\x80", b"\x80\x80", b"\xbf\xbf\xbf", b"x"):
                data = bytes([first, second]) + rest
                for before in (b"", b"y" * 256):
                    assert are_utf8(before + data) == is_utf8(data), data
                    assert are_utf8(before + data + b"y" * 256) == is_utf8(data), data


def test_places_outside_of_the_bytes_are_refused() -> None:
    data = np.zeros(4, np.uint8)
    for places in ([], [0, 5], [-1, 2], [0, 3, 2]):
        with pytest.raises(ValueError, match="indptr must ascend from 0 or more to 4 at most"):
            text_hashes(data, np.array(places, np.int64), 1)
    with pytest.raises(ValueError, match="list_indptr must ascend from 0 or more to 1 at most"):
        text_json(data, np.array([0, 4]), np.array([0, 2]))
    with pytest.raises(ValueError, match="words must be 1 to 8, got 9"):
        text_hashes(data, np.array([0, 4]), 9)
