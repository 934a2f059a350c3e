"""The command that mines. What it mines is tested in mining/test_mine.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hybridfast import mine
from hybridfast import train as train_command
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import loading

WORDS = ["red", "fox", "blue", "sea", "old", "oak", "tall", "tower", "cold", "river", "wet", "stone"]
ROWS = [
    {
        "id": f"{a}-{b}",
        "lang": lang,
        "query": f"{lang} {a} {b} ?",
        "passage": f"{lang} {a} {b} .",
        "source": "words",
        "negative_1": "of another miner",
    }
    for a, b in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
    for lang in ("de", "en")
]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Of a lexical model and the rows."""
    torch.manual_seed(0)
    model = loading.build_static(loading.train_tokenizer([row["passage"] for row in ROWS], 100), 1024)
    model.save(str(tmp_path / "model"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--device", "cpu"]


def test_rows_picture_and_words(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mined.jsonl", "mined.parquet"):
        (tmp_path / "mined.png").unlink(missing_ok=True)
        mine.main([*flags, "--scope", "same", "--output_file", str(tmp_path / "new" / name)])
        printed = capsys.readouterr().out
        assert "ParallelCorpus('rows.jsonl': 12 groups, 24 versions in 2 languages, 1 source)" in printed
        assert "count              24           72           72" in printed
        assert "0 of 24 rows have fewer than 3 negatives, 0 have none" in printed
        assert (tmp_path / "new" / "mined.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "new" / "mined.png").unlink()
    lines = [json.loads(line) for line in (tmp_path / "new" / "mined.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [
        *("id", "lang", "query", "passage", "source", "split"),
        *("negative_1", "negative_2", "negative_3"),
    ]
    tables = [ParallelCorpus.load(tmp_path / "new" / name).table for name in ("mined.jsonl", "mined.parquet")]
    assert tables[0] == tables[1]
    assert tables[0].drop_columns(["negatives"]).to_pylist() == [
        {name: row[name] for name in ("id", "lang", "query", "passage", "source")} | {"split": "train"}
        for row in ROWS
    ]
    # A word in common is what the model takes for an answer: the neighbours in the ring of words.
    for row, negatives in zip(ROWS, tables[0].column("negatives").to_pylist(), strict=True):
        words = set(row["id"].split("-"))
        assert all(text.startswith(row["lang"]) and text != row["passage"] for text in negatives)
        assert sum(bool(words & set(text.split())) for text in negatives) == 2


def test_margins_leave_gaps_and_training_takes_what_there_is(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.main([*flags, "--relative_margin", "0.5", "--output_file", str(tmp_path / "mined.jsonl")])
    assert " of 24 rows have fewer than 3 negatives" in capsys.readouterr().out
    train_command.main(
        [
            *("--data", str(tmp_path / "mined.jsonl"), "--negatives", "2", "--batch_size", "4"),
            *("--max_steps", "3", "--output_dir", str(tmp_path / "trained"), "--dimension", "8"),
        ]
    )
    assert "hard negatives" in capsys.readouterr().out.lower()
    assert (tmp_path / "trained" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_negatives", "0"], "num_negatives must be >= 1, got 0"),
        (["--range_max", "2"], "range_max must be at least range_min + num_negatives, 3, got 2"),
        (["--scope", "near"], "argument --scope: invalid choice: 'near'"),
        (["--output_file", "mined.csv"], "output_file must end in .jsonl or .parquet, got mined.csv"),
        (["--output_file", "DATA"], "rows.jsonl exists; name another one"),
        (["--model", "./missing"], "./missing: no such model folder"),
        (["--data", "./missing.jsonl"], "missing.jsonl: no such file or folder"),
        (["--range_min", "90"], "no row has a hard negative: scope all, range_min 90 leave no candidate"),
        (["--index", "Nonsense"], "index 'Nonsense'"),
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--tokens_per_chunk", "0"], "tokens_per_chunk must be >= 1, got 0"),
    ],
)
def test_what_a_user_can_get_wrong(
    flags: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    if "--index" in more:
        pytest.importorskip("faiss")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    more = [flags[3] if flag == "DATA" else flag for flag in more]
    with pytest.raises(SystemExit) as stop:
        mine.main([*flags, *more])
    err = capfd.readouterr().err
    assert stop.value.code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(work.iterdir())


def test_the_next_free_name(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        mine.main(flags)
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        *("mined-1.jsonl", "mined-1.png", "mined-2.jsonl", "mined-2.png")
    ]
