"""What a step minimizes: a weighted sum of terms, each a function of a batch and its embeddings.

InfoNCE is the first term, over hybrid batches; others are added to it by their settings. A rank's value of a
term counts its own rows as a share of the whole batch, so that the mean over ranks is one process's value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hybridfast.data.sampler import Batch
from hybridfast.infonce import distributed
from hybridfast.infonce.loss import info_nce
from hybridfast.training.chunks import Embedded
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks

__all__ = ["Objective", "Term"]


class Term(NamedTuple):
    """One of the terms: its name in the log (``loss/NAME``), its weight in the sum, and how it is found."""

    name: str
    weight: float
    of: Callable[[Embedded, Batch], Tensor]  # a scalar: this rank's value; the mean over ranks is the whole's


class Objective:
    """The loss of a batch from its embeddings; further terms go into ``terms``.

    Args:
        config: the settings of "batches and loss".
        cosine: whether embeddings are compared by cosine, or by inner product.
        ranks: those whose batch it is, each of which has its share.
    """

    def __init__(self, config: TrainConfig, *, cosine: bool, ranks: Ranks | None = None) -> None:
        ranks = ranks or Ranks()
        self.config, self.cosine, self.ranks = config, cosine, ranks
        self.temperature = config.temperature or (0.05 if cosine else 1.0)
        # Prefixes that are good embeddings themselves: Kusupati et al., 2022. None: the whole.
        self.dims: list[int | None] = [*config.matryoshka_dims] if config.matryoshka_dims else [None]
        self.terms = [Term("infonce", 1.0, self.infonce)]

    def __call__(self, embedded: Embedded, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's loss, and its terms by name, where there are several.

        Args:
            embedded: of the batch's texts, with gradients.
            batch: this rank's share.
        """
        values = {term.name: term.of(embedded, batch) for term in self.terms}
        if [*values] == ["infonce"]:
            return values["infonce"], {}
        loss = sum((term.weight * values[term.name] for term in self.terms), start=torch.zeros(()))
        return loss, values

    def blend(self, name: str, weight: float, of: Callable[[Embedded, Batch], Tensor]) -> None:
        """A further term takes this share of the sum; those that are there keep their shares of the rest.

        Args:
            of: its values (B,) for a batch's rows, of which the term is the mean.
        """
        kept = [term._replace(weight=(1 - weight) * term.weight) for term in self.terms] if weight < 1 else []
        self.terms = [*kept, Term(name, weight, lambda *given: self.mean_over_batch(of(*given)))]

    def mean_over_batch(self, values_B: Tensor) -> Tensor:
        """This rank's part of the mean over the rows of the whole batch, of which it has these."""
        return values_B.sum() * (self.ranks.world / self.config.batch_size)

    def mean_over_dims(self, of: Callable[[int | None], Tensor]) -> Tensor:
        """The mean of a loss over the prefixes that are trained as embeddings, or that of the whole."""
        return torch.stack([of(dim) for dim in self.dims]).mean()

    def infonce(self, embedded: Embedded, batch: Batch) -> Tensor:
        """InfoNCE of the queries against all ranks' passages (van den Oord et al., 2018)."""
        device = embedded.queries.device
        query_groups = batch.mask_groups.to(device, non_blocking=True)
        groups = [batch.mask_groups, batch.negative_mask_groups]
        passage_groups = torch.cat([part for part in groups if part is not None])
        passage_groups = passage_groups.to(device, non_blocking=True)
        # Of all ranks, whose mean it is, where there are several.
        loss = info_nce
        if not self.ranks.alone:
            loss = partial(distributed.info_nce, exchange=self.config.exchange)
        return self._infonce(loss, embedded.queries, embedded.passages, query_groups, passage_groups)

    def loss_of(
        self, queries_QD: Tensor, passages_ND: Tensor, query_groups: Tensor, passage_groups: Tensor
    ) -> Tensor:
        """InfoNCE of pairs of which this process has all, as validation looks at it."""
        return self._infonce(info_nce, queries_QD, passages_ND, query_groups, passage_groups)

    def _infonce(
        self,
        loss: Callable[..., Tensor],
        queries_QD: Tensor,
        passages_ND: Tensor,
        query_groups: Tensor,
        passage_groups: Tensor,
    ) -> Tensor:
        return self.mean_over_dims(
            lambda dim: loss(
                queries_QD if dim is None else queries_QD[:, :dim],
                passages_ND if dim is None else passages_ND[:, :dim],
                self.temperature,
                query_groups=query_groups,
                passage_groups=passage_groups,
                in_batch=self.config.in_batch,
                bidirectional=self.config.bidirectional,
                normalize=self.cosine,
            )
        )
