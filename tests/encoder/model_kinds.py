"""Small random models of every kind that people fine-tune, and how far training is from encoding in each.

    python tests/encoder/model_kinds.py

prints the largest difference, over its norm, between the embedding of a batch's token ids, as the trainer
feeds them, and that of the same text by ``encode_query`` or ``encode_document``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    Dense,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.sampler import HybridSampler
from hybridfast.encoder import embedding, loading
from hybridfast.training.chunks import Chunks

FOLDER: str | None = None  # where models are written

# Queries of 3 to 60 words, passages of 1 to 12: with padding, and some beyond a limit of 40 tokens.
WORDS = ["sun", "moon", "tree", "river", "stone", "bread", "wine", "salt"]
WORDS += ["glass", "iron", "wood", "rain", "snow", "wind", "fire", "gold"]
ROWS = [
    {
        "id": str(i),
        "lang": lang,
        "query": f"{lang} who sells {' '.join(WORDS[: 1 + i])} {'far ' * (i**2 // 4)}".strip(),
        "passage": " ".join(WORDS[i // 4 : 2 + i]) + f" {lang}",
        "negative_1": f"no {WORDS[-i - 1]} {lang}",
    }
    for i in range(12)
    for lang in ("en", "de")
]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def tokenizer(style: str = "bert", **options: Any) -> PreTrainedTokenizerFast:
    """Words of the rows and single bytes; special tokens as each family puts them."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    words = sorted({word for row in ROWS for text in (row["query"], row["passage"]) for word in text.split()})
    words += ["Query", "Passage", ":", "Instruct", "no"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(words)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    pattern = {"bert": "<s> $A </s>", "typed": "<s>:2 $A:2 </s>:2", "end": "$A </s>", "none": "$A"}[style]
    raw.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if style == "typed" else [])]
    settings = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=40, model_input_names=names, **settings, **options
    )


def byte_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Single bytes and an end, as the decoders' tokenizers fall back to; no special token is added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<end>", "<pad>"])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<end>",
        model_max_length=120,
        **{k: v for k, v in options.items() if v},
    )


def folder_of(model: transformers.PreTrainedModel, words: PreTrainedTokenizerFast) -> str:
    folder = tempfile.mkdtemp(prefix="kind-", dir=FOLDER)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def transformer(
    family: str, words: PreTrainedTokenizerFast | None = None, kind: str = "Model", **config: Any
) -> str:
    """A folder with a random model of that family."""
    torch.manual_seed(0)
    words = words or tokenizer()
    made = getattr(transformers, f"{family}Config")(vocab_size=len(words), pad_token_id=0, **config)
    return folder_of(getattr(transformers, family + kind)(made), words)


def sentence(
    folder: str, *rest: torch.nn.Module, pooling: str = "mean", include_prompt: bool = True, **options: Any
) -> SentenceTransformer:
    first = Transformer(folder, **options)
    pool = Pooling(first.get_embedding_dimension(), pooling_mode=pooling, include_prompt=include_prompt)
    return SentenceTransformer(modules=[first, pool, *rest], device="cpu")


def decoder(side: str, pad: str | None = "<pad>", family: str = "Qwen2", **options: Any) -> str:
    letters = byte_tokenizer(padding_side=side, pad_token=pad, **options)
    return transformer(family, letters, **SIZE, num_key_value_heads=2)


def static() -> SentenceTransformer:
    torch.manual_seed(0)
    texts = [text for row in ROWS for text in (row["query"], row["passage"])]
    return loading.build_static(loading.train_tokenizer(texts, 300), 32)


def router() -> SentenceTransformer:
    """Queries by a BERT with a tokenizer and a limit of its own, documents by an XLM-R."""
    query, document = transformer("Bert", **SIZE), transformer("XLMRoberta", **SIZE)
    routes = Router.for_query_document(
        [Transformer(query, max_seq_length=9), Pooling(32)], [Transformer(document), Pooling(32, "cls")]
    )
    return SentenceTransformer(modules=[routes], device="cpu")


def static_queries() -> SentenceTransformer:
    """Queries by a static encoder, documents by a transformer: inference without one."""
    torch.manual_seed(0)
    document = [Transformer(transformer("Bert", **SIZE)), Pooling(32)]
    embedding_bag = StaticEmbedding(tokenizer().backend_tokenizer, embedding_dim=32)
    routes = Router.for_query_document([embedding_bag], document)
    return SentenceTransformer(modules=[routes], device="cpu")


def words_lstm() -> SentenceTransformer:
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).random((18, 16))
    words = WordEmbeddings(WhitespaceTokenizer(vocab=[*WORDS, "who", "sells"]), vectors)
    return SentenceTransformer(modules=[words, LSTM(16, 16), Pooling(32)], device="cpu")


def truncated() -> SentenceTransformer:
    model = sentence(transformer("Bert", **SIZE))
    model.truncate_dim = 12
    return model


def with_prompts(model: SentenceTransformer, query: str, document: str) -> SentenceTransformer:
    loading.set_prompts(model, query, document)
    return model


DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GEMMA = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}

KINDS: dict[str, Callable[[], SentenceTransformer]] = {
    "BERT, mean": lambda: sentence(transformer("Bert", **SIZE)),
    "BERT, CLS": lambda: sentence(transformer("Bert", **SIZE), pooling="cls"),
    "BERT, max": lambda: sentence(transformer("Bert", **SIZE), pooling="max"),
    "BERT, weighted mean": lambda: sentence(transformer("Bert", **SIZE), pooling="weightedmean"),
    "BERT, last token": lambda: sentence(transformer("Bert", **SIZE), pooling="lasttoken"),
    "BERT, token type 2": lambda: sentence(
        transformer("Bert", tokenizer("typed"), type_vocab_size=3, **SIZE)
    ),
    "BERT, prompt not pooled": lambda: sentence(transformer("Bert", **SIZE), include_prompt=False),
    "BERT, Dense, Normalize": lambda: sentence(transformer("Bert", **SIZE), Dense(32, 24), Normalize()),
    "BERT, query_length 5": lambda: sentence(transformer("Bert", **SIZE), query_length=5, document_length=7),
    "BERT, no special tokens": lambda: sentence(
        transformer("Bert", **SIZE), processing_kwargs={"text": {"add_special_tokens": False}}
    ),
    "BERT, cut on the left": lambda: sentence(
        transformer("Bert", tokenizer(truncation_side="left"), **SIZE), max_seq_length=8
    ),
    "BERT, truncate_dim 12": truncated,
    "BERT, prompt of documents alone": lambda: with_prompts(
        sentence(transformer("Bert", **SIZE)), "", "Passage : "
    ),
    "BERT, lower-cased": lambda: sentence(transformer("Bert", **SIZE), do_lower_case=True, max_seq_length=30),
    "ELECTRA": lambda: sentence(transformer("Electra", embedding_size=16, **SIZE)),
    "XLM-R": lambda: sentence(transformer("XLMRoberta", **SIZE)),
    "DistilBERT": lambda: sentence(transformer("DistilBert", **DISTIL)),
    "MPNet": lambda: sentence(transformer("MPNet", **SIZE)),
    "ModernBERT": lambda: sentence(transformer("ModernBert", **SIZE)),
    "T5 encoder": lambda: sentence(transformer("T5", tokenizer("end"), "EncoderModel", **T5)),
    "Qwen2, padded right, last token": lambda: sentence(decoder("right"), pooling="lasttoken"),
    "Qwen2, padded left, last token": lambda: sentence(decoder("left"), pooling="lasttoken"),
    "Qwen2, the end pads": lambda: sentence(decoder("left", "<end>"), pooling="lasttoken"),
    "Qwen2, chat template": lambda: sentence(decoder("left", chat_template=CHAT), pooling="lasttoken"),
    "Qwen3, padded left, last token": lambda: sentence(decoder("left", family="Qwen3"), pooling="lasttoken"),
    "Gemma3, mean": lambda: sentence(transformer("Gemma3Text", tokenizer("bert"), "Model", **GEMMA)),
    "Qwen3, no token for padding, mean": lambda: loading.load(
        decoder("left", None, family="Qwen3"), device="cpu"
    ),
    "GPT-2, padded right, weighted mean": lambda: sentence(
        transformer("GPT2", tokenizer("none"), n_embd=32, n_layer=2, n_head=4), pooling="weightedmean"
    ),
    "XLNet": lambda: sentence(
        transformer("XLNet", tokenizer("end", padding_side="left"), **XLNET), pooling="lasttoken"
    ),
    "Router, two encoders": router,
    "Router, static queries": static_queries,
    "word embeddings, LSTM": words_lstm,
    "static": static,
}


def positions_of_padding() -> SentenceTransformer:
    """Padded on the left, GPT-2 counts padding as positions: a text's embedding depends on its neighbours."""
    words = tokenizer("none", padding_side="left")
    return sentence(transformer("GPT2", words, n_embd=32, n_layer=2, n_head=4), pooling="lasttoken")


def difference(model: SentenceTransformer, cache_dir: Path) -> float:
    """The largest difference of an embedding over its norm, over batches of all rows and both sides."""
    if not any(loading.prompt_of(model, task) for task in loading.TASKS):
        loading.set_prompts(model, "Query : ", "Passage : ")
    corpus = ParallelCorpus.from_rows(ROWS)
    tokens = embedding.tokenize(model, corpus, cache_dir=cache_dir, progress=False)
    chunks = Chunks(model, embedding.sides(model, tokens), tokens_per_chunk=120)
    largest = 0.0
    ids, languages = tokens.group_ids(), tokens.languages
    texts = {(row["id"], row["lang"]): row for row in ROWS}
    with HybridSampler(tokens, batch_size=8, alpha=0.5, negatives=1, layout="flat") as sampler:
        for batch in sampler.epoch(0):
            groups = [ids[group] for group in batch.groups.tolist()]
            asked, told = (
                [texts[group, languages[at]] for group, at in zip(groups, side.tolist(), strict=True)]
                for side in (batch.query_languages, batch.passage_languages)
            )
            wanted = [
                model.encode_query([row["query"] for row in asked]),
                model.encode_document([row["passage"] for row in told]),
                model.encode_document([told[at]["negative_1"] for at in batch.negative_rows.tolist()]),
            ]
            with torch.no_grad():
                got = chunks.embed(batch)[:2]
            both = torch.from_numpy(wanted[0]), torch.from_numpy(np.concatenate(wanted[1:]))
            for rows, expected in zip(got, both, strict=True):
                apart = (rows - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-6)
                largest = max(largest, float(apart.max()))
    return largest


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as FOLDER:
        print("| model | largest difference |\n| --- | ---: |")
        for name, build in KINDS.items():
            try:
                shown = f"{difference(build(), Path(FOLDER) / 'cache'):.1e}"
            except ValueError as error:
                shown = f"refused: {error}"
            print(f"| {name} | {shown} |")
