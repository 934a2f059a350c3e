"""Distillation: a text in any language is drawn to what a teacher makes of it in one language, the pivot.

The teacher embeds each group's query and passage in the pivot language, once, into files; batches bring the
rows of their groups along. The student's embeddings, of whatever language, go through a linear layer that is
trained with them and thrown away afterwards, and lose 1 - cosine to the teacher's: Reimers and Gurevych,
2020, for translations; MIMO (Jang et al., arXiv 2605.31171) for retrievers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.functional import normalize

from hybridfast.data.columns import language_tag
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import Batch
from hybridfast.encoder import embedding, loading, shards
from hybridfast.encoder.loading import TASKS, Task, prompt_of
from hybridfast.training.chunks import Embedded
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Distillation", "Teacher", "cost", "pivot_rows", "teacher_of"]

NAMES = ("queries", "passages")  # of the sides TASKS
DTYPE = np.dtype(np.float16)  # of unit vectors, whose cosines it changes in the fourth digit
TRIED = 256  # texts of a side that are timed to say what all will cost


@dataclass(frozen=True)
class Teacher:
    """What a teacher makes of every group in the pivot language.

    queries_GK, passages_GK: float16, read-only maps of files; rows have norm one, or are zeros where the
        group has no version in that language.
    key: names the files' content: weights, prompts, lengths and texts.
    """

    name: str
    key: str
    queries_GK: NDArray[np.float16]
    passages_GK: NDArray[np.float16]

    @property
    def vectors(self) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """What batches bring along."""
        return self.queries_GK, self.passages_GK

    @property
    def width(self) -> int:
        """K, the teacher's dimensions."""
        return int(self.queries_GK.shape[1])


def pivot_rows(corpus: ParallelCorpus, language: str) -> NDArray[np.int32]:
    """The row (G,) of each group in the pivot language, -1 without one; ValueError: nothing is in it."""
    tag = language_tag(language)
    if tag not in corpus.languages:
        raise ValueError(
            f"teacher_language must be one of the data's, {', '.join(corpus.languages)}; got {language!r}"
        )
    return corpus.version_GL[:, corpus.languages.index(tag)]


def teacher_of(
    config: TrainConfig, corpus: ParallelCorpus, folder: Path, ranks: Ranks | None = None
) -> Teacher:
    """The embeddings of a corpus by the teacher of the settings: made once, found again by their content.

    Equal texts are embedded once. After a kill the next call goes on from the last shard; where another
    process makes the same ones, this waits for it. The teacher is loaded, hashed and let go.

    Args:
        corpus: what is trained on.
        folder: where files are kept. Several ranks embed together, and all see it.

    Raises:
        ValueError: there is no such teacher, no text is in the pivot language, an embedding is not finite, or
            a rank does not see the folder.
    """
    ranks = ranks or Ranks()
    making = _Making(config, corpus, folder)
    for side in making.sides:
        if ranks.is_first and not side.path.exists():
            print(f"Teacher: {config.teacher} embeds {len(np.unique(side.first_G)):,} {side.name}")
    try:
        queries_GK, passages_GK = (side.stored(shared=not ranks.alone) for side in making.sides)
    except FileNotFoundError as error:
        raise ValueError(
            f"teacher_dir must be a folder that all ranks see; rank {ranks.rank} does not find "
            f"{error.filename}"
        ) from None
    print(making.told(queries_GK))
    return Teacher(str(config.teacher), making.key, queries_GK, passages_GK)


def cost(config: TrainConfig, corpus: ParallelCorpus, folder: Path) -> str:
    """How long the teacher will take, in a line; from a few texts, of which nothing is kept."""
    making, parts = _Making(config, corpus, folder), []
    for side in making.sides:
        fresh = np.unique(side.first_G)
        if side.path.exists():
            parts.append(f"{side.name} are there already")
            continue
        # A random sample: lengths may follow the order of the rows.
        some = np.sort(np.random.default_rng(0).permutation(fresh)[:TRIED])
        begin = time.perf_counter()
        side.embed(some, lambda _: None)
        seconds = (time.perf_counter() - begin) / len(some) * len(fresh)
        parts.append(f"{len(fresh):,} {side.name} to embed, about {seconds / 60:.1f} min")
    return f"Teacher: {'; '.join(parts)}"


class _Making:
    """The teacher with the texts that it is to embed."""

    def __init__(self, config: TrainConfig, corpus: ParallelCorpus, folder: Path) -> None:
        self.language, self.folder = language_tag(config.teacher_language), folder
        self.row_G = pivot_rows(corpus, config.teacher_language)
        assert config.teacher is not None
        try:
            model = loading.load(
                config.teacher, device=config.device, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"teacher {config.teacher} cannot be loaded: {error}") from error
        about = [shards.weights_hash(model), embedding.reading_of(model), model.max_seq_length, DTYPE.name]
        self.sides = [
            _Side(model, task, name, self._texts(corpus, column), config.eval_batch_size, about, folder)
            for task, name, column in zip(TASKS, NAMES, ("query", "passage"), strict=True)
        ]
        self.key = " ".join(side.path.stem for side in self.sides)

    def _texts(self, corpus: ParallelCorpus, column: str) -> list[str | None]:
        """Every group's text in the pivot language, or None."""
        known = self.row_G >= 0
        texts = iter(corpus.taken(column, self.row_G[known]))
        return [next(texts) if there else None for there in known.tolist()]

    def told(self, rows_GK: NDArray[np.float16]) -> str:
        groups, missing = len(self.row_G), int((self.row_G < 0).sum())
        text = (
            f"Teacher: {rows_GK.shape[1]:,} dimensions of {groups - missing:,} groups in {self.language!r}, "
            f"in {self.folder} ({2 * rows_GK.nbytes / 1e6:,.1f} MB)"
        )
        if missing:
            text += f"; {missing:,} groups have no {self.language!r} and are not distilled"
        return text


class _Side:
    """Queries or passages of all groups (G,), and their file."""

    def __init__(
        self,
        model: SentenceTransformer,
        task: Task,
        name: str,
        texts: list[str | None],
        batch_size: int,
        about: list[Any],
        folder: Path,
    ) -> None:
        self.model, self.task, self.name, self.texts, self.batch_size = model, task, name, texts, batch_size
        digest = hashlib.blake2b(json.dumps([*about, task, prompt_of(model, task)]).encode(), digest_size=16)
        numbers: dict[str | None, int] = {}
        first = []
        for number, text in enumerate(texts):
            first.append(numbers.setdefault(text, number))
            digest.update(b"-" if text is None else f"{len(text)} {text}".encode())
        self.first_G = np.array(first, np.int64)
        self.path = folder / f"{name}-{digest.hexdigest()}.npy"

    def stored(self, *, shared: bool) -> NDArray[np.float16]:
        """(G, K), a read-only map."""
        made = partial(self.embed, shared=shared)
        return shards.stored(
            self.path, self.first_G, made, name=self.name, dtype=DTYPE, shared=shared, waits=True
        )

    def embed(
        self, number_B: NDArray[np.int64], told: Callable[[int], Any], *, shared: bool = False
    ) -> NDArray[np.float32]:
        """Unit rows (B, K) of texts by their numbers, zeros where there is no text."""
        chosen = [self.texts[number] for number in number_B]
        some = [text for text in chosen if text is not None]
        rows_SK = embedding.encode(
            self.model,
            self.task,
            some or ["a"],  # which says how wide they are
            batch_size=self.batch_size,
            told=told,
            shared=shared,
        ).cpu()
        shards.check_finite(rows_SK.numpy(), self.name, lambda row: repr((some or ["a"])[row][:60]))
        rows_BK = np.zeros((len(chosen), rows_SK.shape[1]), np.float32)
        rows_BK[[text is not None for text in chosen]] = normalize(rows_SK[: len(some)], dim=1).numpy()
        return rows_BK


class Distillation:
    """The term of the loss, with the layer that is trained for it and not saved with the model.

    Args:
        teacher: of the groups of every batch.
        model: the student. With Matryoshka dimensions, all of its embedding is distilled.
        config: `seed` decides the layer's first weights; without `distillation_projection` there is no layer.

    Raises:
        ValueError: there is no layer, and the student is not as wide as the teacher.
    """

    def __init__(self, teacher: Teacher, model: SentenceTransformer, config: TrainConfig) -> None:
        self.teacher = teacher
        width = embedding.encode(model, "query", ["a"], batch_size=1).shape[1]
        self.projection: Linear | None = None
        if config.distillation_projection:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.projection = Linear(width, teacher.width)
            self.projection.to(model.device)
        elif width != teacher.width:
            raise ValueError(
                f"distillation_projection False needs a teacher of the model's {width} dimensions; "
                f"{teacher.name} has {teacher.width}"
            )

    @property
    def parameters(self) -> list[Parameter]:
        return [] if self.projection is None else list(self.projection.parameters())

    def __call__(self, embedded: Embedded, batch: Batch) -> Tensor:
        """1 - cosine to the teacher's (B,), of a row's query and passage by halves, in float32 at least.

        A side whose teacher's embedding is zero, of a group without the pivot language, counts 0.
        """
        queries_BK, passages_BK = batch.group_vectors
        rows = len(queries_BK)  # of passages, what is behind are hard negatives
        return (
            self._distances(embedded.queries, queries_BK)
            + self._distances(embedded.passages[:rows], passages_BK)
        ) / 2

    def _distances(self, rows_BD: Tensor, teacher_BK: Tensor) -> Tensor:
        teacher_BK = teacher_BK.to(rows_BD.device, non_blocking=True)
        projected_BK = rows_BD if self.projection is None else self.projection(rows_BD)
        wide = torch.promote_types(projected_BK.dtype, torch.float32)
        cosines_B = (normalize(projected_BK.to(wide), dim=1) * normalize(teacher_BK.to(wide), dim=1)).sum(1)
        return (1 - cosines_B) * teacher_BK.any(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "teacher": self.teacher.key,
            "projection": {} if self.projection is None else dict(self.projection.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the state is of another teacher, or of other texts."""
        if state["teacher"] != self.teacher.key:
            raise ValueError(
                f"the checkpoint is of another teacher than {self.teacher.name} is now: it has other "
                "weights, prompts or lengths"
            )
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])
