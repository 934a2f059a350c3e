"""The evaluator's command. Measures themselves are tested in test_metrics.py."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder.model_kinds import KINDS
from training import processes

from hybridfast import evaluate as command
from hybridfast.encoder import embedding, loading
from hybridfast.evaluation.encode import embed, evaluate
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import evaluate_embeddings

# "fox" in two languages that share no word, and a distractor in each.
EVAL_SET = EvalSet(
    name="foxes",
    queries=["red fox", "roter fuchs"],
    query_languages=["en", "de"],
    items=["fox", "fox"],
    passages=["red fox", "blue sea", "roter fuchs", "blaues meer"],
    passage_languages=["en", "en", "de", "de"],
    gold_indptr=np.array([0, 2, 4]),
    gold_indices=np.array([0, 2, 0, 2]),
)

WRITTEN = [
    "comparison.json",
    "language_pairs.png",
    "metrics.json",
    "ranks.parquet",
    "report.html",
    "results.md",
]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = loading.build_static(loading.train_tokenizer(EVAL_SET.passages, 100), 64)
    model.save(str(tmp_path / "lexical"))
    return tmp_path / "lexical"


def test_a_lexical_model_finds_its_own_words(model_folder: Path) -> None:
    model = loading.load(str(model_folder))
    evaluation = evaluate(model, EVAL_SET, progress=False)
    assert evaluation.mono("mAP") == 1.0
    pairs = evaluation.pairs["R@1"]
    assert pairs[0, 0] == pairs[1, 1] == 1.0
    assert np.all(evaluation.rank_distance >= 1)


def test_scores_are_cosines(model_folder: Path) -> None:
    """Scaling a passage's embedding must not change its rank."""
    model = loading.load(str(model_folder))
    expected = evaluate(model, EVAL_SET, progress=False).to_dict()
    scale = torch.tensor([[0.1], [10.0], [3.0], [0.5]])
    original = model.encode_document
    model.encode_document = lambda texts, **settings: original(texts, **settings) * scale  # type: ignore[method-assign]
    assert evaluate(model, EVAL_SET, progress=False).to_dict() == expected


def test_the_command_prints_and_writes(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "facts.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": f"{text}", "lang": lang, "query": text, "passage": text}) + "\n"
            for lang, texts in {"en": ["red fox", "blue sea"], "de": ["roter fuchs"]}.items()
            for text in texts
        )
    )
    output = tmp_path / "results"
    command.main(["--model", str(model_folder), "--dataset", str(rows), "--output_dir", str(output)])
    out = capsys.readouterr().out
    assert "lexical" in out
    assert "rank distance" in out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["config"]["dataset"] == str(rows)
    assert metrics["evaluation"]["summary"]["mAP mono"] == 1.0
    assert metrics["environment"]["torch"]
    assert (output / "language_pairs.png").read_bytes().startswith(b"\x89PNG")
    low, value, high = (metrics["evaluation"]["figures"]["mAP mono"][key] for key in ("low", "value", "high"))
    assert low <= value <= high
    assert sorted(path.name for path in output.iterdir()) == WRITTEN


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """And found again by all that they depend on; equal texts are embedded once."""
    texts: list[list[str]] = []
    made = embedding.encode
    monkeypatch.setattr(embedding, "encode", lambda *a, **o: texts.append(a[2]) or made(*a, **o))
    foxes = replace(EVAL_SET, queries=["red fox", "red fox"])
    model = KINDS["BERT, mean"]()
    options: dict[str, Any] = {"folder": tmp_path / "kept", "dtype": dtype, "progress": False}
    in_memory = embed(model, foxes, progress=False)
    for _ in range(2):
        on_disk = embed(model, foxes, **options)
        assert texts == 2 * [["red fox"], foxes.passages]
        for kept, wanted in zip(on_disk, in_memory, strict=True):
            assert isinstance(kept, np.memmap)
            np.testing.assert_array_equal(kept, wanted.numpy().astype(dtype))  # type: ignore[union-attr]
    assert evaluate_embeddings(foxes, *on_disk).mono("mAP") == evaluate_embeddings(foxes, *in_memory).mono(
        "mAP"
    )
    for change, new in (
        (lambda: foxes.queries.append("blue fox"), 1),
        (lambda: setattr(model, "max_seq_length", 3), 2),
        (lambda: model.prompts.update(query="find "), 1),
        (lambda: next(model.parameters()).data.mul_(2), 2),
        (lambda: model.prompts.update(document=""), 0),
    ):
        there = set((tmp_path / "kept").iterdir())
        change()
        embed(model, foxes, **options)
        assert len(set((tmp_path / "kept").iterdir()) - there) == new


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embeddings_dtype", "float16"], "embeddings_dtype float16 needs embeddings_dir"),
        (["--dataset", "xquad"], "miracl, beir or an existing file or folder, got 'xquad'"),
        (["--dataset", "beir"], "dataset beir needs data_dir"),
        (["--dataset", "miracl"], "dataset miracl without data_dir needs languages"),
        (["--dataset", "miracl", "--languages", "xx"], "languages must be of MIRACL's, ar, bn"),
        (
            ["--dataset", "mlqa-r", "--languages", "de", "ru"],
            "MLQA-R's, ar, de, en, es, hi, vi, zh, got",
        ),
        (["--languages", "de", "fr"], "languages must be of cldr's"),
        (["--run", "a.trec"], "give one of model, run and compare"),
        (["--qrels", "a.txt"], "qrels hold no texts to encode"),
        (["--run_depth", "0"], "run_depth must be >= 1, got 0"),
        (["--dataset", "xquad-r", "--data_dir", "/missing"], "/missing"),
        (["--resamples", "0"], "resamples must be >= 1, got 0"),
        (["--compare", "a"], "give one of model, run and compare"),
        (["--baseline", "b"], "baseline must be one of lexical, got 'b'"),
        (["--eval_batch_size", "0"], "eval_batch_size must be >= 1, got 0"),
        (["--model", "./missing"], "./missing: no such model folder"),
        (["--output_dir", "FULL"], "exists and is not empty"),
    ],
)
def test_what_a_user_can_get_wrong(
    model_folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    flags = [str(model_folder) if flag == "FULL" else flag for flag in flags]
    before = sorted(path.name for path in model_folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        command.main(["--model", str(model_folder), *flags])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(path.name for path in model_folder.iterdir()) == before


def test_embeddings_that_are_not_finite_are_one_line(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loading.load(str(model_folder))
    model[0].embedding.weight.data.fill_(torch.nan)  # type: ignore[union-attr, operator]
    model.save(str(tmp_path / "diverged"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command.main(["--model", str(tmp_path / "diverged"), "--output_dir", str(tmp_path / "results")])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    message = "error: the model embeds 4,675 of 4,675 queries as NaN or infinity, the first of them '"
    assert err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "results").exists()


def test_numbers_outlive_a_picture_that_fails(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    rows = [{"id": "1", "lang": "en", "query": "red fox", "passage": "red fox"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("hybridfast.evaluation.plots.heat_map", fail)
    flags = ["--dataset", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "results")]
    with pytest.raises(RuntimeError, match="no font"):
        command.main(["--model", str(model_folder), *flags])
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["metrics.json", "ranks.parquet"]
    text = (tmp_path / "results" / "metrics.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)["evaluation"]["summary"]
    assert (summary["mAP mono"], summary["mAP cross"]) == (1.0, None)  # one language has no other
    assert f"RuntimeError: what there was by then is in {tmp_path / 'results'}" in capsys.readouterr().err


def write_rows(path: Path) -> Path:
    texts = {"en": ["red fox", "blue sea", "red sea"], "de": ["roter fuchs", "blaues meer", "rotes meer"]}
    rows = [
        {"id": str(i), "lang": lang, "query": text, "passage": text}
        for lang, of_language in texts.items()
        for i, text in enumerate(of_language)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())["evaluation"]["summary"]


def test_a_written_run_is_evaluated_like_the_model(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--dataset", str(write_rows(tmp_path / "rows.jsonl"))]
    ours, theirs, alone = (tmp_path / name for name in ("ours", "theirs", "alone"))
    command.main(["--model", str(model_folder), *rows, "--write_run", "True", "--output_dir", str(ours)])
    assert len((ours / "run.trec").read_text().splitlines()) == 36
    assert len((ours / "qrels.trec").read_text().splitlines()) == 12
    run = ["--run", str(ours / "run.trec")]
    command.main([*run, *rows, "--output_dir", str(theirs)])
    assert summary(ours).keys() == summary(theirs).keys()
    assert summary(theirs)["mAP mono"] == summary(ours)["mAP mono"] == 1  # no ties in a language
    # Without the data set: languages from tables.
    table = tmp_path / "de.tsv"
    passages = {line.split()[2] for line in (ours / "qrels.trec").read_text().splitlines()}
    table.write_text("".join(f"{name} de\n" for name in sorted(passages)[3:]))
    asked = tmp_path / "asked.tsv"
    asked.write_text("0-de de\n1-de de\n2-de de\n")
    qrels = ["--qrels", str(ours / "qrels.trec"), "--passage_languages", str(table)]
    capsys.readouterr()
    command.main(
        [*run, *qrels, "--query_languages", str(asked), "--language", "en", "--output_dir", str(alone)]
    )
    assert summary(alone) == summary(theirs)
    assert "| run |" in capsys.readouterr().out


def test_an_index_reports_its_recall(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rows = ["--dataset", str(write_rows(tmp_path / "rows.jsonl"))]
    output = ["--output_dir", str(tmp_path / "out"), "--run_depth", "2", "--write_run", "True"]
    command.main(["--model", str(model_folder), *rows, "--index", "hnsw", *output])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["index"].keys() == {"kind", "depth", "recall_of_exact"}
    assert metrics["index"]["depth"] == 2
    assert 0.5 <= metrics["index"]["recall_of_exact"] <= 1
    assert "hnsw: recall@2 against exact search" in capsys.readouterr().out
    assert len((tmp_path / "out" / "run.trec").read_text().splitlines()) == 12


def test_two_processes_find_what_one_finds(model_folder: Path, tmp_path: Path) -> None:
    """As torchrun starts them: each embeds a part and ranks for a part, and the first one writes."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, processes.WORDS)))
    common = ["--model", str(model_folder), "--dataset", str(rows), "--embeddings_dir"]
    alone = tmp_path / "alone"
    command.main([*common, str(tmp_path / "embedded"), "--output_dir", str(alone)])
    ranks = [
        processes.start(
            [*common, str(tmp_path / "shared"), "--output_dir", str(tmp_path / "both")],
            tmp_path / f"output-{rank}",
            environment=environment,
            command="evaluate",
        )
        for rank, environment in enumerate(processes.environments(2))
    ]
    for rank, process in enumerate(ranks):
        process.join()
        assert process.exitcode == 0, (tmp_path / f"output-{rank}").read_text()
    both = tmp_path / "both"
    assert sorted(path.name for path in both.iterdir()) == WRITTEN
    evaluations = [
        json.loads((folder / "metrics.json").read_text())["evaluation"] for folder in (alone, both)
    ]
    assert evaluations[0] == evaluations[1]
    assert "mAP mono" in (tmp_path / "output-0").read_text()
    assert "mAP mono" not in (tmp_path / "output-1").read_text()


def test_what_a_reader_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qrels").write_text("q 0 a 1\nr 0 a 0\n")
    (tmp_path / "run").write_text("q Q0 a 1 0.5 x\nz Q0 a 1 0.5 x\n")
    flags = ["--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels"), "--language", "en"]
    command.main([*flags, "--output_dir", str(tmp_path / "out")])
    notes = [
        "1 queries without a relevant passage are left out; the first: 'r'",
        "1 lines of the run name queries that are not in the set; they are left out; the first: 'z' at "
        f"{tmp_path / 'run'}:2",
    ]
    assert capsys.readouterr().out.splitlines()[:2] == notes
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"] == notes


def rows_file(folder: Path) -> str:
    """Four facts in two languages, whose passages share no word with each other."""
    texts = {"en": ["red fox", "blue sea", "old tree", "warm sun"], "de": ["fuchs", "meer", "baum", "sonne"]}
    rows = [
        {"id": str(i), "lang": lang, "query": text, "passage": f"{text} {lang}"}
        for lang, of in texts.items()
        for i, text in enumerate(of)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


def test_models_side_by_side_and_again_from_their_ranks(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    loading.build_static(loading.train_tokenizer(["warm sun", "meer"], 60), 8).save(str(other))
    rows, both = rows_file(tmp_path), tmp_path / "both"
    flags = ["--dataset", rows, "--resamples", "50"]
    command.main(
        ["--model", str(model_folder), str(other), *flags, "--baseline", "other", "--output_dir", str(both)]
    )
    out = capsys.readouterr().out
    assert "differs from other: sign-flip test over questions" in out
    assert "4 questions, 50 resamples" in out
    assert sorted(path.name for path in both.iterdir()) == [
        "comparison.json",
        "lexical",
        "other",
        "report.html",
        "results.md",
    ]
    assert json.loads((both / "lexical" / "metrics.json").read_text())["config"]["model"] == str(model_folder)
    for runs in ([both], [both / "lexical", both / "other"]):
        again = tmp_path / f"again-{len(runs)}"
        settings = ["--resamples", "50", "--baseline", "other", "--output_dir", str(again)]
        command.main(["--compare", *map(str, runs), *settings])
        for name in ("comparison.json", "results.md"):
            assert (again / name).read_text() == (both / name).read_text()
        # The page is the same too, with the texts of the worst questions, but for the command that made it.
        pages = [re.sub(r"<pre>.*?</pre>", "", (of / "report.html").read_text()) for of in (again, both)]
        assert pages[0] == pages[1]
        assert "--compare" in (again / "report.html").read_text()
        assert "Hash of weights, lexical" in pages[0]
    with pytest.raises(SystemExit):
        command.main(["--compare", str(both), "--baseline", "third", "--output_dir", str(tmp_path / "no")])
    assert "baseline must be one of lexical, other, got 'third'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--compare", str(tmp_path / "missing")])
    assert "missing holds no ranks.parquet" in capsys.readouterr().err
