"""The card of a model, as the hub and its readers see it."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from hybridfast import train
from hybridfast.training import card
from hybridfast.training.config import TrainConfig

ROWS = [
    {"id": str(i), "lang": lang, "query": f"{stem}{i}", "passage": f"{stem}{i} {stem}", "source": f"s{i % 3}"}
    for i in range(30)
    for lang, stem in (("aa", "ka"), ("zh-Hans", "mo"), ("klingon", "tlh"))
    if i % 5 or lang == "aa"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("card")
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (home / "dev.jsonl").write_text("\n".join(map(json.dumps, ROWS[:30])))
    train.main(
        f"--data {home}/rows.jsonl --eval_dataset {home}/dev.jsonl --batch_size 8 --max_steps 6"
        f" --dimension 8 --license apache-2.0 --output_dir {home}/run".split()
    )
    return home / "run"


def test_the_hub_reads_its_metadata(folder: Path) -> None:
    loaded = ModelCard.load(folder / "README.md")
    data = loaded.data
    assert data.license == "apache-2.0"
    assert data.language == ["aa", "zh"]  # the hub wants ISO 639
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.base_model is None
    assert data.datasets is None
    told = {result.metric_name: result.metric_value for result in data.eval_results}
    summary = json.loads((folder / "metrics.json").read_text())["evaluation"]["summary"]
    assert told == {name: pytest.approx(value, abs=1e-4) for name, value in summary.items()}
    assert all(result.task_type and result.dataset_name == "dev.jsonl" for result in data.eval_results)
    assert yaml.safe_load(data.to_yaml()) == yaml.safe_load(loaded.content.split("---")[1])


def test_names_of_the_hub_alone_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    assert card._on_the_hub("intfloat/multilingual-e5-base")
    for name in ("my/model", "static", "cldr", "./my/other", "/models/x/y", "a b/c"):
        assert not card._on_the_hub(name)


def test_data_are_counted_by_language_and_source(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    counts = Counter((row["lang"], row["source"]) for row in ROWS)
    table = [
        re.split(r"\s*\|\s*", line.strip("| "))
        for line in text.split("## Data")[1].split("## Training")[0].splitlines()
        if "|" in line
    ]
    sources = table[0][1:-1]
    assert sorted(sources) == ["s0", "s1", "s2"]
    for language, *cells, total in table[2:-1]:
        assert [int(cell) for cell in cells] == [counts[language, source] for source in sources]
        assert int(total) == sum(map(int, cells))
    assert int(table[-1][-1]) == len(ROWS)
    assert {row[0] for row in table[2:-1]} == {"aa", "zh-Hans", "klingon"}


def test_what_it_says_to_do_works(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("PATH OR NAME", str(folder))
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert "tensor([[" in printed.getvalue()
    model = SentenceTransformer(str(folder), device="cpu")
    assert f"`encode_query` puts `{model.prompts['query']!r}`" in text
    assert f"`encode_document` `{model.prompts['document']!r}`" in text


def test_it_says_how_it_was_trained(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    own = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert own["max_steps"] == 6
    assert own["license"] == "apache-2.0"
    assert "weight_decay" not in own
    assert "alpha 0.5" in text
    assert "6 steps of 8 pairs" in text
    for row in (folder / "results.md").read_text().splitlines():
        assert row in text
    for name, value in metrics["environment"].items():
        assert f"{name} {value}" in text


class Hub:
    """What the client would send."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []

    def create_repo(self, name: str, **options) -> huggingface_hub.RepoUrl:
        self.calls.append(("create", {"name": name, **options}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

    def upload_folder(self, **options) -> None:
        paths = [
            str(path.relative_to(options["folder_path"])) for path in Path(options["folder_path"]).rglob("*")
        ]
        kept = huggingface_hub.utils.filter_repo_objects(paths, ignore_patterns=options["ignore_patterns"])
        self.calls.append(("upload", {"repo_id": options["repo_id"], "files": set(kept)}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    return hub


def push(folder: Path, *flags: str) -> None:
    data = folder.parent / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    small = f"--data {data} --batch_size 8 --max_steps 4 --dimension 8 --save_steps 2"
    train.main(
        [*f"{small} --output_dir {folder} --resume_from_checkpoint auto".split(), "--push_to_hub", *flags]
    )


def test_the_hub_gets_all_but_checkpoints(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    push(tmp_path / "mine", "--hub_private_repo")
    (_, created), (_, uploaded) = hub.calls
    assert created == {"name": "mine", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/mine"
    assert {"README.md", "model.safetensors", "modules.json", "metrics.json", "log.jsonl"} <= uploaded[
        "files"
    ]
    assert not any("checkpoint-4/" in name or "run.json" in name for name in uploaded["files"])
    assert "https://huggingface.co/me/mine" in capsys.readouterr().out


def test_a_hub_that_refuses_is_asked_again(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(SystemExit) as stop:
        push(tmp_path / "mine", "--hub_model_id", "team/model")
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: hybrid: the hub did not take it: no network; the model is in {tmp_path / 'mine'}"
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    push(tmp_path / "mine", "--hub_model_id", "team/model")
    assert hub.calls[0][1]["name"] == "team/model"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push_to_hub"], "push_to_hub needs a token of the hub"),
        (
            ["--license", "Apache 2"],
            "license must be as the hub names it, such as apache-2.0, got 'Apache 2'",
        ),
    ],
)
def test_what_the_hub_would_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_it_names_every_term(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    train.main(
        f"--data {tmp_path}/rows.jsonl --batch_size 8 --max_steps 4 --dimension 8 --alpha_schedule 0 0.5"
        " --mix rows --positives group --consistency_weight 0.3 --alignment_weight 0.2"
        f" --output_dir {tmp_path}/run".split()
    )
    said = (tmp_path / "run" / "README.md").read_text()
    assert "- alpha from 0.0 to 0.5 over the steps, of the pairs in every batch, cross-lingual" in said
    assert (
        "- InfoNCE with the passage in a second language as another positive; (1 - w) of it and w of" in said
    )
    assert "w 0.3; plus 0.2 times 1 - cosine of translations, temperature 0.05" in said
    assert "alpha_schedule:\n- 0.0\n- 0.5" in said
    weighted = TrainConfig(other_language_weight=0.25, alpha=1.0)
    assert card._loss(weighted).endswith("another language than the positive's counted 0.25 times")
    assert card._alpha(weighted) == "1.0"
