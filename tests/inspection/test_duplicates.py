"""Equal texts by hand, and against plain counters."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.inspection.duplicates import duplicates, unlike_texts

ROWS = [  # id, lang, query, passage, source
    ("1", "en", "PowerPoint", "a program", "x"),
    ("1", "de", "PowerPoint", "a program", "x"),  # both untranslated
    ("2", "en", "Where?", "here", "x"),
    ("2", "en", "Where?", "there", "x"),  # a second passage: no equal query
    ("3", "en", "Where?", "here", "x"),  # another item: one answer is another's, one is not
    ("4", "en", "What?", "here", "y"),  # another source
    ("5", "de", "What?", "dort", "y"),
    ("6", "en", "...", "...", "y"),
    ("7", "en", "Why?", "\u200b—", "y"),
    ("8", "hi", "क्या", "ं", "y"),  # a vowel sign alone
]


def corpus(rows: list[tuple[str, str, str, str, str]]) -> ParallelCorpus:
    names = ("id", "lang", "query", "passage", "source")
    return ParallelCorpus.from_rows([dict(zip(names, row, strict=True)) for row in rows])


def test_by_hand() -> None:
    found = duplicates(corpus(ROWS))
    queries, passages = found["queries"], found["passages"]
    assert queries.pop("most_shared") == [
        {
            "text": "Where?",
            "rows": 2,
            "items": 2,
            "of": [{"id": "2", "lang": "en", "source": "x"}, {"id": "3", "lang": "en", "source": "x"}],
        },
        {
            "text": "What?",
            "rows": 2,
            "items": 2,
            "of": [{"id": "4", "lang": "en", "source": "y"}, {"id": "5", "lang": "de", "source": "y"}],
        },
    ]
    assert queries == {
        "rows": 9,
        "distinct": 6,
        "repeats": 3,
        "repeats_in_other_languages_of_the_item": 1,
        "repeats_in_other_items_of_the_source": 2,
        "repeats_in_other_sources": 0,
        "rows_shared_with_other_items": 4,
        "rows_equal_in_another_language_of_the_item": {"de": 1, "en": 1},
        "texts_shared_by_sources": {},
    }
    (most,) = passages.pop("most_shared")
    assert (most["text"], most["rows"], most["items"]) == ("here", 3, 3)
    assert passages == {
        "rows": 10,
        "distinct": 7,
        "repeats": 3,
        "repeats_in_other_languages_of_the_item": 1,
        "repeats_in_other_items_of_the_source": 1,
        "repeats_in_other_sources": 1,
        "rows_shared_with_other_items": 3,
        "rows_equal_in_another_language_of_the_item": {"de": 1, "en": 1},
        "texts_shared_by_sources": {"x & y": 1},
    }
    differing = found["queries_of_several_items_with_different_passages"]
    assert (differing["queries"], differing["rows"]) == (1, 2)  # What?; Where? begins with here in both
    assert [example["text"] for example in differing["examples"]] == ["What?"]


def test_texts_that_hardly_are_any() -> None:
    found = unlike_texts(corpus(ROWS))
    assert {name: of["rows"] for name, of in found.items()} == {
        "query_equals_passage": 1,
        "query_without_letters": 1,
        "passage_without_letters": 3,
    }
    assert found["query_equals_passage"]["examples"] == [
        {"text": "...", "id": "6", "lang": "en", "source": "y"}
    ]
    assert [example["id"] for example in found["passage_without_letters"]["examples"]] == ["6", "7", "8"]


def test_nothing_is_repeated() -> None:
    found = duplicates(corpus([row for row in ROWS if row[0] in "67"]))
    for side in ("queries", "passages"):
        assert found[side]["repeats"] == 0
        assert found[side]["distinct"] == 2
        assert found[side]["most_shared"] == []
    assert found["queries_of_several_items_with_different_passages"]["queries"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from("ab"), st.sampled_from("pqr"), st.sampled_from("PQR")),
        min_size=1,
        max_size=30,
    )
)
def test_counts_are_those_of_counters(drawn: list[tuple[int, str, str, str]]) -> None:
    kept = {
        (item, lang): (str(item), lang, query, passage, f"s{item % 3}")
        for item, lang, query, passage in drawn
    }
    rows = list(kept.values())
    found = duplicates(corpus(rows))
    for side, column in (("queries", 2), ("passages", 3)):
        texts = Counter(row[column] for row in rows)
        items, sources = defaultdict(set), defaultdict(set)
        for row in rows:
            items[row[column]].add(row[0])
            sources[row[column]].add(row[4])
        of = found[side]
        assert of["distinct"] == len(texts)
        assert of["repeats"] == sum(count - 1 for count in texts.values())
        in_sources = sum(len(own) - 1 for own in sources.values())
        assert of["repeats_in_other_sources"] == in_sources
        of_items = sum(len(own) - 1 for own in items.values())
        assert of["repeats_in_other_items_of_the_source"] == of_items - in_sources
        assert of["repeats_in_other_languages_of_the_item"] == of["repeats"] - of_items
        assert of["rows_shared_with_other_items"] == sum(
            count for text, count in texts.items() if len(items[text]) > 1
        )
        pairs = Counter(f"{a} & {b}" for own in sources.values() for a in own for b in own if a < b)
        assert of["texts_shared_by_sources"] == dict(pairs)
        twice = Counter((row[0], row[column]) for row in rows)
        untranslated = Counter(row[1] for row in rows if twice[row[0], row[column]] > 1)
        assert of["rows_equal_in_another_language_of_the_item"] == dict(untranslated)
    differing = {
        one[2]
        for one in rows
        for other in rows
        if one[2] == other[2] and one[0] != other[0] and one[3] != other[3]
    }
    of = found["queries_of_several_items_with_different_passages"]
    assert of["queries"] == len(differing)
    assert of["rows"] == sum(row[2] in differing for row in rows)
