"""Every setting of a training run, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.mining.candidates import Scope
from hybridfast.mining.mine import MiningSettings
from hybridfast.training import checks

__all__ = ["TrainConfig"]


@dataclass
class TrainConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.train``; saved with the model as ``train_config.yaml``."""

    SECTIONS = ModelSettings.SECTIONS | {
        "data": "data and output",
        "alpha": "batches and loss",
        "teacher": "distillation to a teacher",
        "tokens_per_chunk": "optimization",
        "save_dtype": "saved weights, new static encoder",
        "eval_dataset": "evaluation",
        "eval_steps": "validation, while training",
        "save_steps": "checkpoints",
        "logging_steps": "log and model card",
        "dry_run": "runs",
    }

    model: str = setting(
        "static",
        "static: a new tokenizer and the mean of new token embeddings. Or any SentenceTransformer or "
        "transformers encoder: a folder or a hub name; it encodes both sides.",
    )
    query_prefix: str | None = setting(
        None,
        "Text put before every query, in training and in the saved model. Default: the model's own prompt; "
        "'Query: ' for a model that has none for either side.",
    )
    passage_prefix: str | None = setting(
        None,
        "Text put before every passage. Default: the model's own prompt; 'Passage: ' for a model that has "
        "none for either side.",
    )
    data: str = setting(
        "cldr",
        "cldr: the embedded corpus. Or a file of JSON lines, CSV, TSV or Parquet, a folder of them, or a hub "
        "name, with columns id, lang, query, passage[, negative_1 ..][, source].",
    )
    data_config: str | None = setting(None, "Configuration of a data set on the hub.")
    data_split: str = setting("train", "Split of a data set on the hub.")
    data_streaming: bool = setting(False, "Read a data set on the hub as a stream, once, into the cache.")
    language: str | None = setting(None, "Language of all rows, for data without a lang column.")
    languages: list[str] | None = setting(
        None, "Train on these languages only, such as ar de en. Default: all."
    )
    output_dir: str | None = setting(
        None,
        "New folder for the model, or that of the run to go on with. Default: the next free runs/NAME-1, "
        "-2, ...; NAME is hybrid, mono, cross or compare.",
    )

    alpha: float = setting(0.5, "Probability that a batch is monolingual; 0: always cross-lingual, 1: never.")
    alpha_schedule: list[float] | None = setting(
        None,
        "Alphas from the first step to the last, evenly spaced, straight lines between them: 0 1 begins "
        "cross-lingual and ends monolingual, 0.5 0.5 1 keeps the last half for the change. Default: alpha.",
    )
    cross: Literal["mixed", "paired", "same"] = setting(
        "mixed",
        "Cross-lingual batches: languages vary inside the batch (the paper's), or one pair per batch. same: "
        "instead of them, pairs of one language each, languages mixed inside the batch (LAReQA's X-X).",
    )
    mix: Literal["batches", "rows"] = setting(
        "batches",
        "What alpha is the share of: monolingual batches, or pairs of one language in every batch, beside "
        "cross-lingual ones.",
    )
    positives: Literal["pair", "group"] = setting(
        "pair",
        "group: every passage comes in a second language too, and a query's positives are all passages of "
        "its item in the batch; its loss is their mean.",
    )
    batch_size: int = setting(512, "Pairs in a batch, each of another item.")
    dedup: Literal["group", "text"] = setting(
        "text", "group: rows of one item are no negatives of each other; text: nor those with an equal text."
    )
    negatives: int = setting(
        0, "Hard negatives per pair at most; the data has to have some, unless they are mined."
    )
    mine_steps: int | None = setting(
        None,
        "Mine hard negatives anew, with the model as it is, every so many steps; before the first one too, "
        "where the data has none. The next settings are those of hybridfast.mine.",
    )
    mine_scope: Scope = setting(
        "all", "Where they come from: passages in the query's language (same), in others, or in all."
    )
    range_min: int = setting(0, "Skip so many of the best candidates: they may be answers nobody marked.")
    range_max: int | None = setting(
        None,
        "Look at so many of the best candidates. Default: range_min + negatives, with a margin range_min + "
        "10 * negatives, plus the most passages that a query has.",
    )
    absolute_margin: float | None = setting(
        None, "A mined negative scores at least this much less than the positive."
    )
    relative_margin: float | None = setting(
        None, "A mined negative scores less than the positive by at least this share of the positive's score."
    )
    in_batch: bool = setting(
        True, "Other pairs' passages are negatives too. False: hard negatives alone, the paper's Eq. 1."
    )
    bidirectional: bool = setting(False, "Add the passage-to-query direction to the loss.")
    other_language_weight: float = setting(
        1.0,
        "A negative in another language than the positive counts so many times in InfoNCE's sum; 0: "
        "negatives are in the positive's language alone, so that no language is a shortcut.",
    )
    consistency_weight: float = setting(
        0.0,
        "w of (1 - w) InfoNCE + w times how differently a query and its translation rank the batch's "
        "passages (LaKDA's divergence, there 0.5). Queries come in a second language too.",
    )
    alignment_weight: float = setting(
        0.0,
        "Add so many times 1 - cosine of a text and its translation, the mean over queries and passages, "
        "which come in a second language too.",
    )
    temperature: float | None = setting(
        None, "Similarities are divided by it. Default: 0.05 for cosines, 1 for inner products."
    )

    teacher: str | None = setting(
        None,
        "Draw texts in all languages to what this model makes of their group's text in one: a "
        "SentenceTransformer's folder or hub name; its prompts and lengths are its own.",
    )
    teacher_language: str = setting(
        "en", "Language that the teacher reads. Rows of groups without it are not distilled."
    )
    distillation_weight: float = setting(
        0.8, "Share of distillation in the loss; the rest is InfoNCE. 1: distillation alone."
    )
    distillation_projection: bool = setting(
        True,
        "Distil through a linear layer, which is trained and not saved. False: embeddings as they are, of a "
        "teacher with the model's dimensions.",
    )
    projection_learning_rate: float | None = setting(
        None,
        "Highest of that layer, which begins at random. Default: 1e-3, or learning_rate if that is higher.",
    )
    teacher_dir: str | None = setting(
        None,
        "Folder in which the teacher's embeddings are kept and found again; all ranks see it. Default: "
        "teacher in the cache of token ids.",
    )

    tokens_per_chunk: int | None = setting(
        None,
        "Tokens, padding counted, that go through the encoder at once, texts of like length together; the "
        "loss is the same. Default: 2048 on a CPU, 32768 on a GPU.",
    )
    activation_memory: float | None = setting(
        None,
        "Gigabytes of activations kept for the backward pass; what is beyond is computed again. Default: "
        "half of what is free.",
    )
    exchange: Literal["gather", "ring"] = setting(
        "gather",
        "How ranks share negatives. gather: each holds all passages; ring: those of two ranks, passed on.",
    )
    shard: Literal["none", "fsdp"] = setting(
        "none",
        "fsdp: each rank holds a part of every weight, gradient and moment, for models beyond one device's "
        "memory; weights are gathered for every chunk. Same run, same files.",
    )
    learning_rate: float | None = setting(
        None,
        "Highest, after warm-up. Default: 2e-2 for a static encoder, 3e-5 for others, 3e-4 for LoRA.",
    )
    lr_scheduler_type: str = setting(
        "linear", "Course of the learning rate, as transformers names it: linear, cosine, constant, ..."
    )
    warmup_ratio: float = setting(0.1, "Share of the steps in which the learning rate rises from 0.")
    weight_decay: float = setting(0.01, "Of AdamW; biases and norms are not decayed.")
    embedding_learning_rate: float | None = setting(
        None, "Highest for word embeddings. Default: learning_rate's."
    )
    sparse_embeddings: Literal["auto", "true", "false"] = setting(
        "auto",
        "Gradients of word embeddings, and AdamW, for a batch's tokens alone; other rows make up for it when "
        "they are touched. auto: on a CPU, for tables many times a batch's tokens.",
    )
    layer_lr_decay: float = setting(
        1.0, "Each layer's rate times this is that of the one below; the last has learning_rate."
    )
    freeze: str | None = setting(
        None, "Weights whose names this regular expression finds are not trained, such as word_embeddings."
    )
    lora_r: int | None = setting(
        None, "Train adapters of this rank in an encoder's layers instead of its weights (LoRA, by PEFT)."
    )
    lora_alpha: float | None = setting(
        None, "Adapters count lora_alpha / lora_r times. Default: twice lora_r."
    )
    lora_dropout: float = setting(0.0, "Of what adapters read, in training.")
    lora_target_modules: list[str] | None = setting(
        None,
        "Names of the layers that get adapters, such as query value. Default: what PEFT takes for the "
        "architecture; where it knows none, all linear layers.",
    )
    lora_merge: bool = setting(
        True, "Save a plain model, adapters merged. False: the adapters alone, for the model they began from."
    )
    ema_decay: float = setting(
        0.0,
        "Save the weights' average over the steps, each counting this much of the next; 0: the last.",
    )
    average_weight: float = setting(
        0.0,
        "Save the mean of what was trained and, with this share, of average_with: 0.3 of what the model was "
        "before keeps more of what it knew of other domains and languages (WiSE-FT).",
    )
    average_with: str | None = setting(
        None,
        "The other model of this mean, such as the folder of a run with other batches (a model soup). "
        "Default: this one as it was before.",
    )
    matryoshka_dims: list[int] | None = setting(
        None, "Train these prefixes of embeddings as embeddings too, such as 384 256 128 64: the mean loss."
    )
    gradient_checkpointing: bool = setting(
        False, "Keep layers' inputs alone and compute the rest again: less memory for a long text."
    )
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm; 0: never.")
    max_steps: int = setting(1200, "Optimizer steps, one batch each.")
    num_train_epochs: float | None = setting(
        None, "Length in epochs, instead of max_steps; 0.5 is half of one."
    )
    bf16: bool = setting(False, "Run the encoder and the similarity in bfloat16 (autocast).")
    fp16: bool = setting(
        False, "Run them in float16, with a loss scale; steps in which it overflows are left out and counted."
    )
    tf32: bool = setting(False, "float32 products of the encoder in TensorFloat-32, where the device has it.")
    torch_compile: bool = setting(
        False, "Compile the encoder, once for all lengths; how much that gains is measured and said first."
    )

    save_dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Type of the saved weights, which are evaluated as saved; training is in float32."
    )
    dimension: int = setting(256, "Dimensions of a new static encoder.")
    vocabulary_size: int = setting(12_000, "Tokens that a new static encoder's tokenizer knows, at most.")

    eval_dataset: str = setting(
        "auto",
        "auto: cldr if trained on it, else none. Or cldr, xquad-r, mlqa-r, miracl, beir, a folder like "
        "BEIR's, or a file or folder of rows as in data.",
    )
    eval_data_dir: str | None = setting(
        None, "Folder of xquad-r, mlqa-r, miracl or beir. Default: the hub; for beir it may be a name there."
    )
    eval_batch_size: int = setting(256, "Texts encoded at a time.")
    eval_before: bool = setting(True, "Evaluate the untrained model too.")

    eval_steps: int | None = setting(
        None,
        "Validate every so many steps and at the end: on rows whose column split says dev or "
        "validation, or on what the next two settings say.",
    )
    validation_split: float = setting(
        0.0, "Hold this share of the ids out of training, in all their languages, such as 0.02."
    )
    validation_dataset: str | None = setting(
        None, "Validate on this instead: what eval_dataset takes; xquad-r is in eval_data_dir."
    )
    metric_for_best_model: str | None = setting(
        None,
        "Leave the model of the validation at which this was best, such as 'mAP multi', 'R@1 cross' or "
        "'rank distance'. Default: the last step's.",
    )
    early_stopping_patience: int | None = setting(
        None, "Stop after so many validations in a row without a better metric_for_best_model."
    )

    save_steps: int | None = setting(
        None, "Write a checkpoint every so many steps and at the end. Default: only when interrupted."
    )
    save_total_limit: int | None = setting(2, "Keep the newest checkpoints, so many, and the best.")
    resume_from_checkpoint: str | None = setting(
        None,
        "auto: go on with what is in output_dir, or begin there. So the same command line, given again "
        "after whatever has ended it, ends with the model. Or a checkpoint's folder.",
    )

    logging_steps: int = setting(10, "Steps of a line in log.jsonl.")
    report_to: list[str] | None = setting(
        None, "Follow the run in tensorboard, wandb or both, too; they have to be installed. none: neither."
    )
    license: str | None = setting(None, "Of the model, for its card, as the hub names it: apache-2.0, ...")
    push_to_hub: bool = setting(False, "Put what the run leaves on the Hugging Face hub.")
    hub_model_id: str | None = setting(
        None, "Its repository there: NAME or USER/NAME. Default: the name of output_dir."
    )
    hub_private_repo: bool = setting(False, "Make that repository private.")

    dry_run: bool = setting(
        False,
        "Show batches, tokens, padding, memory and the time a run will take, from a few steps; then stop.",
    )
    compare: bool = setting(
        False, "Train mono (alpha 1), cross (alpha 0) and hybrid with the same steps and seeds."
    )
    baseline: str | None = setting(
        None, "Of several, the run that the table takes differences from. Default: mono, else the first."
    )
    seed: int = setting(0, "Decides the batches, new weights and dropout.")
    num_seeds: int = setting(1, "Train with seed, seed + 1, ... and report mean, deviation and interval.")
    num_workers: int = setting(2, "Native threads that build batches ahead; 0: none.")

    @property
    def activation_bytes(self) -> float | None:
        """``activation_memory`` in bytes."""
        return None if self.activation_memory is None else self.activation_memory * 1e9

    @property
    def second(self) -> Literal["none", "queries", "passages", "both"]:
        """Which texts come in a second language too."""
        queries = self.consistency_weight > 0 or self.alignment_weight > 0
        passages = self.positives == "group" or self.alignment_weight > 0
        return ("both" if passages else "queries") if queries else "passages" if passages else "none"

    @property
    def texts_per_batch(self) -> int:
        """At most, of all kinds."""
        seconds = {"none": 0, "queries": 1, "passages": 1, "both": 2}[self.second]
        return self.batch_size * (2 + self.negatives + seconds)

    @property
    def needs_second(self) -> str:
        """The first setting that they come for, and its value."""
        if self.consistency_weight:
            return f"consistency_weight {self.consistency_weight}"
        return f"alignment_weight {self.alignment_weight}" if self.alignment_weight else "positives group"

    @property
    def mining(self) -> MiningSettings:
        """What is mined as a hard negative."""
        return MiningSettings(
            num_negatives=self.negatives,
            scope=self.mine_scope,
            range_min=self.range_min,
            range_max=self.range_max,
            absolute_margin=self.absolute_margin,
            relative_margin=self.relative_margin,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check(self)
        if self.eval_dataset == "auto":  # settled here: the saved settings say what was evaluated
            self.eval_dataset = "cldr" if self.data == "cldr" else "none"
