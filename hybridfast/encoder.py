"""The dual encoder: one SentenceTransformer, its two sides, and the one function that embeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hybridfast.data.tokens import spans, tokenizer_settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = [
    "Side",
    "build_static",
    "check_device",
    "embed",
    "encode",
    "is_static",
    "load",
    "set_lengths",
    "set_prompts",
    "set_similarity",
    "sides",
    "similarity",
    "train_tokenizer",
]

Task = Literal["query", "document"]
Features = dict[str, Any]

# --- a model -----------------------------------------------------------------------------------------------


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
    """
    from sentence_transformers import SentenceTransformer

    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).expanduser().is_dir():
        raise FileNotFoundError(f"{name_or_path}: no such model folder")
    return SentenceTransformer(
        str(Path(name_or_path).expanduser()) if looks_local else name_or_path,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs,
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


def set_lengths(model: SentenceTransformer, query: int | None, document: int | None) -> None:
    """Where the model cuts queries and documents, in tokens, prompt and special tokens counted.

    None keeps the model's own limit. The limits are saved with the model, so that it encodes what it was
    trained on.

    Raises:
        ValueError: the model has no such setting, or cuts shorter already.
    """
    for name, length in (("query_length", query), ("document_length", document)):
        if length is None:
            continue
        inputs = [module for module in model.modules() if hasattr(module, name)]
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


# --- embedding ---------------------------------------------------------------------------------------------


def embed(model: SentenceTransformer, task: Task, features: Features) -> Tensor:
    """The embeddings (B, D) of what ``preprocess`` or :meth:`Side.features` made of B texts, not normalized.

    Training and evaluation both come through here. Gradients as torch is set to form them.
    """
    embeddings: Tensor = model(features, task=task)["sentence_embedding"]
    return embeddings[:, : model.truncate_dim]  # None: all


def encode(
    model: SentenceTransformer, task: Task, texts: Sequence[str], *, batch_size: int, progress: bool = False
) -> Tensor:
    """Embed texts as ``encode_query`` and ``encode_document`` do: (texts, D) float32, where the model is."""
    from sentence_transformers.util import batch_to_device

    model.eval()
    prompt = prompt_of(model, task)
    order = np.argsort([-len(text) for text in texts], kind="stable")  # texts of like length: less padding
    out: Tensor | None = None
    with torch.inference_mode(), tqdm(total=len(texts), desc=task, unit=" texts", disable=not progress) as bar:
        for rows in np.split(order, range(batch_size, len(texts), batch_size)):
            features = model.preprocess([texts[row] for row in rows], prompt=prompt, task=task)
            embeddings = embed(model, task, batch_to_device(features, model.device)).float()
            if out is None:
                out = embeddings.new_empty((len(texts), embeddings.shape[1]))
            out[torch.from_numpy(rows).to(out.device)] = embeddings
            bar.update(len(rows))
    if out is None:
        raise ValueError("texts must hold at least one text")
    return out


def prompt_of(model: SentenceTransformer, task: Task) -> str:
    """What the model puts before a text of that side; "" for nothing. As ``encode_query`` and ``_document``."""
    names = ("query",) if task == "query" else ("document", "passage", "corpus")
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) if name else None) or ""


# --- token ids ---------------------------------------------------------------------------------------------

CHUNK = 1024  # texts tokenized at a time, of like length, since they come padded to their longest
SAME = 1e-4  # of an embedding's norm: what kernels may differ by that see another padding


class Side:
    """How a model reads one side: its texts as token ids, and ids as what its first module takes.

    Everything that decides about ids (prompt, chat template, length, route, tokenizer) is the model's own
    ``preprocess``; a few texts of the corpus show what it gives.

    Raises:
        ValueError: it gives something that token ids cannot bring back.
    """

    def __init__(self, model: SentenceTransformer, task: Task, samples: Sequence[str]) -> None:
        self.model, self.task = model, task
        self.prompt = prompt_of(model, task)
        self.samples = [*samples, "a"]  # and a short one, so that there is padding to see
        features = self._preprocess(self.samples)
        self.flat = "offsets" in features
        self.left, self.pad_id, self.token_type = False, 0, None
        self.constants = {name: value for name, value in features.items() if not isinstance(value, Tensor)}
        given = features.keys() - self.constants.keys()
        known = {"input_ids", "offsets"} if self.flat else {"input_ids", "attention_mask"}
        known |= {"token_type_ids", "sentence_lengths"}
        if not known - {"token_type_ids", "sentence_lengths"} <= given:
            raise ValueError(f"{self._name} reads no token ids with a mask or offsets, but {_listed(given)}")
        if given - known:
            raise ValueError(f"{self._name} also reads {_listed(given - known)}, which token ids do not tell")
        self.with_lengths = "sentence_lengths" in given
        if not self.flat:
            self._see_padding(features)

    def _see_padding(self, features: Features) -> None:
        mask_BL, ids_BL = features["attention_mask"].bool(), features["input_ids"]
        padding = (~mask_BL).nonzero()
        if len(padding):
            row, place = padding[0].tolist()
            self.pad_id, self.left = int(ids_BL[row, place]), place == 0 and bool(mask_BL[row, -1])
        types = features.get("token_type_ids")
        if types is not None:
            self.token_type = int(types[mask_BL].max()) if mask_BL.any() else 0

    def _preprocess(self, texts: list[str]) -> Features:
        features = dict(self.model.preprocess(texts, prompt=self.prompt or None, task=self.task))
        if "cu_seq_lens_q" in features:  # flash attention without padding: the same ids, padded
            for module in self.model.modules():
                if getattr(module, "can_flatten_inputs", False):
                    module.unpad_inputs = False
            features = dict(self.model.preprocess(texts, prompt=self.prompt or None, task=self.task))
        return features

    @property
    def _name(self) -> str:
        return f"the model's {type(self.model[0]).__name__}, for a {self.task},"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides about the ids, for JSON; what no setting shows is in the ids of some texts."""
        ids_T, lengths_B = self.ids(self.samples)
        modules = [
            [type(module).__name__, module.get_config_dict()]
            for module in self.model.modules()
            if hasattr(module, "get_config_dict")
        ]
        tokenizers = [
            tokenizer_settings(module.tokenizer)
            for module in self.model.modules()
            if getattr(module, "tokenizer", None) is not None and module is not self.model
        ]
        shown = hashlib.blake2b(ids_T.tobytes() + lengths_B.tobytes(), digest_size=16).hexdigest()
        return {
            "task": self.task,
            "prompt": self.prompt,
            "modules": json.loads(json.dumps(modules, default=str)),
            "tokenizers": tokenizers,
            "samples": shown,
        }

    def ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The token ids of all texts, one after the other (T,), and how many each has (B,)."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts: list[NDArray[np.int32]] = []
        lengths_B = np.zeros(len(texts), np.int64)
        for rows in np.split(order, range(CHUNK, len(texts), CHUNK)):
            if len(rows):
                ids_T, lengths_B[rows] = self._tokens(self._preprocess([texts[row] for row in rows]))
                parts.append(ids_T)
        sorted_T = np.concatenate(parts) if parts else np.empty(0, np.int32)
        starts_B = np.zeros(len(texts), np.int64)
        starts_B[order] = np.cumsum(lengths_B[order]) - lengths_B[order]
        return sorted_T[spans(starts_B, lengths_B)], lengths_B

    def _tokens(self, features: Features) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids = features["input_ids"]
        if self.flat:
            offsets_B = features["offsets"].numpy()
            return ids.numpy().astype(np.int32), np.diff(offsets_B, append=len(ids))
        mask_BL = features["attention_mask"].bool()
        types = features.get("token_type_ids")
        if types is not None and bool((types[mask_BL] != self.token_type).any()):
            raise ValueError(f"{self._name} gives a text's tokens several token types, which ids do not tell")
        return ids[mask_BL].numpy().astype(np.int32), mask_BL.sum(dim=1).numpy()

    def features(self, ids_T: Tensor, offsets_B: Tensor, device: torch.device) -> Features:
        """What the model's modules take, from the ids of B texts and where each text begins."""
        features = dict(self.constants)
        lengths_B = torch.diff(offsets_B, append=offsets_B.new_tensor([len(ids_T)]))
        if self.with_lengths:
            features["sentence_lengths"] = lengths_B
        ids_T = ids_T.to(device, non_blocking=True)
        if self.flat:
            return features | {"input_ids": ids_T, "offsets": offsets_B.to(device, non_blocking=True)}
        place_L = torch.arange(max(1, int(lengths_B.max())))
        mask_BL = place_L < lengths_B[:, None]
        if self.left:
            mask_BL = mask_BL.flip(1)
        mask_BL = mask_BL.to(device, non_blocking=True)
        ids_BL = ids_T.new_full(mask_BL.shape, self.pad_id).masked_scatter(mask_BL, ids_T)
        features |= {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
        if self.token_type is not None:
            features["token_type_ids"] = torch.full_like(ids_BL, self.token_type)
        return features

    def check(self) -> float:
        """The largest difference, over its norm, between the embeddings of ids and of texts.

        Raises:
            ValueError: it is above 1e-4: such a model would be trained on one thing and used for another.
        """
        self.model.eval()
        encoder = self.model.encode_query if self.task == "query" else self.model.encode_document
        wanted = torch.as_tensor(encoder(self.samples, batch_size=len(self.samples))).float()
        ids_T, lengths_B = self.ids(self.samples)
        offsets_B = torch.from_numpy(np.cumsum(lengths_B) - lengths_B)
        with torch.inference_mode():
            features = self.features(torch.from_numpy(ids_T).long(), offsets_B, self.model.device)
            got = embed(self.model, self.task, features).float().cpu()
        norms_B = wanted.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        difference = float(((got - wanted).norm(dim=1) / norms_B).max())
        if not difference <= SAME:
            raise ValueError(
                f"{self._name} embeds token ids unlike texts (by {difference:.1e} of the norm, {SAME} is allowed)"
            )
        return difference


def sides(
    model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str]
) -> tuple[Side, Side]:
    """Both sides of a model, checked on a few texts of each.

    Raises:
        ValueError: what the model is trained on would not be what it encodes.
    """
    both = Side(model, "query", queries), Side(model, "document", documents)
    for side in both:
        side.check()
    return both


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
