"""A model that two ranks hold in parts, against one process that holds it whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import processes

from hybridfast import train
from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.gathering import is_sharded
from hybridfast.training import checkpoint, loop, sharding
from hybridfast.training.config import TrainConfig
from hybridfast.training.lora import add_lora
from hybridfast.training.ranks import Ranks
from hybridfast.training.validation import Validation, hold_out

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
FACTS = [row for row in cldr.training_rows()[:2_200] if row["lang"] in ("de", "en")]
ROWS = [
    row | {"negative_1": " ".join([other["passage"]] * (1 + number % 4))} if number % 3 else row
    for number, (row, other) in enumerate(zip(FACTS[:120], FACTS[130:], strict=False))
]
SMALL = {"tokens_per_chunk": 60, "negatives": 1}
CASES: dict[str, dict[str, Any]] = {
    # Some chunks are kept, others encoded again; with dropout.
    "chunks": SMALL
    | {"activation_memory": 5e-4, "max_grad_norm": 0.1, "ema_decay": 0.5, "average_weight": 0.2},
    "again": SMALL | {"activation_memory": 0.0, "gradient_checkpointing": True, "layer_lr_decay": 0.5},
    "half": SMALL | {"bf16": True, "exchange": "ring", "metric_for_best_model": None},
    "lora": {"lora_r": 2, "lora_dropout": 0.1, "freeze": "pooler"},
}


def run(case: str, folder: Path, tiny: str, these: Ranks, other: Path | None = None) -> None:
    """One of the cases, on one of the ranks; the first leaves weights, figures and the log in the folder.

    Args:
        other: what the other number of ranks has left of the case; it goes on from there.
    """
    resume = checkpoint.read(other / "run" / "checkpoint-2") if other else None
    if resume and these.is_first:  # it may be the best
        (folder / "run").mkdir()
        checkpoint.write(folder / "run" / "checkpoint-2", resume)
    defaults = {"eval_steps": 2, "validation_split": 0.2, "metric_for_best_model": "mAP multi"}
    config = TrainConfig(
        model=tiny,
        shard="fsdp",
        batch_size=13,
        max_steps=4,
        logging_steps=1,
        save_steps=2,
        **(defaults | CASES[case]),
    )
    corpus, held_out = hold_out(ParallelCorpus.from_rows(ROWS), config)
    torch.manual_seed(these.rank)  # rank 0's weights are what counts
    model = loading.load(tiny, device="cpu")
    add_lora(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    tokens = embedding.tokenize(model, corpus, cache_dir=folder / "cache", progress=False)
    assert held_out is not None
    validation = Validation(held_out, embedding.sides(model, tokens), 8)
    told: list[tuple[int, ...]] = []  # chunks here, at most, and kept
    agree = sharding.Rounds.agree

    def telling(rounds: sharding.Rounds, chunks: int, kept: int) -> tuple[int, int]:
        told.append((chunks, *agree(rounds, chunks, kept)))
        return told[-1][1:]

    made: list[torch.optim.Optimizer] = []
    make = loop.make_optimizer
    sharding.Rounds.agree = telling
    loop.make_optimizer = lambda *given: made.append(make(*given)) or made[-1]
    figures = loop.train(
        model,
        tokens,
        config,
        folder=folder / "run",
        validation=validation,
        ranks=these,
        resume=resume,
    )
    sharding.Rounds.agree, loop.make_optimizer = agree, make
    assert is_sharded(model) is not these.alone
    left = sharding.whole(model.state_dict(), keep=True)
    moments = [tensor for state in made[0].state.values() for tensor in state.values() if tensor.ndim]
    held = [sharding.bytes_held(model.parameters()), sharding.bytes_held(moments)]
    torch.save(
        {"weights": left, "figures": figures, "held": held, "told": told}, folder / f"rank-{these.rank}.pt"
    )


def run_two(folder: Path, other: Path, tiny: str, argv: list[str], environment: dict[str, str]) -> None:
    """In a process that is a rank of two: all cases, and the command."""
    os.environ |= environment
    torch.set_num_threads(1)
    with Ranks.join("cpu") as these:
        for case in CASES:
            run(case, folder / case, tiny, these)
        run("chunks", folder / "resumed", tiny, these, other / "chunks")
        train.main(argv)


def flags(tiny: Path, folder: Path) -> list[str]:
    """A run of the command, with adapters that are merged, and evaluations before and after."""
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data, output = str(folder / "data.jsonl"), str(folder / "command")
    small = ["--batch_size", "8", "--max_steps", "2", "--lora_r", "2", "--shard", "fsdp", "--device", "cpu"]
    return ["--model", str(tiny), "--data", data, "--eval_dataset", data, "--output_dir", output, *small]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_xlm_r: Path) -> tuple[Path, Path]:
    """What one process has left of all cases, and what two ranks have."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        for case in (*CASES, "resumed"):
            (folder / case).mkdir()
    tiny, alone = str(tiny_xlm_r), Ranks()
    for case in CASES:
        run(case, one / case, tiny, alone)
    train.main(flags(tiny_xlm_r, one))
    argv = flags(tiny_xlm_r, two)
    started = [
        processes.of_test(run_two, two, one, tiny, argv, environment)
        for environment in processes.environments(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    run("chunks", one / "resumed", tiny, alone, two / "chunks")
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_what_one_process_gives(case: str, folders: tuple[Path, Path]) -> None:
    """Loss, clip norm and validation of every step, and the weights of the best one, whole again."""
    wanted, *got = (
        torch.load(path, weights_only=False)
        for path in (folders[0] / case / "rank-0.pt", *sorted((folders[1] / case).glob("rank-*.pt")))
    )
    half = case == "half"
    assert len(got) == 2
    assert wanted["weights"].keys() == got[0]["weights"].keys()
    for name, weight in wanted["weights"].items():
        assert torch.equal(got[1]["weights"][name], got[0]["weights"][name]), name
        torch.testing.assert_close(
            got[0]["weights"][name], weight, rtol=1e-3 if half else 1e-4, atol=3e-4 if half else 2e-6
        )
    logs = [
        [json.loads(line) for line in (folder / case / "run" / "log.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    for one, other in zip(*logs, strict=True):
        figures = "validation/loss" if half else "validation"  # near ties are decided by rounding
        told = [name for name in one if name.startswith(("loss", "grad_norm", figures))]
        assert "loss" in told or "validation/loss mono" in told
        assert {name: other[name] for name in told} == pytest.approx(
            {name: one[name] for name in told}, rel=2e-2 if half else 2e-5
        )
    told = [entry for rank in got for entry in rank["told"]]
    if case == "chunks":
        assert any(chunks < most for chunks, most, _ in told)
        assert any(0 < kept < most for _, most, kept in told)
    if case == "again":
        assert all(kept == 0 for rank in got for _, _, kept in rank["told"][1:])  # the first was measured


def test_each_rank_holds_half(folders: tuple[Path, Path]) -> None:
    """Of every weight and moment, to a row."""
    whole = torch.load(folders[0] / "half" / "rank-0.pt", weights_only=False)
    rows = sum(weight[:1].nbytes for weight in whole["weights"].values() if weight.ndim)
    halves = [torch.load(path, weights_only=False)["held"] for path in (folders[1] / "half").glob("rank-*")]
    assert len(halves) == 2
    for kind in range(2):
        assert sum(half[kind] for half in halves) == whole["held"][kind] > 2 * rows
        assert all(abs(half[kind] - whole["held"][kind] / 2) <= rows for half in halves)


def test_either_goes_on_with_what_the_other_began(folders: tuple[Path, Path]) -> None:
    wanted = torch.load(folders[0] / "chunks" / "rank-0.pt", weights_only=False)
    for folder in folders:
        got = torch.load(folder / "resumed" / "rank-0.pt", weights_only=False)
        torch.testing.assert_close(got["weights"], wanted["weights"], rtol=1e-4, atol=2e-6)
        assert got["figures"]["steps"] == 4
        assert got["figures"]["validation"] == pytest.approx(wanted["figures"]["validation"], rel=2e-5)


def test_checkpoints_are_the_same_files(folders: tuple[Path, Path]) -> None:
    one, two = (checkpoint.read(folder / "chunks" / "run" / "checkpoint-4") for folder in folders)
    assert one.keys() == two.keys()
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(two["average"], one["average"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(two["optimizer"], one["optimizer"], rtol=1e-3, atol=1e-6)


def test_the_command_leaves_the_same_model(folders: tuple[Path, Path], tiny_xlm_r: Path) -> None:
    """Evaluated as it was saved, by both ranks; loaded as any."""
    one, two = (loading.load(str(folder / "command"), device="cpu") for folder in folders)
    texts = [row["query"] for row in ROWS[:8]]
    np.testing.assert_allclose(two.encode_query(texts), one.encode_query(texts), rtol=1e-4, atol=1e-5)
    untouched = loading.load(str(tiny_xlm_r), device="cpu").state_dict()
    assert any(not torch.equal(weight, untouched[name]) for name, weight in two.state_dict().items())
    one, two = (json.loads((folder / "command" / "metrics.json").read_text()) for folder in folders)
    one, two = (figures["evaluation"] for figures in (one, two))
    assert one == two
    assert (folders[1] / "command" / "untrained" / "ranks.parquet").exists()


@pytest.mark.parametrize("setting", [{"fp16": True}, {"torch_compile": True}, {"sparse_embeddings": "true"}])
def test_what_goes_not_together_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"shard fsdp and {next(iter(setting))}"):
        TrainConfig(model="some", shard="fsdp", **setting)


def test_models_and_checkpoints_that_cannot_be_sharded_are_refused() -> None:
    with pytest.raises(ValueError, match="a static encoder has no layers"):
        TrainConfig(shard="fsdp")
    static = loading.build_static(loading.train_tokenizer(["a b", "c d"], 20), 4)
    with pytest.raises(ValueError, match="a static encoder has no layers"):
        sharding.check(static)
    optimizer = torch.optim.AdamW(static.parameters())
    with pytest.raises(ValueError, match="was written with sparse embeddings"):
        sharding.parts_of({"state": {0: {"touched": torch.zeros(2)}}}, optimizer)
