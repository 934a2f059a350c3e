"""Hybrid batches and InfoNCE inside sentence-transformers' own trainer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hybridfast import info_nce
from hybridfast.sentence_transformers import HybridBatchSampler, HybridDataset, InfoNCELoss

# 40 groups in 3 languages, some missing, two groups to a passage; texts say what they are: "q 7 de".
LANGUAGES = ("de", "en", "tr")
ROWS = [
    {
        "id": f"g{g}",
        "lang": lang,
        "anchor": f"q {g} {lang}",
        "positive": f"p {g // 2} {lang}",
        "negative_1": f"n {g}",
    }
    for g in range(40)
    for lang in LANGUAGES
    if (g + LANGUAGES.index(lang)) % 7
]


@pytest.fixture
def dataset():
    return HybridDataset(Dataset.from_list(ROWS))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_dataloader(dataset, workers):
    batches = HybridBatchSampler(dataset, 8, alpha=0.5, dedup="text", seed=1)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=list, num_workers=workers)
    seen = set()
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        got = list(loader)
        assert len(got) == len(loader) == len(batches)
        for rows, planned in zip(got, batches.hybrid.epoch(epoch), strict=True):
            for row, group, mask in zip(
                rows, planned.groups.tolist(), planned.mask_groups.tolist(), strict=True
            ):
                _, query_group, query_lang = row["anchor"].split()
                _, passage, passage_lang = row["positive"].split()
                assert (int(query_group) // 2, row["negative_1"]) == (int(passage), f"n {query_group}")
                assert int(query_group) == group
                assert row["label"] == mask
                assert (query_lang == passage_lang) == (planned.mode == "mono")
        seen.add(str(got))
    assert len(seen) == 2


def test_plain_indices_still_work(dataset):
    assert dataset.column_names == ["anchor", "positive", "negative_1"]
    assert dataset[3]["anchor"] == ROWS[3]["anchor"]
    assert [row["anchor"] for row in dataset.__getitems__([5, 6])] == [ROWS[5]["anchor"], ROWS[6]["anchor"]]


def test_another_dataset_is_refused():
    with pytest.raises(ValueError, match="train_dataset must be a HybridDataset, got Dataset"):
        HybridBatchSampler(Dataset.from_list(ROWS), 8)


def test_loss_masks_equal_labels():
    torch.manual_seed(0)
    tables = [torch.randn(6, 16) for _ in range(3)]
    labels = torch.tensor([4, 1, 4, 9, 9, 0])

    def model(features):
        return {"sentence_embedding": features["embedding"]}

    loss = InfoNCELoss(model, temperature=0.1)
    got = loss([{"embedding": table} for table in tables], labels)
    groups = torch.cat([labels, torch.arange(100, 106)])
    expected = info_nce(tables[0], torch.cat(tables[1:]), 0.1, query_groups=labels, passage_groups=groups)
    assert got == expected
    assert loss([{"embedding": table} for table in tables], None) > got


@pytest.mark.filterwarnings("default")  # of the trainer's own
def test_trainer(dataset, tmp_path):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    from hybridfast.encoder.loading import build_static, train_tokenizer

    torch.manual_seed(0)
    model = build_static(train_tokenizer((text for row in dataset for text in row.values()), 200), 32)
    assert isinstance(model, SentenceTransformer)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=30,
        per_device_train_batch_size=16,
        learning_rate=0.02,
        batch_sampler=partial(HybridBatchSampler, alpha=0.5, dedup="text"),
        report_to=[],
        save_strategy="no",
        logging_steps=5,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=dataset, loss=InfoNCELoss(model)
    )
    assert len(trainer.get_train_dataloader()) == len(ROWS) // 16
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
