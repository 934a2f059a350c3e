"""A model's two sides: texts as token ids, ids as what its modules take, and the one function that embeds."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridfast.data import tokenizing
from hybridfast.data.ids import Ids, joined, spans
from hybridfast.data.tokenizer import tokenizer_settings
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.data.words import ByWords
from hybridfast.encoder.attention import position_offset
from hybridfast.encoder.dropout import Dropout
from hybridfast.encoder.forward import Forward
from hybridfast.encoder.gathering import dealt, gathered, is_sharded, own
from hybridfast.encoder.loading import TASKS, Task, prompt_of
from hybridfast.encoder.texts import Texts, cut_into_chunks, default_places

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hybridfast.data.corpus import ParallelCorpus

__all__ = [
    "Features",
    "Side",
    "embed",
    "embed_static",
    "encode",
    "joined_texts",
    "reading_of",
    "sides",
    "taken",
    "tokenize",
]

Features = dict[str, Any]


def embed(model: SentenceTransformer, task: Task, features: Features) -> Tensor:
    """The embeddings (B, D) of what ``preprocess`` or :meth:`Side.features` made of B texts, not normalized.

    Training and evaluation both come through here. Gradients as torch is set to form them.
    """
    embeddings: Tensor = model(features, task=task)["sentence_embedding"]
    if model.truncate_dim is None:  # a slice of all would be copied in the backward pass
        return embeddings
    return embeddings[:, : model.truncate_dim]


def embed_static(model: SentenceTransformer, parts: Sequence[tuple[Side, Features]]) -> Tensor:
    """Embeddings (B, D) of several batches of texts by a static encoder, in one call.

    The gradient of its table is as large as its vocabulary, whatever the batch.

    Args:
        parts: a side and its texts, which have B rows together.
    """
    texts = joined_texts([ids for _, ids in parts])
    side = parts[0][0]  # any: the sides differ in prompts, which are ids by now
    return embed(model, side.task, side.features(**texts, device=model.device))


def joined_texts(parts: Sequence[Features]) -> Features:
    """Texts of several batches, as flat ids with offsets, as those of one."""
    starts = itertools.accumulate((len(ids["input_ids"]) for ids in parts[:-1]), initial=0)
    offsets = [ids["offsets"] + start for ids, start in zip(parts, starts, strict=True)]
    return {"input_ids": torch.cat([ids["input_ids"] for ids in parts]), "offsets": torch.cat(offsets)}


def encode(
    model: SentenceTransformer,
    task: Task,
    texts: Sequence[str],
    *,
    batch_size: int,
    told: Callable[[int], Any] = lambda texts: None,
    shared: bool = False,
) -> Tensor:
    """Embed texts as ``encode_query`` and ``encode_document`` do: (texts, D) float32, where the model is.

    A model that is trained from token ids goes through the trainer's chunks, of `batch_size` texts at most;
    `told` and `shared` are those of :func:`encode_ids`.
    """
    if not texts:
        raise ValueError("texts must hold at least one text")
    model.eval()
    try:
        side = Side(model, task, [texts[0], max(texts, key=len)])
        side.check()
        ids_T, lengths_B = (torch.from_numpy(array) for array in side.ids(texts))
    except ValueError:  # the model, or one of the texts, is more than token ids tell
        return _encode_preprocessed(model, task, texts, batch_size, told)
    return encode_ids(side, ids_T, lengths_B, batch_size=batch_size, told=told, shared=shared)


def encode_ids(
    side: Side,
    ids_T: Tensor,
    lengths_B: Tensor,
    *,
    places: int | None = None,
    batch_size: int | None = None,
    told: Callable[[int], Any] = lambda texts: None,
    shared: bool = False,
) -> Tensor:
    """Embed texts given as ids, in the trainer's chunks: (texts, D) float32, where the model is.

    Args:
        places: of a chunk, at most; default as in training. Nor has it more than `batch_size` texts.
        told: hears of how many texts each chunk had.
        shared: every rank of torch.distributed's default group calls this and embeds a part of the chunks;
            all get all embeddings, to the bit those of one process.
    """
    device, starts_B = side.model.device, lengths_B.cumsum(0) - lengths_B
    if side.flat:  # tokens are all there is to a static encoder's texts: any cut will do
        chunks = list(torch.arange(len(lengths_B)).split(STATIC_TEXTS))
    else:
        places = places or default_places(device)
        chunks = cut_into_chunks(lengths_B, places, packed=side.packed, on_cpu=device.type == "cpu")
    chunks = [part for chunk in chunks for part in chunk.split(batch_size or len(lengths_B))]
    shares = dealt(chunks, shared)
    parts: list[Tensor] = []
    with torch.inference_mode():
        for rows in own(shares) or chunks[:1]:  # without a chunk of its own, a rank learns how wide they are
            parts.append(side.embed(taken(ids_T, starts_B[rows], lengths_B[rows]), lengths_B[rows]).float())
            told(len(rows))
        if is_sharded(side.model):  # ranks gather its weights together: all have as many chunks as the first
            for rows in chunks[-1:] * (len(shares[0]) - len(parts)):
                side.embed(taken(ids_T, starts_B[rows], lengths_B[rows]), lengths_B[rows])
        embeddings = gathered(torch.cat(parts), [sum(map(len, share)) for share in shares])
        order = torch.cat([rows for share in shares for rows in share])
        return embeddings[torch.argsort(order).to(device)]


def taken(ids_T: Tensor, starts_B: Tensor, lengths_B: Tensor) -> Tensor:
    """The ids of some texts, one after the other."""
    offsets_B = lengths_B.cumsum(0) - lengths_B
    places = torch.arange(int(lengths_B.sum())) + (starts_B - offsets_B).repeat_interleave(lengths_B)
    return ids_T[places].long()


def _encode_preprocessed(
    model: SentenceTransformer,
    task: Task,
    texts: Sequence[str],
    batch_size: int,
    told: Callable[[int], Any],
) -> Tensor:
    """The same for a model that reads anything else than token ids."""
    from sentence_transformers.util import batch_to_device

    prompt = prompt_of(model, task)
    order = np.argsort([-len(text) for text in texts], kind="stable")  # texts of like length: less padding
    parts: list[Tensor] = []
    with torch.inference_mode():
        for rows in np.split(order, range(batch_size, len(texts), batch_size)):
            features = model.preprocess([texts[row] for row in rows], prompt=prompt, task=task)
            parts.append(embed(model, task, batch_to_device(features, model.device)).float())
            told(len(rows))
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(model.device)]


# --- token ids ---------------------------------------------------------------------------------------------

STATIC_TEXTS = 8192  # of a static encoder at a time
CHUNK = 1024  # texts tokenized at a time, of like length, since they come padded to their longest
SAME = 1e-4  # of an embedding's norm: what kernels may differ by that see another padding


class Side:
    """How a model reads one side: its texts as token ids, and ids as what its first module takes.

    Everything that decides about ids (prompt, chat template, length, route, tokenizer) is the model's own
    ``preprocess``; a few texts of the corpus show what it gives.

    Raises:
        ValueError: it gives something that token ids cannot bring back.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        task: Task,
        samples: Sequence[str],
        reading: dict[str, Any] | None = None,  # what both sides share; see `reading_of`
    ) -> None:
        self.model, self.task = model, task
        self.reading = reading_of(model) if reading is None else reading
        self.prompt = prompt_of(model, task)
        self.samples = [*samples, "a"]  # and a short one, so that there is padding to see
        try:
            features = self._preprocess(self.samples)
        except Exception as error:  # whatever is wrong with a model: its own encode would fail
            raise ValueError(f"{self._name} cannot read texts: {type(error).__name__}: {error}") from error
        self.flat = "offsets" in features
        self.left, self.pad_id = False, 0
        self.token_type: int | None = None
        self.constants = {name: value for name, value in features.items() if not isinstance(value, Tensor)}
        given = features.keys() - self.constants.keys()
        known = {"input_ids", "offsets"} if self.flat else {"input_ids", "attention_mask"}
        known |= {"token_type_ids", "sentence_lengths"}
        if not known - {"token_type_ids", "sentence_lengths"} <= given:
            raise ValueError(f"{self._name} reads no token ids with a mask or offsets, but {_listed(given)}")
        if given - known:
            raise ValueError(f"{self._name} also reads {_listed(given - known)}, which token ids do not tell")
        self.with_lengths = "sentence_lengths" in given
        self.packed = False  # texts go through the model without padding; `check` finds out whether they can
        self.together = False  # with the other side's texts in one call; see `serves`
        self.depends_on_chunks: set[str] = set()  # what dropout could not tell the places of
        if not self.flat:
            self._see_padding(features)
        self._read = self._fastest()
        self._words = ByWords(getattr(model[0], "tokenizer", None), self.prompt, self._by_length, samples)

    def _see_padding(self, features: Features) -> None:
        mask_BL, ids_BL = features["attention_mask"].bool(), features["input_ids"]
        padding = (~mask_BL).nonzero()
        if len(padding):
            row, place = padding[0].tolist()
            # A row that is all padding, of a text without tokens, tells nothing about the side.
            self.pad_id, self.left = int(ids_BL[row, place]), place == 0 and bool(mask_BL[row, -1])
        types = features.get("token_type_ids")
        if types is not None:
            self.token_type = int(types[mask_BL].max()) if mask_BL.any() else 0

    def _preprocess(self, texts: list[str], **options: Any) -> Features:
        def preprocess() -> Features:
            return dict(self.model.preprocess(texts, prompt=self.prompt or None, task=self.task, **options))

        features = preprocess()
        if "cu_seq_lens_q" in features:  # flash attention without padding: the same ids, padded
            for module in self.model.modules():
                if getattr(module, "can_flatten_inputs", False):
                    module.unpad_inputs = False  # type: ignore[assignment]
            features = preprocess()
        return features

    @property
    def _name(self) -> str:
        return f"the model's {type(self.model[0]).__name__}, for a {self.task},"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides about the ids, for JSON; what no setting shows is in the ids of some texts."""
        ids_T, lengths_B = self.ids(self.samples)
        shown = hashlib.blake2b(ids_T.tobytes() + lengths_B.tobytes(), digest_size=16).hexdigest()
        return {
            "task": self.task,
            "prompt": self.prompt,
            "samples": shown,
            **self.reading,
        }

    def ids(self, texts: Sequence[str]) -> Ids:
        """The token ids of all texts, one after the other (T,), and how many each has (B,)."""
        return self._words(texts)

    def _by_length(self, texts: Sequence[str]) -> Ids:
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts: list[NDArray[np.int32]] = []
        lengths_B = np.zeros(len(texts), np.int64)
        for rows in np.split(order, range(CHUNK, len(texts), CHUNK)):
            if len(rows):
                ids_T, lengths_B[rows] = self._read([texts[row] for row in rows])
                parts.append(ids_T)
        sorted_T = np.concatenate(parts) if parts else np.empty(0, np.int32)
        starts_B = np.zeros(len(texts), np.int64)
        starts_B[order] = np.cumsum(lengths_B[order]) - lengths_B[order]
        return sorted_T[spans(starts_B, lengths_B)], lengths_B

    def _fastest(self) -> Callable[[list[str]], Ids]:
        """What gives the samples' ids as ``preprocess`` does, sooner if there is such a way."""
        wanted = self._by_tensors(self.samples)
        for way in (self._by_backend, self._by_lists):
            try:
                got = way(self.samples)
            except Exception:  # no such tokenizer, no such setting: another kind of module
                continue
            if np.array_equal(got[0], wanted[0]) and np.array_equal(got[1], wanted[1]):
                return way
        return self._by_tensors

    def _by_backend(self, texts: list[str]) -> Ids:
        """StaticEmbedding's tokenizer without the offsets that nobody reads."""
        module: Any = self.model[0]
        prompted = [self.prompt + text for text in texts]
        encodings = module.tokenizer.encode_batch_fast(prompted, add_special_tokens=False)
        return joined([encoding.ids for encoding in encodings])

    def _by_lists(self, texts: list[str]) -> Ids:
        """transformers' padding, and tensors made of lists, take longer than the tokenizer."""
        features = self._preprocess(
            texts, processing_kwargs={"common": {"return_tensors": None}, "text": {"padding": False}}
        )
        self._check_types(itertools.chain.from_iterable(features.get("token_type_ids", ())))
        return joined(features["input_ids"])

    def _check_types(self, types: Iterable[int]) -> None:
        if any(kind != self.token_type for kind in types):
            raise ValueError(f"{self._name} gives a text's tokens several token types, which ids do not tell")

    def _by_tensors(self, texts: list[str]) -> Ids:
        features = self._preprocess(texts)
        ids = features["input_ids"]
        if self.flat:
            offsets_B = features["offsets"].numpy()
            return ids.numpy().astype(np.int32), np.diff(offsets_B, append=len(ids))
        mask_BL = features["attention_mask"].bool()
        if "token_type_ids" in features:
            self._check_types(features["token_type_ids"][mask_BL].unique().tolist())
        return ids[mask_BL].numpy().astype(np.int32), mask_BL.sum(dim=1).numpy()

    def embed(
        self,
        input_ids: Tensor,
        lengths_B: Tensor,
        places_B: Tensor | None = None,
        randomness: tuple[int, int] | None = None,
    ) -> Tensor:
        """The embeddings (B, D) of texts, from their ids (T,); not normalized.

        Args:
            places_B: where each text's first token is in the whole batch. Default: as if these were all.
            randomness: seed and step, which dropout is a function of. Default: torch's generators decide.
        """
        offsets_B = lengths_B.cumsum(0) - lengths_B
        if self.flat:
            return embed(self.model, self.task, self.features(input_ids, offsets_B, self.model.device))
        texts = Texts(
            lengths_B.numpy(),
            None if places_B is None else places_B.numpy(),
            packed=self._packs(lengths_B),
            left=self.left,
        )
        dropout = Dropout(*randomness, texts) if randomness and self.model.training else None
        features = self.features(input_ids, offsets_B, self.model.device)
        with Forward(self.model, texts, dropout) as forward:
            embeddings = embed(self.model, self.task, features)
        if texts.packed and not forward.asked:
            raise ValueError(f"{self._name} has attention of its own, which packed texts would share")
        if dropout is not None:
            self.depends_on_chunks |= dropout.depends_on_chunks
        return embeddings

    def _packs(self, lengths_B: Tensor) -> bool:
        return self.packed and self.model.device.type == "cpu" and bool((lengths_B > 0).all())

    def features(self, input_ids: Tensor, offsets: Tensor, device: torch.device) -> Features:
        """What the model's modules take, from the ids (T,) of B texts and where each text begins (B,)."""
        features, ids_T, offsets_B = dict(self.constants), input_ids, offsets
        lengths_B = torch.diff(offsets_B, append=offsets_B.new_tensor([len(ids_T)]))
        if self.with_lengths:
            features["sentence_lengths"] = lengths_B
        ids_T = ids_T.to(device, non_blocking=True)
        if self.flat:
            return features | {"input_ids": ids_T, "offsets": offsets_B.to(device, non_blocking=True)}
        if self._packs(lengths_B):
            positions_T = torch.arange(len(ids_T)) - offsets_B.repeat_interleave(lengths_B)
            ends = torch.cat([offsets_B, offsets_B.new_tensor([len(ids_T)])]).int()
            # As for transformers' flash attention, which sentence-transformers pools from.
            features |= {"input_ids": ids_T[None], "cu_seq_lens_q": ends}
            features["position_ids"] = (positions_T + position_offset(self.model))[None]
            if self.token_type is not None:
                features["token_type_ids"] = torch.full_like(ids_T[None], self.token_type)
            return features
        # Lengths are on the CPU still: to read them from a GPU would wait for all of its work.
        place_L = torch.arange(max(1, int(lengths_B.max())))
        mask_BL = place_L < lengths_B[:, None]
        if self.left:
            mask_BL = mask_BL.flip(1)
        mask_BL = mask_BL.to(device, non_blocking=True)
        # masked_scatter fills row by row, the order of the flat ids.
        ids_BL = ids_T.new_full(mask_BL.shape, self.pad_id).masked_scatter(mask_BL, ids_T)
        features |= {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
        if self.token_type is not None:
            features["token_type_ids"] = torch.full_like(ids_BL, self.token_type)
        return features

    def check(self) -> float:
        """The largest difference, over its norm, between the embeddings of ids and of texts.

        Raises:
            ValueError: it is above 1e-4, or a text's ids depend on what it is read with: such a model would
                be trained on one thing and used for another.
        """
        self.model.eval()
        encoder = self.model.encode_query if self.task == "query" else self.model.encode_document
        try:
            wanted = torch.as_tensor(encoder(self.samples, batch_size=len(self.samples))).float()
        except Exception as error:
            raise ValueError(f"{self._name} cannot encode: {type(error).__name__}: {error}") from error
        ids_T, lengths_B = self.ids(self.samples)
        if not np.array_equal(ids_T, np.concatenate([self.ids([text])[0] for text in self.samples])):
            raise ValueError(f"{self._name} reads a text otherwise when others are with it")
        embeddings = torch.as_tensor(ids_T).long(), torch.from_numpy(lengths_B), wanted
        # A pass that fails midway would leave a sharded model in the midst of it.
        tries = self.model.device.type == "cpu" and not is_sharded(self.model)
        if not self.flat and tries and lengths_B.all():
            self.packed = True
            try:
                difference = self._difference(*embeddings)
            except Exception:  # a layer that takes none such: whatever it says, padded texts are to be had
                difference = float("inf")
            self.packed = difference <= SAME
            if self.packed:
                return difference
        difference = self._difference(*embeddings)
        if not difference <= SAME:  # or NaN
            raise ValueError(
                f"{self._name} embeds token ids unlike texts, or a text unlike itself beside a longer one, "
                f"by {difference:.1e} of the norm; {SAME} is allowed"
            )
        return difference

    def _difference(self, ids_T: Tensor, lengths_B: Tensor, wanted: Tensor) -> float:
        """Padded texts go each alone, where `encode` had them side by side: neighbours may not matter."""
        with torch.inference_mode():
            if self.packed:
                got = self.embed(ids_T, lengths_B)
            else:
                texts = ids_T.split(lengths_B.tolist())
                got = torch.cat([self.embed(text, torch.tensor([len(text)])) for text in texts])
        norms_B = wanted.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        return float(((got.float().cpu() - wanted.cpu()).norm(dim=1) / norms_B).max())

    def serves(self, other: Side) -> bool:
        """Whether this side embeds the other's ids as that does, in evaluation mode."""
        if self.flat != other.flat or self.packed != other.packed or self.constants != other.constants:
            return False
        if (self.left, self.pad_id, self.token_type) != (other.left, other.pad_id, other.token_type):
            return False
        ids_T, lengths_B = other.ids(other.samples)
        texts = torch.as_tensor(ids_T).long(), torch.from_numpy(lengths_B)
        with torch.inference_mode():
            return torch.equal(self.embed(*texts), other.embed(*texts))


def tokenize(
    model: SentenceTransformer,
    corpus: ParallelCorpus,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TokenizedCorpus:
    """A corpus as the ids that the model makes of its texts; else as `hybridfast.data.tokens.tokenize`.

    Raises:
        ValueError: what the model would be trained on is not what it encodes, as a few texts show.
    """
    query, document = _both(model, corpus.samples())
    for side in (query, document):
        side.check()
    return tokenizing.tokenize(corpus, query, document, cache_dir=cache_dir, progress=progress)


def sides(model: SentenceTransformer, tokenized: TokenizedCorpus) -> tuple[Side, Side]:
    """Both sides of a model, as it reads such a corpus.

    Raises:
        ValueError: the ids are not this model's, or what it would be trained on is not what it encodes.
    """
    query, document = _both(model, tokenized.samples)
    for side, settings in ((query, tokenized.settings["query"]), (document, tokenized.settings["passage"])):
        if side.settings != settings:
            raise ValueError(f"{side._name} makes other token ids than {tokenized.path} holds")
        side.check()
    query.together = document.together = query.serves(document)
    return query, document


def _both(model: SentenceTransformer, samples: Sequence[Sequence[str]]) -> list[Side]:
    reading = reading_of(model)
    return [Side(model, task, texts, reading) for task, texts in zip(TASKS, samples, strict=True)]


def reading_of(model: SentenceTransformer) -> dict[str, Any]:
    """How the model's modules and tokenizers are set, for JSON."""
    parts: list[Any] = [module for module in model.modules() if module is not model]
    modules = [
        [type(part).__name__, part.get_config_dict()] for part in parts if hasattr(part, "get_config_dict")
    ]
    tokenizers = [
        tokenizer_settings(part.tokenizer) for part in parts if getattr(part, "tokenizer", None) is not None
    ]
    return {"modules": json.loads(json.dumps(modules, default=str)), "tokenizers": tokenizers}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
