"""Flags, YAML and output folders. What a user can get wrong ends in one line on stderr and exit code 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hybridfast import cli


@dataclass
class Settings:
    alpha: float = field(default=0.5, metadata={"help": "Share."})
    languages: list[str] | None = field(default=None, metadata={"help": "Languages."})
    compare: bool = field(default=False, metadata={"help": "All."})
    name: str | None = field(default=None, metadata={"help": "Name."})

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")


def parse(*argv: str) -> Settings:
    return cli.parse(Settings, "prog", "What it does.", list(argv))


def test_flags_and_defaults() -> None:
    assert parse() == Settings()
    assert parse("--alpha", "0.25", "--languages", "de", "en", "--compare") == Settings(
        0.25, ["de", "en"], True
    )


def test_yaml_is_overridden_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("alpha: 0.25\nlanguages: [de, en]\ncompare: true\nname: null\n")
    assert parse(str(path)) == Settings(0.25, ["de", "en"], True)
    assert parse(str(path), "--alpha", "1", "--languages", "tr") == Settings(1.0, ["tr"], True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--alpah", "1"], "error: unrecognized arguments: --alpah 1\n"),
        (["--alph", "1"], "error: unrecognized arguments: --alph 1\n"),  # no guessing
        (["--alpha", "2"], "error: alpha must be in [0, 1], got 2.0\n"),
        (["--alpha", "half"], "error: argument --alpha: invalid float value: 'half'\n"),
        (["missing.yaml"], "error: [Errno 2] No such file or directory: 'missing.yaml'\n"),
    ],
)
def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpah: 1", "unknown setting 'alpah'"),
        ("alpha: half", "argument --alpha: invalid float value: 'half'"),
        ("- alpha", "expected 'setting: value' lines, got list"),
        ("alpha: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse(str(path))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_help_shows_text_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    assert "Share. (default: 0.5)" in out


def test_an_output_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with cli.output_folder(tmp_path / "deep" / "run") as folder:
        (folder / "model").write_text("weights")
        assert not (tmp_path / "deep" / "run").exists()
    assert (tmp_path / "deep" / "run" / "model").read_text() == "weights"

    def fails_half_way() -> None:
        with cli.output_folder(tmp_path / "other") as folder:
            (folder / "model").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fails_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_the_next_free_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.next_free("hybrid") == Path("runs/hybrid-1")
    Path("runs/hybrid-1").mkdir(parents=True)
    assert cli.next_free("hybrid") == Path("runs/hybrid-2")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with cli.output_folder(tmp_path / "empty") as folder:
        (folder / "model").write_text("first")
    with (
        pytest.raises(FileExistsError, match="empty exists and is not empty"),
        cli.output_folder(tmp_path / "empty"),
    ):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file exists"):
        cli.check_output_folder(tmp_path / "file")
    assert (tmp_path / "empty" / "model").read_text() == "first"
