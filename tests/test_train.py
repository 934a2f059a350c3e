"""The trainer, from flags to a folder. Runs are as short as still shows learning: a few seconds each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from hybridfast import train
from hybridfast.encoder import loading
from hybridfast.evaluation import readers
from hybridfast.evaluation.encode import evaluate
from hybridfast.evaluation.metrics import evaluate_embeddings
from hybridfast.train import TrainConfig
from hybridfast.training import loop, objective, project

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
    mono, cross, multi = (float(cell.split()[0]) for cell in untrained.split("|")[2:5])
    assert summary["mAP mono"] > mono + 0.1
    assert summary["mAP cross"] > cross + 0.3
    assert summary["mAP multi"] > multi + 0.2


def test_a_run_leaves_everything_that_describes_it(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"modules.json", "metrics.json", "language_pairs.png", "train_config.yaml", "results.md"} <= names
    page = (trained / "report.html").read_text()
    assert all(f"<th>{name}</th>" in page or f">{name}</th>" in page for name in ("untrained", "hybrid"))
    assert "Hash of weights, hybrid" in page
    settings = yaml.safe_load((trained / "train_config.yaml").read_text())
    assert settings["max_steps"] == 300
    assert settings["alpha"] == 0.5
    training = json.loads((trained / "metrics.json").read_text())["training"]
    assert training["pairs"] == 300 * 256
    assert training["loss"] < 1.0  # ln 256 = 5.5 at the start
    assert sorted(path.name for path in trained.parent.iterdir()) == ["short"]  # no temporary folder is left


def test_the_saved_settings_repeat_the_run_bitwise(trained: Path, tmp_path: Path) -> None:
    train.main(
        [
            *(str(trained / "train_config.yaml"), "--output_dir", str(tmp_path / "again")),
            *("--num_workers", "0", "--eval_dataset", "none"),
        ]
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


def test_hard_negatives_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_pairs(tmp_path / "with.jsonl", negatives=1))
    train.Project(TrainConfig(data=data, batch_size=16))
    assert "in the data, none is used; --negatives N takes N a pair" in capsys.readouterr().out
    train.Project(TrainConfig(data=data, batch_size=16, negatives=2))
    assert "in the data, 2 a pair at most" in capsys.readouterr().out
    data = str(write_pairs(tmp_path / "without.jsonl"))
    with pytest.raises(ValueError, match="negatives must be 0, got 1: the data has no hard negatives"):
        train.Project(TrainConfig(data=data, batch_size=16, negatives=1, in_batch=False))


def test_compare_and_seeds_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    train.main(
        f"--data {data} --eval_dataset {data} --compare --num_seeds 2 --batch_size 16"
        f" --max_steps 20 --dimension 16 --output_dir {tmp_path / 'run'}".split()
    )
    runs = sorted(path.parent.name for path in (tmp_path / "run").glob("*/modules.json"))
    assert runs == [f"{name}-seed{seed}" for name in ("cross", "hybrid", "mono") for seed in (0, 1)]
    alphas = [
        yaml.safe_load((tmp_path / "run" / run / "train_config.yaml").read_text())["alpha"] for run in runs
    ]
    assert alphas == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    table = (tmp_path / "run" / "results.md").read_text()
    assert all(name in table for name in ("untrained", "mono", "cross", "hybrid", "±"))
    assert "interval over questions and seeds" in table
    assert "differs from mono" in table
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
    monkeypatch.setattr(objective, "info_nce", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train.main(["--data", data, "--batch_size", "8", "--output_dir", str(tmp_path / "run")])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def small_run(tmp_path: Path, *flags: Any, data: Path | None = None) -> Path:
    """A few steps on number words; the folder they leave."""
    data = data or write_pairs(tmp_path / "pairs.jsonl")
    folder = tmp_path / "run"
    small = ["--batch_size", "8", "--max_steps", "4", "--dimension", "8", "--eval_before", "false"]
    train.main(["--data", str(data), *small, "--output_dir", str(folder), *map(str, flags)])
    return folder


def metrics_of(folder: Path) -> Any:
    """As strict readers of JSON see them."""
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def loss_is_nan_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, info_nce = [0], objective.info_nce

    def diverging(*args: Any, **options: Any) -> Any:
        steps[0] += 1
        return info_nce(*args, **options) * (float("nan") if steps[0] == step else 1.0)

    monkeypatch.setattr(objective, "info_nce", diverging)


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_is_nan_at(3, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        small_run(tmp_path)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: hybrid: the loss is nan at step 3 (epoch 0, batch 2: ids '")
    assert message.endswith(f"; the model as it was before is in {tmp_path / 'run'}")
    weights = load_file(tmp_path / "run" / "model.safetensors").values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert (tmp_path / "run" / "train_config.yaml").is_file()


def test_a_loss_that_never_was_finite_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_is_nan_at(1, monkeypatch)
    with pytest.raises(SystemExit):
        small_run(tmp_path)
    assert "hybrid: the loss is nan at step 1 (epoch 0, batch 0" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_loss_that_is_not_finite_costs_no_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_is_nan_at(4 + 1, monkeypatch)  # the second run's first
    with pytest.raises(SystemExit):
        small_run(tmp_path, "--compare")
    assert "cross: the loss is nan at step 1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mono"]
    assert SentenceTransformer(str(tmp_path / "run" / "mono")).encode(["ka1"]).shape == (1, 8)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("broken", ["evaluate", "plots.heat_map"])
@pytest.mark.parametrize("several", [["--compare"], ["--num_seeds", "2"], []])
def test_an_evaluation_that_ends_early_costs_no_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException,
    broken: str,
    several: list[str],
) -> None:
    calls = []

    def fails(*_: Any, **__: Any) -> None:
        calls.append(1)
        if len(calls) == (2 if several else 1):
            raise failure

    path = "hybridfast.evaluation.plots.heat_map"
    if broken == "evaluate":
        path, whole = "hybridfast.training.project.evaluate", project.evaluate
        monkeypatch.setattr(path, lambda *args, **options: fails() or whole(*args, **options))
    else:
        monkeypatch.setattr(path, fails)
    data = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(type(failure)):
        small_run(tmp_path, "--eval_dataset", data, *several, data=data)
    names = {"--compare": ["mono", "cross"], "--num_seeds": ["hybrid-seed0", "hybrid-seed1"]}
    for name in names[several[0]] if several else ["."]:
        folder = tmp_path / "run" / name
        assert SentenceTransformer(str(folder)).encode(["ka1"]).shape == (1, 8)
        metrics = metrics_of(folder)
        assert metrics["training"]["steps"] == 4
        assert ("evaluation" in metrics) == (broken != "evaluate" or name in ("mono", "hybrid-seed0"))
    assert (tmp_path / "run" / "results.md").is_file() == (broken != "evaluate" or bool(several))
    told = f"{type(failure).__name__}: what there was by then is in {tmp_path / 'run'}"
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "run"]


def test_a_model_that_embeds_nan_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a last step that went too far, no loss tells."""

    def diverges(model: SentenceTransformer, *args: Any, **options: Any) -> dict[str, Any]:
        figures = loop.train(model, *args, **options)
        for weight in model.parameters():
            weight.data.fill_(torch.nan)
        return figures | {"loss": float("nan")}

    monkeypatch.setattr("hybridfast.training.running.train", diverges)
    data = write_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(SystemExit) as stop:
        small_run(tmp_path, "--eval_dataset", data, data=data)
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: hybrid: the model embeds 80 of 80 queries as NaN or infinity")
    assert message.endswith(f"; the model is in {tmp_path / 'run'}")
    assert metrics_of(tmp_path / "run")["training"]["loss"] is None


def test_a_model_that_is_saved_by_half_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = SentenceTransformer.save, []

    def fails(self: SentenceTransformer, path: str, *args: Any, **options: Any) -> None:
        save(self, path, *args, **options)
        saved.append(path)
        if len(saved) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(SentenceTransformer, "save", fails)
    with pytest.raises(OSError, match="no space left"):
        small_run(tmp_path, "--compare")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mono"]


def test_infinity_is_no_json(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "--max_grad_norm", "inf")
    assert metrics_of(folder)["config"]["max_grad_norm"] is None
    assert yaml.safe_load((folder / "train_config.yaml").read_text())["max_grad_norm"] == float("inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_of_half_precision_learns_as_one_of_float32(
    tiny_xlm_r: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    loading.load(str(tiny_xlm_r), device="cpu").to(dtype).save(str(tmp_path / "half"))
    assert next(iter(load_file(tmp_path / "half" / "model.safetensors").values())).dtype == dtype
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    losses = []
    for folder in (tiny_xlm_r, tmp_path / "half"):
        config = TrainConfig(
            model=str(folder), data=data, batch_size=16, max_steps=20, learning_rate=1e-4, device="cpu"
        )
        own = train.Project(config)
        model = own.new_model(0)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        before = [weight.detach().clone() for weight in model.parameters()]
        losses.append(train.train(model, own.tokens, config)["loss"])
        changed = [(a != b).sum().item() for a, b in zip(before, model.parameters(), strict=True)]
        assert sum(changed) > 0.3 * sum(weight.numel() for weight in before)  # most words are not in the data
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_evaluated_as_they_are_saved(tmp_path: Path, dtype: str) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    folder = small_run(tmp_path, "--eval_dataset", data, "--save_dtype", dtype, data=data)
    (weight,) = load_file(folder / "model.safetensors").values()
    assert weight.dtype == getattr(torch, dtype)
    evaluation = evaluate(loading.load(str(folder), device="cpu").to(weight.dtype), readers.load(str(data)))
    told = metrics_of(folder)["evaluation"]
    assert {name: told[name] for name in evaluation.to_dict()} == evaluation.to_dict()


def test_inner_products_are_trained_evaluated_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, info_nce = [], objective.info_nce

    def spied(queries: Any, passages: Any, temperature: float, **options: Any) -> Any:
        seen.append((temperature, options["normalize"]))
        return info_nce(queries, passages, temperature, **options)

    monkeypatch.setattr(objective, "info_nce", spied)
    data = write_pairs(tmp_path / "pairs.jsonl")
    folder = small_run(tmp_path, "--eval_dataset", data, "--similarity", "dot", data=data)
    assert set(seen) == {(1.0, False)}
    assert "similarity: dot" in capsys.readouterr().out
    model, eval_set = SentenceTransformer(str(folder), device="cpu"), readers.load(str(data))
    assert model.similarity_fn_name == "dot"
    queries = torch.as_tensor(model.encode_query(eval_set.queries))
    passages = torch.as_tensor(model.encode_document(eval_set.passages))
    by_inner_product = evaluate_embeddings(eval_set, queries, passages).to_dict()
    assert metrics_of(folder)["evaluation"]["summary"] == pytest.approx(by_inner_product["summary"])
    cosines = [torch.nn.functional.normalize(rows, dim=1) for rows in (queries, passages)]
    assert evaluate_embeddings(eval_set, *cosines).to_dict()["pairs"] != by_inner_product["pairs"]


@pytest.mark.parametrize(
    ("own", "flags", "used"),
    [
        (None, [], ("Query: ", "Passage: ")),
        (None, ["--query_prefix", "Q: "], ("Q: ", "Passage: ")),
        (None, ["--query_prefix", "", "--passage_prefix", ""], ("", "")),
        (("ask: ", "text: "), [], ("ask: ", "text: ")),
        (("ask: ", "text: "), ["--passage_prefix", "P: "], ("ask: ", "P: ")),
        (("ask: ", ""), [], ("ask: ", "")),
        (("ask: ", ""), ["--query_prefix", "Q: "], ("Q: ", "")),
    ],
)
def test_prompts_are_the_models_own(
    tiny_xlm_r: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    own: tuple[str, str] | None,
    flags: list[str],
    used: tuple[str, str],
) -> None:
    model = loading.load(str(tiny_xlm_r), device="cpu")
    if own:
        loading.set_prompts(model, *own)
    model.save(str(tmp_path / "own"))
    folder = small_run(tmp_path, "--model", tmp_path / "own", *flags)
    assert f"Prompts: {used[0]!r} and {used[1]!r}; similarity: cosine" in capsys.readouterr().out
    saved = SentenceTransformer(str(folder))
    assert (saved.prompts["query"], saved.prompts["document"]) == used


def test_lengths_are_saved_with_the_model(tiny_xlm_r: Path, tmp_path: Path) -> None:
    flags = ["--max_query_length", "5", "--max_passage_length", "7", "--query_prefix=", "--passage_prefix="]
    model = SentenceTransformer(str(small_run(tmp_path, "--model", tiny_xlm_r, *flags)))
    text = "What is the currency of Japan and of Germany ?"
    assert model.preprocess([text], task="query")["input_ids"].shape == (1, 5)
    assert model.preprocess([text], task="document")["input_ids"].shape == (1, 7)
    np.testing.assert_allclose(
        model.encode_query([text]), model.encode_query(["What is the banana"[:11]]), atol=1e-6
    )


@pytest.mark.parametrize("model", ["static", "tiny"])
def test_batches_without_a_hard_negative(tiny_xlm_r: Path, tmp_path: Path, model: str) -> None:
    """Where one of 40 ids has one, most batches have none."""
    data = write_pairs(tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["negative_1"] = "ka7 mo"
    data.write_text("\n".join(map(json.dumps, rows)))
    name = tiny_xlm_r if model == "tiny" else model
    folder = small_run(tmp_path, "--model", name, "--negatives", 1, "--num_train_epochs", 2, data=data)
    assert metrics_of(folder)["training"]["steps"] == 20


def test_a_model_with_nothing_to_train_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = loading.build_static
    monkeypatch.setattr(loading, "build_static", lambda *a, **k: build(*a, **k).requires_grad_(False))
    with pytest.raises(SystemExit) as stop:
        small_run(tmp_path)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "error: the model has no weights to train: every one of them is frozen"
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_saved_settings_with_model_kwargs_repeat_the_run(tiny_xlm_r: Path, tmp_path: Path) -> None:
    kwargs = '{"attn_implementation": "eager"}'
    folder = small_run(tmp_path, "--model", tiny_xlm_r, "--model_kwargs", kwargs)
    again = tmp_path / "again"
    train.main([str(folder / "train_config.yaml"), "--output_dir", str(again)])
    first, second = (load_file(path / "model.safetensors") for path in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert metrics_of(again)["config"]["model_kwargs"] == kwargs


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpah", "0.5"], "unrecognized arguments: --alpah 0.5"),
        (["--alpha", "1.5"], "alpha must be in [0, 1], got 1.5"),
        (["--batch_size", "1"], "batch_size must be >= 2, got 1"),
        (["--temperature", "0"], "temperature must be > 0, got 0.0"),
        (["--learning_rate", "inf"], "learning_rate must be > 0, got inf"),
        (["--num_train_epochs", "inf"], "num_train_epochs must be in (0, 2**32), got inf"),
        (["--temperature", "nan"], "temperature must be > 0, got nan"),
        (["--max_steps", "0"], "max_steps must be >= 1, got 0"),
        (["--in_batch", "false"], "in_batch False leaves no negative"),
        (["--data", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--data", ""], "the corpus needs a name, got ''"),
        (["--model", "./missing"], "./missing: no such model folder"),
        (["--model", ""], "model must be a folder or a hub name, got ''"),
        (["--output_dir", "full/mine/run"], "full/mine is no folder to write in"),
        (["--eval_dataset", "beir"], "dataset beir needs data_dir"),
        (["--eval_dataset", "squad"], "got 'squad'"),
        (["--languages", "en", "tlh"], "tlh"),
        (["--batch_size", "100000"], "batch_size"),
        (["--lr_scheduler_type", "steep"], "steep"),
        (["missing.yaml"], "missing.yaml"),
        (["--device", "abacus"], "device 'abacus' is not to be had"),
        (["--device", "cuda:99"], "device 'cuda:99' is not to be had"),
        (["--output_dir", "FULL"], "exists and is not empty"),
        (
            ["--model", "TINY", "--model_kwargs", '{"attention": 1}'],
            'model_kwargs {"attention": 1}: XLMR',
        ),
    ],
)
def test_what_a_user_can_get_wrong(
    tiny_xlm_r: Path,
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
    folders = {"FULL": str(full), "TINY": str(tiny_xlm_r)}
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", str(pairs), *(folders.get(flag, flag) for flag in flags)])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (full / "mine").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "pairs.jsonl"]


def test_a_rank_without_its_others_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than train as many models and write them to one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        train.main([])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MASTER_ADDR expected" in line


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
    assert "None" not in shown
    assert "(default: 256)" in shown
    assert shown.count("\n  --") > 8
