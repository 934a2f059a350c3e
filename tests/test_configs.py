"""Each file of configs/ against a tiny model of the architecture that it is for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from hybridfast import cli, train
from hybridfast.data import cldr
from hybridfast.studies import plan
from hybridfast.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 ids in two languages, each with a hard negative."""
    path = tmp_path_factory.mktemp("data") / "triplets.jsonl"
    words = sorted({row["passage"] for row in cldr.training_rows()[:2_200]})
    rows = [
        {
            "id": i,
            "lang": lang,
            "query": f"{words[i % 97]} {i} {lang}",
            "passage": f"{words[i % 89]} {i}",
            "negative_1": f"{words[i % 83]} no {i}",
        }
        for i in range(100)
        for lang in ("de", "en")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_architecture(name: str, tiny_xlm_r: Path, folder: Path) -> str:
    """A folder with the modules of the model that a configuration names, 32 dimensions wide."""
    if name == "paper-xlm-r":  # no SentenceTransformer: it gets mean pooling
        return str(tiny_xlm_r)
    encoder = Transformer(str(tiny_xlm_r))
    if name.startswith("multilingual-e5") or name in MIMO:
        modules = [encoder, Pooling(32, "mean"), Normalize()]
    elif name == "bge-m3-dense":
        modules = [encoder, Pooling(32, "cls"), Normalize()]
    else:
        from transformers import AutoTokenizer, BertConfig, BertModel

        words = AutoTokenizer.from_pretrained(tiny_xlm_r)
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        BertModel(BertConfig(vocab_size=len(words), pad_token_id=1, **shape)).save_pretrained(folder / "bert")
        words.save_pretrained(folder / "bert")
        dense = Dense(32, 32, activation_function=torch.nn.Tanh())
        modules = [Transformer(str(folder / "bert")), Pooling(32, "cls"), dense, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


MIMO = ["mimo-stage1", "mimo-stage2"]
NAMES = [
    "paper-xlm-r",
    "paper-labse",
    "multilingual-e5",
    "multilingual-e5-small-cpu",
    "bge-m3-dense",
    "static",
    *MIMO,
]
STUDIES = {"study-static": 22 * 7, "study-e5": 3 * 4, "study-other-domain": 5 * 8}  # and their runs


def test_all_are_here() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted([*NAMES, *STUDIES])


@pytest.mark.parametrize(("name", "runs"), STUDIES.items())
def test_a_study_is_read(name: str, runs: int) -> None:
    study = plan.read(CONFIGS / f"{name}.yaml", partial(cli.from_flags, TrainConfig))
    trained = [entry for entry in study.entries if not entry.average]
    assert sum(len(entry.points) + len(entry.seeds) - 1 for entry in trained) == runs
    (model,) = study.models
    assert {"mono": 1.0, "cross": 0.0, "hybrid-0.5": 0.5}.items() <= {
        entry.strategy: entry.alpha for entry in study.of(model)
    }.items()
    for entry in trained:
        for point in entry.points:
            assert not {*study.unseen_languages} & {*(point.config.languages or ())}


@pytest.mark.parametrize("name", NAMES)
def test_it_dry_runs(
    name: str, data: Path, tiny_xlm_r: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(CONFIGS / f"{name}.yaml")
    config = cli.parse(TrainConfig, "test", "", [file])
    # Batches of its own size would take a second each.
    flags = [file, "--data", str(data), "--batch_size", "8", "--dry_run"]
    if name != "static":  # which is built from the data
        flags += ["--model", of_architecture(name, tiny_xlm_r, tmp_path)]
    if name in MIMO:
        flags += ["--teacher", str(tiny_xlm_r)]
    train.main(flags)
    out = capsys.readouterr().out
    prompts = [config.query_prefix, config.passage_prefix]
    if name == "static":
        prompts = ["Query: ", "Passage: "]
    assert f"Prompts: {prompts[0]!r} and {prompts[1]!r}; similarity: cosine" in out
    assert ("a hard negative" in out) == (config.negatives > 0)
    assert "pairs/s" in out
    assert ("Teacher: 100 queries to embed, " in out) == (name in MIMO)
    if config.eval_steps:
        assert "Held out of training: " in out


def test_the_papers_settings_are_in_the_papers_files() -> None:
    """What arXiv 2408.10536 states; the two files differ in their model alone."""
    xlm_r, labse = (
        cli.parse(TrainConfig, "test", "", [str(CONFIGS / f"paper-{name}.yaml")])
        for name in ("xlm-r", "labse")
    )
    stated = {"batch_size": 100, "learning_rate": 3e-5, "weight_decay": 1e-2, "alpha": 0.5, "cross": "mixed"}
    stated |= {"query_prefix": "Query: ", "passage_prefix": "Passage: ", "similarity": "cosine"}
    assert {name: getattr(xlm_r, name) for name in stated} == stated
    settings = vars(xlm_r) | {"model": labse.model}
    assert settings == vars(labse)


def test_mimos_settings_are_in_mimos_files() -> None:
    """What arXiv 2605.31171 states of its two stages."""
    first, second = (cli.parse(TrainConfig, "test", "", [str(CONFIGS / f"{name}.yaml")]) for name in MIMO)
    for stage in (first, second):
        assert stage.teacher == "Qwen/Qwen3-Embedding-8B"
        assert stage.teacher_language == "en"
        assert stage.distillation_projection
    assert first.distillation_weight == 1
    stated = {"distillation_weight": 0.8, "alpha": 0, "cross": "mixed", "temperature": 1 / 20}
    stated |= {"batch_size": 2048, "learning_rate": 2e-5, "num_train_epochs": 1}
    assert {name: getattr(second, name) for name in stated} == stated
    assert second.model == "runs/mimo-stage1"
