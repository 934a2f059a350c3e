"""A run that ends in any way ends with the same bits. Processes are real, and cost half a second each."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from training import processes
from training.processes import steps_logged

from hybridfast import train
from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training import checkpoint, loop, objective
from hybridfast.training.checkpoint import Checkpoints, Damaged
from hybridfast.training.config import TrainConfig
from hybridfast.training.optimizer import freeze

STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, processes.WORDS)))
    return path


def flags(data: Path, folder: Path, *more: str) -> list[str]:
    return processes.flags(data, folder, STEPS, *more)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train.main(flags(data, folder))
    return weights(folder)


# --- states ------------------------------------------------------------------------------------------------


def state_of(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "a.weight": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "none": torch.empty(0, 4),
        "number": torch.tensor(step),
    }
    moments = {0: {"step": torch.tensor(1.0)}, 3: {"step": torch.tensor(2.0)}}
    return {
        "model": tensors,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999]}]},
        "log": {"step": step, "infinite": float("inf")},
        "best": {"step": None},
    }


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "checkpoint-7", state_of(7))
    assert_equal(checkpoint.read(tmp_path / "checkpoint-7"), state_of(7))
    from safetensors.torch import load_file

    assert load_file(tmp_path / "checkpoint-7" / "model.safetensors")["model.half"].dtype == torch.bfloat16
    sums = (tmp_path / "checkpoint-7" / "SHA256SUMS").read_text().split()
    for digest, name in zip(sums[::2], sums[1::2], strict=True):
        content = (tmp_path / "checkpoint-7" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_a_flipped_byte_in_any_file_is_found(tmp_path: Path) -> None:
    """At the beginning, in the middle and at the end of each; the checkpoint before is used."""
    for step in (1, 2):
        checkpoint.write(tmp_path / f"checkpoint-{step}", state_of(step))
    files = sorted((tmp_path / "checkpoint-2").iterdir())
    assert [file.name for file in files] == [
        *("SHA256SUMS", "model.safetensors", "optimizer.safetensors", "state.json")
    ]
    for file in files:
        whole = file.read_bytes()
        named = "" if file.name == "SHA256SUMS" else file.name
        for place in (0, 66, len(whole) // 2, len(whole) - 1):
            broken = bytearray(whole)
            broken[place] ^= 1
            file.write_bytes(broken)
            with pytest.raises(Damaged, match=f"checkpoint-2 is damaged: .*{named}"):
                checkpoint.read(file.parent)
        with pytest.warns(UserWarning, match="checkpoint-2 is damaged"):
            newest = Checkpoints(tmp_path).newest()
        assert newest is not None
        assert newest["log"]["step"] == 1
        for cut in (b"", whole[: len(whole) // 2]):
            file.write_bytes(cut)
            with pytest.raises(Damaged):
                checkpoint.read(file.parent)
        file.unlink()
        with pytest.raises(Damaged, match=file.name):
            checkpoint.read(file.parent)
        file.write_bytes(whole)
    assert_equal(checkpoint.read(tmp_path / "checkpoint-2"), state_of(2))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, limit=2) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, state_of(step) | {"best": {"step": 2 if step >= 2 else None}})
            checkpoints.wait()
    assert checkpoints.steps() == [6, 5, 2]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]


def test_a_state_may_change_while_it_is_written(tmp_path: Path, monkeypatch) -> None:
    written, write = [], checkpoint.write

    def slow(folder: Path, state: dict) -> None:
        time.sleep(0.05)
        written.append(folder)
        write(folder, state)

    monkeypatch.setattr(checkpoint, "write", slow)
    state = state_of(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        assert not written
        for tensor in state["model"].values():
            tensor.zero_()
        state["log"]["step"] = 2
    assert_equal(checkpoint.read(tmp_path / "checkpoint-1"), state_of(1))


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk's: the same error, from the same calls."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = state_of(2) | {"model": {"weight": torch.ones(100_000)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            checkpoints.save(2, big)
            with pytest.warns(
                UserWarning, match=r"checkpoint-2 could not .*the last good one is checkpoint-1"
            ):
                assert not checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert os.listdir(tmp_path) == ["checkpoint-1"]
        checkpoints.save(3, big)
    assert checkpoints.steps() == [3, 1]
    assert_equal(checkpoint.read(tmp_path / "checkpoint-1"), state_of(1))


# --- one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("tiny", {}),
        ("tiny", {"ema_decay": 0.9, "embedding_learning_rate": 1e-3, "freeze": "layer.0", "bf16": True}),
        ("tiny", {"average_weight": 0.3}),
        ("static", {"lr_scheduler_type": "cosine", "matryoshka_dims": [8, 4]}),
        (
            "tiny",
            {"alpha_schedule": [0, 1], "mix": "rows", "positives": "group"}
            | {"consistency_weight": 0.3, "alignment_weight": 0.1},
        ),
    ],
)
def test_going_on_gives_the_same_bits(
    tiny_xlm_r: Path, tmp_path: Path, monkeypatch, kind: str, settings: dict
) -> None:
    """With dropout, over an epoch's end, from a checkpoint between two lines of the log."""
    known = [row for row in cldr.training_rows()[:2_200] if row["lang"] in ("de", "en")]  # to the tokenizer
    corpus = ParallelCorpus.from_rows(known[:80])

    def new_model():
        torch.manual_seed(0)
        if kind == "static":
            return loading.build_static(loading.train_tokenizer(corpus.texts(), 100), 8)
        model = loading.load(str(tiny_xlm_r), device="cpu")
        assert model[0].model.config.hidden_dropout_prob == 0.1
        freeze(model, settings.get("freeze"))
        return model

    tokens = embedding.tokenize(new_model(), corpus, progress=False)
    config = TrainConfig(batch_size=16, max_steps=13, save_steps=7, logging_steps=5, **settings)
    whole = new_model()
    figures = loop.train(whole, tokens, config, folder=tmp_path / "whole")

    steps, info_nce = [0], objective.info_nce

    def failing(*args, **options):
        steps[0] += 1
        if steps[0] > 9 * len(config.matryoshka_dims or [1]):
            raise RuntimeError("power cut")
        return info_nce(*args, **options)

    monkeypatch.setattr(objective, "info_nce", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(new_model(), tokens, config, folder=tmp_path / "cut")
    monkeypatch.undo()
    torch.rand(3)  # whatever a new process does before
    again = new_model()
    for tensor in again.parameters():
        if tensor.requires_grad:
            tensor.data.zero_()
    state = Checkpoints(tmp_path / "cut").newest()
    assert state is not None
    assert state["log"]["step"] == 7
    resumed = loop.train(again, tokens, config, folder=tmp_path / "cut", resume=state)
    assert any(
        not torch.equal(*pair) for pair in zip(whole.parameters(), new_model().parameters(), strict=True)
    )
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    lines = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    told = ["step", "epoch", "loss", "learning_rate", "grad_norm", "padding"]
    told += [name for name in lines[0][0] if name.startswith("loss/")]
    assert len(told) == (10 if "mix" in settings else 8)
    for one, other in zip(*lines, strict=True):
        assert {key: one.get(key) for key in told} == pytest.approx({key: other.get(key) for key in told})
    assert [line["step"] for line in lines[0]] == [5, 10, 13]
    assert resumed["loss"] == figures["loss"]
    assert resumed["steps"] == 13


def test_step_1_000_000_is_next_at_once(data: Path, tmp_path: Path) -> None:
    """Nothing is replayed: of a million batches only those asked for are built."""
    config = TrainConfig(
        data=str(data), batch_size=8, max_steps=1_000_002, dimension=8, save_steps=2, num_workers=0
    )
    project = train.Project(config)
    short = TrainConfig(**{**vars(config), "max_steps": 2})
    loop.train(project.new_model(0), project.tokens, short, folder=tmp_path)
    state = Checkpoints(tmp_path).newest()
    assert state is not None
    state["run"]["settings"]["max_steps"] = config.max_steps
    state["log"]["step"] = state["schedule"]["last_epoch"] = 1_000_000
    batches = len(loop.make_sampler(project.tokens, config))
    state["sampler"] |= {"epoch": 1_000_000 // batches, "index": 1_000_000 % batches}
    (tmp_path / "log.jsonl").unlink()
    loop.train(project.new_model(0), project.tokens, config, folder=tmp_path, resume=state)
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None
    position = divmod(1_000_002, batches)
    assert (newest["sampler"]["epoch"], newest["sampler"]["index"]) == position
    assert steps_logged(tmp_path) == [1_000_002]


def test_each_step_of_each_seed_has_random_numbers_of_its_own() -> None:
    seeds = {loop._seed_of(seed, step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**64 for seed in seeds)


# --- whole processes ---------------------------------------------------------------------------------------


def test_killed_anywhere_and_given_again(data: Path, tmp_path: Path, uninterrupted: str) -> None:
    """Ten times killed: at random, and at every kind of point while a checkpoint is written."""
    folder, output = tmp_path / "run", tmp_path / "output"
    argv = flags(data, folder, "--logging_steps", "3")
    dying = [("replace", 1), ("fsync", 1), *(("fsync", 20 + 3 * n) for n in range(4)), ("replace", 6)]
    for die in dying:
        process = processes.start(argv, output, die)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, output.read_text()
    generator = torch.Generator().manual_seed(int(time.time()))
    for _ in range(3):
        before = max(Checkpoints(folder).steps(), default=0)
        process = processes.start(argv, output)
        while max(Checkpoints(folder).steps(), default=0) < before + 2 and process.is_alive():
            time.sleep(0.002)
        time.sleep(0.02 * torch.rand((), generator=generator).item())
        process.kill()
        process.join()
    assert not (folder / "model.safetensors").exists()
    process = processes.start(argv, output)
    process.join(60)
    assert process.exitcode == 0, output.read_text()
    assert "goes on after step" in output.read_text()
    assert weights(folder) == uninterrupted
    assert steps_logged(folder) == [*range(3, STEPS + 1, 3)]
    left = {path.name for path in folder.iterdir() if path.name.startswith((".", "checkpoint"))}
    assert left == {f"checkpoint-{STEPS}", f"checkpoint-{STEPS - 1}"}


def test_a_disk_that_fills_up_costs_the_run_nothing(data: Path, tmp_path: Path, uninterrupted: str) -> None:
    folder, output = tmp_path / "run", tmp_path / "output"
    os.mkfifo(tmp_path / "pipe")  # which has no size
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = processes.start(flags(data, folder), tmp_path / "pipe")
    while len(Checkpoints(folder if folder.exists() else tmp_path).steps()) < 2:
        time.sleep(0.002)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (5_000, 5_000))
    process.join(60)
    said = os.read(pipe, 1 << 16).decode()
    os.close(pipe)
    assert process.exitcode == 2, said
    assert said.splitlines()[-1].startswith("error: hybrid: the model could not be saved: ")
    last = max(Checkpoints(folder).steps())
    assert f"could not be written ([Errno 27] File too large); the last good one is checkpoint-{last}" in said
    process = processes.start(flags(data, folder), output)
    process.join(60)
    assert process.exitcode == 0, output.read_text()
    assert f"goes on after step {last}" in output.read_text()
    assert weights(folder) == uninterrupted
    assert steps_logged(folder) == [*range(10, STEPS + 1, 10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_process(
    data: Path, tmp_path: Path, uninterrupted: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --save_steps as well: the folder appears with a checkpoint, and the line is what to give."""
    folder, output = tmp_path / "run", tmp_path / "output"
    argv = flags(data, folder)
    if number == signal.SIGINT:
        argv = [*argv[: argv.index("--save_steps")], "--output_dir", str(folder)]
    process = processes.start(argv, output)
    logs = [folder, *[path for path in tmp_path.iterdir() if path.is_dir()]]
    while process.is_alive() and not any(list(path.glob("log.jsonl")) for path in logs):
        logs = [path for path in tmp_path.iterdir() if path.is_dir()]
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join(60)
    said = output.read_text()
    assert process.exitcode == 0, said
    line = said.splitlines()[-1]
    assert line.startswith("hybrid: interrupted after step ")
    assert line.endswith(f"--output_dir {folder} --resume_from_checkpoint auto")
    assert not (folder / "model.safetensors").exists()
    again = line.split(" -m hybridfast.train ")[1].split()
    train.main(again)
    assert weights(folder) == uninterrupted
    assert len(Checkpoints(folder).steps()) == (2 if number == signal.SIGTERM else 0)
    capsys.readouterr()
    train.main(again)
    assert capsys.readouterr().out == f"{folder} is complete: nothing is left to do\n"


def test_several_runs_go_on_too(data: Path, tmp_path: Path, monkeypatch) -> None:
    """What is complete is not trained again, what was begun goes on, what was damaged goes back one."""
    folder = tmp_path / "run"
    argv = flags(data, folder, "--compare", "--save_steps", "20", "--eval_dataset", str(data))
    trained, whole, info_nce = [], loop.train, objective.info_nce
    steps = [0]

    def noted(*args, **options):
        trained.append((options["name"], options["resume"] and options["resume"]["log"]["step"]))
        return whole(*args, **options)

    def failing(*args, **options):
        steps[0] += 1
        if steps[0] > STEPS + 50:  # in the second run, behind two checkpoints
            raise RuntimeError("power cut")
        return info_nce(*args, **options)

    monkeypatch.setattr("hybridfast.training.running.train", noted)
    monkeypatch.setattr(objective, "info_nce", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        train.main(argv)
    monkeypatch.setattr(objective, "info_nce", info_nce)
    broken = folder / "cross" / "checkpoint-40" / "optimizer.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 128
    broken.write_bytes(content)
    with pytest.warns(UserWarning, match=r"cross/checkpoint-40 is damaged: optimizer.safetensors has not"):
        train.main(argv)
    assert trained == [("mono", None), ("cross", None), ("cross", 20), ("hybrid", None)]
    table = (folder / "results.md").read_text()
    train.main(
        flags(data, tmp_path / "whole", "--compare", "--save_steps", "20", "--eval_dataset", str(data))
    )
    assert (tmp_path / "whole" / "results.md").read_text() == table
    for name in ("mono", "cross", "hybrid"):
        assert weights(folder / name) == weights(tmp_path / "whole" / name)


def test_a_checkpoint_of_something_else_is_refused(
    data: Path, tmp_path: Path, uninterrupted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train.main(flags(data, folder, "--max_steps", "2"))
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, processes.WORDS[:-2])))
    moved = tmp_path / "moved.jsonl"
    shutil.copy(data, moved)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    here = str(folder / "checkpoint-2")
    cases = [
        (flags(data, folder, "--max_steps", "2", "--batch_size", "4"), "batch_size was 8, is 4"),
        (flags(data, folder, "--max_steps", "2", "--num_seeds", "2"), "num_seeds was 1, is 2"),
        (flags(data, folder), f"max_steps was 2, is {STEPS}"),
        (flags(data, tmp_path / "new", "--resume_from_checkpoint", here), "max_steps was 2, is"),
        (
            flags(
                tmp_path / "other.jsonl",
                tmp_path / "new",
                *("--max_steps", "2", "--resume_from_checkpoint", here),
            ),
            "data was 'pairs.jsonl' (40 groups, 80 versions",
        ),
        (flags(data, folder, "--resume_from_checkpoint", here), "exists and is not empty"),
        (flags(data, tmp_path / "new", "--resume_from_checkpoint", "nowhere"), "nowhere: no such checkpoint"),
        (flags(data, tmp_path), "exists and is not empty"),
        (
            ["--resume_from_checkpoint", "auto"],
            "resume_from_checkpoint auto needs output_dir",
        ),
    ]
    for argv, message in cases:
        with pytest.raises(SystemExit) as stop:
            train.main(argv)
        err = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2
        assert len(err) == 1
        assert message in err[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not (tmp_path / "new").exists()
    train.main(flags(moved, folder, "--max_steps", "2"))  # the same rows elsewhere
    assert "complete" in capsys.readouterr().out
