"""What --dry_run says, against what can be counted by hand; its times are whatever they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hybridfast import train


def write_rows(path: Path) -> Path:
    """40 groups in two languages; a query has 2 words, but every tenth has 5; a passage 3."""
    rows = [
        {"id": i, "lang": lang, "query": "word " * (5 if i % 10 == 0 else 2), "passage": "word word word"}
        for i in range(40)
        for lang in ("en", "de")
        if i or lang == "en"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_says_what_comes_and_leaves_nothing(
    tiny_xlm_r: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_rows(tmp_path / "rows.jsonl")
    train.main(
        f"--model {tiny_xlm_r} --data {data} --batch_size 8 --dedup group --alpha 1 --query_prefix Q "
        "--passage_prefix P --num_train_epochs 3 --num_seeds 2 --tokens_per_chunk 40 --dry_run".split()
    )
    out = capsys.readouterr().out
    assert "Batches: 9 an epoch, of 8 pairs; 27 steps are 3 epochs" in out  # 79 versions
    assert "Languages: de 98%, en 100% of the groups" in out
    # <s>, the words of which the first has the prompt glued to it, </s>
    assert re.search(
        r"Tokens in 9 batches: 4\.\d a query \(longest 7, \d+\.\d% of them\), 5\.0 a passage", out
    )
    assert re.search(r"padding \d\.\d% of the places", out)
    assert re.search(
        r"Memory: weights 0\.00 GB, .* activations 0\.00 GB, 0 chunks of a batch encoded again", out
    )
    assert re.search(
        r"Time: .* s a step, .* pairs/s; \d+ min \d\d s for 27 steps, and as much for each of 1 other", out
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_loss_that_is_not_finite_is_one_line(
    tiny_xlm_r: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit):
        train.main(
            f"--model {tiny_xlm_r} --data {data} --batch_size 8 --learning_rate 1e30 --warmup_ratio 0"
            " --dedup group --dry_run".split()
        )
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: the loss is (nan|inf) at step \d ", last)


def test_of_a_static_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    train.main(f"--data {data} --batch_size 8 --dedup group --max_steps 5000 --dimension 8 --dry_run".split())
    out = capsys.readouterr().out
    assert "padding" not in out  # there is none
    assert re.search(r"for 5,000 steps\n", out)


def test_second_texts_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    train.main(
        f"--data {data} --batch_size 8 --dedup group --max_steps 40 --dimension 8 --alignment_weight 0.5 "
        "--alpha_schedule 0 1 --query_prefix Q --passage_prefix P --dry_run".split()
    )
    out = capsys.readouterr().out
    assert re.search(r"a query \(.*, 4\.0 a passage \(.* a second query \(.*, 4\.0 a second passage \(", out)
