"""Validation on the way: on what, with which figures, and what is left in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybridfast import info_nce, train
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.evaluation import rows
from hybridfast.evaluation.encode import encode, evaluate
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.training import loop, objective
from hybridfast.training.checkpoint import Checkpoints
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.validation import Validation, figures_of, hold_out

WORDS = [
    {"id": str(i), "lang": lang, "query": f"{stem}{i}", "passage": f"{stem}{i} {stem}"}
    for i in range(60)
    for lang, stem in (("aa", "ka"), ("bb", "mo"))
]
SPLITS = {0: "dev", 1: "Validation", 2: "test", 3: "train", 4: None, 5: "17"}
WITH_SPLIT = [row | {"split": SPLITS.get(int(row["id"]))} for row in WORDS]


def ids(corpus: ParallelCorpus) -> set[str]:
    return set(corpus.table.column("id").to_pylist())


def test_rows_that_say_dev_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, WITH_SPLIT)))
    for corpus in (ParallelCorpus.from_rows(WITH_SPLIT), ParallelCorpus.load(tmp_path / "rows.jsonl")):
        training, dev = hold_out(corpus, TrainConfig(eval_steps=5))
        assert ids(training) == {str(i) for i in range(3, 60)}
        assert dev is not None
        assert set(dev.items) == {"0", "1"}
        assert len(dev.queries) == 4
        training, dev = hold_out(corpus, TrainConfig())  # nor where nobody validates
        assert ids(training) == {str(i) for i in range(3, 60)}
        assert dev is None


def test_a_share_of_the_ids_in_all_languages() -> None:
    corpus = ParallelCorpus.from_rows(WORDS)
    config = TrainConfig(eval_steps=5, validation_split=0.1)
    training, dev = hold_out(corpus, config)
    assert dev is not None
    assert len(dev.queries) == 2 * 6
    assert set(dev.items) == ids(corpus) - ids(training)
    assert sorted(dev.query_languages) == ["aa"] * 6 + ["bb"] * 6
    other = hold_out(
        ParallelCorpus.from_rows(WORDS[::-1]), TrainConfig(eval_steps=1, seed=3, validation_split=0.1)
    )
    assert ids(other[0]) == ids(training)
    assert len(ids(hold_out(corpus, TrainConfig(eval_steps=5, validation_split=0.001))[0])) == 59


def golds(eval_set: EvalSet, query: int) -> list[int]:
    return eval_set.gold_indices[eval_set.gold_indptr[query] : eval_set.gold_indptr[query + 1]].tolist()


@pytest.mark.parametrize("kind", ["static", "tiny"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_figures_are_those_of_evaluate(tiny_xlm_r: Path, kind: str, similarity: str) -> None:
    rows_ = ParallelCorpus.from_rows(
        [
            {
                "id": str(i),
                "lang": lang,
                "query": "What currency " * (i % 3) + f"is {i}",
                "passage": f"{i} of Japan",
            }
            for i in range(20)
            for lang in ("de", "en")
        ]
    )
    torch.manual_seed(0)
    if kind == "static":
        model = loading.build_static(loading.train_tokenizer(rows_.texts(), 100), 8)
    else:
        model = loading.load(str(tiny_xlm_r), device="cpu")
    loading.set_similarity(model, similarity)
    loading.set_prompts(model, "What is ", "of ")
    tokens = embedding.tokenize(model, rows_, progress=False)
    sides = embedding.sides(model, tokens)
    dev = rows.from_corpus(rows_)
    validation = Validation(dev, sides, 8)
    model.train()
    # So few places that most texts are a chunk of their own.
    chunks = Chunks(model, sides, tokens_per_chunk=16)
    got = validation.of(model, chunks)
    assert model.training
    assert got == figures_of(evaluate(model, dev, progress=False))

    # Losses by hand, of all pairs in one batch: one for each language, and one of both.
    def loss(queries, passages, query_groups, passage_groups):
        sizes.append(len(queries))
        return info_nce(
            queries.double(), passages.double(), 0.1, query_groups=query_groups, passage_groups=passage_groups
        )

    sizes: list[int] = []
    losses = Validation(dev, sides, 1000).of(model, chunks, loss)
    assert sizes == [20, 20, 40]
    queries, passages = (
        torch.nn.functional.normalize(rows.double(), dim=1)
        for rows in encode(model, dev.queries, dev.passages, batch_size=64, progress=False)
    )
    scores_QN = queries @ passages.T / 0.1
    for kind in ("mono", "cross"):
        each = []
        for query, language in enumerate(dev.query_languages):
            answers = [
                row
                for row in golds(dev, query)
                if (dev.passage_languages[row] == language) == (kind == "mono")
            ]
            negatives = [
                row
                for row in range(len(dev.passages))
                if row not in golds(dev, query)
                and (kind == "cross" or dev.passage_languages[row] == language)
            ]
            assert len(answers) == 1
            logits = scores_QN[query, answers + negatives]
            each.append(-logits.log_softmax(0)[0].item())
        assert losses[f"loss {kind}"] == pytest.approx(sum(each) / len(each), rel=1e-5)


def runner(tmp_path: Path, **settings) -> Callable[..., dict]:
    """A run whose settings, model and validation set are always the same."""
    config = TrainConfig(**{"batch_size": 16, "max_steps": 24, "eval_steps": 3, **settings})
    training, dev = hold_out(ParallelCorpus.from_rows(WORDS), TrainConfig(eval_steps=3, validation_split=0.2))
    torch.manual_seed(0)
    model = loading.build_static(loading.train_tokenizer(training.texts(), 200), 8)
    tokens = embedding.tokenize(model, training, progress=False)
    assert dev is not None
    validation = Validation(dev, embedding.sides(model, tokens), 16)

    def run(**options) -> dict:
        figures = loop.train(model, tokens, config, folder=tmp_path, validation=validation, **options)
        return figures | {"after": figures_of(evaluate(model, dev, progress=False))}

    return run


def seen(tmp_path: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.mark.parametrize("metric", ["mAP multi", "rank distance"])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_model_is_left(tmp_path: Path, metric: str, ema: float) -> None:
    """A rate so high that later steps are worse than earlier ones."""
    figures = runner(tmp_path, metric_for_best_model=metric, learning_rate=1.0, ema_decay=ema)()
    values = seen(tmp_path, f"validation/{metric}")
    assert [step for step, _ in values] == list(range(3, 25, 3))
    choose = min if "distance" in metric else max
    step, value = choose(values, key=lambda pair: pair[1])
    assert step < 24  # else nothing is shown
    assert figures["best_step"] == step
    assert figures["validation"][metric] == value
    assert figures["after"] == pytest.approx(
        {name: value for name, value in figures["validation"].items() if "loss" not in name}
    )
    assert figures["time/evaluation"] > 0


def test_it_stops_when_nothing_gets_better_and_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "metric_for_best_model": "mAP multi",
        "early_stopping_patience": 2,
        "learning_rate": 1.0,
        "save_steps": 4,
        "max_steps": 300,
        "logging_steps": 1,
    }
    whole = runner(tmp_path / "whole", **settings)()
    values = seen(tmp_path / "whole", "validation/mAP multi")
    assert [step for step, _ in values[-3:]] == [whole["best_step"] + 3 * n for n in range(3)]
    assert whole["steps"] == whole["best_step"] + 6 < 300
    assert max(values[:-2], key=lambda pair: pair[1])[0] == whole["best_step"]

    steps, info_nce = [0], objective.info_nce

    def failing(*args, **options):
        steps[0] += torch.is_grad_enabled()  # not of a validation
        if steps[0] == whole["best_step"] + 5:
            raise RuntimeError("power cut")
        return info_nce(*args, **options)

    monkeypatch.setattr(objective, "info_nce", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        runner(tmp_path / "cut", **settings)()
    monkeypatch.undo()
    state = Checkpoints(tmp_path / "cut").newest()
    assert state is not None
    assert state["best"]["step"] == whole["best_step"]
    again = runner(tmp_path / "cut", **settings)(resume=state)
    assert (again["best_step"], again["steps"], again["after"]) == (
        whole["best_step"],
        whole["steps"],
        whole["after"],
    )
    for name in ("loss", "validation/mAP multi"):
        assert seen(tmp_path / "cut", name) == seen(tmp_path / "whole", name)
    stopped = Checkpoints(tmp_path / "cut").newest()  # where it has stopped, no step is left
    assert stopped is not None
    assert runner(tmp_path / "cut", **settings)(resume=stopped)["after"] == whole["after"]


def test_a_command_that_validates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, WITH_SPLIT)))
    argv = ["--data", str(data), "--batch_size", "8", "--max_steps", "12", "--dimension", "8"]
    argv += [
        "--eval_steps",
        "5",
        "--metric_for_best_model",
        "MRR cross",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    train.main(argv)
    out = capsys.readouterr().out
    assert "Held out of training: 6 versions" in out
    assert "Validation every 5 steps: 4 queries, 4 passages of pairs.jsonl" in out
    assert [step for step, _ in seen(tmp_path / "run", "validation/mAP cross")] == [5, 10, 12]
    assert "validation" in json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--eval_steps", "5"],
            "eval_steps 5 has nothing to validate on: no row of pairs.jsonl has the split",
        ),
        (["--eval_steps", "5", "--validation_dataset", "squad"], "got 'squad'"),
        (
            ["--eval_steps", "5", "--validation_split", "0.1", "--metric_for_best_model", "mAP"],
            "metric_for_best_model must be one of those defined on pairs.jsonl, mAP mono, mAP cross",
        ),
        (
            *(
                ["--eval_steps", "5", "--validation_split", "0.1", "--metric_for_best_model", "mAP cross"],
                "metric_for_best_model must be one of those defined on pairs.jsonl, mAP mono, mAP multi",
            ),
        ),
        (["--validation_split", "0.1"], "validation_split 0.1 needs eval_steps"),
        (["--metric_for_best_model", "mAP multi"], "metric_for_best_model mAP multi needs eval_steps"),
        (
            ["--eval_steps", "5", "--early_stopping_patience", "2"],
            "early_stopping_patience needs metric_for_best_model",
        ),
        (
            ["--eval_steps", "5", "--validation_split", "0.1", "--validation_dataset", "cldr"],
            "validation_split 0.1 and validation_dataset: one of them is meant",
        ),
    ],
)
def test_what_cannot_be_validated_on_is_said_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    data = tmp_path / "pairs.jsonl"
    own = [row for row in WORDS if row["lang"] == "aa" or "mAP cross" not in flags]
    data.write_text("\n".join(map(json.dumps, own)))
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", str(data), "--batch_size", "8", "--output_dir", str(tmp_path / "run"), *flags])
    err = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(err) == 1
    assert message in err[0]
    assert not (tmp_path / "run").exists()
