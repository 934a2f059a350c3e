"""Flags, YAML and output folders. What a user can get wrong ends in one line on stderr and exit code 2."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import yaml

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


TEXTS = (
    "no", "No", "yes", "on", "OFF", "y", "n", "true", "2024-01-01", "1:30", "010", "0x1F", "1_000", "1e3",
    "7.10", "012:00:00", "-x", "--alpha", "a: b", "Query: ", "norsk # bokmål",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_arrives_as_it_was_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    written = text if ": " not in text and "#" not in text else repr(text)
    if text.startswith("-"):
        path.write_text(f"name: {written}\n", encoding="utf-8")
        assert parse(str(path)) == Settings(name=text)
        return
    path.write_text(f"name: {written}\nlanguages: [{written}, en]\n", encoding="utf-8")
    assert parse(str(path)) == Settings(name=text, languages=[text, "en"])


@pytest.mark.parametrize("name", [*TEXTS, "", "null", "~", ".inf", None])
@pytest.mark.parametrize("alpha", [0.5, 1e-30, 1])
def test_saved_settings_are_read_back(tmp_path: Path, name: str | None, alpha: float) -> None:
    languages = None if name is None or name.startswith("-") else [name, "no"]
    settings = Settings(alpha, languages, True, name)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(asdict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert parse(str(path)) == settings


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", True), ("no", False), ("on", True), ("off", False), ("ON", True), ("true", True),
        ("False", False), ("y", True), ("1", True), ("null", False), ("~", False), ("", False),
    ],
)  # fmt: skip
def test_a_truth_value_has_yamls_words(tmp_path: Path, written: str, value: bool) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"compare: {written}\n")
    assert parse(str(path)).compare is value
    if written not in ("null", "~", ""):
        assert parse("--compare", written).compare is value


def test_numbers_of_yaml(tmp_path: Path) -> None:
    @dataclass
    class Numbers:
        norm: float = 1.0
        steps: int = 1

    path = tmp_path / "settings.yaml"
    for norm, value in (
        (".inf", float("inf")),
        ("-.INF", -float("inf")),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-1", -1.0),
    ):
        path.write_text(f"norm: {norm}\nsteps: 12_000\n")
        assert cli.parse(Numbers, "prog", "", [str(path)]) == Numbers(value, 12_000)
    path.write_text(yaml.safe_dump({"norm": float("inf"), "steps": 3}))
    assert cli.parse(Numbers, "prog", "", [str(path)]) == Numbers(float("inf"), 3)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing\n")
    assert parse(str(path)) == Settings()


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
        ("alpah: 1", "settings.yaml:1: unknown setting 'alpah'"),
        ("alpha: half", "argument --alpha: invalid float value: 'half'"),
        ("- alpha", "expected 'setting: value' lines, got a sequence"),
        ("alpha", "expected 'setting: value' lines, got a scalar"),
        ("compare: yes\nalpha: 1\ncompare: no", "settings.yaml:3: setting 'compare' appears twice"),
        ("name: {a: b}", "settings.yaml:1: name holds a mapping where a value is meant"),
        ("\nlanguages: [de, [en]]", "settings.yaml:2: languages holds a sequence where a value is meant"),
        ("languages: [de, null]", "settings.yaml:1: languages holds null where a value is meant"),
        ("compare: perhaps", "argument --compare: Truthy value expected"),
        ("alpha: 1:30", "argument --alpha: invalid float value: '1:30'"),
        ("name: [no, en]", "unrecognized arguments: en"),
        ("? [alpha]\n: 1", "settings.yaml:1: a setting's name holds a sequence where a value is meant"),
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


@dataclass
class Sectioned(Settings):
    SECTIONS = {"name": "Names"}  # noqa: RUF012

    loud: bool = field(default=True, metadata={"help": "Shout."})


def test_help_has_sections_and_says_no_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(Sectioned, "prog", "What it does.", ["--help"])
    first, second = capsys.readouterr().out.split("\nNames:\n")
    assert "--alpha" in first
    assert "--name NAME" in second
    assert "Shout. (default: True)" in second
    assert "The same as --loud False.\n" in second
    assert "None" not in first + second
    assert cli.parse(Sectioned, "prog", "", ["--no_loud", "--name", "x"]).loud is False


def test_an_output_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with cli.output_folder(tmp_path / "deep" / "run") as output:
        (output.folder / "model").write_text("weights")
        assert not (tmp_path / "deep" / "run").exists()
    assert (tmp_path / "deep" / "run" / "model").read_text() == "weights"

    def fails_half_way() -> None:
        with cli.output_folder(tmp_path / "other") as output:
            (output.folder / "model").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fails_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_the_next_free_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.next_free("hybrid") == Path("runs/hybrid-1")
    Path("runs/hybrid-1").mkdir(parents=True)
    assert cli.next_free("hybrid") == Path("runs/hybrid-2")


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with cli.output_folder(tmp_path / "empty") as output:
        (output.folder / "model").write_text("first")
    with (
        pytest.raises(SystemExit),
        cli.output_folder(tmp_path / "empty"),
    ):
        pass
    assert "empty exists and is not empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file exists"):
        cli.check_output_folder(tmp_path / "file")
    assert (tmp_path / "empty" / "model").read_text() == "first"


def test_what_is_to_be_kept_outlives_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with cli.output_folder(tmp_path / "run") as output:
            (output.folder / "model").write_text("weights")
            output.keep = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "run" / "model").read_text() == "weights"
    assert capsys.readouterr().err == f"KeyboardInterrupt: what there was by then is in {tmp_path / 'run'}\n"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_name_taken_meanwhile_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """As by another run that was started at the same time."""
    monkeypatch.chdir(tmp_path)
    with cli.output_folder("run") as output:
        (output.folder / "model").write_text("mine")
        if kind == "folder":
            Path("run").mkdir()
            Path("run", "model").write_text("theirs")
        elif kind == "file":
            Path("run").write_text("theirs")
        else:
            Path("elsewhere").mkdir()
            Path("run").symlink_to("elsewhere")
    assert output.path == tmp_path / "run-2"
    assert (tmp_path / "run-2" / "model").read_text() == "mine"
    assert f"output_dir run has been taken meanwhile; wrote {output.path}" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit), cli.output_folder(tmp_path / "file" / "run"):
        pass
    assert capsys.readouterr().err.count("\n") == 1


def test_the_working_folder_may_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with cli.output_folder(".") as output:
        (output.folder / "model").write_text("weights")
    assert (tmp_path / "here" / "model").read_text() == "weights"
