"""What a run will take, from its first batches: shown by ``--dry_run``, which trains nothing that is kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from hybridfast.data.sampler import TEXTS, Batch
from hybridfast.encoder import embedding, loading
from hybridfast.training import sharding
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler, steps_of, train
from hybridfast.training.project import Project
from hybridfast.training.teacher import cost

__all__ = ["duration", "rehearse", "seconds_a_step"]

BATCHES, STEPS = 20, 3  # looked at for tokens; timed


def rehearse(project: Project) -> str:
    """Batches, languages, tokens, padding, memory and time of the first of a project's runs, as text."""
    (_, config), *others = project.runs()
    model, tokens = project.new_model(config.seed), project.tokens
    with make_sampler(tokens, config) as sampler:
        steps, epoch = steps_of(config, sampler), len(sampler)
        batches = list(islice(sampler.epoch(0), BATCHES))
        coverage = sampler.coverage()
    sides, rounds = embedding.sides(model, tokens), None
    if sharding.shards(config, project.ranks):
        sharding.shard(model, config, project.ranks, sides)
        rounds = sharding.Rounds(project.ranks)
    chunks = Chunks(model, sides, config.tokens_per_chunk, config.activation_bytes, rounds=rounds)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in coverage.items())
    lines = [
        f"Batches: {epoch:,} an epoch, of {config.batch_size:,} pairs; "
        f"{steps:,} steps are {steps / epoch:.3g} epochs",
        f"Languages: {shares} of the groups",
        _tokens(batches, chunks, static=loading.is_static(model)),
    ]
    model.train()
    chunks.embed(project.ranks.share(batches[0]))
    weights = sharding.bytes_held(model.parameters())
    trained = sharding.bytes_held(parameter for parameter in model.parameters() if parameter.requires_grad)
    lines.append(
        f"Memory: weights {weights / 1e9:.2f} GB, gradients and AdamW's moments {3 * trained / 1e9:.2f} GB, "
        f"activations {chunks.kept_bytes / 1e9:.2f} GB, {chunks.recomputed} chunks of a batch encoded again"
    )
    if config.teacher is not None:
        lines.append(project.ranks.by_first(lambda: cost(config, project.corpus, project.teacher_dir)))
    each = seconds_a_step(project, config)
    lines.append(
        f"Time: {each:.3g} s a step, {config.batch_size / max(each, 1e-9):,.0f} pairs/s; "
        f"{duration(each * steps)} for {steps:,} steps"
        + (f", and as much for each of {len(others)} other runs" if others else "")
    )
    return "\n".join(lines)


def seconds_a_step(project: Project, config: TrainConfig) -> float:
    """From a few steps of a run, after the first, which pays for what the others find ready."""
    seconds = []
    for count in (1, 1 + STEPS):
        # Distillation's part of a step's time is one product of a batch's rows.
        timed = replace(
            config, max_steps=count, num_train_epochs=None, save_steps=None, mine_steps=None, teacher=None
        )
        model = project.new_model(config.seed)
        seconds.append(train(model, project.tokens, timed, ranks=project.ranks)["seconds"])
    return max(seconds[1] - seconds[0], 0.0) / STEPS


def _tokens(batches: list[Batch], chunks: Chunks, *, static: bool) -> str:
    """Tokens of a text, the share at the model's limit, and padding in chunks as the trainer cuts them."""
    lengths = [
        [_lengths(side) for batch in batches if (side := getattr(batch, name)) is not None] for name in TEXTS
    ]
    said = []
    names = ("query", "passage", "hard negative", "second query", "second passage")
    for name, parts in zip(names, lengths, strict=True):
        if parts and len(all_B := np.concatenate([part.numpy() for part in parts])):
            longest = all_B.max()
            said.append(
                f"{all_B.mean():.1f} a {name} (longest {longest}, {(all_B == longest).mean():.1%} of them)"
            )
    text = f"Tokens in {len(batches)} batches: " + ", ".join(said)
    if static:
        return text
    counts = [chunks.places_of(batch) for batch in batches]
    used, places = (sum(count) for count in zip(*counts, strict=True))
    return text + f"; padding {1 - used / max(places, 1):.1%} of the places"


def _lengths(texts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.diff(texts["offsets"], append=torch.tensor([len(texts["input_ids"])]))


def duration(seconds: float) -> str:
    """5 min 03 s; 2 h 07 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
