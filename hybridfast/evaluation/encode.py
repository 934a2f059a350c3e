"""From a model and an evaluation set to the figures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from tqdm import tqdm

from hybridfast.encoder import embedding, shards
from hybridfast.encoder.embedding import reading_of
from hybridfast.encoder.loading import TASKS, Task, prompt_of, similarity
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
from hybridfast.infonce.backends import TRITON

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["embed", "encode", "evaluate", "rank"]

Embeddings = torch.Tensor | NDArray[Any]
NAMES = ("queries", "passages")  # of the sides TASKS


def evaluate(
    model: SentenceTransformer, eval_set: EvalSet, *, batch_size: int = 256, progress: bool = True
) -> Evaluation:
    """Encode an evaluation set and rank by the model's similarity; see :func:`embed`."""
    queries, passages = embed(model, eval_set, batch_size=batch_size, progress=progress)
    return evaluate_embeddings(eval_set, queries, passages)


def embed(
    model: SentenceTransformer,
    eval_set: EvalSet,
    *,
    batch_size: int = 256,
    progress: bool = True,
    folder: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    shared: bool = False,
) -> tuple[Embeddings, Embeddings]:
    """Both sides, each under the model's own prompt, so that inner products are the model's similarity.

    Args:
        folder: where embeddings are kept, in files named after all that they depend on; what is there, be it
            what a killed call left, is not made again. They come as read-only maps, of which the ranking
            reads tiles. None: in memory, as :func:`encode` says.
        dtype: of the files: float32 or float16, which is half as large and rounds to 11 bits.
        shared: every rank of torch.distributed calls this and embeds a part; all get all.

    Raises:
        ValueError: an embedding is not finite or beyond the dtype, another process is writing the same file,
            or the model compares in a way that is unknown here.
    """
    sides = eval_set.queries, eval_set.passages
    if folder is None:
        rows = encode(model, *sides, batch_size=batch_size, progress=progress, shared=shared)
        return _comparable(model, eval_set, *rows)
    about = [shards.weights_hash(model), reading_of(model), model.max_seq_length, dtype]
    unit = similarity(model) == "cosine"
    embeddings = []
    for task, name, texts in zip(TASKS, NAMES, sides, strict=True):
        digest = hashlib.blake2b(json.dumps([*about, task, prompt_of(model, task)]).encode(), digest_size=16)
        for text in texts:
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        path = Path(folder) / f"{name}-{digest.hexdigest()}.npy"
        made = partial(_rows_of, model, task, texts, batch_size, unit, shared)
        embeddings.append(
            shards.stored(
                path, _firsts(texts), made, name=name, dtype=dtype, progress=progress, shared=shared
            )
        )
    return embeddings[0], embeddings[1]


def _rows_of(
    model: SentenceTransformer,
    task: Task,
    texts: list[str],
    batch_size: int,
    unit: bool,
    shared: bool,
    number_B: NDArray[np.int64],
    told: Callable[[int], Any],
) -> NDArray[np.float32]:
    some = [texts[number] for number in number_B]
    rows_BD = embedding.encode(model, task, some, batch_size=batch_size, told=told, shared=shared).cpu()
    _check_finite(task, some, rows_BD)
    return (normalize(rows_BD, dim=-1) if unit else rows_BD).numpy()


def _firsts(texts: list[str]) -> NDArray[np.int64]:
    """The number of the first text equal to each."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, number) for number, text in enumerate(texts)], np.int64)


def rank(
    model: SentenceTransformer,
    eval_set: EvalSet,
    queries: torch.Tensor,
    passages: torch.Tensor,
    *,
    shared: bool = False,
) -> Evaluation:
    """The figures of a set that the model has embedded: (Q, D) and (N, D) float32, as :func:`encode` does.

    With `shared`, every rank of torch.distributed calls this, ranks for a part of the queries, and gets all.

    Raises:
        ValueError: an embedding is not finite, or the model compares in a way that is unknown here.
    """
    queries, passages = _comparable(model, eval_set, queries, passages)
    if not (TRITON and queries.device.type == passages.device.type == "cuda"):
        queries, passages = queries.cpu(), passages.cpu()
    return evaluate_embeddings(eval_set, queries, passages, shared=shared)


def _comparable(
    model: SentenceTransformer, eval_set: EvalSet, queries: torch.Tensor, passages: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    for task, texts, rows in zip(
        TASKS, (eval_set.queries, eval_set.passages), (queries, passages), strict=True
    ):
        _check_finite(task, texts, rows)
    if similarity(model) == "cosine":
        queries, passages = normalize(queries, dim=-1), normalize(passages, dim=-1)
    return queries, passages


def encode(
    model: SentenceTransformer,
    queries: list[str],
    passages: list[str],
    *,
    batch_size: int,
    progress: bool,
    shared: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed texts for evaluation, each side under its own prompt: (Q, D) and (N, D) float32.

    Equal texts are embedded once; with `shared`, every rank of torch.distributed embeds a part, and gets all.
    Rows stay on an NVIDIA GPU that made them, where `gold_ranks` reads them too; else they are on the CPU.
    """
    embeddings = []
    for task, texts in zip(TASKS, (queries, passages), strict=True):
        first_N = _firsts(texts)
        fresh = np.unique(first_N)
        some = [texts[number] for number in fresh]
        with tqdm(total=len(some), desc=task, unit=" texts", disable=None if progress else True) as bar:
            rows = embedding.encode(model, task, some, batch_size=batch_size, told=bar.update, shared=shared)
        if len(fresh) < len(texts):
            rows = rows[torch.from_numpy(np.searchsorted(fresh, first_N)).to(rows.device)]
        embeddings.append(rows)
    if not (TRITON and all(rows.device.type == "cuda" for rows in embeddings)):
        embeddings = [rows.cpu() for rows in embeddings]
    return embeddings[0], embeddings[1]


def _check_finite(task: Task, texts: list[str], rows: torch.Tensor) -> None:
    if not bool(rows.isfinite().all()):  # where they are: they are brought here for a message alone
        name = NAMES[TASKS.index(task)]
        shards.check_finite(rows.cpu().numpy(), name, lambda row: repr(texts[row][:60]))
