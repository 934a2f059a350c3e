"""Hybrid batches and the fused InfoNCE in sentence-transformers' own trainer.

    dataset = HybridDataset(load_dataset(...))  # rows: id, lang, anchor, positive[, negative_1, ...]
    args = SentenceTransformerTrainingArguments(
        ..., batch_sampler=partial(HybridBatchSampler, alpha=0.5, cross="mixed")
    )
    SentenceTransformerTrainer(model, args, train_dataset=dataset, loss=InfoNCELoss(model)).train()

With `evaluator=HybridEvaluator(eval_set)` it reports the figures of `python -m hybridfast.evaluate`.
Several data sets in one trainer are a dict: `train_dataset={"news": dataset, "wiki": another}`. The trainer
tokenizes every batch anew; `python -m hybridfast.train` and HybridSampler with a TokenizedCorpus
do it once. Prompts and prefixes are the trainer's. A large batch in a small memory, with the negatives of all
processes, is `InfoNCELoss(model, mini_batch_num_tokens=16_384, gather_across_devices=True)`.
"""

from __future__ import annotations

import csv
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import RandomSampler

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.data.tokenizing import own_passages
from hybridfast.encoder import loading
from hybridfast.encoder.feature_chunks import embed_again, taken, tokens_of
from hybridfast.encoder.texts import cut_into_chunks
from hybridfast.evaluation.comparison import SUMMARY
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.library import evaluate
from hybridfast.infonce import distributed
from hybridfast.infonce.loss import InfoNCE

try:
    from sentence_transformers.base.sampler import DefaultBatchSampler
except ImportError:  # where sentence-transformers 4 and 5 have it
    from sentence_transformers.sampler import DefaultBatchSampler  # type: ignore[no-redef,unused-ignore]
try:
    from sentence_transformers.base.evaluation import SentenceEvaluator
except ImportError:
    from sentence_transformers.evaluation import SentenceEvaluator  # type: ignore[no-redef,unused-ignore]

__all__ = ["HybridBatchSampler", "HybridDataset", "HybridEvaluator", "InfoNCELoss"]


class _Key(int):
    """A passage's row, which data sets joined to one may shift, how far its query is, and the mask group."""

    query: int
    group: int

    def __new__(cls, passage: int, query: int, group: int) -> _Key:
        key = super().__new__(cls, passage)
        key.query, key.group = query, group
        return key

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        return int(self), self.query, self.group

    def __add__(self, rows: int) -> _Key:
        return _Key(int(self) + rows, self.query, self.group)

    def __sub__(self, rows: int) -> _Key:
        return self + -rows


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

    Columns: anchor, positive, negative_1, ... The trainer wants a negative in every cell. A hard negative
    that equals a passage of its own id, in any language, is none.

    Args:
        rows: a ParallelCorpus, or what `ParallelCorpus.from_rows` reads: mappings with id, lang, anchor (or
            query), positive (or passage) and optionally negative_1, ... and source.
        negatives: so many columns of hard negatives; rows with fewer are left out, and a warning counts them.
            None: all rows, and as many columns as each can fill; a warning says what that left out.

    Raises:
        ValueError: a bad row, or no row with as many hard negatives.
    """

    def __init__(self, rows: ParallelCorpus | Iterable[Any], negatives: int | None = None) -> None:
        corpus = rows if isinstance(rows, ParallelCorpus) else ParallelCorpus.from_rows(rows, name="dataset")
        corpus, hard = _with_negatives(corpus, negatives)
        table = corpus.table.combine_chunks()
        columns = {"anchor": table["query"], "positive": table["passage"]}
        for i, texts in enumerate(zip(*hard, strict=True), start=1):
            columns[f"negative_{i}"] = pa.chunked_array([list(texts)])
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

    def __getitem__(self, key: Any) -> Any:
        """As a Dataset's; one row of a batch for a key, as several data sets joined to one ask for it."""
        return self.__getitems__([key])[0] if isinstance(key, _Key) else super().__getitem__(key)

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        """The rows of a batch: the anchor of one row, the positive and negatives of another."""
        if not isinstance(keys[0], _Key):
            return super().__getitems__(keys)
        rows = self[[int(key) + key.query for key in keys] + [int(key) for key in keys]]
        anchor, *others = rows
        return [
            {
                anchor: rows[anchor][i],
                **{name: rows[name][len(keys) + i] for name in others},
                "label": key.group,  # a name under which the trainer looks for labels
            }
            for i, key in enumerate(keys)
        ]


def _with_negatives(
    corpus: ParallelCorpus, negatives: int | None
) -> tuple[ParallelCorpus, list[tuple[str, ...]]]:
    """The rows that are kept, and the hard negatives of each: equally many."""
    if negatives is not None and negatives < 0:
        raise ValueError(f"negatives must be >= 0 or None, got {negatives}")
    passages_of = own_passages(corpus)
    hard = [
        [text for text in own if text not in passages_of(row)] if own else []
        for row, own in enumerate(corpus.table["negatives"].to_pylist())
    ]
    counts_V = np.array([len(own) for own in hard])
    fewest, most = int(counts_V.min()), int(counts_V.max())
    kept_V = np.full(len(hard), True)
    if negatives is None:
        negatives = fewest
        if fewest < most:
            none, fewer = int((counts_V == 0).sum()), int((counts_V < most).sum())
            warnings.warn(
                f"{none} of {len(hard)} rows have no hard negative, {fewer} fewer than {most}; columns of "
                f"them kept: {fewest}. Pass negatives=N to keep N and leave out the rows with fewer",
                stacklevel=3,
            )
    elif negatives > most:
        raise ValueError(f"negatives={negatives}, but no row has more than {most} hard negatives")
    elif fewest < negatives:
        kept_V = counts_V >= negatives
        warnings.warn(
            f"left out: {int((~kept_V).sum())} of {len(hard)} rows, with fewer than {negatives} hard "
            "negatives",
            stacklevel=3,
        )
        corpus = ParallelCorpus(corpus.table.filter(pa.array(kept_V)), corpus.name)
    return corpus, [tuple(hard[row][:negatives]) for row in np.flatnonzero(kept_V)]


class HybridBatchSampler(DefaultBatchSampler):
    """HybridSampler as the `batch_sampler` of a trainer, or of a DataLoader over a HybridDataset.

    Give the trainer `functools.partial(HybridBatchSampler, alpha=..., ...)` with any option of HybridSampler
    that concerns the plan. Epochs hold full batches only and differ (the trainer calls `set_epoch`). Of
    several processes each takes whole batches in turn, so de-duplication is within a process's batch.

    The trainer asks one batch sampler for all of its data, and does not say whether to train or to evaluate.
    So any other Dataset, such as an eval_dataset of pairs, gets sentence-transformers' default batches and a
    warning.

    Raises:
        ValueError: an option is wrong, or a Dataset has the columns id and lang, as rows for a HybridDataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool = True,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.hybrid: HybridSampler | None = None
        rows: Any = dataset
        if not isinstance(dataset, HybridDataset):
            rows = RandomSampler(dataset, generator=generator)
            _say_that_batches_are_plain(dataset)
        super().__init__(rows, batch_size, drop_last, valid_label_columns, generator, seed)
        if isinstance(dataset, HybridDataset):
            self.versions = dataset.versions
            self.hybrid = HybridSampler(self.versions, batch_size, seed=seed, **{"threads": 1, **options})
            # The sampler numbers the chosen languages, version_GL has all of them.
            places = [self.versions.languages.index(name) for name in self.hybrid.languages]
            self.columns = np.array(places)

    def __iter__(self) -> Iterator[Any]:
        if self.hybrid is None:
            yield from super().__iter__()
            return
        for batch in self.hybrid.epoch(self.epoch):
            groups = batch.groups.numpy()
            queries = self.versions.version_GL[groups, self.columns[batch.query_languages]]
            passages = self.versions.version_GL[groups, self.columns[batch.passage_languages]]
            keys = passages.tolist(), (queries - passages).tolist(), batch.mask_groups.tolist()
            yield list(map(_Key, *keys))

    def __len__(self) -> int:
        return super().__len__() if self.hybrid is None else len(self.hybrid)


def _say_that_batches_are_plain(dataset: Any) -> None:
    name = type(dataset).__name__
    columns = getattr(dataset, "column_names", None) or []
    if {"id", "lang"} <= set(columns):
        raise ValueError(
            f"train_dataset must be a HybridDataset, got {name}; make it one: HybridDataset(dataset)"
        )
    warnings.warn(
        f"a {name} of {', '.join(columns)} gets sentence-transformers' default batches, as an eval_dataset "
        "may; hybrid ones take a HybridDataset (what select, shuffle or map make of one is a Dataset)",
        stacklevel=3,
    )


class InfoNCELoss(nn.Module):
    """hybridfast.infonce.loss.InfoNCE as a loss for sentence-transformers' trainer; takes its options.

    The first column are queries, the second their passages, further ones hard negatives. Labels, where the
    dataset has them, are groups: rows of equal label are never negatives of each other; without labels, rows
    of equal passage are not. A hard negative that equals a passage of the batch is of that passage's group.

    Args:
        model: what is trained.
        temperature: None: 0.05 for cosines, 1 for inner products.
        normalize: True for cosines, False for inner products, None for the model's own similarity.
        mini_batch_num_tokens: so many tokens of a column, padding counted, go through the model at once,
            texts of like length together, and once more in the backward pass, with the same dropout: memory
            is for the activations of one mini-batch (gradient caching, Gao et al., 2021). A longer text goes
            alone.
        gather_across_devices: passages of all processes are negatives; the loss is
            `hybridfast.infonce.distributed.InfoNCE`, with its options. Labels mean the same in all of them.
        **options: InfoNCE's.

    Raises:
        ValueError: normalize is None, and the model compares neither by cosine nor by inner product;
            mini_batch_num_tokens is below 1.
        TypeError: an option that InfoNCE does not have.
    """

    def __init__(
        self,
        model: Any,
        temperature: float | None = None,
        *,
        normalize: bool | None = None,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if mini_batch_num_tokens is not None and mini_batch_num_tokens < 1:
            raise ValueError(f"mini_batch_num_tokens must be >= 1 or None, got {mini_batch_num_tokens}")
        self.model = model
        self.mini_batch_num_tokens, self.gather_across_devices = mini_batch_num_tokens, gather_across_devices
        if normalize is None:
            normalize = not hasattr(model, "similarity_fn_name") or loading.similarity(model) == "cosine"
        if temperature is None:
            temperature = 0.05 if normalize else 1.0
        kind = distributed.InfoNCE if gather_across_devices else InfoNCE
        self.info_nce = kind(temperature, normalize=normalize, **options)
        if (learned := self.info_nce.log_temperature) is not None:
            learned.register_hook(_mean_over_ranks)  # the trainer averages the gradients of the model alone

    def forward(
        self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor | None
    ) -> torch.Tensor:
        columns = list(sentence_features)
        texts = [_texts(features) for features in columns[1:]]  # before the model, which may hide the prompt
        queries, *passages = map(self._embed, columns)
        rows = len(queries)
        groups = (_groups_among_ranks if self.gather_across_devices else _groups)(texts, labels, rows)
        if groups is None:
            return self.info_nce(queries, torch.cat(passages))
        groups = groups.to(queries.device)
        return self.info_nce(queries, torch.cat(passages), query_groups=groups[:rows], passage_groups=groups)

    def _embed(self, features: dict[str, Any]) -> torch.Tensor:
        places_B = None if self.mini_batch_num_tokens is None else tokens_of(features)
        if places_B is None or self.mini_batch_num_tokens is None:
            embeddings: torch.Tensor = self.model(features)["sentence_embedding"]
            return embeddings
        inner = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        if any(type(module.forward).__name__ == "ForwardDecorator" for module in (self.model, inner)):
            raise ValueError(
                "mini_batch_num_tokens embeds texts after MatryoshkaLoss or AdaptiveLayerLoss have let go of "
                "the model: leave it out (python -m hybridfast.train --matryoshka_dims has both)"
            )
        packed, on_cpu = "cu_seq_lens_q" in features, not features["input_ids"].is_cuda
        chunks = cut_into_chunks(places_B, self.mini_batch_num_tokens, packed=packed, on_cpu=on_cpu)
        # DistributedDataParallel is called once a column: others may have fewer chunks, and it waits.
        embedded = [
            embed_again(inner if number else self.model, inner, taken(features, rows, places_B))
            for number, rows in enumerate(chunks)
        ]
        back_B = torch.argsort(torch.cat(chunks))
        return torch.cat(embedded)[back_B.to(embedded[0].device)]

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        own = {name: getattr(self, name) for name in ("mini_batch_num_tokens", "gather_across_devices")}
        shown = {name: value for name, value in own.items() if value}
        return {"temperature": float(self.info_nce.temperature), **self.info_nce.options, **shown}


def _mean_over_ranks(gradient: torch.Tensor) -> torch.Tensor:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return gradient
    total = gradient.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class HybridEvaluator(SentenceEvaluator):  # type: ignore[misc, unused-ignore]
    """An evaluator for sentence-transformers' trainer: the figures of the hybrid-batch paper, of exact ranks.

    Called with a model it returns {"NAME_mAP_mono", "NAME_mAP_cross", "NAME_mAP_multi", "NAME_R@1_mono",
    "NAME_R@1_cross", "NAME_R@10_multi", "NAME_rank_distance"}, those that the set defines. The trainer puts
    "eval_" before them, so that `metric_for_best_model="eval_NAME_mAP_multi"` chooses by one. Given a folder,
    it appends them to ``hybrid_evaluation_NAME_results.csv`` there.

    Args:
        eval_set: queries and passages, such as `hybridfast.evaluation.load` reads.
        name: before the figures' names. Default: the set's.
        primary_metric: which figure says how good a model is, under its name without NAME.
        batch_size: texts encoded at a time.

    Raises:
        ValueError: an unknown primary_metric; when called, one that the set does not define.
    """

    def __init__(
        self,
        eval_set: EvalSet,
        name: str | None = None,
        *,
        primary_metric: str = "mAP_multi",
        batch_size: int = 256,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        self.metrics = [_metric(figure) for figure in SUMMARY]
        if primary_metric not in self.metrics:
            raise ValueError(
                f"primary_metric must be one of {', '.join(self.metrics)}, got {primary_metric!r}"
            )
        self.eval_set = eval_set
        self.name = eval_set.name if name is None else name
        self.primary_metric = f"{self.name}_{primary_metric}" if self.name else primary_metric
        self.greater_is_better = primary_metric != "rank_distance"
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self.write_csv = write_csv

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """The figures of a SentenceTransformer; `epoch` and `steps` are for the CSV file and the card."""
        evaluation = evaluate(
            model, self.eval_set, batch_size=self.batch_size, progress=self.show_progress_bar
        )
        found = {_metric(figure): value for figure, value in evaluation.summary().items()}
        if output_path is not None and self.write_csv:
            self._append(Path(output_path), [epoch, steps, *found.values()])
        defined = {metric: value for metric, value in found.items() if not math.isnan(value)}
        metrics = self.prefix_name_to_metrics(defined, self.name)
        if self.primary_metric not in metrics:
            raise ValueError(f"{self.eval_set.name} does not define the primary_metric {self.primary_metric}")
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def _append(self, folder: Path, row: list[float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"hybrid_evaluation_{self.name.replace('/', '_')}_results.csv"
        begins = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if begins:
                writer.writerow(["epoch", "steps", *self.metrics])
            writer.writerow(row)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"queries": len(self.eval_set.queries), "passages": len(self.eval_set.passages)}


def _metric(figure: str) -> str:
    return figure.replace(" ", "_")


def _texts(features: dict[str, torch.Tensor]) -> list[bytes] | None:
    """The token ids of each text, as bytes; None where a model reads something else."""
    if "input_ids" not in features:
        return None
    ids = features["input_ids"].cpu().numpy()
    if "offsets" in features:  # flat, each text from its offset to the next
        return [part.tobytes() for part in np.split(ids, features["offsets"].cpu().numpy()[1:])]
    if "cu_seq_lens_q" in features:  # flat, for flash attention
        return [part.tobytes() for part in np.split(ids[0], features["cu_seq_lens_q"].cpu().numpy()[1:-1])]
    if "attention_mask" not in features:
        return None
    masks = features["attention_mask"].cpu().numpy().astype(bool)
    return [row[mask].tobytes() for row, mask in zip(ids, masks, strict=True)]


def _groups(texts: list[list[bytes] | None], labels: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """Of all passages, then of all hard negatives, of which one that is no passage meets nobody's label."""
    nothing: list[bytes | None] = [None] * rows
    positives, *negatives = ([*own] if own else nothing for own in texts)
    first: dict[bytes | None, int] = {}
    for row, text in enumerate(positives):
        first.setdefault(text, row)
    if labels is None:
        if texts[0] is None:
            return None
        labels = torch.tensor([first[text] for text in positives])
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, which name groups, got {labels.dtype}")
    own: list[int] = labels.tolist()
    groups = own + list(range(min(own) - rows * len(negatives), min(own)))
    for place, text in enumerate((text for column in negatives for text in column), start=rows):
        if text is not None and text in first:
            groups[place] = own[first[text]]
    return torch.tensor(groups)


def _groups_among_ranks(
    texts: list[list[bytes] | None], labels: torch.Tensor | None, rows: int
) -> torch.Tensor | None:
    """What `_groups` says of this rank's texts where those of all ranks are one batch."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _groups(texts, labels, rows)
    hashes = [own and [hashlib.blake2b(text, digest_size=16).digest() for text in own] for own in texts]
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, (rows, hashes, None if labels is None else labels.cpu()))
    counts = [count for count, _, _ in held]
    whole, first = sum(counts), sum(counts[: dist.get_rank()])
    columns = [
        None if any(part is None for part in parts) else [text for part in parts for text in part]
        for parts in zip(*(own for _, own, _ in held), strict=True)
    ]
    groups = _groups(columns, None if labels is None else torch.cat([own for _, _, own in held]), whole)
    if groups is None:
        return None
    return torch.cat([groups[at + first : at + first + rows] for at in range(0, len(groups), whole)])
