"""Chunks of texts give the loss and the gradients of one big batch, with little padding."""

from __future__ import annotations

import warnings
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
        queries_QD, passages_ND, *_ = Chunks(model, sides, places).embed(batch)
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
        loss = info_nce(*chunks.embed(batch)[:2])
        loss.backward()
        after = torch.rand(1)
        found.append(
            [loss.detach(), after, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        assert (chunks.recomputed > 0) == (memory < 1e9)
        assert chunks.kept_bytes <= max(memory, chunks.bytes_per_place * 50)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "kind", ["BERT, mean", "DistilBERT", "MPNet", "T5 encoder", "Qwen2, padded left, last token"]
)
def test_dropout_does_not_depend_on_chunks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed or padded, a token has the masks of its place: all at once, in chunks, or layers run again."""
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = KINDS[kind]()
    for module in model.modules():  # some architectures come without
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.2
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    sides = embedding.sides(model, tokens)
    batch = HybridSampler(tokens, batch_size=12, alpha=0.0, negatives=1, layout="flat")[0, 0]
    model.eval()
    without = info_nce(*Chunks(model, sides).embed(batch, 1)[:2]).item()
    model.train()
    losses, norms = [], []
    for places, layers_again in ((10**9, False), (60, False), (60, True)):
        if layers_again:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        chunks = Chunks(model, sides, places, seed=5)
        loss = info_nce(*chunks.embed(batch, 1)[:2])
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    for norm in norms[1:]:
        torch.testing.assert_close(norm, norms[0], rtol=1e-4, atol=0)
    other = info_nce(*Chunks(model, sides, seed=5).embed(batch, 2)[:2]).item()
    assert len({round(value, 6) for value in (without, losses[0], other)}) == 3


def test_what_dropout_does_not_reach_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    model = KINDS["word embeddings, LSTM"]()
    model[1].encoder.dropout = 0.1
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    sides = embedding.sides(model, tokens)
    model.train()
    chunks = Chunks(model, sides)
    batch = HybridSampler(tokens, batch_size=12, alpha=0.0, layout="flat")[0, 0]
    with pytest.warns(UserWarning, match=r"dropout of 1\.encoder: its masks depend on chunks"):
        chunks.embed(batch, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks.embed(batch, 2)


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
