"""A model before it is used: loaded or built, with its prompts, lengths and similarity."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = [
    "TASKS",
    "ModelSettings",
    "Task",
    "build_static",
    "check_device",
    "is_static",
    "load",
    "prompt_of",
    "set_lengths",
    "set_prompts",
    "set_similarity",
    "setting",
    "similarity",
    "train_tokenizer",
]

Task = Literal["query", "document"]  # as sentence-transformers names the sides
TASKS: tuple[Task, Task] = ("query", "document")


def setting(default: Any, help: str) -> Any:
    """A field of a dataclass of settings, with what ``--help`` says of it."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelSettings:
    """What every command can say about its model."""

    SECTIONS: ClassVar[dict[str, str]] = {"model": "model"}  # headings of --help, by the first setting below

    model: str = setting("static", "A SentenceTransformer or transformers encoder: a folder or a hub name.")
    revision: str | None = setting(None, "Branch, tag or commit of a model on the hub. Default: main.")
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model.")
    model_kwargs: dict[str, Any] | str | None = setting(
        None, 'Options of transformers\' from_pretrained, as JSON: \'{"attn_implementation": "sdpa"}\'.'
    )
    query_prefix: str | None = setting(
        None, "Text put before every query, spaces included. Default: the model's own prompt."
    )
    passage_prefix: str | None = setting(
        None, "Text put before every passage, spaces included. Default: the model's own prompt."
    )
    max_query_length: int | None = setting(
        None, "Tokens at which queries are cut, prompt included. Default: the model's own limit."
    )
    max_passage_length: int | None = setting(
        None, "Tokens at which passages are cut, prompt included. Default: the model's own limit."
    )
    similarity: Literal["cosine", "dot"] | None = setting(
        None, "How embeddings are compared: cosine, or dot for inner products. Default: the model's own way."
    )
    device: str | None = setting(
        None, "cpu, cuda, ... Default: a GPU where there is one, but the CPU for a new static encoder."
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must be a folder or a hub name, got ''")
        for name in ("max_query_length", "max_passage_length"):
            length = getattr(self, name)
            if length is not None and length < 1:
                raise ValueError(f"{name} must be >= 1, got {length}")
        if isinstance(self.model_kwargs, str):
            try:
                parsed = json.loads(self.model_kwargs)
            except json.JSONDecodeError:
                parsed = None
            if not isinstance(parsed, dict):
                raise ValueError(f"model_kwargs must be a JSON object, got {self.model_kwargs!r}")
            self.model_kwargs = parsed
        check_device(self.device)

    def load(self, prompts: tuple[str, str] = ("", "")) -> SentenceTransformer:
        """The model, set as all of this says; for `prompts` see :meth:`apply`."""
        kwargs = self.model_kwargs if isinstance(self.model_kwargs, dict) else None
        try:
            model = load(
                self.model,
                device=self.device,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                model_kwargs=kwargs,
            )
        except TypeError as error:
            if not kwargs:
                raise
            raise ValueError(f"model_kwargs {json.dumps(kwargs)}: {error}") from error
        self.apply(model, prompts)
        return model

    def apply(self, model: SentenceTransformer, prompts: tuple[str, str] = ("", "")) -> None:
        """Give a model these prompts, lengths and similarity; ValueError where it cannot have them.

        `prompts` of queries and documents are for a model that has none of its own.
        """
        if not any(prompt_of(model, task) for task in TASKS):
            set_prompts(model, *prompts)
        set_prompts(model, self.query_prefix, self.passage_prefix)
        set_lengths(model, self.max_query_length, self.max_passage_length)
        set_similarity(model, self.similarity)


def load(
    name_or_path: str,
    *,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
) -> SentenceTransformer:
    """Load a SentenceTransformer, or any transformers encoder (which gets mean pooling).

    Args:
        name_or_path: a hub name or a local folder.
        device: as torch spells it; default: a GPU where there is one.
        revision, trust_remote_code, model_kwargs: as SentenceTransformer takes them.

    Raises:
        FileNotFoundError: ``name_or_path`` looks like a path, and nothing is there.
        OSError: it is no model on the hub, or the hub cannot be reached; the message names it.
        ValueError: a file of weights is damaged.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    # A hub name has one slash at most.
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise FileNotFoundError(f"{name_or_path}: no such model folder")
    try:
        model = SentenceTransformer(
            str(Path(name_or_path).expanduser()) if looks_local else name_or_path,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
        )
    except OSError as error:
        if Path(name_or_path).exists() or looks_local:
            raise
        raise OSError(
            f"model {name_or_path!r} is neither a folder nor to be had from the hub: {error}"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: the weights are damaged: {error}") from error
    for module in model.modules():
        tokenizer: Any = getattr(module, "tokenizer", None)
        if getattr(tokenizer, "pad_token", "") is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token  # as Llama's wants; the mask hides what pads
    return model


def check_device(name: str | None) -> None:
    """A ValueError unless torch can put a tensor there; None stands for whatever there is."""
    if name is None:
        return
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"device {name!r} is not to be had: {str(error).splitlines()[0]}") from None


LONGEST_WORD = 256  # characters; what is longer is cut


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 12_000) -> Tokenizer:
    """Learn a byte-pair vocabulary: fewer tokens than asked for where the texts do not yield as many."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A word of a million characters, as base64 is, would take hours: time grows with a word's square.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=["[PAD]", "[UNK]"], show_progress=sys.stderr.isatty()
    )
    bar = tqdm(texts, desc="vocabulary", unit=" texts", leave=False, disable=None)
    tokenizer.train_from_iterator(bar, trainer)
    return tokenizer


def build_static(tokenizer: Tokenizer, dimension: int = 256, *, device: str = "cpu") -> SentenceTransformer:
    """A static encoder: the mean of a text's token embeddings, drawn from torch's global generator."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    embedding = StaticEmbedding(tokenizer, embedding_dim=dimension)
    # Rows of norm one: torch's default of sqrt(dimension) would take as many times the steps to turn round.
    torch.nn.init.normal_(embedding.embedding.weight, std=dimension**-0.5)
    return SentenceTransformer(modules=[embedding], device=device)


def is_static(model: SentenceTransformer) -> bool:
    """Whether the first module sums token embeddings, and nothing reads their order."""
    return isinstance(getattr(model[0], "embedding", None), torch.nn.EmbeddingBag)


def set_prompts(model: SentenceTransformer, query: str | None, document: str | None) -> None:
    """What ``encode_query`` and ``encode_document`` put before a text; None keeps the model's own."""
    if query is not None:
        model.prompts["query"] = query
    if document is not None:
        model.prompts["document"] = document


def prompt_of(model: SentenceTransformer, task: Task) -> str:
    """What the model puts before a text of that side; "" for nothing."""
    # In the order in which encode_document looks.
    names = ("query",) if task == "query" else ("document", "passage", "corpus")
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) if name else None) or ""


def set_lengths(model: SentenceTransformer, query: int | None, document: int | None) -> None:
    """Where the model cuts queries and documents, in tokens, prompt and special tokens counted.

    None keeps the model's own limit, and none goes beyond it. The limits are saved with the model, so that
    it encodes what it was trained on.

    Raises:
        ValueError: the model has no such setting.
    """
    for name, length in (("query_length", query), ("document_length", document)):
        if length is None:
            continue
        inputs: list[Any] = [module for module in model.modules() if hasattr(module, name)]
        if not inputs:
            raise ValueError(
                f"max_{name.replace('document', 'passage')} {length}: {type(model[0]).__name__} does not cut "
                "texts by their side; leave it out"
            )
        for module in inputs:
            limit = module.max_seq_length
            setattr(module, name, length if limit is None else min(length, limit))


SIMILARITIES = ("cosine", "dot")


def similarity(model: SentenceTransformer) -> str:
    """How the model compares embeddings: "cosine" or "dot". ValueError for what the loss does not know."""
    name = str(model.similarity_fn_name)
    if name not in SIMILARITIES:
        raise ValueError(
            f"the model compares by {name!r}; similarity must be one of {', '.join(map(repr, SIMILARITIES))}"
        )
    return name


def set_similarity(model: SentenceTransformer, name: str | None) -> None:
    """Compare embeddings so, and say so in the saved model; None keeps the model's own."""
    if name is not None:
        model.similarity_fn_name = name  # type: ignore[assignment]
    similarity(model)
