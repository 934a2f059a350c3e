"""The command that looks at data. What it counts is tested in inspection/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridfast import inspect

LANGUAGES = ("de", "en", "tr")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve items in German and English, three of them in Turkish; two are of the split dev."""
    rows = [
        {
            "id": str(i),
            "lang": lang,
            "query": f"Query {i}" if lang == "tr" else f"{lang} Query {i}",
            "passage": "Passage " * (i + 1) + lang if i else "the same",
            "source": "even" if i % 2 == 0 else "odd",
            "split": "dev" if i >= 10 else "train",
        }
        for i in range(12)
        for lang in (LANGUAGES if i < 3 else LANGUAGES[:2])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    inspect.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(line) <= 100 for line in out.splitlines())
    return out


def test_all_of_it(data: Path, tiny_xlm_r: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = tmp_path / "held_out.jsonl"
    row = {"id": "x", "lang": "en", "query": "EN query: 3!", "passage": "new"}
    held_out.write_text(json.dumps(row) + "\n")
    output = tmp_path / "new" / "found.json"
    out = run(
        capsys,
        *(data, "--batch_size", 4, "--model", tiny_xlm_r, "--device", "cpu", "--query_prefix", ""),
        *("--passage_prefix", "", "--max_passage_length", 9, "--against", held_out),
        *("--output_file", output),
    )
    lines = out.splitlines()
    assert lines[0] == ("rows.jsonl: 23 rows to train on, 10 groups of 10 items, 3 languages, 2 sources")
    assert lines[1] == "Not trained on: 4 rows of the split dev, 0 of test"
    assert "tr      3     30.0 %    7.0     7        7     17.3    26       26" in lines
    assert "Groups by their number of languages: 2: 7 (70.0 %), 3: 3 (30.0 %)" in lines
    assert "tr   3   3   3" in lines
    assert "  monolingual: refused for tr 3 groups; the largest batch_size is 3" in lines
    assert "  cross mixed: 10 groups in two or more languages fill them" in lines
    assert "  cross paired: left out de-tr 3, en-tr 3" in lines
    # 4 to 13 with <s> and </s>, 85 in all, four of ten longer than 9; of them the vocabulary lacks "same".
    assert "de      10   8.5     8    12    13       13  40.0 %    1.2 %      0.14  1.00" in lines
    assert "tr       3   5.0     5     6     6        6   0.0 %   20.0 %      0.17  1.00" in lines
    assert "Against held_out.jsonl, 1 queries and 1 passages:" in lines
    assert f"{'queries equal to queries':<31}{0:>13}{0:>11}{1:>18}{1:>11}" in lines
    worries = out[out.index("What should worry you:") :].replace("\n  ", " ").splitlines()
    assert "- languages in less than half of the groups: tr 30.0 %" in worries
    assert (
        "- 40.0 % of de passages are longer than 9 tokens: --max_passage_length 13 would keep 99 %" in worries
    )
    assert "- 1 row with a text of held_out.jsonl, 0 to the letter" in worries
    assert lines[-1] == f"Numbers: {output}"

    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert list(found) == [
        *("name", "settings", "splits", "coverage", "batches", "characters", "tokens", "duplicates"),
        *("against", "notes"),
    ]
    assert found["splits"] == {"train": 23, "dev": 4, "test": 0}
    assert found["settings"]["batch_size"] == 4
    assert found["tokens"]["passage"]["limit"] == 9
    assert found["against"][0]["normalised"]["query_query"]["languages"] == {"en": 1}
    assert [f"- {note}" for note in found["notes"]] == worries[1 : 1 + len(found["notes"])]
    # The rows of the split dev are compared too: none of their texts is trained on.
    assert found["against"][1]["queries"] == 4
    assert found["against"][1]["normalised"]["any"]["rows"] == 0


def test_some_languages_without_a_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--data", data, "--languages", "DE", "tr", "--batch_size", 3)
    assert out.startswith("rows.jsonl: 13 rows to train on, 10 groups of 10 items, 2 languages, 2 sources")
    assert "Tokens" not in out
    assert "rows whose passage" not in out
    assert "  cross mixed: 3 groups in two or more languages fill them" in out
    # The first item's passage is the same in both languages.
    assert "passages equal to those of another language of the item, perhaps not translated: tr 33.3 %" in out


def test_nothing_to_worry_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": str(i), "lang": lang, "query": f"{lang} {i}?", "passage": f"{lang} {i}."}
        for i in range(2)
        for lang in ("de", "en")
    ]
    settings = tmp_path / "settings.yaml"
    settings.write_text("batch_size: 2\n")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(capsys, tmp_path / "pairs.jsonl", settings)
    assert out.endswith("What should worry you:\n- nothing\n")


def test_many_columns_are_folded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = [f"l{i}-Latn" for i in range(24)]
    rows = [{"id": "1", "lang": tag, "query": f"q {tag}", "passage": f"p {tag}"} for tag in tags]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(capsys, tmp_path / "pairs.jsonl")
    assert out.count("\nl23-Latn") == 1 + 3  # a row of the languages, and of the matrix in three parts


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["./missing.jsonl"], "missing.jsonl: no such file or folder"),
        (["DATA", "--languages", "fr"], "languages must be some of de, en, tr, got fr"),
        (["DATA", "--batch_size", "1"], "batch_size must be >= 2, got 1"),
        (["DATA", "--sample", "-1"], "sample must be >= 0, got -1"),
        (["DATA", "--max_query_length", "9"], "max_query_length 9 needs model"),
        (["DATA", "--model", "./missing"], "./missing: no such model folder"),
        (["DATA", "--model", "static"], "model static learns its vocabulary in training"),
        (["DATA", "--against", "xquad-r=./missing"], "XQuAD-R folder missing does not exist"),
        (
            ["DATA", "--against", "squad"],
            "dataset must be cldr, xquad-r, mlqa-r, miracl, beir or an existing",
        ),
        (["DATA", "--output_file", "DATA"], "rows.jsonl exists; name another one"),
        (["DATA", "--alpha", "1"], "unrecognized arguments: --alpha 1"),
    ],
)
def test_what_a_user_can_get_wrong(
    data: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(data) if word == "DATA" else word for word in argv])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_bad_row_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text('{"id": 1, "lang": "en", "query": "q", "passage": "p"}\n{"id": 1}\n')
    with pytest.raises(SystemExit):
        inspect.main([str(data)])
    assert f"{data}:2: column 'lang' is missing" in capsys.readouterr().err


def test_no_row_to_train_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.write_text('{"id": 1, "lang": "en", "query": "q", "passage": "p", "split": "test"}\n')
    with pytest.raises(SystemExit):
        inspect.main([str(data)])
    assert "the split of all rows is dev or test" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        inspect.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "python -m hybridfast.inspect [DATA] [SETTINGS.yaml] [--flag value ...]" in out
    assert "--against" in out
