"""What the columns of a row mean: a row in, a version out, or an error that says what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Version", "is_read", "language_tag", "version"]


class Version(NamedTuple):
    """One item in one language."""

    id: str
    lang: str
    query: str
    passage: str
    negatives: list[str]
    source: str | None  # None where the row names none
    split: str = "train"  # or dev, test


def version(row: Any, language: str | None, place: str, *, id_needed: bool) -> Version:
    """Read one row.

    Args:
        row: a mapping with the columns that :meth:`hybridfast.data.corpus.ParallelCorpus.load` describes.
        language: of a row that names none.
        place: the id of a row that has none.
        id_needed: such a row is an error, unless it has sentence-transformers' columns.

    Raises:
        ValueError: what is wrong; the caller knows where.
    """
    if not isinstance(row, (dict, Mapping)):  # dict by itself: to ask Mapping takes more than twice as long
        raise ValueError(f"expected a JSON object or other mapping, got {type(row).__name__}")
    anchored = _is_missing(row.get("query")) and not _is_missing(row.get("anchor"))
    lang, identifier, source = row.get("lang"), row.get("id"), row.get("source")
    if _is_missing(lang):
        lang = language
        if lang is None:
            raise ValueError(f"{_no_column(row, 'lang')} (or pass language=)")
    if _is_missing(identifier):
        identifier = place
        if id_needed and not anchored:
            raise ValueError(_no_column(row, "id"))
    return Version(
        _identifier(identifier),
        language_tag(lang),
        _column(row, "anchor" if anchored else "query"),
        _column(row, "positive" if anchored else "passage"),
        _negatives(row),
        None if _is_missing(source) else _text(source, "source"),
        _split(row.get("split")),
    )


READ = {"id", "lang", "query", "passage", "anchor", "positive", "source", "split", "negatives"}


def is_read(name: str) -> bool:
    """Whether a version has anything from a column of that name."""
    return name in READ or bool(_negative_columns((name,)))


def _split(value: Any) -> str:
    """What a row is for; whatever else a column of that name may say, it is for training."""
    name = value.strip().lower() if isinstance(value, str) else ""
    return "dev" if name in ("dev", "validation", "valid", "val") else "test" if name == "test" else "train"


def language_tag(value: Any) -> str:
    """A language as BCP 47 spells it: ``zh_hans``, ``EN `` are zh-Hans, en. Made-up ones are fine.

    Raises:
        ValueError: no letters and digits with ``-`` or ``_`` between them.
    """
    if not isinstance(value, str):
        raise ValueError(f"lang must be text, got {value!r}")
    return _spelled_tag(value)


@lru_cache(4096)  # millions of rows, few languages
def _spelled_tag(text: str) -> str:
    first, *rest = parts = text.strip().replace("_", "-").lower().split("-")
    if not all(re.fullmatch("[a-z0-9]+", part) for part in parts):
        raise ValueError(f"lang must be a language tag such as en, zh-CN or zh-Hans, got {text!r}")
    singleton = len(first) == 1  # what follows one is all small
    tag = first
    for part in rest:
        singleton = singleton or len(part) == 1
        # RFC 5646, sec. 2.1.1: regions in capitals, scripts with one.
        cased = part if singleton else {2: part.upper(), 4: part.capitalize()}.get(len(part), part)
        tag += f"-{cased}"
    return tag


def _is_missing(value: Any) -> bool:
    """None, empty text, NaN, and what pandas has for them."""
    if isinstance(value, str):
        return not value
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    # By name: pandas may not be installed.
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _identifier(value: Any) -> str:
    """One spelling of 7, "7 " and 7.0, which is how a column with gaps holds 7."""
    if isinstance(value, str):
        return _text(value, "id").strip()
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    # From 2**53 on, floats skip integers: different ids may have become one.
    if isinstance(value, (float, np.floating)) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    raise ValueError(f"id must be text or an integer, got {value!r}")


def _column(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if type(value) is not str and _is_missing(value):  # empty text is there, and is empty
        raise ValueError(_no_column(row, name))
    return _text(value, name)


def _no_column(row: Mapping[str, Any], name: str) -> str:
    return f"column {name!r} is missing; the row has {', '.join(map(repr, row))}"


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    if not value or value.isspace():
        raise ValueError(f"{name} is empty")
    return value


def _negatives(row: Mapping[str, Any]) -> list[str]:
    """Of ``negatives`` (a list), ``negative`` and ``negative_1, negative_2, ...``, in this order."""
    listed = row.get("negatives")
    found: list[str] = []
    if isinstance(listed, (list, tuple, np.ndarray)):
        found += [_text(value, "negatives") for value in listed if not _is_missing(value)]
    elif not _is_missing(listed):
        raise ValueError(f"negatives must be a list of texts, got {listed!r}")
    for name in _negative_columns(tuple(row)):
        if not _is_missing(row[name]):
            found.append(_text(row[name], name))
    return found


@lru_cache(4096)
def _negative_columns(names: tuple[Any, ...]) -> list[str]:
    numbers = {
        name: int(found[1] or 0)
        for name in names
        if isinstance(name, str) and (found := re.fullmatch("negative(?:_([0-9]+))?", name))
    }
    return sorted(numbers, key=numbers.__getitem__)
