"""What a run tells of itself while it runs."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training import curves, loop, objective
from hybridfast.training.config import TrainConfig
from hybridfast.training.log import PHASES, check_trackers

CORPUS = ParallelCorpus.from_rows(
    [
        {"id": str(i), "lang": lang, "query": f"{stem}{i}", "passage": f"{stem}{i} {stem}"}
        for i in range(40)
        for lang, stem in (("aa", "ka"), ("bb", "mo"))
    ]
)


def trained(folder: Path | None, **settings) -> tuple[dict, list[dict]]:
    """A static encoder's figures, and its log."""
    config = TrainConfig(**{"batch_size": 8, "max_steps": 20, "logging_steps": 4, **settings})
    torch.manual_seed(0)
    model = loading.build_static(loading.train_tokenizer(CORPUS.texts(), 200), 8)
    tokens = embedding.tokenize(model, CORPUS, progress=False)
    figures = loop.train(model, tokens, config, folder=folder)
    log = folder / "log.jsonl" if folder else None
    return figures, [json.loads(line) for line in log.read_text().splitlines()] if log else []


def test_a_line_is_the_mean_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, kinds, norms, tokens = [], [], [], []
    info_nce, embed, clip = objective.info_nce, loop.Chunks.embed, loop.clip_gradients

    def noted(*args, **options):
        loss = info_nce(*args, **options)
        losses.append(loss.item())
        return loss

    def embedded(self, batch, *args):
        kinds.append(batch.mode)
        tokens.append(len(batch.queries["input_ids"]) + len(batch.passages["input_ids"]))
        return embed(self, batch, *args)

    def clipped(*args, **options):
        norms.append(clip(*args, **options))
        return norms[-1]

    monkeypatch.setattr(objective, "info_nce", noted)
    monkeypatch.setattr(loop.Chunks, "embed", embedded)
    monkeypatch.setattr(loop, "clip_gradients", clipped)
    figures, lines = trained(tmp_path, max_steps=22, warmup_ratio=0.5, temperature=0.1)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 22]
    begin = 0
    for line in lines:
        steps = range(begin, line["step"])
        assert line["loss"] == pytest.approx(sum(losses[i] for i in steps) / len(steps))
        for kind in ("mono", "cross"):
            own = [losses[i] for i in steps if kinds[i] == kind]
            assert line.get(f"loss/{kind}") == (pytest.approx(sum(own) / len(own)) if own else None)
        assert line["grad_norm"] == pytest.approx(sum(norms[i].item() for i in steps) / len(steps))
        assert line["temperature"] == 0.1
        assert sum(line[f"time/{phase}"] for phase in PHASES) == pytest.approx(1, abs=1e-3)
        seconds = 8 * len(steps) / line["pairs_per_second"]
        assert line["tokens_per_second"] == pytest.approx(sum(tokens[i] for i in steps) / seconds, rel=1e-3)
        assert line["memory_gb"] > 0.05  # torch alone
        begin = line["step"]
    assert set(kinds) == {"mono", "cross"}
    # Linear, up to 2e-2 in the first half and down to 0 in the other: a step's is that before it.
    rates = [2e-2 * min(step / 11, (22 - step) / 11) for step in range(22)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [rates[line["step"] - 1] for line in lines]
    )
    assert figures["pairs"] == 22 * 8
    assert figures["loss"] == pytest.approx(sum(losses) / 22)
    assert figures["pairs_per_second"] == pytest.approx(figures["pairs"] / figures["seconds"], rel=0.01)
    assert {"loss/mono", "loss/cross", "grad_norm", "tokens_per_second", "padding", "time/data"} <= set(
        figures
    )


@pytest.mark.parametrize("packed", [True, False])
def test_padding_is_counted(tiny_xlm_r: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 3 + i and 4 + i tokens, in chunks of one text and of all."""
    if not packed:
        monkeypatch.setattr(embedding, "position_offset", None)  # so that no packed text goes through
    rows = [
        {"id": str(i), "lang": lang, "query": "ka " * (1 + i), "passage": "ka " * (1 + i) + lang}
        for i in range(8)
        for lang in ("aa", "bb")
    ]
    padding = []
    for places in (1, 10_000):
        model = loading.load(str(tiny_xlm_r), device="cpu")
        tokens = embedding.tokenize(model, ParallelCorpus.from_rows(rows), progress=False)
        config = TrainConfig(batch_size=8, max_steps=1, tokens_per_chunk=places, dedup="group")
        padding.append(loop.train(model, tokens, config)["padding"])
    lengths = [3 + i for i in range(8)], [4 + i for i in range(8)]
    assert padding[0] == 0
    most = 1 - (sum(lengths[0]) + sum(lengths[1])) / (16 * 11)
    assert padding[1] == 0 if packed else 0 < padding[1] <= most + 1e-4


def test_a_full_disk_costs_a_line_and_no_run(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.warns(UserWarning, match="step 8 could not be logged"):
            figures, lines = trained(tmp_path, max_steps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert figures["steps"] == 8
    assert [line["step"] for line in lines] == [4]


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trained(None)[0]["steps"] == 20
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_tensorboard_has_the_lines(tmp_path: Path) -> None:
    _, lines = trained(tmp_path, report_to=["tensorboard"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {name for line in lines for name in line} - {"step", "epoch"}
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert told == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_wandb_goes_on_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the three functions that are called, as wandb documents them."""
    begun, logged = [], []

    class Run:
        def log(self, figures, step):
            logged.append((step, figures))

        def finish(self):
            logged.append("end")

    stand_in = types.ModuleType("wandb")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    stand_in.init = lambda **options: begun.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    check_trackers(["wandb"])
    for _ in range(2):
        _, lines = trained(tmp_path, report_to=["wandb"])
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["resume"] == "allow"
    assert begun[0]["config"]["batch_size"] == 8
    assert [entry[0] for entry in logged[-6:-1]] == [line["step"] for line in lines]
    assert logged[-1] == "end"


def test_trackers_are_checked_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="report_to must be some of tensorboard, wandb, none, got 'mlflow'"):
        check_trackers(["mlflow"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="report_to wandb needs the package wandb"):
        check_trackers(["wandb"])
    check_trackers(["none"])


def test_curves_are_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}

    def noted(axes, title, lines, names, marker=None):
        drawn[title] = [(name, [line[name] for line in lines if name in line]) for name in names]
        curve(axes, title, lines, names, marker)

    curve = curves._curves
    monkeypatch.setattr(curves, "_curves", noted)
    _, lines = trained(tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 20, "epoch": 2.0, "validation/mAP multi": 0.5}\n')
    curves.draw(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert drawn["loss"][0] == ("loss", [line["loss"] for line in lines])
    assert dict(drawn["validation"])["validation/mAP multi"] == [0.5]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / ".curves.png").exists()
