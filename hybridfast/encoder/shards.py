"""Embeddings on disk: written in shards that are synced, memory-mapped, and never made twice."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from hybridfast.data.spool import write_whole
from hybridfast.encoder import loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embed", "check_finite", "stored", "weights_hash", "write_whole"]

SHARD = 8_192  # rows between one sync and the next

# Makes the embeddings (B, D) float32 of texts given by their numbers (B,), and tells how many it has done.
Embed = Callable[[NDArray[np.int64], Callable[[int], Any]], NDArray[np.float32]]


def stored(
    path: Path,
    first_N: NDArray[np.int64],
    embed: Embed,
    *,
    name: str,
    dtype: DTypeLike = np.float32,
    progress: bool = True,
    shared: bool = False,
    waits: bool = False,
) -> NDArray[Any]:
    """Embed N texts into a .npy file and map it: (N, D), read-only. A file that is there is only mapped.

    Until it is whole it is called PATH.part. After each shard of rows it is synced, and PATH.json, which says
    how many rows are whole, is renamed into place: after a kill, the next call goes on from there.

    Args:
        first_N: the first text equal to each, `arange(N)` if all differ. Only first ones are embedded; the
            rows of the others are copies.
        name: of the texts, for the bar and for errors.
        dtype: float32 or float16.
        shared: every rank of torch.distributed's default group calls this, and all call `embed` together. The
            first one writes, and all map the file, in a folder that all see.
        waits: for another process that is writing the same file.

    Raises:
        ValueError: another process is writing the file, and this one does not wait; or float16 cannot hold an
            embedding.
    """
    shared = shared and dist.is_initialized() and dist.get_world_size() > 1
    if shared and dist.get_rank():
        _help(first_N, embed)
    elif path.exists():
        _agree(len(first_N), shared)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, state = (path.with_name(path.name + suffix) for suffix in (".part", ".json"))
        with open(part, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                raise ValueError(f"another process is writing {part}") from None
            if path.exists():  # it has been finished since
                _agree(len(first_N), shared)
            else:
                _write(file, state, first_N, embed, name, np.dtype(dtype), progress, shared)
                os.replace(part, path)
        for left in (part, state):
            left.unlink(missing_ok=True)
    if shared:
        dist.barrier()
    return np.load(path, mmap_mode="r")


def _write(
    file: IO[bytes],
    state: Path,
    first_N: NDArray[np.int64],
    embed: Embed,
    name: str,
    dtype: np.dtype[Any],
    progress: bool,
    shared: bool,
) -> None:
    """All rows, or those that are not whole yet."""
    rows = len(first_N)
    done, width = json.loads(state.read_text()).values() if state.exists() else (0, 0)
    whole = len(_header(rows, width, dtype)) + done * width * dtype.itemsize
    if os.fstat(file.fileno()).st_size < whole:  # what is counted was taken away
        done = 0
    _agree(done, shared)
    file.truncate(whole if done else 0)
    with tqdm(total=rows, initial=done, desc=name, unit=" texts", disable=None if progress else True) as bar:
        while done < rows:
            number_B = np.arange(done, min(done + SHARD, rows))
            first_B = first_N[number_B]
            fresh_B = first_B == number_B
            made_FD = np.empty((0, width), np.float32)
            if fresh_B.any():
                made_FD = embed(number_B[fresh_B], bar.update)
            width = made_FD.shape[1]
            header = _header(rows, width, dtype)
            shard_BD = np.empty((len(number_B), width), dtype)
            with np.errstate(over="ignore"):
                shard_BD[fresh_B] = made_FD
            if not np.isfinite(shard_BD[fresh_B]).all():
                most = np.abs(made_FD).max()
                raise ValueError(f"{dtype} cannot hold an embedding of {name} with {most:.3g} in it")
            before_B = first_B < done
            if before_B.any():
                written = np.memmap(file, dtype, "r", len(header), (done, width))
                shard_BD[before_B] = written[first_B[before_B]]
            again_B = ~fresh_B & ~before_B
            shard_BD[again_B] = shard_BD[first_B[again_B] - done]
            file.write(shard_BD.tobytes() if done else header + shard_BD.tobytes())
            file.flush()
            os.fsync(file.fileno())
            done += len(number_B)
            write_whole(state, json.dumps({"rows": done, "width": width}).encode())
            bar.update(done - bar.n)


def _agree(done: int, shared: bool) -> int:
    """How many rows the first rank found whole."""
    told = [done]
    if shared:
        dist.broadcast_object_list(told, 0)
    return told[0]


def _help(first_N: NDArray[np.int64], embed: Embed) -> None:
    """What a rank that does not write does meanwhile."""
    for done in range(_agree(0, True), len(first_N), SHARD):
        number_B = np.arange(done, min(done + SHARD, len(first_N)))
        fresh_B = first_N[number_B] == number_B
        if fresh_B.any():
            embed(number_B[fresh_B], lambda _: None)


def _header(rows: int, width: int, dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    about = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
    npy.write_array_header_1_0(header, about)
    return header.getvalue()


def check_finite(rows_BD: NDArray[np.float32], name: str, shown: Callable[[int], str]) -> None:
    """A ValueError where an embedding is not finite; `shown` says which text is in a row."""
    finite_B = np.isfinite(rows_BD).all(axis=1)
    if not finite_B.all():
        raise ValueError(
            f"the model embeds {int((~finite_B).sum()):,} of {len(rows_BD):,} {name} as NaN or infinity, "
            f"the first of them {shown(int(finite_B.argmin()))}"
        )


def weights_hash(model: SentenceTransformer) -> str:
    """Names a model's weights and how it compares."""
    digest = hashlib.blake2b(loading.similarity(model).encode(), digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(str(model.truncate_dim).encode())
    return digest.hexdigest()
