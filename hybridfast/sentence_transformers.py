"""Hybrid batches and the fused InfoNCE in sentence-transformers' own trainer.

    dataset = HybridDataset(load_dataset(...))  # rows: id, lang, anchor, positive[, negative_1, ...]
    args = SentenceTransformerTrainingArguments(
        ..., batch_sampler=partial(HybridBatchSampler, alpha=0.5, cross="mixed")
    )
    SentenceTransformerTrainer(model, args, train_dataset=dataset, loss=InfoNCELoss(model)).train()

The trainer tokenizes every batch anew; `python -m hybridfast.train` and HybridSampler with a TokenizedCorpus
do it once. Prompts and prefixes are the trainer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import nn

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.infonce.loss import InfoNCE

try:
    from sentence_transformers.base.sampler import DefaultBatchSampler
except ImportError:  # where sentence-transformers 4 and 5 have it
    from sentence_transformers.sampler import DefaultBatchSampler  # type: ignore[no-redef,unused-ignore]

__all__ = ["HybridBatchSampler", "HybridDataset", "InfoNCELoss"]

Key = tuple[int, int, int]  # the query's row, the passage's row, the group for the loss's mask


@dataclass(frozen=True)
class _Versions:
    """What a plan needs of a corpus without token ids."""

    languages: list[str]
    sources: list[str]
    version_GL: np.ndarray
    source_G: np.ndarray
    item_G: np.ndarray
    query_hash_V: np.ndarray
    passage_hash_V: np.ndarray
    fingerprint: str
    token_ids: None = None
    text_indptr: None = None
    version_indptr: None = None
    pad_id: int = 0


class HybridDataset(Dataset):
    """A datasets.Dataset of versions whose rows can also be asked for by `HybridBatchSampler`'s keys.

    Args:
        rows: a ParallelCorpus, or what `ParallelCorpus.from_rows` reads: mappings with id, lang, anchor (or
            query), positive (or passage) and optionally negative_1, ... and source.

    Columns: anchor, positive, and as many of negative_1, ... as every row has.
    """

    def __init__(self, rows: ParallelCorpus | Iterable[Any]) -> None:
        corpus = rows if isinstance(rows, ParallelCorpus) else ParallelCorpus.from_rows(rows, name="dataset")
        table = corpus.table.combine_chunks()
        columns = {"anchor": table["query"], "positive": table["passage"]}
        negatives = table["negatives"].to_pylist()
        for i in range(min((len(own) for own in negatives), default=0)):
            columns[f"negative_{i + 1}"] = pa.chunked_array([[own[i] for own in negatives]])
        super().__init__(InMemoryTable(pa.table(columns)))
        self.versions = _Versions(
            languages=corpus.languages,
            sources=corpus.sources,
            version_GL=corpus.version_GL,
            source_G=corpus.source_G,
            item_G=corpus.item_G,
            query_hash_V=corpus.query_hash_V,
            passage_hash_V=corpus.passage_hash_V,
            fingerprint=corpus.fingerprint,
        )

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        """The rows of a batch: the anchor of one row, the positive and negatives of another."""
        if not isinstance(keys[0], tuple):
            return super().__getitems__(keys)
        queries, passages, groups = (list(part) for part in zip(*keys, strict=True))
        rows = self[queries + passages]
        others = [name for name in rows if name != "anchor"]
        return [
            {
                "anchor": rows["anchor"][i],
                **{name: rows[name][len(keys) + i] for name in others},
                "label": group,  # a name under which the trainer looks for labels
            }
            for i, group in enumerate(groups)
        ]


class HybridBatchSampler(DefaultBatchSampler):
    """HybridSampler as the `batch_sampler` of a trainer, or of a DataLoader over a HybridDataset.

    Give the trainer `functools.partial(HybridBatchSampler, alpha=..., ...)` with any option of HybridSampler
    that concerns the plan. Epochs hold full batches only and differ (the trainer calls `set_epoch`). Of
    several processes each takes whole batches in turn, so de-duplication is within a process's batch.
    """

    def __init__(
        self,
        dataset: HybridDataset,
        batch_size: int,
        drop_last: bool = True,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not isinstance(dataset, HybridDataset):
            raise ValueError(f"train_dataset must be a HybridDataset, got {type(dataset).__name__}")
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self.versions = dataset.versions
        self.hybrid = HybridSampler(self.versions, batch_size, seed=seed, **{"threads": 1, **options})
        # The sampler numbers the chosen languages, version_GL has all of them.
        self.columns = np.array([self.versions.languages.index(name) for name in self.hybrid.languages])

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override,unused-ignore]
        for batch in self.hybrid.epoch(self.epoch):
            groups = batch.groups.numpy()
            queries = self.versions.version_GL[groups, self.columns[batch.query_languages]]
            passages = self.versions.version_GL[groups, self.columns[batch.passage_languages]]
            yield list(zip(queries.tolist(), passages.tolist(), batch.mask_groups.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.hybrid)


class InfoNCELoss(nn.Module):
    """hybridfast.infonce.loss.InfoNCE as a loss for sentence-transformers' trainer; takes its options.

    The first column are queries, the second their passages, further ones hard negatives. Labels, where the
    dataset has them, are groups: rows of equal label are never negatives of each other.
    """

    def __init__(self, model: nn.Module, temperature: float = 0.05, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.info_nce = InfoNCE(temperature, **options)

    def forward(
        self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor | None
    ) -> torch.Tensor:
        queries, *passages = (self.model(features)["sentence_embedding"] for features in sentence_features)
        if labels is None:
            return self.info_nce(queries, torch.cat(passages))
        # A hard negative belongs to no query's group: its ids, below all labels, meet nobody's.
        unlike = labels.min() - 1 - torch.arange(len(queries) * (len(passages) - 1), device=labels.device)
        groups = torch.cat([labels, unlike])
        return self.info_nce(queries, torch.cat(passages), query_groups=labels, passage_groups=groups)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"temperature": float(self.info_nce.temperature), **self.info_nce.options}
