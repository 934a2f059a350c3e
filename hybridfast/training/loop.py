"""The training loop: batches, embeddings, loss, step."""

from __future__ import annotations

import math
import time
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from hybridfast.data.sampler import Batch, HybridSampler
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.infonce.loss import info_nce
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.optimizer import Average, make_optimizer, trainable
from hybridfast.training.precision import Precision
from hybridfast.training.sparse import SparseTables, clip_gradients

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["LossNotFinite", "make_sampler", "steps_of", "train"]


class LossNotFinite(FloatingPointError):
    """The loss of a step is NaN or infinite; the model is as it was before that step, counted from 1."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def train(
    model: SentenceTransformer,
    tokens: TokenizedCorpus,
    config: TrainConfig,
    *,
    name: str = "train",
) -> dict[str, float]:
    """Train a model in place with the batches, the loss and the optimizer of ``config``.

    Args:
        model: its weights encode both sides.
        tokens: training data, as :func:`hybridfast.encoder.embedding.tokenize` makes it for this model.
        name: shown beside the progress bar.

    Returns:
        steps, pairs, seconds, pairs_per_second, and the mean loss of the last 50 steps; with fp16,
        skipped_steps, in which its scale overflowed.

    Raises:
        LossNotFinite: named by step and ids.
        ValueError: the model has no weights to train, or reads texts in another way than the tokens say.
    """
    from transformers import get_scheduler

    device = model.device
    sides = embedding.sides(model, tokens)
    chunks = Chunks(model, sides, config.tokens_per_chunk, config.activation_bytes)
    parameters = trainable(model)
    sampler = make_sampler(tokens, config, pin_memory=device.type == "cuda")
    max_steps = steps_of(config, sampler)
    precision = Precision(model, config)
    tables = SparseTables(model, config, tokens)
    optimizer = make_optimizer(model, config, tables.lazy)
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, round(config.warmup_ratio * max_steps), max_steps
    )
    cosine = loading.similarity(model) == "cosine"
    temperature = config.temperature or (0.05 if cosine else 1.0)
    # Prefixes that are good embeddings themselves: Kusupati et al., 2022. None: the whole.
    dims: list[int | None] = [*config.matryoshka_dims] if config.matryoshka_dims else [None]
    average = Average(parameters, config.ema_decay)
    losses: list[float] = []
    model.train()  # embedding.sides has left it in evaluation mode
    started = time.perf_counter()
    with precision, tables, sampler, tqdm(total=max_steps, desc=name, unit=" steps") as bar:
        batches = chain.from_iterable(map(sampler.epoch, count()))
        for step, batch in enumerate(islice(batches, max_steps), start=1):
            # Around the loss too, whose products take autocast's dtype.
            with precision.autocast():
                queries_QD, passages_ND = chunks.embed(batch)
                query_groups, passage_groups = _groups(batch, device)
                loss = sum(
                    info_nce(
                        queries_QD if dim is None else queries_QD[:, :dim],
                        passages_ND if dim is None else passages_ND[:, :dim],
                        temperature,
                        query_groups=query_groups,
                        passage_groups=passage_groups,
                        in_batch=config.in_batch,
                        bidirectional=config.bidirectional,
                        normalize=cosine,
                    )
                    for dim in dims
                ) / len(dims)
            told = _Told(loss)
            precision.backward(loss, optimizer)
            if config.max_grad_norm:
                clip_gradients(parameters, config.max_grad_norm)
            # Read before the step, so that a bad loss leaves the weights as they were.
            losses = [*losses[-49:], told.value()]
            if not math.isfinite(losses[-1]):
                raise LossNotFinite(_what_was_not_finite(losses[-1], step, batch, tokens), step)
            if precision.step(optimizer):
                average.add()
                scheduler.step()
            optimizer.zero_grad()
            bar.update()
            if step % 10 == 0 or step == max_steps:
                pairs_per_second = step * config.batch_size / (time.perf_counter() - started)
                mean = sum(losses) / len(losses)
                left_out = f", {precision.skipped} steps left out by fp16" if precision.skipped else ""
                bar.set_postfix_str(f"loss {mean:.4f}, {pairs_per_second:,.0f} pairs/s{left_out}")
    optimizer.catch_up()
    seconds = time.perf_counter() - started
    average.take_over()
    model.eval()
    return {
        "steps": max_steps,
        "pairs": max_steps * config.batch_size,
        "seconds": round(seconds, 3),
        "pairs_per_second": round(max_steps * config.batch_size / seconds, 1),
        "loss": sum(losses) / len(losses),
    } | ({"skipped_steps": precision.skipped} if config.fp16 else {})


def steps_of(config: TrainConfig, sampler: HybridSampler) -> int:
    """How many steps a run has."""
    if config.num_train_epochs is None:
        return config.max_steps
    return max(1, round(config.num_train_epochs * len(sampler)))


def make_sampler(tokens: TokenizedCorpus, config: TrainConfig, *, pin_memory: bool = False) -> HybridSampler:
    """The sampler that ``config`` asks for; a ValueError where the data cannot fill its batches."""
    return HybridSampler(
        tokens,
        batch_size=config.batch_size,
        alpha=config.alpha,
        seed=config.seed,
        cross=config.cross,
        languages=config.languages,
        negatives=config.negatives,
        dedup=config.dedup,
        threads=config.num_workers,
        pin_memory=pin_memory,
        layout="flat",  # ids go to the device without padding; Side.features pads them there
    )


def _groups(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the loss masks queries and passages by."""
    groups = [batch.mask_groups, batch.negative_mask_groups]
    passage_groups = torch.cat([part for part in groups if part is not None])
    return batch.mask_groups.to(device, non_blocking=True), passage_groups.to(device, non_blocking=True)


class _Told:
    """A number on its way from the device: reading it waits for no work that was queued after it."""

    def __init__(self, number: Tensor) -> None:
        self.number, self.arrived = number.detach(), None
        if number.device.type == "cuda":
            self.number = self.number.to("cpu", non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def value(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.number.item()


def _what_was_not_finite(loss: float, step: int, batch: Batch, tokens: TokenizedCorpus) -> str:
    names = tokens.group_ids()
    first = ", ".join(repr(names[group]) for group in batch.groups[:4].tolist())
    return f"the loss is {loss} at step {step} (epoch {batch.epoch}, batch {batch.index}: ids {first}, ...)"
