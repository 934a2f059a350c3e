"""Embeddings on disk: whole and right whatever ends a call, and nothing made twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from training import processes

from hybridfast.encoder import shards
from hybridfast.encoder.shards import stored


def rows_of(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack([numbers, numbers % 7 / 3, -numbers / 5], axis=1).astype(np.float32)


class Embed:
    """Counts what it embeds, and is interrupted after some calls."""

    def __init__(self, calls: int = 1_000_000) -> None:
        self.calls, self.made = calls, list[int]()

    def __call__(self, numbers: NDArray[np.int64], told: Callable[[int], Any]) -> NDArray[np.float32]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.made += numbers.tolist()
        told(len(numbers))
        return rows_of(numbers)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40),
    kinds=st.integers(1, 40),
    shard=st.integers(1, 45),
    stops=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_interrupted_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    kinds: int,
    shard: int,
    stops: list[int],
    dtype: str,
    seed: int,
) -> None:
    """With equal texts within a shard and across shards, and rubbish after what was synced."""
    path = tmp_path_factory.mktemp("shards") / "rows.npy"
    kind_N = np.random.default_rng(seed).integers(0, kinds, rows)
    first_N = np.array([kind_N.tolist().index(kind) for kind in kind_N])
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", shard)
        for embed in [*map(Embed, stops), Embed()]:
            try:
                found = stored(path, first_N, embed, name="texts", dtype=dtype)
            except KeyboardInterrupt:
                with open(f"{path}.part", "ab") as file:
                    file.write(b"half a row")
            made += embed.made
    assert sorted(made) == sorted(set(first_N.tolist()))
    np.testing.assert_array_equal(found, rows_of(first_N).astype(dtype))
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert [file.name for file in path.parent.iterdir()] == ["rows.npy"]


def run_until_killed(path: str) -> None:
    shards.SHARD = 10

    def embed(numbers: NDArray[np.int64], told: Callable[[int], Any]) -> NDArray[np.float32]:
        if numbers[0] >= 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return -rows_of(numbers)

    stored(Path(path), np.arange(55), embed, name="texts")


def test_killed(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    process = processes.of_test(run_until_killed, str(path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((tmp_path / "rows.npy.json").read_text()) == {"rows": 30, "width": 3}
    embed = Embed()
    found = stored(path, np.arange(55), embed, name="texts")
    assert embed.made == list(range(30, 55))
    np.testing.assert_array_equal(found[:30], -rows_of(np.arange(30)))
    np.testing.assert_array_equal(found[30:], rows_of(np.arange(30, 55)))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"

    def again(numbers: NDArray[np.int64], told: Callable[[int], Any]) -> NDArray[np.float32]:
        with pytest.raises(ValueError, match=r"another process is writing .*rows\.npy\.part"):
            stored(path, np.arange(5), Embed(), name="texts")
        return rows_of(numbers)

    np.testing.assert_array_equal(stored(path, np.arange(5), again, name="texts"), rows_of(np.arange(5)))


def test_rows_that_were_taken_away_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "rows.npy.json").write_text('{"rows": 3, "width": 3}')
    found = stored(tmp_path / "rows.npy", np.arange(5), Embed(), name="texts")
    np.testing.assert_array_equal(found, rows_of(np.arange(5)))


def test_what_float16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"float16 cannot hold an embedding of passages with 7e\+04 in it"):
        stored(
            tmp_path / "rows.npy",
            np.arange(2),
            lambda numbers, told: np.full((2, 3), 7e4, np.float32),
            name="passages",
            dtype="float16",
        )


def run_rank(folder: str, rank: int) -> None:
    """Interrupted, gone on with, and found whole."""
    dist.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    shards.SHARD = 10
    made: list[int] = []
    first_N = np.arange(47) % 41
    for stop in (20, 100, 0):

        def embed(
            numbers: NDArray[np.int64], told: Callable[[int], Any], stop: int = stop
        ) -> NDArray[np.float32]:
            if numbers[0] >= stop:
                raise KeyboardInterrupt
            rows = torch.zeros(len(numbers), 1)
            rows[rank::2, 0] = torch.from_numpy(numbers)[rank::2].float()
            made.extend(numbers[rank::2].tolist())
            dist.all_reduce(rows)
            return rows.numpy()

        try:
            found = stored(Path(folder) / "rows.npy", first_N, embed, name="texts", shared=True)
            np.testing.assert_array_equal(found[:, 0], first_N)
        except KeyboardInterrupt:
            assert stop == 20
    (Path(folder) / f"made-{rank}").write_text(json.dumps(made))
    dist.destroy_process_group()


def test_ranks_write_one_file_together(tmp_path: Path) -> None:
    started = [processes.of_test(run_rank, str(tmp_path), rank) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    made = [json.loads((tmp_path / f"made-{rank}").read_text()) for rank in range(2)]
    assert sorted(made[0] + made[1]) == list(range(41))
    assert [len(numbers) for numbers in made] == [21, 20]
