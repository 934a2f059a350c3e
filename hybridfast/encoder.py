"""The dual encoder: one SentenceTransformer whose weights encode both queries and passages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = ["build_static", "check_device", "embed", "is_static", "load", "set_prompts", "train_tokenizer"]


def load(name_or_path: str, *, device: str | None = None) -> SentenceTransformer:
    """Load a SentenceTransformer, or any transformers encoder (which gets mean pooling).

    Args:
        name_or_path: a hub name or a local folder.
        device: as torch spells it; default: a GPU where there is one.

    Raises:
        FileNotFoundError: ``name_or_path`` looks like a path, and nothing is there.
    """
    from sentence_transformers import SentenceTransformer

    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise FileNotFoundError(f"{name_or_path}: no such model folder")
    return SentenceTransformer(
        str(Path(name_or_path).expanduser()) if looks_local else name_or_path, device=device
    )


def check_device(name: str | None) -> None:
    """A ValueError unless torch can put a tensor there; None stands for whatever there is."""
    if name is None:
        return
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not to be had: {str(error).splitlines()[0]}") from None


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = 12_000) -> Tokenizer:
    """Learn a byte-pair vocabulary: fewer tokens than asked for where the texts do not yield as many."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_static(tokenizer: Tokenizer, dimension: int = 256, *, device: str = "cpu") -> SentenceTransformer:
    """A static encoder: the mean of a text's token embeddings, drawn from torch's global generator."""
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:  # where sentence-transformers 5 has it
        from sentence_transformers.models import StaticEmbedding  # type: ignore[no-redef,unused-ignore]
    embedding = StaticEmbedding(tokenizer, embedding_dim=dimension)
    # Rows of norm one: torch's default of sqrt(dimension) would take as many times the steps to turn round.
    torch.nn.init.normal_(embedding.embedding.weight, std=dimension**-0.5)
    return SentenceTransformer(modules=[embedding], device=device)


def is_static(model: SentenceTransformer) -> bool:
    """Whether the model takes flat token ids with offsets, not padded ones with a mask."""
    return any(isinstance(module, torch.nn.EmbeddingBag) for module in model.modules())


def set_prompts(model: SentenceTransformer, query: str | None, passage: str | None) -> None:
    """What ``encode_query`` and ``encode_document`` put before a text; None keeps the model's own."""
    if query is not None:
        model.prompts["query"] = query
    if passage is not None:
        model.prompts["document"] = passage


Features = dict[str, torch.Tensor]


def embed(model: SentenceTransformer, *batches: Features) -> list[torch.Tensor]:
    """Embed tokenized texts with gradients: one (B, D) tensor per batch, not normalized.

    Args:
        batches: each ``input_ids`` and ``attention_mask``, both (B, length); or, for a static encoder,
            ``input_ids`` (tokens,) and ``offsets`` (B,).
    """
    if not is_static(model):
        return [model(batch)["sentence_embedding"] for batch in batches]
    # All in one call: the gradient of an embedding is as large as its vocabulary, whatever the batch.
    starts = [0, *itertools.accumulate(len(batch["input_ids"]) for batch in batches)]
    joined = {
        "input_ids": torch.cat([batch["input_ids"] for batch in batches]),
        "offsets": torch.cat(
            [batch["offsets"] + start for batch, start in zip(batches, starts, strict=False)]
        ),
    }
    return list(model(joined)["sentence_embedding"].split([len(batch["offsets"]) for batch in batches]))
