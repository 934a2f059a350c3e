"""The trainer, from flags to a folder. Runs are as short as still shows learning: a few seconds each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from hybridfast import train
from hybridfast.train import TrainConfig
from hybridfast.training import loop

# Enough for the embedded corpus to be half learnt: a quarter of the command's steps, half of its batch.
SHORT = ["--max_steps", "300", "--batch_size", "256", "--dimension", "64", "--vocabulary_size", "6000"]


def write_pairs(path: Path, groups: int = 40, negatives: int = 0) -> Path:
    """Parallel number words in two made-up languages, so that a model has something to align."""
    with open(path, "w") as file:
        for group in range(groups):
            for lang, stem in (("aa", "ka"), ("bb", "mo")):
                row: dict[str, Any] = {
                    "id": str(group),
                    "lang": lang,
                    "query": f"{stem}{group}",
                    "passage": f"{stem}{group} {stem}",
                }
                row |= {f"negative_{i + 1}": f"{stem}{(group + i + 1) % groups}" for i in range(negatives)}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    train.main([*SHORT, "--output_dir", str(folder)])
    return folder


def test_held_out_facts_are_found_in_other_languages(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    summary = metrics["evaluation"]["summary"]
    table = (trained / "results.md").read_text()
    untrained = next(line for line in table.splitlines() if "untrained" in line)
    mono, cross, multi = (float(cell.strip(" *")) for cell in untrained.split("|")[2:5])
    assert summary["mAP mono"] > mono + 0.1
    assert summary["mAP cross"] > cross + 0.3
    assert summary["mAP multi"] > multi + 0.2


def test_a_run_leaves_everything_that_describes_it(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"modules.json", "metrics.json", "language_pairs.png", "train_config.yaml", "results.md"} <= names
    settings = yaml.safe_load((trained / "train_config.yaml").read_text())
    assert settings["max_steps"] == 300
    assert settings["alpha"] == 0.5
    training = json.loads((trained / "metrics.json").read_text())["training"]
    assert training["pairs"] == 300 * 256
    assert training["loss"] < 1.0  # ln 256 = 5.5 at the start
    assert sorted(path.name for path in trained.parent.iterdir()) == ["short"]  # no temporary folder is left


def test_the_saved_settings_repeat_the_run_bitwise(trained: Path, tmp_path: Path) -> None:
    train.main(
        [str(trained / "train_config.yaml"), "--output_dir", str(tmp_path / "again"), "--num_workers", "0"]
    )
    texts = ["Query: currency of Japan", "日本", "Passage: Madrid"]
    first, again = (
        SentenceTransformer(str(folder)).encode(texts) for folder in (trained, tmp_path / "again")
    )
    np.testing.assert_array_equal(first, again)


def test_a_saved_model_embeds_like_the_trained_one(tmp_path: Path) -> None:
    config = TrainConfig(data=str(write_pairs(tmp_path / "pairs.jsonl")), batch_size=16, max_steps=5)
    project = train.Project(config)
    model = project.new_model(0)
    train.train(model, project.tokens, config)
    model.save(str(tmp_path / "model"))
    loaded = SentenceTransformer(str(tmp_path / "model"))
    texts = ["ka1 ka", "mo17", "unseen"]
    np.testing.assert_array_equal(loaded.encode_query(texts), model.encode_query(texts))
    np.testing.assert_array_equal(loaded.encode_document(texts), model.encode_document(texts))


def test_a_transformer_learns_from_rows(tiny_xlm_r: Path, tmp_path: Path) -> None:
    train.main(
        f"--model {tiny_xlm_r} --data {write_pairs(tmp_path / 'pairs.jsonl', negatives=2)} --negatives 2"
        " --batch_size 16 --max_steps 30 --learning_rate 3e-3"
        f" --max_query_length 100 --output_dir {tmp_path / 'run'}".split()  # cut to the model's 40
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "evaluation" not in metrics  # none was asked for
    assert metrics["environment"]["torch"]
    assert metrics["training"]["loss"] < np.log(16 * 3)
    assert SentenceTransformer(str(tmp_path / "run")).encode(["ka1"]).shape == (1, 32)


def test_eq_1_trains_on_hard_negatives_alone(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", negatives=1)
    config = TrainConfig(data=str(data), negatives=1, in_batch=False, batch_size=16, max_steps=20)
    project = train.Project(config)
    assert train.train(project.new_model(0), project.tokens, config)["loss"] < np.log(1 + 16)


def test_compare_and_seeds_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    train.main(
        f"--data {data} --eval_dataset {data} --compare --num_seeds 2 --batch_size 16"
        f" --max_steps 20 --dimension 16 --output_dir {tmp_path / 'run'}".split()
    )
    runs = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert runs == [f"{name}-seed{seed}" for name in ("cross", "hybrid", "mono") for seed in (0, 1)]
    alphas = [
        yaml.safe_load((tmp_path / "run" / run / "train_config.yaml").read_text())["alpha"] for run in runs
    ]
    assert alphas == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    table = (tmp_path / "run" / "results.md").read_text()
    assert all(name in table for name in ("untrained", "mono", "cross", "hybrid", "±"))
    assert table.strip() in capsys.readouterr().out


def test_the_last_lines_say_where_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    train.main(
        ["--data", data, "--batch_size", "8", "--max_steps", "2", "--output_dir", str(tmp_path / "run")]
    )
    out = capsys.readouterr().out
    assert f"Model: {tmp_path / 'run'}" in out
    assert "python -m hybridfast.train --compare" in out


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    monkeypatch.setattr(loop, "info_nce", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train.main(["--data", data, "--batch_size", "8", "--output_dir", str(tmp_path / "run")])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpah", "0.5"], "unrecognized arguments: --alpah 0.5"),
        (["--alpha", "1.5"], "alpha must be in [0, 1], got 1.5"),
        (["--batch_size", "1"], "batch_size must be >= 2, got 1"),
        (["--temperature", "0"], "temperature must be > 0, got 0.0"),
        (["--temperature", "nan"], "temperature must be > 0, got nan"),
        (["--max_steps", "0"], "max_steps must be >= 1, got 0"),
        (["--in_batch", "false"], "in_batch False leaves no negative"),
        (["--data", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--model", "./missing"], "./missing: no such model folder"),
        (["--eval_dataset", "xquad-r"], "dataset xquad-r needs data_dir"),
        (["--eval_dataset", "squad"], "got 'squad'"),
        (["--languages", "en", "tlh"], "tlh"),
        (["--batch_size", "100000"], "batch_size"),
        (["--lr_scheduler_type", "steep"], "steep"),
        (["missing.yaml"], "missing.yaml"),
        (["--device", "abacus"], "device 'abacus' is not to be had"),
        (["--device", "cuda:99"], "device 'cuda:99' is not to be had"),
        (["--output_dir", "FULL"], "exists and is not empty"),
    ],
)
def test_what_a_user_can_get_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("precious")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", str(pairs), *(str(full) if flag == "FULL" else flag for flag in flags)])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (full / "mine").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "pairs.jsonl"]


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than train as many models and write them to one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        train.main([])
    assert "training runs in one process, but WORLD_SIZE is 2" in capsys.readouterr().err


def test_a_corpus_error_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": "1", "lang": "en", "query": "q", "passage": "p"}\n{"id": "2"\n')
    with pytest.raises(SystemExit):
        train.main(["--data", str(path)])
    assert f"error: {path}:2: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_help_is_worth_reading(module: str) -> None:
    """Asked for in a checkout, whose sources Python finds before the installed package."""
    command = [sys.executable, "-m", f"hybridfast.{module}", "--help"]
    checkout = Path(__file__).parents[1]
    shown = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert f"python -m hybridfast.{module}" in shown
    assert "(default: None)" in shown
    assert shown.count("\n  --") > 8
