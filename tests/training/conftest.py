"""A tiny encoder and rows for it, for tests of what the trainer does with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading

ROWS = [
    {"id": str(i), "lang": lang, "query": f"Query {i} {lang} ?", "passage": f"Passage {i} : {i} {lang}"}
    for i in range(24)
    for lang in ("de", "en")
]


@pytest.fixture
def model(tiny_xlm_r: Path):
    return loading.load(str(tiny_xlm_r), device="cpu")


@pytest.fixture
def tokens(model, tmp_path: Path):
    return embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
