"""How long texts are: in characters, and in a model's tokens before it cuts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder.embedding import Side, reading_of
from hybridfast.encoder.loading import TASKS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["LONG", "SIDES", "characters", "tokens"]

SIDES = ("query", "passage")  # of a pair, as the table's columns are called
LONG = 10_000  # characters of a very long text
CHUNK = 65_536  # rows looked at together
READ = 4_096  # rows tokenized together, at least
MANY = 1_000_000  # tokens, instead of a model's limit
PROBE = 200_000  # characters of a text that any model cuts that cuts at all


def characters(corpus: ParallelCorpus) -> dict[str, Any]:
    """Characters of queries and passages, by language and in all, and how many texts have above `LONG`."""
    found = {}
    for side in SIDES:
        parts = [
            pc.utf8_length(batch.column(side)).to_numpy(zero_copy_only=False)
            for batch in corpus.table.to_batches(max_chunksize=CHUNK)
        ]
        length_V = np.concatenate(parts)
        found[side] = {
            "all": _spread(length_V),
            "languages": {
                name: _spread(length_V[corpus.language_V == i]) for i, name in enumerate(corpus.languages)
            },
            "longer_than_10000": int((length_V > LONG).sum()),
        }
    return found


def _spread(length_B: NDArray[np.int64]) -> dict[str, Any]:
    """Mean, quantiles and maximum; p99 is the least length that 99 % of texts do not exceed."""
    median, p90, p99 = np.quantile(length_B, (0.5, 0.9, 0.99), method="inverted_cdf").tolist()
    return {
        "texts": len(length_B),
        "mean": float(length_B.mean()),
        "median": int(median),
        "p90": int(p90),
        "p99": int(p99),
        "longest": int(length_B.max()),
    }


# --- tokens ------------------------------------------------------------------------------------------------


def tokens(
    model: SentenceTransformer, corpus: ParallelCorpus, sample: int, *, progress: bool = True
) -> dict[str, Any]:
    """Tokens of queries and passages as the model reads them, prompt and special tokens counted, uncut.

    Whole groups are looked at, evenly spread over the corpus, of about `sample` rows together: all of them
    where there are no more. ``truncated`` is the share of texts longer than the model's limit, as it is set;
    ``unknown`` that of tokens which stand for what the vocabulary does not have; ``per_character`` leaves
    out prompt and special tokens, and so does ``times_reference``: tokens of a language over those of the
    reference language in the groups that have both. Afterwards the model no longer cuts texts.

    Raises:
        ValueError: the model does not read token ids alone.
    """
    reading = reading_of(model)
    sides = [Side(model, task, texts, reading) for task, texts in zip(TASKS, corpus.samples(), strict=True)]
    probe = _probe(corpus)
    cut = [len(side.ids([probe])[0]) for side in sides]
    own_limit = _own_limit(model)
    _lift_limits(model)
    uncut = [len(side.ids([probe])[0]) for side in sides]
    limits = [at if at < whole else None for at, whole in zip(cut, uncut, strict=True)]
    overheads = [max(0, len(side.ids(["a"])[0]) - 1) for side in sides]

    chosen_V = _evenly(len(corpus.groups), sample / len(corpus))[corpus.group_V]
    rows_R = np.flatnonzero(chosen_V)
    unknown_ids = _unknown_ids(model)
    length_SR, character_SR, unknown_SR = (np.empty((2, len(rows_R)), np.int64) for _ in range(3))
    bar = tqdm(
        total=len(rows_R), desc="tokenizing", unit=" rows", leave=False, disable=None if progress else True
    )
    with bar:
        done = 0
        for texts in _texts(corpus, chosen_V):
            part = slice(done, done + len(texts[0]))
            for s, side in enumerate(sides):
                ids_T, length_SR[s, part] = side.ids(texts[s])
                character_SR[s, part] = [len(text) for text in texts[s]]
                text_T = np.repeat(np.arange(len(texts[s])), length_SR[s, part])
                unknown_SR[s, part] = np.bincount(
                    text_T[np.isin(ids_T, unknown_ids)], minlength=len(texts[s])
                )
            done = part.stop
            bar.update(len(texts[0]))
    language_R, group_R = corpus.language_V[rows_R], corpus.group_V[rows_R]
    rows_L = np.bincount(language_R, minlength=len(corpus.languages))
    # English where it is among those of most groups: it is what people know the lengths of.
    reference = max(
        range(len(rows_L)), key=lambda i: (rows_L[i], corpus.languages[i].split("-")[0] == "en", -i)
    )
    found: dict[str, Any] = {
        "rows": len(rows_R),
        "of_rows": len(corpus),
        "reference": corpus.languages[reference],
        "longest_that_the_model_reads": own_limit,
    }
    for s, name in enumerate(SIDES):
        net_R = np.maximum(length_SR[s] - overheads[s], 0)
        of: dict[str, Any] = {"limit": limits[s], "prompt_and_special_tokens": overheads[s]}

        def told(
            chosen: NDArray[np.bool_],
            s: int = s,
            net_R: NDArray[np.int64] = net_R,
            limit: int | None = limits[s],
        ) -> dict[str, Any]:
            length_B = length_SR[s, chosen]
            return _spread(length_B) | {
                "truncated": float((length_B > limit).mean()) if limit else 0.0,
                "unknown": float(unknown_SR[s, chosen].sum() / max(1, length_B.sum())),
                "per_character": float(net_R[chosen].sum() / character_SR[s, chosen].sum()),
            }

        of["all"] = told(np.ones(len(rows_R), bool))
        times_L = _times(net_R, group_R, language_R, len(rows_L), reference)
        of["languages"] = {
            language: told(language_R == i) | {"times_reference": times_L[i]}
            for i, language in enumerate(corpus.languages)
            if rows_L[i]
        }
        found[name] = of
    return found


def _evenly(count: int, share: float) -> NDArray[np.bool_]:
    """A share of so many places, one at least, spread evenly."""
    kept = min(count, max(1, round(count * share)))
    end_G = np.arange(1, count + 1, dtype=np.int64) * kept // count
    return np.diff(end_G, prepend=0) > 0


def _texts(corpus: ParallelCorpus, chosen_V: NDArray[np.bool_]) -> Iterator[list[list[str]]]:
    """Queries and passages of the chosen rows, some thousands at a time."""
    begin, pending = 0, [[], []]  # type: tuple[int, list[list[str]]]
    for batch in corpus.table.to_batches(max_chunksize=CHUNK):
        kept = batch.filter(pa.array(chosen_V[begin : begin + batch.num_rows]))
        begin += batch.num_rows
        for at in range(0, kept.num_rows, READ):
            for texts, side in zip(pending, SIDES, strict=True):
                texts += kept.column(side).slice(at, READ).to_pylist()
            if len(pending[0]) >= READ:
                yield pending
                pending = [[], []]
    if pending[0]:
        yield pending


def _times(
    net_R: NDArray[np.int64],
    group_R: NDArray[np.int32],
    language_R: NDArray[np.int32],
    languages: int,
    reference: int,
) -> list[float | None]:
    """Each language's tokens over the reference's, in the groups that have both; None where none has."""
    _, place_R = np.unique(group_R, return_inverse=True)
    net_GL = np.full((int(place_R.max()) + 1, languages), -1, np.int64)
    net_GL[place_R, language_R] = net_R
    own_GL, both_GL = net_GL[:, [reference]], (net_GL >= 0) & (net_GL[:, [reference]] >= 0)
    tokens_L = np.where(both_GL, net_GL, 0).sum(axis=0)
    theirs_L = np.where(both_GL, own_GL, 0).sum(axis=0)
    return [
        tokens / theirs if theirs else None
        for tokens, theirs in zip(tokens_L.tolist(), theirs_L.tolist(), strict=True)
    ]


def _probe(corpus: ParallelCorpus) -> str:
    """A text that is longer than what any model reads, of words that its vocabulary may know."""
    words = max((text for texts in corpus.samples() for text in texts), key=len)
    return " ".join([words] * (PROBE // len(words) + 1))


def _own_limit(model: SentenceTransformer) -> int | None:
    """What ``--max_query_length`` and ``--max_passage_length`` can be at most; None: they cannot be set."""
    inputs: list[Any] = [module for module in model.modules() if hasattr(module, "query_length")]
    limits = [int(module.max_seq_length) for module in inputs if module.max_seq_length is not None]
    return min(limits) if limits and min(limits) < MANY else None


def _lift_limits(model: SentenceTransformer) -> None:
    from tokenizers import Tokenizer

    for module in model.modules():
        part: Any = module
        if hasattr(part, "query_length"):
            part.query_length = part.document_length = None
        if isinstance(getattr(part, "max_seq_length", None), int):
            with suppress(AttributeError):  # a router's is that of its parts
                part.max_seq_length = MANY
        if isinstance(getattr(part, "tokenizer", None), Tokenizer):
            part.tokenizer.no_truncation()


def _unknown_ids(model: SentenceTransformer) -> list[int]:
    """The ids of what no vocabulary has."""
    found = set()
    for module in model.modules():
        tokenizer: Any = getattr(module, "tokenizer", None)
        if tokenizer is None:
            continue
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None and (token := getattr(getattr(tokenizer, "model", None), "unk_token", None)):
            unknown = tokenizer.token_to_id(token)
        if unknown is not None:
            found.add(int(unknown))
    return sorted(found)
