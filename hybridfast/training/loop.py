"""The training loop: batches, embeddings, loss, step."""

from __future__ import annotations

import time
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from hybridfast import encoder
from hybridfast.data.sampler import HybridSampler
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.infonce.loss import info_nce
from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["make_sampler", "train"]


def train(
    model: SentenceTransformer, tokens: TokenizedCorpus, config: TrainConfig, *, name: str = "train"
) -> dict[str, float]:
    """Train a model in place with the batches, the loss and the optimizer of ``config``.

    Args:
        model: its weights encode both sides.
        tokens: training data, tokenized with the model's tokenizer.
        name: shown beside the progress bar.

    Returns:
        steps, pairs, seconds, pairs_per_second, and the mean loss of the last 50 steps.
    """
    from transformers import get_scheduler

    device = model.device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sampler = make_sampler(tokens, config, static=encoder.is_static(model), pin_memory=device.type == "cuda")
    max_steps = config.max_steps
    if config.num_train_epochs is not None:
        max_steps = max(1, round(config.num_train_epochs * len(sampler)))
    learning_rate = config.learning_rate or (2e-2 if encoder.is_static(model) else 3e-5)
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, round(config.warmup_ratio * max_steps), max_steps
    )
    losses: list[torch.Tensor] = []
    model.train()
    started = time.perf_counter()
    with sampler, tqdm(total=max_steps, desc=name, unit=" steps") as bar:
        batches = chain.from_iterable(map(sampler.epoch, count()))
        for step, batch in enumerate(islice(batches, max_steps), start=1):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                texts = [batch.queries, batch.passages, batch.negatives]
                queries_QD, *passages = encoder.embed(model, *(_to(text, device) for text in texts if text))
                passages_ND = torch.cat(passages)
                query_groups = batch.mask_groups.to(device)
                negatives = query_groups.new_full((len(passages_ND) - len(queries_QD),), -1)
                loss = info_nce(
                    queries_QD,
                    passages_ND,
                    config.temperature,
                    query_groups=query_groups,
                    passage_groups=torch.cat([query_groups, negatives]),
                    in_batch=config.in_batch,
                    bidirectional=config.bidirectional,
                )
            loss.backward()
            if config.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses = [*losses[-49:], loss.detach()]
            bar.update()
            if step % 10 == 0 or step == max_steps:  # reading the loss waits for the device
                pairs_per_second = step * config.batch_size / (time.perf_counter() - started)
                bar.set_postfix_str(f"loss {torch.stack(losses).mean():.4f}, {pairs_per_second:,.0f} pairs/s")
    seconds = time.perf_counter() - started
    model.eval()
    return {
        "steps": max_steps,
        "pairs": max_steps * config.batch_size,
        "seconds": round(seconds, 3),
        "pairs_per_second": round(max_steps * config.batch_size / seconds, 1),
        "loss": torch.stack(losses).mean().item(),
    }


def make_sampler(
    tokens: TokenizedCorpus, config: TrainConfig, *, static: bool, pin_memory: bool = False
) -> HybridSampler:
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
        layout="flat" if static else "padded",
    )


def _to(features: encoder.Features, device: torch.device) -> encoder.Features:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in features.items()}
