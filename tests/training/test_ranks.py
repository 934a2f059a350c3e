"""Several gloo ranks against one process, and what becomes of the others when one ends."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import processes

from hybridfast import train
from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.encoder import embedding, loading
from hybridfast.training import loop, ranks, reduction
from hybridfast.training.checkpoint import Checkpoints
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks
from hybridfast.training.teacher import teacher_of
from hybridfast.training.validation import Validation, hold_out

ENDS_WITHIN = 60  # seconds, of the others
FACTS = [row for row in cldr.training_rows()[:2_200] if row["lang"] in ("de", "en")]
ROWS = [
    row | {"negative_1": other["passage"]} if number % 3 else row
    for number, (row, other) in enumerate(zip(FACTS[:120], FACTS[130:], strict=False))
]
CASES: dict[str, dict[str, Any]] = {
    "masked": {"negatives": 1, "tokens_per_chunk": 100, "max_grad_norm": 0.1},  # with dropout
    "ring": {
        "exchange": "ring",
        "bidirectional": True,
        "matryoshka_dims": [32, 8],
        "ema_decay": 0.5,
        "average_weight": 0.2,
    },
    "hard": {"negatives": 1, "in_batch": False, "activation_memory": 0.0},
    "sparse": {"sparse_embeddings": "true", "freeze": r"layer\.0\.", "bf16": True},
    "fp16": {"fp16": True},
    "static": {"model": "static"},
    "terms": {
        **{"consistency_weight": 0.4, "alignment_weight": 0.2, "positives": "group", "mix": "rows"},
        **{"negatives": 1, "alpha_schedule": [0.2, 0.8], "matryoshka_dims": [32, 8]},
    },
    "weighted": {"model": "static", "other_language_weight": 0.2, "cross": "same", "exchange": "ring"},
    "mined": {"model": "static", "negatives": 2, "mine_steps": 2},
    "distilled": {"distillation_weight": 0.7, "negatives": 1},  # to itself; some groups have no English
}


# --- the same run on any number of ranks -------------------------------------------------------------------


def run(case: str, folder: Path, tiny: str, these: Ranks) -> None:
    """One of the cases, on one of the ranks; the first leaves weights, figures and the log in the folder."""
    held_out_as = {"eval_steps": 2, "validation_split": 0.2, "metric_for_best_model": "mAP multi"}
    settings, rows = CASES[case], ROWS
    if case == "distilled":
        settings = settings | {"teacher": tiny, "device": "cpu"}
        rows = [row for number, row in enumerate(ROWS) if row["lang"] == "de" or number % 3]
    config = TrainConfig(batch_size=13, max_steps=4, logging_steps=1, save_steps=2, **held_out_as, **settings)
    corpus, held_out = hold_out(ParallelCorpus.from_rows(rows), config)
    torch.manual_seed(these.rank)  # rank 0's weights are what counts
    if config.model == "static":
        model = loading.build_static(loading.train_tokenizer(corpus.texts(), 300), 8)
    else:
        model = loading.load(tiny, device="cpu")
    tokens = embedding.tokenize(model, corpus, cache_dir=folder / "cache", progress=False)
    assert held_out is not None
    validation = Validation(held_out, embedding.sides(model, tokens), 8)
    those = teacher_of(config, corpus, folder / "teacher", these) if config.teacher else None
    figures = loop.train(
        model, tokens, config, folder=folder / "run", validation=validation, ranks=these, teacher=those
    )
    left = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"weights": left, "figures": figures}, folder / f"rank-{these.rank}.pt")


def run_all(cases: list[str], folder: str, tiny: str, environment: dict[str, str]) -> None:
    """The cases, one after the other, in a process that is a rank of several."""
    os.environ |= environment
    torch.set_num_threads(1)
    reduction.BUCKET_BYTES = 20_000  # several buckets
    with Ranks.join("cpu") as these:
        for case in cases:
            run(case, Path(folder, case), tiny, these)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_xlm_r: Path) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for case in CASES:
        (folder / case).mkdir()
        run(case, folder / case, str(tiny_xlm_r), Ranks())
    return folder


@pytest.mark.parametrize(
    ("world", "cases"), [(2, [*CASES]), pytest.param(3, ["ring"], marks=pytest.mark.slow)]
)
def test_ranks_give_what_one_process_gives(
    world: int, cases: list[str], alone: Path, tiny_xlm_r: Path, tmp_path: Path
) -> None:
    """Loss, clip norm and validation of every step, and the weights of the best one."""
    for case in cases:
        (tmp_path / case).mkdir()
    started = [
        processes.of_test(run_all, cases, str(tmp_path), str(tiny_xlm_r), environment)
        for environment in processes.environments(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for case in cases:
        wanted, *got = (
            torch.load(path, weights_only=False)
            for path in (alone / case / "rank-0.pt", *sorted((tmp_path / case).glob("rank-*.pt")))
        )
        assert len(got) == world
        half = case in ("sparse", "fp16")  # computed in half precision
        for other in got:
            for name, weight in wanted["weights"].items():
                assert torch.equal(other["weights"][name], got[0]["weights"][name]), (case, name)
                torch.testing.assert_close(
                    other["weights"][name], weight, rtol=1e-3 if half else 1e-4, atol=2e-4 if half else 2e-6
                )
        logs = [
            [json.loads(line) for line in (folder / case / "run" / "log.jsonl").read_text().splitlines()]
            for folder in (alone, tmp_path)
        ]
        for one, other in zip(*logs, strict=True):
            told = [name for name in one if name.startswith(("loss", "grad_norm", "validation"))]
            assert "loss" in told or "validation/mAP multi" in told
            assert {name: other[name] for name in told} == pytest.approx(
                {name: one[name] for name in told}, rel=5e-3 if half else 2e-5
            )
            assert one.get("padding") == pytest.approx(other.get("padding"), abs=0.5)
        assert got[0]["figures"]["pairs"] == wanted["figures"]["pairs"]


# --- shares ------------------------------------------------------------------------------------------------


def test_shares_are_balanced_and_know_their_places(tiny_xlm_r: Path, tmp_path: Path) -> None:
    model = loading.load(str(tiny_xlm_r), device="cpu")
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    with HybridSampler(tokens, batch_size=32, negatives=1, layout="flat", threads=0) as sampler:
        batch = sampler[(0, 0)]
    ids_T = torch.cat([ids["input_ids"] for ids in (batch.queries, batch.passages, batch.negatives)])
    shares = [Ranks(rank, 3).share(batch) for rank in range(3)]
    rows, masked, negatives, tokens_of = [], [], 0, []
    for share in shares:
        tokens_of.append(0)
        for ids in (share.queries, share.passages, share.negatives):
            starts = ids["offsets"].tolist()
            for start, end, place in zip(
                starts, [*starts[1:], len(ids["input_ids"])], ids["places"].tolist(), strict=True
            ):
                text = ids["input_ids"][start:end]
                assert torch.equal(text, ids_T[place : place + len(text)])
                tokens_of[-1] += len(text)
        rows += share.groups.tolist()
        masked += share.mask_groups.tolist()
        negatives += len(share.negative_rows)
        for row, group in zip(share.negative_rows.tolist(), share.negative_mask_groups.tolist(), strict=True):
            whole = batch.groups.tolist().index(share.groups[row].item())
            there = (batch.negative_rows == whole).nonzero()[0]
            assert batch.negative_mask_groups[there] == group
    assert sorted(rows) == sorted(batch.groups.tolist())
    assert sorted(masked) == sorted(batch.mask_groups.tolist())
    assert negatives == len(batch.negative_rows) > 0
    assert sum(tokens_of) == len(ids_T)
    assert max(tokens_of) < 1.1 * min(tokens_of)
    assert Ranks().share(batch) is batch


def test_the_longest_row_of_a_round_goes_to_who_has_least() -> None:
    assert ranks.dealt(np.array([1, 9, 2, 3, 0, 4]), 2).tolist() == [1, 0, 0, 1, 0, 1]
    assert np.bincount(ranks.dealt(np.zeros(5, np.int64), 4)).tolist() == [2, 1, 1, 1]
    lengths_B = np.random.default_rng(0).integers(5, 60, 1000)
    rank_B = ranks.dealt(lengths_B, 7)
    loads_W = np.bincount(rank_B, lengths_B)
    assert loads_W.max() - loads_W.min() <= 6  # the shortest row has 5
    assert np.ptp(np.bincount(rank_B)) <= 1


def test_a_batch_smaller_than_the_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit) as stop:
        train.main(["--batch_size", "2", "--output_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == "error: batch_size must be at least 1 for each of 3 ranks, got 2 for all\n"
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="device must be cpu or cuda for 3 ranks, got cuda:1"):
        Ranks.join("cuda:1")


# --- whole processes ---------------------------------------------------------------------------------------

STEPS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, processes.WORDS)))
    return path


def flags(data: Path, folder: Path, *more: str) -> list[str]:
    return processes.flags(data, folder, STEPS, *more)


def start_two(argv: list[str], folder: Path, die: dict[int, tuple[str, int]] | None = None) -> list[Any]:
    """Two ranks of the command; what they print is in output-0 and output-1."""
    return [
        processes.start(argv, folder / f"output-{rank}", (die or {}).get(rank), environment)
        for rank, environment in enumerate(processes.environments(2))
    ]


def join(started: list[Any]) -> list[int]:
    """Their exit codes."""
    deadline = time.monotonic() + ENDS_WITHIN
    for process in started:
        process.join(max(0.1, deadline - time.monotonic()))
    return [process.exitcode for process in started]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert join(start_two(flags(data, folder / "run"), folder)) == [0, 0]
    assert (folder / "output-1").read_text() == ""
    assert "Model: " in (folder / "output-0").read_text()
    return weights(folder / "run")


def test_one_is_killed_and_both_go_on(
    data: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    """To the bit: after rank 1 was killed, then rank 0 while it saved, then a signal to rank 1 alone."""
    folder = tmp_path / "run"
    argv = flags(data, folder)
    started = start_two(argv, tmp_path)
    while max(Checkpoints(folder).steps() if folder.exists() else [], default=0) < 3:
        assert started[0].is_alive(), (tmp_path / "output-0").read_text()
        time.sleep(0.005)
    started[1].kill()
    assert join(started) == [1, -signal.SIGKILL]
    assert not (folder / "model.safetensors").exists()
    assert join(start_two(argv, tmp_path, {0: ("fsync", 9)})) == [-signal.SIGKILL, 1]
    before = max(Checkpoints(folder).steps())
    started = start_two(argv, tmp_path)
    while max(Checkpoints(folder).steps()) < before + 2:
        assert started[0].is_alive(), (tmp_path / "output-0").read_text()
        time.sleep(0.005)
    started[1].terminate()
    assert join(started) == [0, 0]
    said = (tmp_path / "output-0").read_text()
    assert "goes on after step" in said
    if "interrupted after step" in said:
        assert "to go on: torchrun ... -m hybridfast.train" in said
        assert join(start_two(argv, tmp_path)) == [0, 0]
    for name, weight in weights(folder).items():
        assert torch.equal(weight, uninterrupted[name])


def test_one_process_goes_on_with_what_two_began(
    data: Path, tmp_path: Path, uninterrupted: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert join(start_two(flags(data, folder), tmp_path, {0: ("fsync", 25)})) == [-signal.SIGKILL, 1]
    train.main(flags(data, folder))
    assert "goes on after step" in capsys.readouterr().out
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, uninterrupted[name], rtol=1e-3, atol=1e-5)


def test_the_error_of_one_rank_ends_the_other(data: Path, tmp_path: Path) -> None:
    """Raised in rank 1 alone, in the midst of a step."""
    started = start_two(flags(data, tmp_path / "run"), tmp_path, {1: ("raise", 5)})
    assert join(started) == [1, 1]
    assert "RuntimeError: rank 1 has had enough" in (tmp_path / "output-1").read_text()
    last = (tmp_path / "output-0").read_text().splitlines()
    assert any("Connection" in line or "has had enough" in line for line in last)


def test_what_rank_0_refuses_ends_all(data: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    wrong = flags(data, tmp_path / "two", "--max_steps", "3")
    (tmp_path / "two" / "something").write_text("there")
    assert join(start_two(wrong, tmp_path)) == [2, 2]
    assert "exists and is not empty" in (tmp_path / "output-0").read_text()


# --- sentence-transformers' own trainer --------------------------------------------------------------------

KNOWN = sorted({word for row in FACTS for word in row["passage"].lower().split() if word.isalpha()})
TRIPLETS = [[f"{KNOWN[36 * k + i]} " * (1 + (i + k) % 4) for k in range(3)] for i in range(12)]
# Rank 1's first passage is rank 0's second, and its first hard negative rank 0's first passage.
REPEATED = [list(row) for row in TRIPLETS]
REPEATED[6][1:] = TRIPLETS[1][1], TRIPLETS[0][1]
LOSSES = ("theirs", "ours", "masked")


def loss_of(name: str, model: Any) -> Any:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from hybridfast.sentence_transformers import InfoNCELoss

    if name == "theirs":
        return CachedMultipleNegativesRankingLoss(model, mini_batch_num_tokens=40, gather_across_devices=True)
    options = {"learn_temperature": True} if name == "masked" else {}
    return InfoNCELoss(model, mini_batch_num_tokens=40, gather_across_devices=True, **options)


def losses(folder: str, tiny: str, rank: int, world: int) -> None:
    """Loss and gradients by each of them, on the rank's own rows; left in a file."""
    model = loading.load(tiny, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wrapped = model
    if world > 1:  # as the trainer does: XLM-R's pooler is not used
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    own = slice(rank * 12 // world, (rank + 1) * 12 // world)
    left = {}
    for name in LOSSES:
        rows = (REPEATED if name == "masked" else TRIPLETS)[own]
        features = [model.preprocess(list(texts)) for texts in zip(*rows, strict=True)]
        model.zero_grad()
        loss = loss_of(name, model)
        loss.model = wrapped
        value = loss(features, None)
        value.backward()
        left[name] = (
            value.item(),
            {
                key.replace("model.module.", "model."): weight.grad.clone()
                for key, weight in loss.named_parameters()
                if weight.grad is not None
            },
        )
    torch.save(left, Path(folder, f"losses-{rank}.pt"))


def losses_of_a_rank(folder: str, tiny: str, environment: dict[str, str]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    with Ranks.join("cpu") as these:
        losses(folder, tiny, these.rank, these.world)


def test_its_loss_is_that_of_one_process(tiny_xlm_r: Path, tmp_path: Path) -> None:
    """And sentence-transformers': by DistributedDataParallel, and as many chunks as a rank's texts need."""
    (tmp_path / "alone").mkdir()
    losses(str(tmp_path / "alone"), str(tiny_xlm_r), 0, 1)
    started = [
        processes.of_test(losses_of_a_rank, str(tmp_path), str(tiny_xlm_r), environment)
        for environment in processes.environments(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    whole, one, other = (
        torch.load(path) for path in (tmp_path / "alone" / "losses-0.pt", *sorted(tmp_path.glob("*.pt")))
    )
    for name in LOSSES:
        assert (one[name][0] + other[name][0]) / 2 == pytest.approx(whole[name][0], rel=1e-5)
        assert whole[name][1].keys() == one[name][1].keys()
        for key, gradient in whole[name][1].items():
            assert torch.equal(one[name][1][key], other[name][1][key])
            torch.testing.assert_close(one[name][1][key], gradient, rtol=1e-4, atol=1e-6)
    assert "info_nce.log_temperature" in one["masked"][1]
    assert one["ours"][0] == pytest.approx(one["theirs"][0], rel=1e-5)
    for key, gradient in one["theirs"][1].items():
        torch.testing.assert_close(one["ours"][1][key], gradient, rtol=1e-4, atol=1e-6)
