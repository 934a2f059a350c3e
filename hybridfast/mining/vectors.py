"""Embeddings of a corpus's texts on disk: written in shards, memory-mapped, never made twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from tqdm import tqdm

from hybridfast.data.tokens import TokenizedCorpus, spans
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.embedding import Side

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["embed_texts", "weights_hash", "write_whole"]

SHARD = 8_192  # texts embedded between one sync and the next


def embed_texts(
    side: Side,
    tokens: TokenizedCorpus,
    texts: NDArray[np.int64],
    path: Path,
    *,
    unit: bool,
    tokens_per_chunk: int | None = None,
) -> NDArray[np.float32]:
    """Embed some of a corpus's texts into a file, and map it: (texts, D) float32.

    What an interrupted call has synced is there for the next one. Shards of texts are embedded in the order
    of `texts`, those of like length of a shard together.

    Args:
        texts: numbers of texts, as :meth:`TokenizedCorpus.text` counts.
        path: the file; beside it lies PATH.json, which says how many rows are whole.
        unit: normalize, for cosines.
        tokens_per_chunk: places that go through the encoder at once. None: 2048 on a CPU, 32768 on a GPU.

    Raises:
        ValueError: an embedding is not finite.
    """
    state_path = path.with_name(path.name + ".json")
    state = json.loads(state_path.read_text()) if state_path.exists() else {"rows": 0, "width": 0}
    done, width = state["rows"], state["width"]
    bar = tqdm(total=len(texts), initial=done, desc=side.task, unit=" texts", disable=None)
    with open(path, "r+b" if path.exists() else "w+b") as file, bar:
        file.truncate(done * width * 4)  # what was not synced
        file.seek(0, os.SEEK_END)
        while done < len(texts):
            shard = texts[done : done + SHARD]
            rows_BD = _embed(side, tokens, shard, tokens_per_chunk)
            if unit:
                rows_BD = normalize(rows_BD, dim=-1)
            finite = rows_BD.isfinite().all(dim=1)
            if not finite.all():
                ids = tokens.text(shard[int(finite.int().argmin())])[:8].tolist()
                raise ValueError(
                    f"the model embeds {int((~finite).sum()):,} of {len(shard):,} texts as NaN or infinity, "
                    f"the first of them a {side.task} of the token ids {ids} ..."
                )
            file.write(rows_BD.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
            done, width = done + len(shard), rows_BD.shape[1]
            write_whole(state_path, json.dumps({"rows": done, "width": width}).encode())
            bar.update(len(shard))
    return np.memmap(path, np.float32, "r", shape=(len(texts), width))


def _embed(
    side: Side, tokens: TokenizedCorpus, texts: NDArray[np.int64], tokens_per_chunk: int | None
) -> torch.Tensor:
    """(B, D) float32 on the CPU."""
    starts_B, lengths_B = tokens.text_indptr[texts], np.diff(tokens.text_indptr)[texts]
    ids_T = torch.from_numpy(tokens.token_ids[spans(starts_B, lengths_B)].astype(np.int64))
    return embedding.encode_ids(side, ids_T, torch.from_numpy(lengths_B), places=tokens_per_chunk).cpu()


def weights_hash(model: SentenceTransformer) -> str:
    """Names a model's weights and how it compares."""
    digest = hashlib.blake2b(loading.similarity(model).encode(), digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(str(model.truncate_dim).encode())
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """A file that holds all of it or what it held before, whatever happens meanwhile."""
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
