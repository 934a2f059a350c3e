"""Twenty steps against sentence-transformers' loss on the same texts, and a batch learnt by heart."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training import objective
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler, train

LANGUAGES = ("de", "en")
ROWS = [
    {
        "id": str(i),
        "lang": lang,
        "query": f"What is {i} {lang} ?",
        "passage": f"Passage {i} : the {i}" * (1 + i % 3),
    }
    for i in range(64)
    for lang in LANGUAGES
]


@pytest.fixture
def model(tiny_xlm_r: Path):
    model = loading.load(str(tiny_xlm_r), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_twenty_steps_are_those_of_sentence_transformers(model, tmp_path, monkeypatch):
    """Equal losses and weights: same batches, AdamW, schedule and clipping, by other code in every part."""
    theirs, before = copy.deepcopy(model), copy.deepcopy(model)
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    config = TrainConfig(
        batch_size=16,
        max_steps=20,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_ratio=0.0,
        temperature=0.05,
        lr_scheduler_type="constant",
        dedup="group",
        tokens_per_chunk=100,
    )
    losses, texts = [], {(row["id"], row["lang"]): row for row in ROWS}
    own = objective.info_nce

    def noted(*arguments, **options):
        loss = own(*arguments, **options)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(objective, "info_nce", noted)
    train(model, tokens, config)
    criterion = MultipleNegativesRankingLoss(theirs, scale=20.0)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0)
    theirs.train()
    ids, languages = tokens.group_ids(), tokens.languages
    with make_sampler(tokens, config) as sampler:
        batches = [batch for epoch in range(10) for batch in sampler.epoch(epoch)][:20]
    for step, batch in enumerate(batches):
        sides = []
        for column, of_rows in (("query", batch.query_languages), ("passage", batch.passage_languages)):
            rows = zip(batch.groups.tolist(), of_rows.tolist(), strict=True)
            sides.append(theirs.preprocess([texts[ids[g], languages[at]][column] for g, at in rows]))
        loss = criterion(sides, None)
        assert losses[step] == pytest.approx(loss.item(), rel=2e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), other, start in zip(
        model.named_parameters(), theirs.parameters(), before.parameters(), strict=True
    ):
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding
            continue
        assert (mine - other).norm() <= 0.02 * (other - start).norm(), name


def test_a_batch_is_learnt_by_heart(model, tmp_path):
    """Eight pairs of different words, again and again: the loss goes to nothing."""
    rows = [row for row in ROWS if int(row["id"]) < 8]
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=tmp_path, progress=False)
    config = TrainConfig(batch_size=8, max_steps=150, learning_rate=3e-3, temperature=0.05, alpha=1.0)
    assert train(model, tokens, config)["loss"] < 0.05
