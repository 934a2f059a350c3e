"""What all runs of one command share: the data, the tokens, and how a run's model starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch

from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.encoder.gathering import is_sharded
from hybridfast.encoder.shards import weights_hash
from hybridfast.evaluation import readers
from hybridfast.evaluation.encode import encode, evaluate, rank
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation
from hybridfast.training import sharding
from hybridfast.training.averaging import check_other
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler
from hybridfast.training.lora import add_lora
from hybridfast.training.optimizer import freeze, trainable
from hybridfast.training.precision import Precision
from hybridfast.training.ranks import Ranks
from hybridfast.training.teacher import Teacher, pivot_rows, teacher_of
from hybridfast.training.validation import Validation, hold_out

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = ["READING", "Project", "batch_type", "runs_of"]

# The settings that decide what is read and how it becomes tokens: projects that agree in them can share it.
READING = (
    *("model", "revision", "trust_remote_code", "model_kwargs", "query_prefix", "passage_prefix"),
    *("max_query_length", "max_passage_length", "similarity", "device", "dimension", "vocabulary_size"),
    *("data", "data_config", "data_split", "data_streaming", "language", "eval_dataset", "eval_data_dir"),
    *("eval_steps", "validation_split", "validation_dataset", "metric_for_best_model", "batch_size"),
)
PROMPTS = ("Query: ", "Passage: ")  # the paper's, for models without prompts of their own


class Project:
    """See the module's text. Making one prints the corpus and refuses what cannot be trained.

    Args:
        like: a project that agrees with the config in all of ``READING``: what that one has read is not read
            again.
    """

    def __init__(
        self, config: TrainConfig, ranks: Ranks | None = None, *, like: Project | None = None
    ) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.corpus: ParallelCorpus
        self.tokens: TokenizedCorpus
        held_out: EvalSet | None = None
        if like:
            for name in READING:
                if getattr(like.config, name) != (value := getattr(config, name)):
                    raise ValueError(f"{name} must be {getattr(like.config, name)!r} as there, got {value!r}")
            self.corpus = like.corpus
        else:
            everything = _load_corpus(config)
            print(everything)
            self.corpus, held_out = hold_out(everything, config)
            if len(self.corpus) < len(everything):
                print(f"Held out of training: {len(everything) - len(self.corpus):,} versions")
        hard_negatives = _hard_negatives(self.corpus)
        if config.negatives and not hard_negatives and not config.mine_steps:
            raise ValueError(
                f"negatives must be 0, got {config.negatives}: the data has no hard negatives, in columns "
                "negative_1, negative_2, ..., negative or negatives"
            )
        if config.mine_steps and config.mine_scope == "other" and len(self.corpus.languages) < 2:
            raise ValueError(f"mine_scope other needs two languages, the data has {self.corpus.languages}")
        if config.teacher is not None:
            pivot_rows(self.corpus, config.teacher_language)  # which checks that there are some
        self.eval_set: EvalSet | None = like.eval_set if like else None
        if not like and config.eval_dataset != "none":
            self.eval_set = readers.load(config.eval_dataset, config.eval_data_dir)
            for note in self.eval_set.notes:
                print(note)
        self.tokenizer: Tokenizer | None = like.tokenizer if like else None
        if not like and config.model == "static":
            # One vocabulary for all runs: they share the tokens.
            self.tokenizer = loading.train_tokenizer(self.corpus.texts(), config.vocabulary_size)
        model = self.new_model(config.seed)
        trainable(model)
        check_other(model, config)
        if sharding.shards(config, self.ranks):
            sharding.check(model)
        elif config.shard != "none":
            print(f"shard {config.shard}: one rank alone holds all of the model")
        width = model.get_embedding_dimension()
        if width and max(config.matryoshka_dims or [0]) > width:
            raise ValueError(
                f"matryoshka_dims must be at most the model's {width}, got {config.matryoshka_dims}"
            )
        if like:
            self.tokens = like.tokens
        else:
            self.tokens = embedding.tokenize(model, self.corpus)
            print(_reading(model, self.tokens))
        self.validation: Validation | None = like.validation if like else None
        if held_out:
            self.validation = Validation(held_out, embedding.sides(model, self.tokens), config.batch_size)
            print(
                f"Validation every {config.eval_steps:,} steps: {len(held_out.queries):,} queries, "
                f"{len(held_out.passages):,} passages of {held_out.name}"
            )
        if self.adapters:
            print(self.adapters)
        if hard_negatives:
            print(_use(hard_negatives, config.negatives))
        if config.mine_steps:
            first = "" if hard_negatives else ", and before the first"
            print(f"Hard negatives are mined every {config.mine_steps:,} steps{first}")
        # A model that is to be sharded is not on its device yet.
        if not sharding.shards(config, self.ranks) and (gain := Precision(model, config).trial()):
            print(gain)
        for _, run in self.runs():  # what cannot be filled is said before any training
            make_sampler(self.tokens, run).close()

    def new_model(self, seed: int) -> SentenceTransformer:
        """The model before training, with float32 weights: steps of half precision are lost in rounding."""
        config = self.config
        torch.manual_seed(seed)
        if self.tokenizer is not None:
            model = loading.build_static(self.tokenizer, config.dimension, device=config.device or "cpu")
            config.apply(model, PROMPTS)
        else:
            # To be sharded, it is spread from the CPU, layer by layer.
            place = replace(config, device="cpu") if sharding.shards(config, self.ranks) else config
            model = place.load(PROMPTS).float()
        self.adapters: str | None = add_lora(model, config)
        freeze(model, config.freeze)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return model

    def whole(self, model: SentenceTransformer, seed: int) -> SentenceTransformer:
        """A trained model with all of its weights: on the CPU of rank 0, if it was sharded.

        All ranks call this; others than 0 get a model of the same shape.
        """
        if not is_sharded(model):
            return model
        state = sharding.whole(model.state_dict(), keep=self.ranks.is_first)
        model = self.new_model(seed)
        if self.ranks.is_first:
            model.load_state_dict(state)
        return model

    @property
    def teacher_dir(self) -> Path:
        """Where a teacher's embeddings are kept."""
        return Path(self.config.teacher_dir or self.tokens.path.parent / "teacher").expanduser()

    @cached_property
    def teacher(self) -> Teacher | None:
        """What the settings' teacher makes of the corpus, made or found; all ranks take part."""
        if self.config.teacher is None:
            return None
        return teacher_of(self.config, self.corpus, self.teacher_dir, self.ranks)

    def runs(self) -> Iterator[tuple[str, TrainConfig]]:
        """Name and settings of every run; runs of one name differ in their seeds alone."""
        return runs_of(self.config)

    def evaluate(self, model: SentenceTransformer) -> Evaluation | None:
        """The held-out figures of a model; None without an evaluation set, and on other ranks than 0.

        All ranks embed and rank, each a part. With ``shard`` the model, whole, is left sharded.
        """
        eval_set = self.eval_set
        if eval_set is None:
            return None
        weights = None
        if sharding.shards(self.config, self.ranks):
            weights = weights_hash(model) if self.ranks.is_first else None
            sharding.shard(model, self.config, self.ranks)
        if self.ranks.alone:
            evaluation = evaluate(model, eval_set, batch_size=self.config.eval_batch_size)
        else:
            embeddings = encode(
                model,
                eval_set.queries,
                eval_set.passages,
                batch_size=self.config.eval_batch_size,
                progress=self.ranks.is_first,
                shared=True,
            )
            evaluation = rank(model, eval_set, *embeddings, shared=True)
            if not self.ranks.is_first:
                return None
        if evaluation.ranked is not None:
            evaluation.ranked.hashes["weights"] = weights or weights_hash(model)
        return evaluation


def _load_corpus(config: TrainConfig) -> ParallelCorpus:
    if config.data == "cldr":
        return ParallelCorpus.from_rows(cldr.training_rows(), name="cldr")
    corpus = ParallelCorpus.load(
        config.data,
        config=config.data_config,
        split=config.data_split,
        language=config.language,
        streaming=config.data_streaming,
    )
    for note in corpus.notes:
        print(note)
    return corpus


def _hard_negatives(corpus: ParallelCorpus) -> int:
    """How many the data has."""
    return int(pc.sum(pc.list_value_length(corpus.table.column("negatives"))).as_py() or 0)


def _use(hard_negatives: int, negatives: int) -> str:
    use = f"{negatives} a pair at most" if negatives else "none is used; --negatives N takes N a pair"
    return f"Hard negatives: {hard_negatives:,} in the data, {use}"


def _reading(model: SentenceTransformer, tokens: TokenizedCorpus) -> str:
    """What decides about the token ids, in a line, and what was left out, in another."""
    query, passage = (loading.prompt_of(model, task) for task in loading.TASKS)
    lines = [f"Prompts: {query!r} and {passage!r}; similarity: {loading.similarity(model)}"]
    if tokens.negatives_left_out:
        lines.append(f"Left out: {tokens.negatives_left_out:,} hard negatives equal to a passage of their id")
    return "\n".join(lines)


def runs_of(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Name and settings of every run; runs of one name differ in their seeds alone."""
    named = {batch_type(config): config}
    if config.compare:  # both kinds of batches by themselves, and what is asked for
        pure = [replace(config, alpha=alpha, alpha_schedule=None, mix="batches") for alpha in (1.0, 0.0)]
        named = {batch_type(run): run for run in pure} | {"hybrid": config}
    for name, run in named.items():
        for seed in range(config.seed, config.seed + config.num_seeds):
            yield name, replace(run, seed=seed)


def batch_type(config: TrainConfig) -> str:
    """What training with such batches is called, by the paper and, same, by LAReQA."""
    alphas = {*(config.alpha_schedule or [config.alpha])}
    if alphas == {1.0}:
        return "mono" if config.mix == "batches" else "same"
    if alphas == {0.0}:
        return "same" if config.cross == "same" else "cross"
    return "hybrid"
