"""Validation while a model is trained: on what, how good, and whether it was ever better."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding
from hybridfast.encoder.embedding import Side
from hybridfast.evaluation import readers, rows
from hybridfast.evaluation.encode import rank
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_embeddings
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LossOf = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Pair = tuple[int, int, int]  # query, gold, group
Batch = tuple[Tensor, ...]  # the same, (B,) each

__all__ = ["Best", "Validation", "check_metric", "figures_of", "hold_out"]


def hold_out(corpus: ParallelCorpus, config: TrainConfig) -> tuple[ParallelCorpus, EvalSet | None]:
    """The rows to train on, and what to validate on if that is asked for.

    Rows whose split is dev or test are not among the first. A share of the ids is chosen by their hashes:
    the same for every seed.

    Raises:
        ValueError: there is nothing to validate on, or there are two such things; a metric that does not
            exist, or is not defined on this set.
    """
    train_V, dev_V = corpus.in_split("train"), corpus.in_split("dev")
    if config.validation_split:
        for name, other in (
            ("rows whose split is dev", bool(dev_V.any())),
            ("validation_dataset", config.validation_dataset is not None),
        ):
            if other:
                raise ValueError(
                    f"validation_split {config.validation_split} and {name}: one of them is meant"
                )
        dev_V = train_V & _share(corpus, config.validation_split)
        train_V &= ~dev_V
    if not train_V.any():
        raise ValueError(f"{corpus.name}: no row is left to train on: the split of all is dev or test")
    training = corpus if train_V.all() else corpus.where(train_V)
    if config.eval_steps is None:
        return training, None
    if config.validation_dataset is not None:
        eval_set = readers.load(config.validation_dataset, config.eval_data_dir)
    elif dev_V.any():
        eval_set = rows.from_corpus(corpus.where(dev_V))
    else:
        raise ValueError(
            f"eval_steps {config.eval_steps} has nothing to validate on: no row of {corpus.name} has the "
            "split dev or validation; set validation_split or validation_dataset"
        )
    check_metric(eval_set, config.metric_for_best_model)
    return training, eval_set


def _share(corpus: ParallelCorpus, share: float) -> NDArray[np.bool_]:
    """Rows of that share of the ids, one at least."""
    hash_I = corpus.item_hash_I
    chosen_I = np.zeros(len(hash_I), bool)
    chosen_I[np.argsort(hash_I, kind="stable")[: max(1, round(share * len(hash_I)))]] = True
    return chosen_I[corpus.item_V]


def check_metric(eval_set: EvalSet, metric: str | None, setting: str = "metric_for_best_model") -> None:
    """ValueError where a metric is not defined on a set, which shows on any embeddings."""
    if metric is None:
        return
    queries_Q1, passages_N1 = (
        np.zeros((len(texts), 1), np.float32) for texts in (eval_set.queries, eval_set.passages)
    )
    figures = figures_of(evaluate_embeddings(eval_set, queries_Q1, passages_N1))
    if metric not in figures:
        raise ValueError(
            f"{setting} must be one of those defined on {eval_set.name}, {', '.join(figures)}; got {metric!r}"
        )


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """Every figure that is defined on a set, by the name that the tables have for it."""
    pools = {"mono": evaluation.mono, "cross": evaluation.cross, "multi": evaluation.multi}
    every = {f"{measure} {pool}": of(measure) for measure in evaluation.pairs for pool, of in pools.items()}
    figures = {**evaluation.summary(), **every}
    return {name: value for name, value in figures.items() if not math.isnan(value)}


class Validation:
    """A set as token ids, made once for all runs and steps.

    Args:
        sides: of a model that reads as all of them do.
        batch_size: pairs of a batch, for losses.
    """

    def __init__(self, eval_set: EvalSet, sides: tuple[Side, Side], batch_size: int) -> None:
        self.eval_set = eval_set
        self.batches = _batches(eval_set, batch_size)
        texts = (eval_set.queries, eval_set.passages)
        self.ids = [
            (torch.from_numpy(ids_T).long(), torch.from_numpy(lengths_B))
            for ids_T, lengths_B in (side.ids(those) for side, those in zip(sides, texts, strict=True))
        ]

    def of(
        self,
        model: SentenceTransformer,
        chunks: Chunks,
        loss: LossOf | None = None,
        ranks: Ranks | None = None,
    ) -> dict[str, float]:
        """The figures of a model, which is left in training mode; none, and a warning, if it embeds NaN.

        Args:
            chunks: of this model; says how much is embedded at once.
            loss: of embeddings and what they are masked by. Adds ``loss mono`` and ``loss cross``: of every
                query with an answer in its language and in another, in batches of one kind.
            ranks: they embed together; rank 0 finds the figures, which all of them get.
        """
        ranks = ranks or Ranks()
        model.eval()
        queries_QD, passages_ND = (
            embedding.encode_ids(side, ids_T, lengths_B, places=chunks.places, shared=not ranks.alone)
            for side, (ids_T, lengths_B) in zip(chunks.sides, self.ids, strict=True)
        )
        model.train()
        return ranks.by_first(lambda: self._figures(model, queries_QD, passages_ND, loss))

    def _figures(
        self, model: SentenceTransformer, queries_QD: Tensor, passages_ND: Tensor, loss: LossOf | None
    ) -> dict[str, float]:
        with torch.inference_mode():
            losses = {
                f"loss {kind}": _mean_loss(loss, queries_QD, passages_ND, batches)
                for kind, batches in self.batches.items()
                if loss and batches
            }
        try:
            return figures_of(rank(model, self.eval_set, queries_QD, passages_ND)) | losses
        except ValueError as error:  # not finite: nor will the next step's loss be, which ends the run
            warnings.warn(f"validation: {error}", stacklevel=2)
            return {}


def _batches(eval_set: EvalSet, batch_size: int) -> dict[str, list[Batch]]:
    """Pairs of queries and golds: mono batches of one language each, cross ones of all."""
    shuffled_Q = np.random.default_rng(0).permutation(len(eval_set.queries))
    pairs: dict[str, list[Pair]] = {"mono": [], "cross": []}
    for query in shuffled_Q.tolist():
        golds = eval_set.gold_indices[slice(*eval_set.gold_indptr[query : query + 2])].tolist()
        language = eval_set.query_languages[query]
        own = [gold for gold in golds if eval_set.passage_languages[gold] == language]
        others = [gold for gold in golds if eval_set.passage_languages[gold] != language]
        # Queries with a gold in common are translations of one another: no negatives.
        pairs["mono"] += [(query, own[0], golds[0])] if own else []
        pairs["cross"] += [(query, others[query % len(others)], golds[0])] if others else []
    by_language: dict[str, list[Pair]] = {}
    for pair in pairs["mono"]:
        by_language.setdefault(eval_set.query_languages[pair[0]], []).append(pair)
    return {"mono": _cut([*by_language.values()], batch_size), "cross": _cut([pairs["cross"]], batch_size)}


def _cut(kinds: list[list[Pair]], batch_size: int) -> list[Batch]:
    """Batches of pairs of one kind; of a single pair, whose loss is 0, none."""
    cuts = [kind[at : at + batch_size] for kind in kinds for at in range(0, len(kind), batch_size)]
    return [torch.tensor(pairs).unbind(1) for pairs in cuts if len(pairs) > 1]


def _mean_loss(loss: LossOf, queries_QD: Tensor, passages_ND: Tensor, batches: list[Batch]) -> float:
    total, count = 0.0, 0
    for batch in batches:
        query_B, gold_B, group_B = (rows_B.to(queries_QD.device) for rows_B in batch)
        total += len(query_B) * float(loss(queries_QD[query_B], passages_ND[gold_B], group_B, group_B))
        count += len(query_B)
    return total / count


class Best:
    """The best figure so far, its step, and for how many validations none was better.

    ``figures`` are those of the best one; without a metric, of the last.
    """

    def __init__(self, metric: str | None, patience: int | None) -> None:
        self.metric, self.patience = metric, patience
        self.value: float | None = None
        self.step: int | None = None
        self.worse = 0
        self.figures: dict[str, float] = {}

    def add(self, figures: dict[str, float], step: int) -> bool:
        """Whether this one is the best."""
        if self.metric is None:
            self.figures = figures
            return False
        value = figures.get(self.metric)
        lower_is_better = "distance" in self.metric
        if value is None or (
            self.value is not None and (value >= self.value if lower_is_better else value <= self.value)
        ):
            self.worse += 1
            return False
        self.value, self.step, self.worse, self.figures = value, step, 0, figures
        return True

    @property
    def stops(self) -> bool:
        """Whether it is time to give up."""
        return self.patience is not None and self.worse >= self.patience

    def summary(self) -> dict[str, Any]:
        """The figures of the model that is left, and its step if one was chosen."""
        if not self.figures:
            return {}
        return {"validation": self.figures} | ({"best_step": self.step} if self.step else {})

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("value", "step", "worse", "figures")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.step, self.worse = state["value"], state["step"], state["worse"]
        self.figures = state["figures"]
