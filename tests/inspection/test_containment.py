"""Texts inside of others, against Python's own search."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.inspection import containment
from hybridfast.inspection.containment import WINDOW, Contained

# Two letters of one and two bytes: texts of them are often inside of others.
WORDS = st.lists(st.sampled_from(["ab" * 9, "aб" * 9, "b" * 15, "a"]), max_size=7).map("".join)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(WORDS, unique=True, max_size=6), st.lists(WORDS, max_size=8), st.sampled_from([1, 40, 1 << 22])
)
def test_the_same_as_python(looked_for: list[str], texts: list[str], span: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containment, "SPAN", span)
        found = set(Contained(looked_for).within(texts))
    assert found == {
        (i, j)
        for i, text in enumerate(texts)
        for j, inner in enumerate(looked_for)
        if inner in text and inner != text and len(inner.encode()) >= WINDOW
    }


def test_no_text_begins_in_one_and_ends_in_another() -> None:
    half = "b" * WINDOW
    assert not list(Contained([half + half]).within([half, half, half]))
    assert list(Contained([half]).within([half, "a", half + "a"])) == [(2, 0)]
