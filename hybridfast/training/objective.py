"""What a step minimizes: a weighted sum of terms, each a function of a batch and its embeddings.

InfoNCE is the first term, over hybrid batches; others are added to it by their settings. A rank's value of a
term counts its own rows as a share of the whole batch, so that the mean over ranks is one process's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.functional import normalize as unit

from hybridfast.data.sampler import Batch
from hybridfast.infonce import distributed
from hybridfast.infonce.consistency import divergence
from hybridfast.infonce.loss import info_nce
from hybridfast.training.chunks import Embedded
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks

__all__ = ["Objective", "Term"]

NEVER = -1e4  # the logarithm of weight 0: e^-1e4 is 0 in every dtype, and finite are its products


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
        languages: how many a batch numbers.
        ranks: those whose batch it is, each of which has its share.
    """

    def __init__(
        self, config: TrainConfig, *, cosine: bool, languages: int = 0, ranks: Ranks | None = None
    ) -> None:
        self.config, self.cosine, self.languages, self.ranks = config, cosine, languages, ranks or Ranks()
        self.temperature = config.temperature or (0.05 if cosine else 1.0)
        # Prefixes that are good embeddings themselves: Kusupati et al., 2022. None: the whole.
        self.dims: list[int | None] = [*config.matryoshka_dims] if config.matryoshka_dims else [None]
        self.terms = [Term("infonce", 1.0 - config.consistency_weight, self.infonce)]
        if config.consistency_weight:
            self.terms.append(Term("consistency", config.consistency_weight, self.consistency))
        if config.alignment_weight:
            self.terms.append(Term("alignment", config.alignment_weight, self.alignment))

    def __call__(self, embedded: Embedded, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's loss, and its terms by name, where there are several.

        Args:
            embedded: of the batch's texts, with gradients.
            batch: this rank's share.
        """
        values = {term.name: term.of(embedded, batch) for term in self.terms}
        if [*values] == ["infonce"]:
            return values["infonce"], {}
        weighted = [term.weight * values[term.name] for term in self.terms]
        return torch.stack(weighted).sum(), values

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
        """The mean of a loss over the prefixes that are trained as embeddings, or that of the whole.

        Args:
            of: gets where a prefix ends; None: the whole.
        """
        return torch.stack([of(dim) for dim in self.dims]).mean()

    # --- terms ----------------------------------------------------------------------------------------------

    def infonce(self, embedded: Embedded, batch: Batch) -> Tensor:
        """InfoNCE of the queries against all ranks' passages (van den Oord et al., 2018).

        With ``positives`` group, a passage in another language is one more positive, the loss the mean over
        them (Khosla et al., 2020, eq. 2). ``other_language_weight`` is that of a negative's exponential.
        """
        queries_BD, passages_ND = embedded.queries, embedded.passages
        groups = [batch.mask_groups]
        languages = [batch.passage_languages]
        if batch.negative_rows is not None and batch.negative_mask_groups is not None:
            groups.append(batch.negative_mask_groups)
            languages.append(batch.passage_languages[batch.negative_rows])
        if self.config.positives == "group":
            assert embedded.second_passages is not None  # the sampler was asked for them
            passages_ND = torch.cat([passages_ND, embedded.second_passages])
            groups.append(batch.mask_groups)
        query_groups, passage_groups, positive_languages_B, passage_languages_N = (
            ids.to(queries_BD.device, non_blocking=True)
            for ids in (batch.mask_groups, torch.cat(groups), batch.passage_languages, torch.cat(languages))
        )
        loss: Callable[..., Tensor] = info_nce
        if not self.ranks.alone:
            loss = partial(distributed.info_nce, exchange=self.config.exchange)
        if self.config.positives == "group":
            loss = partial(loss, positives="groups")
        if self.config.other_language_weight < 1:
            loss = partial(self._by_language, loss, positive_languages_B, passage_languages_N)
        return self._infonce(loss, queries_BD, passages_ND, query_groups, passage_groups)

    def consistency(self, embedded: Embedded, batch: Batch) -> Tensor:
        """How differently a query and its translation rank the batch's passages (Yang et al., 2024).

        The mean over rows of KL(softmax cos(q_b, D) || softmax cos(q_a, D)), with D the positives and hard
        negatives of all ranks, q_b in the second language, no temperature, and gradients for all.
        """
        assert embedded.second_queries is not None
        queries_BD, seconds_BD = embedded.queries, embedded.second_queries
        passages_ND = embedded.passages if self.ranks.alone else distributed.gathered(embedded.passages)
        return self.mean_over_batch(
            self.mean_over_dims(
                lambda dim: divergence(queries_BD[:, :dim], seconds_BD[:, :dim], passages_ND[:, :dim])
            )
        )

    def alignment(self, embedded: Embedded, batch: Batch) -> Tensor:
        """Translations of one text pulled together, as in Reimers and Gurevych, 2020, here by their cosine.

        The mean over rows, and over queries and passages, of 1 - cos(text, its second language's).
        """
        assert embedded.second_queries is not None
        assert embedded.second_passages is not None
        texts_TD = torch.cat([embedded.queries, embedded.passages[: len(embedded.queries)]])
        seconds_TD = torch.cat([embedded.second_queries, embedded.second_passages])
        wide = torch.promote_types(texts_TD.dtype, torch.float32)

        def apart(dim: int | None) -> Tensor:
            return 1 - cosine_similarity(texts_TD[:, :dim].to(wide), seconds_TD[:, :dim].to(wide))

        return self.mean_over_batch(self.mean_over_dims(lambda dim: apart(dim).sum()) / 2)

    # --- parts of them --------------------------------------------------------------------------------------

    def loss_of(
        self, queries_QD: Tensor, passages_ND: Tensor, query_groups: Tensor, passage_groups: Tensor
    ) -> Tensor:
        """InfoNCE alone, of pairs of which this process has all, as validation looks at it."""
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

    def _by_language(
        self,
        loss: Callable[..., Tensor],
        positive_languages_Q: Tensor,
        passage_languages_N: Tensor,
        queries_QD: Tensor,
        passages_ND: Tensor,
        temperature: float,
        *,
        normalize: bool,
        **options: Any,
    ) -> Tensor:
        """A loss whose negatives in another language than the positive's count by ``other_language_weight``.

        w e^(s/t) = e^((s + t log w)/t). Columns of languages make the product s + t log w for such pairs,
        and leave it s for those of one language: of query and passage (-t log w) [l = l_q] and [l = l_p] - 1
        for every language l. Under bfloat16, log w is rounded to its eight bits.
        """
        if normalize:
            wide = torch.promote_types(queries_QD.dtype, torch.float32)
            queries_QD, passages_ND = (unit(rows.to(wide), dim=1) for rows in (queries_QD, passages_ND))
        weight = self.config.other_language_weight
        bias = temperature * (math.log(weight) if weight else NEVER)
        languages = torch.arange(self.languages, device=queries_QD.device)
        of_queries_QL = (positive_languages_Q[:, None] == languages).to(queries_QD.dtype) * -bias
        of_passages_NL = (passage_languages_N[:, None] == languages).to(passages_ND.dtype) - 1
        return loss(
            torch.cat([queries_QD, of_queries_QL], 1),
            torch.cat([passages_ND, of_passages_NL], 1),
            temperature,
            normalize=False,
            **options,
        )
