"""The training loop: batches, embeddings, loss, step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from hybridfast.data.sampler import AlphaSchedule, Batch, HybridSampler
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.training import checkpoint, sharding
from hybridfast.training.averaging import average_of
from hybridfast.training.checkpoint import Checkpoints, State, Weights
from hybridfast.training.chunks import Chunks
from hybridfast.training.config import TrainConfig
from hybridfast.training.interrupts import Interrupted, Interrupts
from hybridfast.training.log import Log
from hybridfast.training.objective import Objective
from hybridfast.training.optimizer import make_optimizer, trainable
from hybridfast.training.precision import Precision
from hybridfast.training.ranks import Ranks
from hybridfast.training.record import check_same, identity
from hybridfast.training.reduction import Reduction
from hybridfast.training.refresh import Batches
from hybridfast.training.sparse import SparseTables, clip_gradients
from hybridfast.training.teacher import Distillation, Teacher
from hybridfast.training.validation import Best, Validation

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
    folder: Path | None = None,
    validation: Validation | None = None,
    resume: State | None = None,
    ranks: Ranks | None = None,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Train a model in place with the batches, the loss and the optimizer of ``config``.

    Args:
        model: its weights encode both sides.
        tokens: training data, as :func:`hybridfast.encoder.embedding.tokenize` makes it for this model.
        name: shown beside the progress bar.
        folder: for ``log.jsonl`` and checkpoints. None: there are none, and signals do as always.
        validation: what is looked at every ``eval_steps``; where there is a ``metric_for_best_model``, the
            model that is left is the best one by it.
        resume: go on from this state, as :meth:`Checkpoints.newest` or :func:`checkpoint.read` gives it. It
            is emptied: its memory is wanted.
        ranks: those that train together: each calls this, with the same arguments, and is left with the
            same model; rank 0 alone writes. With ``shard`` the model comes on the CPU, and each rank is left
            with its parts. Default: this process is alone.
        teacher: what it makes of these groups; the loss then has distillation in it.

    Returns:
        steps, pairs, seconds, pairs_per_second, the mean loss of the last 50 steps, over all steps what a
        line of ``log.jsonl`` has, and the validation of the model that is left; with fp16, skipped_steps,
        in which its scale overflowed.

    Raises:
        LossNotFinite: named by step and ids.
        Interrupted: SIGTERM or Ctrl-C came; a checkpoint holds the last step.
        ValueError: the model has no weights to train, or reads texts in another way than the tokens say; the
            state to go on from is of other data or another model.
    """
    from transformers import get_scheduler

    ranks = ranks or Ranks()
    sharded = sharding.shards(config, ranks)
    if validation and config.metric_for_best_model and folder is None:
        raise ValueError("metric_for_best_model needs a folder, which holds the best model meanwhile")
    if config.teacher is not None and teacher is None:
        raise ValueError(f"teacher {config.teacher} needs its embeddings, as teacher_of gives them; got None")
    sides = embedding.sides(model, tokens)
    if sharded:
        sharding.shard(model, config, ranks, sides)
    device = model.device
    rounds = sharding.Rounds(ranks) if sharded else None
    chunks = Chunks(
        model,
        sides,
        config.tokens_per_chunk,
        config.activation_bytes,
        config.seed,
        ranks.neighbours,
        rounds,
    )
    parameters = trainable(model)
    cosine = loading.similarity(model) == "cosine"
    objective = Objective(config, cosine=cosine, languages=len(tokens.languages), ranks=ranks)
    distillation = None if teacher is None else Distillation(teacher, model, config)
    if distillation:
        objective.blend("distillation", config.distillation_weight, distillation)
    layer = distillation.parameters if distillation else []
    trained = [*parameters, *layer]
    make = partial(
        make_sampler,
        config=config,
        group_vectors=teacher.vectors if teacher else (),
        pin_memory=device.type == "cuda",
    )
    sampler = Batches(make, model, tokens, config, folder, ranks)
    max_steps = steps_of(config, sampler)
    precision = Precision(model, config)
    tables = SparseTables(model, config, tokens)
    optimizer = make_optimizer(model, config, tables.lazy, layer)
    scheduler = get_scheduler(
        config.lr_scheduler_type, optimizer, round(config.warmup_ratio * max_steps), max_steps
    )
    average = average_of(model, config)
    best = Best(config.metric_for_best_model, config.early_stopping_patience)
    log = Log(
        folder if ranks.is_first else None,
        device,
        every=config.logging_steps,
        max_steps=max_steps,
        epoch=len(sampler),
        constants={"temperature": objective.temperature},
        trackers=config.report_to or [],
        settings=asdict(config),
        name=name,
        bar=ranks.is_first,
    )
    sampler.after_mining = partial(log.clock.lap, "mining")
    # All that a step changes. Random numbers are not among it: each step draws from a seed of its own.
    stateful: dict[str, Any] = {
        "model": Weights(model),
        "optimizer": optimizer,
        "schedule": scheduler,
        "average": average,
        "precision": precision,
        "sampler": sampler,
        "log": log,
        "best": best,
    }
    if distillation:
        stateful["distillation"] = distillation
    this = identity(config, tokens)
    if resume is not None:
        check_same(resume["run"], this, "the checkpoint")
        if sharded:
            resume["optimizer"] = sharding.parts_of(resume["optimizer"], optimizer)
        for part, holder in stateful.items():
            holder.load_state_dict(resume.pop(part))
    ranks.agree({"step": log.step, "batches": sampler.fingerprint})
    if not sharded:
        ranks.broadcast([*model.parameters(), *layer, *model.buffers(), *average.means, *average.others])
    reduction = Reduction(trained, tables.weights, ranks) if rounds is None else rounds
    checkpoints = Checkpoints(folder, config.save_total_limit, logs=[log.path] if log.path else ())
    model.train()  # embedding.sides has left it in evaluation mode
    interrupts = Interrupts(heard=folder is not None)
    with precision, tables, reduction, sampler, checkpoints, interrupts, log:
        batches = chain.from_iterable(repeat(sampler))  # each time, the rest of the epoch
        left = 0 if best.stops else max_steps - log.step
        for step, batch in enumerate(islice(batches, left), start=log.step + 1):
            log.clock.lap("data")
            torch.manual_seed((_seed_of(config.seed, step) + ranks.rank) % 2**64)
            own = ranks.share(batch)
            # Around the loss too, whose products take autocast's dtype.
            with precision.autocast():
                embedded = chunks.embed(own, step)
                log.clock.lap("encoder")
                loss, terms = objective(embedded, own)
            told = ranks.tell(loss, chunks.encoded, interrupts.asked, terms)
            log.clock.lap("loss")
            precision.backward(loss, optimizer, reduction.finish)
            log.clock.lap("backward")
            norm = None
            if config.max_grad_norm:
                norm = clip_gradients(trained, config.max_grad_norm)
            # Read before the step, so that a bad loss leaves the weights as they were.
            value, places, stopping, parts = told.values()
            if not math.isfinite(value):
                raise LossNotFinite(_what_was_not_finite(value, step, batch, tokens), step)
            rate = max(scheduler.get_last_lr()[: -1 if layer else None])  # of the model's weights
            if precision.step(optimizer):
                average.add()
                scheduler.step()
            optimizer.zero_grad()
            log.add(batch, value, norm, rate, places, parts)
            log.clock.lap("optimizer")
            is_best = False
            if validation and config.eval_steps and (step % config.eval_steps == 0 or step == max_steps):
                optimizer.catch_up()
                with average.in_place(), precision.autocast():
                    loss_of = objective.loss_of if config.in_batch else None
                    validated = validation.of(model, chunks, loss_of, ranks)
                is_best = best.add(validated, step)
                log.write({f"validation/{name}": value for name, value in validated.items()})
                log.clock.lap("evaluation")
            is_last = step == max_steps or best.stops
            log.line(is_last)
            saves = config.save_steps and (step % config.save_steps == 0 or is_last)
            # Several ranks stop at the step before which one was asked, since all have to.
            stopping = stopping or (ranks.alone and interrupts.asked)
            if (saves or is_best or stopping) and (ranks.is_first or sharded):
                state = {part: holder.state_dict() for part, holder in stateful.items()}
                if sharded:
                    state = sharding.whole(state, keep=ranks.is_first)
                if ranks.is_first:
                    checkpoints.save(step, {"run": this, **state})
                log.clock.lap("saving")
            checkpoints.look()
            if stopping:
                raise Interrupted(step, max_steps, saved=ranks.by_first(checkpoints.wait))
            if best.stops:
                if ranks.is_first:
                    tqdm.write(
                        f"{name}: stops after step {step:,}; {best.metric} was best after {best.step:,}"
                    )
                break
    optimizer.catch_up()
    if folder and best.step not in (None, log.step):
        restored = ranks.by_first(partial(_restore, folder / f"checkpoint-{best.step}", stateful))
        if sharded:  # the others' parts, which they read
            if restored and not ranks.is_first:
                _restore(folder / f"checkpoint-{best.step}", stateful)
        else:
            ranks.broadcast([*model.parameters(), *model.buffers(), *average.means])
    average.take_over()
    model.eval()
    return log.summary() | best.summary() | ({"skipped_steps": precision.skipped} if config.fp16 else {})


def _restore(path: Path, stateful: dict[str, Any]) -> bool:
    """The weights of the best step; whether they could be read."""
    try:
        state = checkpoint.read(path)
    except (checkpoint.Damaged, FileNotFoundError) as error:
        warnings.warn(f"{error}; the model is the last step's, not the best", stacklevel=3)
        return False
    for part in ("model", "average"):
        stateful[part].load_state_dict(state[part])
    return True


def _seed_of(seed: int, step: int) -> int:
    """64 bits of one step of one run: what splitmix64 makes of both (Steele, Lea and Flood, 2014)."""
    mixed = 0
    for word in (seed, step):  # one after the other: their sum is the same for other seeds and steps
        mixed = (mixed + word + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed


def steps_of(config: TrainConfig, sampler: HybridSampler | Batches) -> int:
    """How many steps a run has."""
    if config.num_train_epochs is None:
        return config.max_steps
    return max(1, round(config.num_train_epochs * len(sampler)))


def make_sampler(
    tokens: TokenizedCorpus,
    config: TrainConfig,
    *,
    group_vectors: Sequence[np.ndarray] = (),
    pin_memory: bool = False,
) -> HybridSampler:
    """The sampler that ``config`` asks for; a ValueError where the data cannot fill its batches."""
    if config.second != "none" and len(config.languages or tokens.languages) < 2:
        raise ValueError(
            f"{config.needs_second} needs two or more languages, got {config.languages or tokens.languages}"
        )

    def make(alpha: AlphaSchedule) -> HybridSampler:
        return HybridSampler(
            tokens,
            batch_size=config.batch_size,
            alpha=alpha,
            seed=config.seed,
            cross=config.cross,
            mix=config.mix,
            languages=config.languages,
            negatives=config.negatives,
            second=config.second,
            dedup=config.dedup,
            threads=config.num_workers,
            group_vectors=group_vectors,
            pin_memory=pin_memory,
            layout="flat",  # ids go to the device without padding; Side.features pads them there
        )

    alphas = config.alpha_schedule or [config.alpha]
    if len(alphas) == 1:
        return make(alphas[0])
    steps = config.max_steps
    if config.num_train_epochs is not None:
        with make(lambda step: alphas[step % 2]) as first:  # whose epoch is as long
            steps = steps_of(config, first)
    last = max(steps - 1, 1)
    return make([(last * i / (len(alphas) - 1), alpha) for i, alpha in enumerate(alphas)])


def _what_was_not_finite(loss: float, step: int, batch: Batch, tokens: TokenizedCorpus) -> str:
    first = ", ".join(repr(tokens.group_id(group)) for group in batch.groups[:4].tolist())
    return f"the loss is {loss} at step {step} (epoch {batch.epoch}, batch {batch.index}: ids {first}, ...)"
