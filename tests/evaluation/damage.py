"""Files with something wrong in them, for readers to refuse by name or to read right."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import evaluate_embeddings

# What breaks formats: separators, brackets, quotes, bytes that are no UTF-8, a byte order mark, blanks.
SPLINTERS = [
    *(
        b"",
        b"\n",
        b"\t",
        b" ",
        b'"',
        b"{",
        b"}",
        b"[]",
        b",",
        b":",
        b"\\",
        b"\xff",
        b"\xef\xbb\xbf",
        b"0",
        b"-1",
    ),
    *(b"-1", b"1.5", b"null", b"\r\n", "ü".encode(), b"\x00", "\u2028".encode()),
]


@st.composite
def damaged(draw: st.DrawFn, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files, with bytes of one of them overwritten or cut out, or lines of it twice or swapped."""
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    if draw(st.booleans()):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 12)))
        content = content[:start] + draw(st.sampled_from(SPLINTERS)) + content[stop:]
    else:
        lines = content.splitlines(keepends=True)
        i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        if draw(st.booleans()):
            lines.insert(i, lines[j])
        else:
            lines[i], lines[j] = lines[j], lines[i]
        content = b"".join(lines)
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return {**files, name: content}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def objects(content: bytes) -> list[Any]:
    """JSON values one after the other, on lines of their own or not; a single array's are its entries."""
    text, values = content.decode("utf-8-sig").strip(), []
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        values.append(value)
        text = text[end:].strip()
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def refused_or_sound(read: Callable[[], EvalSet], root: Path) -> EvalSet | None:
    """The set, checked as far as it can be without knowing the files; None for an error with a place."""
    try:
        eval_set = read()
    except (ValueError, OSError) as error:
        if str(root) in str(error) or root.name in str(error):
            return None
        raise
    sizes = np.diff(eval_set.gold_indptr)
    assert len(set(eval_set.query_ids)) == len(eval_set.queries) == len(sizes)
    assert len(set(eval_set.passage_ids)) == len(eval_set.passages)
    assert all(isinstance(text, str) for text in [*eval_set.queries, *eval_set.passages, *eval_set.items])
    assert len(eval_set.gold_indices) == len(eval_set.grades) == sizes.sum()
    assert all(
        (np.diff(rows) > 0).all() for rows in np.split(eval_set.gold_indices, eval_set.gold_indptr[1:])
    )
    if eval_set.queries:  # and the measures take it
        passages = np.random.default_rng(0).standard_normal((len(eval_set.passages), 4)).astype(np.float32)
        evaluate_embeddings(eval_set, passages[np.zeros(len(eval_set.queries), int)], passages)
    return eval_set
