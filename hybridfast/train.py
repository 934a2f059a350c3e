"""Train one multilingual dual encoder with hybrid batches, and evaluate it zero-shot.

    python -m hybridfast.train                       # embedded corpus, static encoder, a minute on a laptop
    python -m hybridfast.train --compare             # mono, cross and hybrid batches side by side
    python -m hybridfast.train --model FacebookAI/xlm-roberta-base --data pairs.jsonl \\
        --batch_size 100 --max_steps 5000 --bf16 --eval_dataset xquad-r --eval_data_dir data/xquad-r
    python -m hybridfast.train settings.yaml --seed 1

Each batch is monolingual with probability alpha and cross-lingual otherwise (arXiv 2408.10536). The output
folder is a SentenceTransformer: load it with SentenceTransformer(path).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from tqdm import tqdm

from hybridfast import cli, report
from hybridfast import model as encoders
from hybridfast.corpus import ParallelCorpus, TokenizedCorpus
from hybridfast.datasets import EvalSet
from hybridfast.evaluate import evaluate, load_eval_set, write_results
from hybridfast.loss import info_nce
from hybridfast.metrics import Evaluation
from hybridfast.sampler import HybridSampler

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TrainConfig", "main", "train"]


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """Every setting of ``python -m hybridfast.train``; saved with the model as ``train_config.yaml``."""

    model: str = _setting(
        "static",
        "static: a tokenizer and mean of token embeddings from scratch. Or any SentenceTransformer or "
        "transformers encoder: a folder or a hub name; it encodes both sides.",
    )
    data: str = _setting(
        "cldr",
        "cldr: the embedded corpus. Or JSON lines, CSV, Parquet, a folder of them, or a hub name, with "
        "columns id, lang, query, passage[, negative_1 ..][, source].",
    )
    data_config: str | None = _setting(None, "Configuration of a hub data set.")
    data_split: str = _setting("train", "Split of a hub data set.")
    language: str | None = _setting(None, "Language of all rows, for data without a lang column.")
    languages: list[str] | None = field(
        default=None, metadata={"help": "Train on these languages only, such as ar de en. None: all."}
    )
    output_dir: str | None = _setting(
        None, "New folder for the model. None: the next free runs/NAME-1, -2, ..."
    )

    alpha: float = _setting(
        0.5, "Probability that a batch is monolingual; 0: always cross-lingual, 1: never."
    )
    cross: Literal["mixed", "paired"] = _setting(
        "mixed",
        "Cross-lingual batches: languages vary inside the batch (the paper's), or one pair per batch.",
    )
    batch_size: int = _setting(512, "Pairs in a batch; no parallel item twice.")
    dedup: Literal["group", "text"] = _setting(
        "text", "Never negatives of each other: passages of one item, or equal passages too."
    )
    negatives: int = _setting(0, "Hard negatives per pair, where the data has them.")
    in_batch: bool = _setting(
        True, "Other queries' positives are negatives too. False: hard negatives alone, the paper's Eq. 1."
    )
    bidirectional: bool = _setting(False, "Add the passage-to-query direction to the loss.")
    temperature: float = _setting(0.05, "Cosines are divided by it.")

    learning_rate: float | None = _setting(None, "None: 2e-2 for a static encoder, 3e-5 for others.")
    lr_scheduler_type: str = _setting("linear", "As transformers names them: linear, cosine, constant, ...")
    warmup_ratio: float = _setting(0.1, "Share of the steps in which the learning rate rises.")
    weight_decay: float = _setting(0.01, "Of AdamW.")
    max_grad_norm: float = _setting(1.0, "Gradients are scaled down to this norm; 0: never.")
    max_steps: int = _setting(1200, "Optimizer steps, one batch each.")
    num_train_epochs: float | None = _setting(None, "Epochs instead of max_steps.")
    bf16: bool = _setting(False, "Run the encoder and the similarity in bfloat16 (autocast).")

    query_prefix: str = _setting("Query: ", "Put before every query, in training and in the saved model.")
    passage_prefix: str = _setting("Passage: ", "Put before every passage.")
    max_query_length: int = _setting(64, "Tokens; at most what the model takes.")
    max_passage_length: int = _setting(256, "Tokens; at most what the model takes.")
    dimension: int = _setting(256, "Of a new static encoder.")
    vocabulary_size: int = _setting(12_000, "Of a new static encoder's tokenizer.")

    eval_dataset: str = _setting(
        "auto", "auto: cldr if trained on it, else none. Or none, cldr, xquad-r, or a file or folder of rows."
    )
    eval_data_dir: str | None = _setting(None, "Folder of xquad-r.")
    eval_batch_size: int = _setting(256, "Texts encoded at a time.")
    eval_before: bool = _setting(True, "Evaluate the untrained model too.")

    compare: bool = _setting(
        False, "Train mono (alpha 1), cross (alpha 0) and hybrid with the same steps and seeds."
    )
    seed: int = _setting(0, "Of the batches, the new weights and dropout.")
    num_seeds: int = _setting(1, "Train with seed, seed + 1, ... and report mean and standard deviation.")
    num_workers: int = _setting(2, "Native threads that build batches ahead.")
    device: str | None = _setting(
        None, "cpu, cuda, ... None: a GPU where there is one, but the CPU for static."
    )

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("alpha", 0 <= self.alpha <= 1, "in [0, 1]"),
            ("batch_size", self.batch_size >= 2, ">= 2"),
            ("negatives", self.negatives >= 0, ">= 0"),
            ("temperature", 0 < self.temperature < float("inf"), "> 0"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "> 0"),
            ("warmup_ratio", 0 <= self.warmup_ratio <= 1, "in [0, 1]"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, ">= 0"),
            ("max_steps", self.max_steps >= 1, ">= 1"),
            ("num_train_epochs", self.num_train_epochs is None or self.num_train_epochs > 0, "> 0"),
            ("dimension", self.dimension >= 1, ">= 1"),
            ("vocabulary_size", self.vocabulary_size >= 2, ">= 2"),
            ("eval_batch_size", self.eval_batch_size >= 1, ">= 1"),
            ("num_seeds", self.num_seeds >= 1, ">= 1"),
            ("num_workers", self.num_workers >= 0, ">= 0"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")
        from transformers import SchedulerType

        schedules = [schedule.value for schedule in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise ValueError(
                f"lr_scheduler_type must be one of {', '.join(schedules)}, got {self.lr_scheduler_type!r}"
            )
        if not self.in_batch and not self.negatives:
            raise ValueError(
                "in_batch False leaves no negative; set negatives to use the data's hard negatives"
            )
        cli.check_device(self.device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"training runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}")
        if self.eval_dataset == "auto":
            self.eval_dataset = "cldr" if self.data == "cldr" else "none"


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
    sampler = make_sampler(tokens, config, static=encoders.is_static(model), pin_memory=device.type == "cuda")
    max_steps = config.max_steps
    if config.num_train_epochs is not None:
        max_steps = max(1, round(config.num_train_epochs * len(sampler)))
    learning_rate = config.learning_rate or (2e-2 if encoders.is_static(model) else 3e-5)
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
                queries_QD, *passages = encoders.embed(model, *(_to(text, device) for text in texts if text))
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


def _to(features: encoders.Features, device: torch.device) -> encoders.Features:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in features.items()}


# --- the command -------------------------------------------------------------------------------------------


class Project:
    """What all runs of one command share: the data, the tokens, and how a run's model starts."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.corpus = _load_corpus(config)
        print(self.corpus)
        self.eval_set: EvalSet | None = None
        if config.eval_dataset != "none":
            self.eval_set = load_eval_set(config.eval_dataset, config.eval_data_dir)
        self.tokenizer = None
        if config.model == "static":
            self.tokenizer = encoders.train_tokenizer(self.corpus.texts(), config.vocabulary_size)
        model = self.new_model(config.seed)
        limit = model.max_seq_length or float("inf")
        self.tokens = self.corpus.tokenize(
            model.tokenizer,
            query_prefix=config.query_prefix,
            passage_prefix=config.passage_prefix,
            max_query_length=int(min(config.max_query_length, limit)),
            max_passage_length=int(min(config.max_passage_length, limit)),
        )
        for _, run in self.runs():  # what cannot be filled is said before any training
            make_sampler(self.tokens, run, static=encoders.is_static(model)).close()

    def new_model(self, seed: int) -> SentenceTransformer:
        """The model before training."""
        torch.manual_seed(seed)
        if self.tokenizer is not None:
            model = encoders.build_static(
                self.tokenizer, self.config.dimension, device=self.config.device or "cpu"
            )
        else:
            model = encoders.load(self.config.model, device=self.config.device)
        encoders.set_prompts(model, self.config.query_prefix, self.config.passage_prefix)
        return model

    def runs(self) -> Iterator[tuple[str, TrainConfig]]:
        """Name and settings of every run; runs of one name differ in their seeds alone."""
        named = {_batch_type(self.config.alpha): self.config.alpha}
        if self.config.compare:
            named = {"mono": 1.0, "cross": 0.0, "hybrid": self.config.alpha}
        for name, alpha in named.items():
            for seed in range(self.config.seed, self.config.seed + self.config.num_seeds):
                yield name, replace(self.config, alpha=alpha, seed=seed)

    def evaluate(self, model: SentenceTransformer) -> Evaluation | None:
        """The held-out figures of a model; None without an evaluation set."""
        if self.eval_set is None:
            return None
        return evaluate(model, self.eval_set, batch_size=self.config.eval_batch_size)


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(TrainConfig, "python -m hybridfast.train", __doc__ or "", argv)
    with cli.usage_errors():
        name = "compare" if config.compare else _batch_type(config.alpha)
        output_dir = cli.check_output_folder(config.output_dir or cli.next_free(name))
        project = Project(config)
    summaries: dict[str, list[dict[str, float]]] = {}
    runs = list(project.runs())
    with cli.output_folder(output_dir) as folder:
        if config.eval_before and (untrained := project.evaluate(project.new_model(config.seed))):
            summaries["untrained"] = [untrained.summary()]
        for name, run in runs:
            title = name if config.num_seeds == 1 else f"{name}-seed{run.seed}"
            model = project.new_model(run.seed)
            training = train(model, project.tokens, run, name=title)
            evaluation = project.evaluate(model)
            run_folder = folder if len(runs) == 1 else folder / title
            _save(run_folder, model, run, training, evaluation)
            if evaluation:
                summaries.setdefault(name, []).append(evaluation.summary())
        table = report.table(summaries) if summaries else ""
        if table:
            (folder / "results.md").write_text(table + "\n", encoding="utf-8")
    if project.eval_set is not None:
        print(f"\n{project.eval_set.name}: zero-shot, higher is better but for the rank distance\n\n{table}")
    _closing_words(config, output_dir, several=len(runs) > 1)


def _load_corpus(config: TrainConfig) -> ParallelCorpus:
    if config.data == "cldr":
        from hybridfast.datasets import cldr

        return ParallelCorpus.from_rows(cldr.training_rows(), name="cldr")
    return ParallelCorpus.load(
        config.data, config=config.data_config, split=config.data_split, language=config.language
    )


def _save(
    folder: Path,
    model: SentenceTransformer,
    config: TrainConfig,
    training: dict[str, float],
    evaluation: Evaluation | None,
) -> None:
    model.save(str(folder))
    settings = {**asdict(config), "output_dir": None, "compare": False, "num_seeds": 1}
    (folder / "train_config.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    details = {"config": settings, "training": training}
    write_results(folder, evaluation, details)


def _batch_type(alpha: float) -> str:
    return {1.0: "mono", 0.0: "cross"}.get(alpha, "hybrid")


def _closing_words(config: TrainConfig, output_dir: Path, *, several: bool) -> None:
    folder = f"{output_dir}/RUN" if several else str(output_dir)
    print(f"\nModel: {folder}  (sentence_transformers.SentenceTransformer loads it)")
    if config.eval_dataset != "none":
        print(f"Numbers: {folder}/metrics.json   Picture of all language pairs: {folder}/language_pairs.png")
    print(f"Settings: {folder}/train_config.yaml  (python -m hybridfast.train FILE repeats the run)")
    print("Try next:")
    if not config.compare:
        print("  python -m hybridfast.train --compare            mono, cross and hybrid batches side by side")
    if config.data == "cldr":
        print("  python -m hybridfast.train --data pairs.jsonl   your own rows: id, lang, query, passage")
    print("  python -m hybridfast.train --help               every setting")


if __name__ == "__main__":
    main()
