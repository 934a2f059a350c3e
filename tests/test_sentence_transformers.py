"""Hybrid batches and InfoNCE inside sentence-transformers' own trainer."""

from __future__ import annotations

import csv
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch.utils.data import ConcatDataset, DataLoader

from hybridfast import info_nce
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder.loading import build_static, train_tokenizer
from hybridfast.evaluation import evaluate
from hybridfast.evaluation.rows import from_corpus
from hybridfast.sentence_transformers import HybridBatchSampler, HybridDataset, HybridEvaluator, InfoNCELoss

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


def test_keys_survive_processes_and_joined_datasets(dataset):
    (keys, *_) = HybridBatchSampler(dataset, 8, alpha=0.5, seed=1)
    rows = dataset.__getitems__(keys)
    joined = ConcatDataset([dataset, dataset])
    moved = pickle.loads(pickle.dumps([key + len(dataset) for key in keys]))
    assert [joined[key] for key in keys] == [joined[key] for key in moved] == rows
    assert any(row["anchor"].split()[2] != row["positive"].split()[2] for row in rows)


def test_rows_are_refused_as_they_are():
    message = "train_dataset must be a HybridDataset, got Dataset; make it one: HybridDataset"
    with pytest.raises(ValueError, match=message):
        HybridBatchSampler(Dataset.from_list(ROWS), 8)


def test_another_dataset_gets_default_batches():
    pairs = Dataset.from_list([{"anchor": f"q {i}", "positive": f"p {i}"} for i in range(10)])
    with pytest.warns(UserWarning, match="a Dataset of anchor, positive gets .* default batches"):
        batches = HybridBatchSampler(pairs, 4, drop_last=False, alpha=0.5)
    batches.set_epoch(1)
    assert len(batches) == 3
    assert sorted(index for batch in batches for index in batch) == list(range(10))


def test_passages_of_one_item_share_a_label():
    rows = [
        {"id": f"{i}", "lang": lang, "anchor": f"q {i} {lang}", "positive": f"p {i} {lang} {k}"}
        for i in range(10)
        for lang in ("de", "en")
        for k in range(1 + i % 3)
    ]
    dataset = HybridDataset(rows)
    met = set()
    for batch in HybridBatchSampler(dataset, 5, alpha=0.5, dedup=None):
        labels = {}
        for row in dataset.__getitems__(batch):
            item, passage = row["anchor"].split()[1], row["positive"].split()
            assert passage[1] == item
            assert labels.setdefault(item, row["label"]) == row["label"]
            met.add((item, passage[3]))
        assert len(set(labels.values())) == len(labels)
    assert len({passage for item, passage in met if item == "2"}) > 1


def with_negatives(*counts):
    return [
        {"id": f"{i}", "lang": "en", "anchor": f"q {i}", "positive": f"p {i}"}
        | {f"negative_{n}": f"n {i} {n}" for n in range(1, count + 1)}
        for i, count in enumerate(counts)
    ]


def test_columns_are_those_that_every_row_fills():
    message = "0 of 4 rows have no hard negative, 3 fewer than 3; columns of them kept: 1. Pass negatives=N"
    with pytest.warns(UserWarning, match=message):
        dataset = HybridDataset(with_negatives(1, 3, 2, 2))
    assert dataset.column_names == ["anchor", "positive", "negative_1"]
    assert len(dataset) == 4
    with pytest.warns(UserWarning, match="1 of 3 rows have no hard negative, 1 fewer than 2; .* kept: 0"):
        dataset = HybridDataset(with_negatives(0, 2, 2))
    assert dataset.column_names == ["anchor", "positive"]
    assert HybridDataset(with_negatives(2, 2)).column_names[2:] == ["negative_1", "negative_2"]  # no warning


def test_rows_are_those_that_fill_the_columns():
    with pytest.warns(UserWarning, match="left out: 1 of 4 rows, with fewer than 2 hard negatives"):
        dataset = HybridDataset(with_negatives(1, 3, 2, 2), negatives=2)
    assert dataset["anchor"][:] == ["q 1", "q 2", "q 3"]
    assert dataset["negative_2"][:] == ["n 1 2", "n 2 2", "n 3 2"]
    (batch,) = HybridBatchSampler(dataset, 3)
    for row in dataset.__getitems__(batch):
        assert row["anchor"][2:] == row["positive"][2:] == row["negative_1"][2:3]
    assert HybridDataset(with_negatives(0, 2), negatives=0).column_names == ["anchor", "positive"]
    with pytest.raises(ValueError, match="negatives=3, but no row has more than 2 hard negatives"):
        HybridDataset(with_negatives(1, 2), negatives=3)
    with pytest.raises(ValueError, match="negatives must be >= 0 or None, got -1"):
        HybridDataset(with_negatives(1), negatives=-1)


def test_a_passage_of_its_own_id_is_no_hard_negative():
    rows = [
        {"id": "0", "lang": lang, "anchor": lang, "positive": f"p {lang}", "negatives": ["p de", "n 0"]}
        for lang in ("de", "en")
    ]
    assert HybridDataset(rows)[:]["negative_1"] == ["n 0", "n 0"]


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


class Embedded(torch.nn.Module):
    """A model whose embedding of a text depends on its token ids alone."""

    def forward(self, features):
        tables = [torch.from_numpy(text).double().sin() for text in padded(features)]
        return {"sentence_embedding": torch.stack(tables)}


def padded(features):
    ids = features["input_ids"].numpy()
    if "offsets" in features:
        texts = np.split(ids, features["offsets"].numpy()[1:])
    else:
        masks = features["attention_mask"].numpy().astype(bool)
        texts = [row[mask] for row, mask in zip(ids, masks, strict=True)]
    return [np.pad(text, (0, 8 - len(text))) * np.arange(1, 9) for text in texts]


def features_of(texts, layout):
    ids = [torch.tensor(text) for text in texts]
    lengths = torch.tensor([len(text) for text in texts])
    if layout == "flat":
        return {"input_ids": torch.cat(ids), "offsets": lengths.cumsum(0) - lengths}
    side = layout.removeprefix("padded ")
    nested = {"input_ids": ids, "attention_mask": [torch.ones_like(text) for text in ids]}
    return {
        name: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side=side)
        for name, parts in nested.items()
    }


@pytest.mark.parametrize("layout", ["flat", "padded left", "padded right"])
@pytest.mark.parametrize("labels", [None, [7, 5, 7, 3]])
def test_a_hard_negative_that_is_a_passage_is_none(layout, labels):
    """Equal ids are an equal text, whatever else its column is padded to."""
    queries = [[1], [2, 3], [4], [5, 6, 7]]
    passages = [[11, 12], [13], [14], [15, 16]]
    negatives = [[11, 12], [13, 13, 13, 13], [15, 16], [12, 11]]  # the 1st and the 3rd are passages
    others = [[14], [18], [19], [20]]  # the 1st is a passage
    features = [features_of(texts, layout) for texts in (queries, passages, negatives, others)]
    got = InfoNCELoss(Embedded(), temperature=0.3)(features, labels and torch.tensor(labels))
    own = labels or [0, 1, 2, 3]
    groups = [*own, own[0], -1, own[3], -2, own[2], -3, -4, -5]
    tables = [Embedded()(column)["sentence_embedding"] for column in features]
    expected = info_nce(
        tables[0],
        torch.cat(tables[1:]),
        0.3,
        query_groups=torch.tensor(own),
        passage_groups=torch.tensor(groups),
    )
    assert got == expected
    assert got < info_nce(tables[0], torch.cat(tables[1:]), 0.3)


def test_equal_passages_are_no_negatives_of_each_other():
    columns = [features_of(texts, "flat") for texts in ([[1], [2], [3]], [[4], [5], [4]])]
    queries, passages = (Embedded()(column)["sentence_embedding"] for column in columns)
    groups = torch.tensor([0, 1, 0])
    expected = info_nce(queries, passages, query_groups=groups, passage_groups=groups)
    assert InfoNCELoss(Embedded())(columns, None) == expected
    with pytest.raises(ValueError, match="labels must be integers, which name groups, got"):
        InfoNCELoss(Embedded())(columns, torch.ones(3))


def test_the_loss_compares_as_the_model_does():
    model = build_static(train_tokenizer(["a b c"], 20), 8)
    assert InfoNCELoss(model).get_config_dict() == {"temperature": 0.05, "normalize": True}
    model.similarity_fn_name = "dot"
    assert InfoNCELoss(model).get_config_dict() == {"temperature": 1.0, "normalize": False}
    assert InfoNCELoss(model, 0.1, normalize=True).get_config_dict() == {
        "temperature": 0.1,
        "normalize": True,
    }
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match="the model compares by 'euclidean'"):
        InfoNCELoss(model)
    assert InfoNCELoss(model, normalize=False).get_config_dict()["temperature"] == 1.0


def arguments(folder, **settings):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", **settings}
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        batch_sampler=partial(HybridBatchSampler, alpha=0.5, dedup="text"),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )


@pytest.mark.filterwarnings("default", "ignore:a Dataset of anchor")  # of the trainer's own
@pytest.mark.parametrize("strategy", ["proportional", "round_robin"])
@pytest.mark.parametrize("losses", [1, 2])
def test_trainer_of_several_datasets(dataset, tmp_path, strategy, losses):
    """Hybrid ones beside a plain one, each with its own prompts and perhaps its own loss."""
    model = build_static(train_tokenizer((text for row in dataset for text in row.values()), 200), 8)
    pairs = Dataset.from_list([{"anchor": f"q {i}", "positive": f"p {i}"} for i in range(20)])
    data = {"news": dataset, "wiki": HybridDataset(ROWS[:50]), "pairs": pairs}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(
            tmp_path,
            multi_dataset_batch_sampler=strategy,
            prompts={"news": {"anchor": "Query: "}, "wiki": {"positive": "Passage: "}},
        ),
        train_dataset=data,
        loss=InfoNCELoss(model) if losses == 1 else {name: InfoNCELoss(model) for name in data},
    )
    seen = [
        (batch["dataset_name"], len(batch.get("label", ())), batch.get("negative_1_input_ids") is not None)
        for batch in trainer.get_train_dataloader()
    ]
    assert set(seen) == {("news", 4, True), ("wiki", 4, True), ("pairs", 0, False)}
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "modules.json").is_file()


@pytest.mark.filterwarnings("default", "ignore:a Dataset of anchor")
def test_evaluation_on_plain_pairs(dataset, tmp_path):
    model = build_static(train_tokenizer((text for row in dataset for text in row.values()), 200), 8)
    pairs = [{"anchor": f"q {i} de", "positive": f"p {i // 2} en"} for i in range(8)]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8),
        train_dataset=dataset,
        eval_dataset={"pairs": Dataset.from_list(pairs), "hybrid": dataset},
        loss=InfoNCELoss(model),
    )
    trainer.train()
    with pytest.warns(UserWarning, match="default batches, as an eval_dataset may"):
        got = trainer.evaluate()["eval_pairs_loss"]
    queries, passages = (
        torch.from_numpy(model.encode([row[name] for row in pairs])) for name in ("anchor", "positive")
    )
    groups = torch.arange(8) // 2
    expected = info_nce(queries, passages, query_groups=groups, passage_groups=groups)
    assert got == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.filterwarnings("default")
def test_trainer(dataset, tmp_path):
    torch.manual_seed(0)
    model = build_static(train_tokenizer((text for row in dataset for text in row.values()), 200), 32)
    assert isinstance(model, SentenceTransformer)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(
            tmp_path,
            max_steps=-1,
            num_train_epochs=30,
            per_device_train_batch_size=16,
            learning_rate=0.02,
            logging_steps=5,
        ),
        train_dataset=dataset,
        loss=InfoNCELoss(model),
    )
    assert len(trainer.get_train_dataloader()) == len(ROWS) // 16
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def evaluation_set():
    return from_corpus(
        ParallelCorpus.from_rows(
            [
                {"id": r["id"], "lang": r["lang"], "query": r["anchor"], "passage": r["positive"]}
                for r in ROWS
            ],
            name="news",
        )
    )


def test_the_evaluator_gives_the_figures_of_an_evaluation(tmp_path):
    eval_set = evaluation_set()
    model = build_static(train_tokenizer(eval_set.passages, 200), 16)
    evaluator = HybridEvaluator(eval_set)
    assert evaluator.primary_metric == "news_mAP_multi"
    got = evaluator(model, str(tmp_path), epoch=1, steps=7)
    expected = {
        f"news_{name.replace(' ', '_')}": value for name, value in evaluate(model, eval_set).summary().items()
    }
    assert got == pytest.approx(expected)
    assert 0 < got[evaluator.primary_metric] < 1
    evaluator(model, str(tmp_path), epoch=2, steps=14)
    text = (tmp_path / "hybrid_evaluation_news_results.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [row["steps"] for row in table] == ["7", "14"]
    assert float(table[0]["mAP_multi"]) == got["news_mAP_multi"]
    assert float(table[0]["rank_distance"]) == got["news_rank_distance"]


def test_the_evaluator_says_what_it_cannot_give():
    eval_set = evaluation_set()
    assert not HybridEvaluator(eval_set, "", primary_metric="rank_distance").greater_is_better
    with pytest.raises(ValueError, match=r"primary_metric must be one of mAP_mono, .*, got 'ndcg'"):
        HybridEvaluator(eval_set, primary_metric="ndcg")
    german = eval_set.of_languages(["de"])
    model = build_static(train_tokenizer(eval_set.passages, 200), 16)
    assert "news_mAP_cross" not in HybridEvaluator(german)(model)
    with pytest.raises(ValueError, match="news does not define the primary_metric news_mAP_cross"):
        HybridEvaluator(german, primary_metric="mAP_cross")(model)


@pytest.mark.filterwarnings("default")
def test_the_trainer_chooses_by_the_evaluator(dataset, tmp_path):
    model = build_static(train_tokenizer((text for row in dataset for text in row.values()), 200), 16)
    evaluator = HybridEvaluator(evaluation_set())
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments(
            tmp_path,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_news_mAP_multi",
        ),
        train_dataset=dataset,
        loss=InfoNCELoss(model),
        evaluator=evaluator,
    )
    trainer.train()
    found = [log["eval_news_mAP_multi"] for log in trainer.state.log_history if "eval_news_mAP_multi" in log]
    assert found
    assert trainer.state.best_metric == max(found)
    assert evaluator(model)["news_mAP_multi"] == pytest.approx(max(found))
