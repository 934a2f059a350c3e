"""Chunks of texts give the loss and the gradients of one big batch, with little padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoder import model_kinds
from encoder.model_kinds import KINDS, ROWS

from hybridfast import HybridSampler, info_nce
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training.chunks import Chunks


@pytest.mark.filterwarnings("default")  # of models that are made up
@pytest.mark.parametrize(
    "kind",
    [
        "BERT, mean",
        "BERT, CLS",
        "BERT, prompt not pooled",
        "BERT, Dense, Normalize",
        "XLM-R",
        "MPNet",
        "DistilBERT",
        "ModernBERT",
        "T5 encoder",
        "Qwen2, padded left, last token",
        "Qwen2, padded right, last token",
        "Router, two encoders",
        "static",
    ],
)
def test_gradients_are_those_of_one_big_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, in float64, but that some models norm in float32: 12 rows in chunks of 50 places."""
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = KINDS[kind]().eval()
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    sides = embedding.sides(model, tokens)
    model.double()
    batch = HybridSampler(tokens, batch_size=12, alpha=0.0, negatives=1, layout="flat")[0, 0]
    found = []
    for places in (10**9, 50):
        model.zero_grad()
        queries_QD, passages_ND = Chunks(model, sides, places).embed(batch)
        assert queries_QD.shape[0] == 12
        assert passages_ND.shape[0] == 12 + len(batch.negatives["offsets"])
        loss = info_nce(queries_QD, passages_ND)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (whole, wanted), (chunked, got) = found
    torch.testing.assert_close(chunked, whole, rtol=1e-7, atol=0)
    largest = max(float(grad.norm()) for grad in wanted)
    assert len(got) == len(wanted) > 0
    assert largest > 0
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() <= 1e-6 * max(float(other.norm()), 1e-2 * largest)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["BERT, mean", "MPNet", "ModernBERT", "Router, two encoders"])
def test_any_memory_gives_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: what is computed again drops the same, and what comes after it as well."""
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = KINDS[kind]()
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    sides = embedding.sides(model, tokens)
    model.train()
    batch = HybridSampler(tokens, batch_size=12, alpha=0.0, negatives=1, layout="flat")[0, 0]
    found = []
    for memory in (1e9, 100e3, 0.0):
        model.zero_grad()
        torch.manual_seed(0)
        chunks = Chunks(model, sides, 50, memory)
        loss = info_nce(*chunks.embed(batch))
        loss.backward()
        after = torch.rand(1)
        found.append(
            [loss.detach(), after, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        assert (chunks.recomputed > 0) == (memory < 1e9)
        assert chunks.kept_bytes <= max(memory, chunks.bytes_per_place * 50)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_a_batch_keeps_no_more_than_its_memory(tiny_xlm_r: Path, tmp_path: Path) -> None:
    """By what autograd holds: 64 pairs keep several chunks' activations, or one chunk's."""
    model = loading.load(str(tiny_xlm_r), device="cpu").train()
    rows = [
        {"id": str(i), "lang": "en", "query": f"Query {i} ? " * 5, "passage": f"Passage {i} : " * 9}
        for i in range(64)
    ]
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=tmp_path, progress=False)
    sides = embedding.sides(model, tokens)
    model.train()
    batch = HybridSampler(tokens, batch_size=64, alpha=1.0, layout="flat")[0, 0]
    held = []
    for memory in (1e9, 0.0):
        sizes: dict[int, int] = {}

        def seen(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        chunks = Chunks(model, sides, 320, memory)
        chunks.embed(batch)  # which measures
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            kept = chunks.embed(batch)
        held.append(sum(sizes.values()))
        del kept
    assert held[1] < 0.2 * held[0]
