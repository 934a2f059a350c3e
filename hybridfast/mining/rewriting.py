"""A tokenized corpus with other hard negatives: what training goes on with after mining."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybridfast.data.ids import spans
from hybridfast.data.tokens import TokenizedCorpus

__all__ = ["with_negatives"]

CHUNK = 16_384  # rows written at a time


def with_negatives(
    tokens: TokenizedCorpus, negative_VK: NDArray[np.int64], folder: str | os.PathLike[str]
) -> TokenizedCorpus:
    """The corpus with passages of its own rows as the hard negatives of each row, in place of those it had.

    A sampler of it plans the same batches as one of `tokens`; only their negatives are others.

    Args:
        negative_VK: rows of the corpus, -1 for none, as :class:`hybridfast.mining.mine.Mined` has them.
        folder: where a folder for it is made, named by the data and the negatives; one that is there is used.
    """
    digest = hashlib.blake2b(tokens.fingerprint.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(negative_VK, np.int64).tobytes())
    fingerprint, folder = digest.hexdigest(), Path(folder)
    if (folder / fingerprint).is_dir():
        return TokenizedCorpus.open(folder / fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{fingerprint}-", dir=folder))
    try:
        _write(tokens, negative_VK, unfinished, fingerprint)
        os.rename(unfinished, folder / fingerprint)
    except OSError:
        if not (folder / fingerprint).is_dir():  # else another process finished the same one first
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return TokenizedCorpus.open(folder / fingerprint)


def _write(tokens: TokenizedCorpus, negative_VK: NDArray[np.int64], folder: Path, fingerprint: str) -> None:
    meta = json.loads((tokens.path / "meta.json").read_text(encoding="utf-8"))
    there_VK = negative_VK >= 0
    size_V = 2 + there_VK.sum(axis=1)
    query_V = np.asarray(tokens.version_indptr[:-1])
    length_X = np.diff(tokens.text_indptr)
    lengths: list[NDArray[np.int64]] = []
    with open(folder / "token_ids.bin", "wb") as file:
        for begin in range(0, len(tokens), CHUNK):
            some = slice(begin, begin + CHUNK)
            # Query, passage, then the passages of the rows that are its negatives.
            texts = np.column_stack([query_V[some], query_V[some] + 1, query_V[negative_VK[some]] + 1])
            mask = np.column_stack([np.ones((len(texts), 2), bool), there_VK[some]])
            texts_T = texts[mask]
            lengths.append(length_X[texts_T])
            tokens.token_ids[spans(tokens.text_indptr[texts_T], length_X[texts_T])].tofile(file)
    arrays = {
        "text_indptr": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
        "version_indptr": np.concatenate([[0], np.cumsum(size_V)]).astype(np.int64),
        "negative_hash_H": np.asarray(tokens.passage_hash_V)[negative_VK[there_VK]],
    }
    meta["arrays"]["token_ids"][0] = [int(arrays["text_indptr"][-1])]
    for name, values in arrays.items():
        values.tofile(folder / f"{name}.bin")
        meta["arrays"][name] = [list(values.shape), values.dtype.name]
    for name in meta["arrays"].keys() - arrays.keys() - {"token_ids"}:
        shutil.copyfile(tokens.path / f"{name}.bin", folder / f"{name}.bin")
    for names in tokens.path.glob("groups.*"):
        shutil.copyfile(names, folder / names.name)
    meta |= {"fingerprint": fingerprint, "negatives_left_out": 0, "pieces": []}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False) + "\n", encoding="utf-8")
