"""What is mined: against brute force, and against sentence-transformers' own mining."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading, shards
from hybridfast.mining import mine as mining
from hybridfast.mining import vectors
from hybridfast.mining.mine import MiningSettings, mine
from hybridfast.mining.rewriting import with_negatives
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train

WORDS = [f"{a}{b}" for a in "bcdfghklmn" for b in ("ada", "elo", "imu", "osi", "uru")]


def text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, 6))


def make_rows(items: int = 30, languages: tuple[str, ...] = ("de", "en", "fr")) -> list[dict[str, str]]:
    """Some translations are missing, some passages are shared by items, some queries too."""
    rng = np.random.default_rng(0)
    rows = []
    for item in range(items):
        for lang in languages:
            if rng.random() < 0.8 or lang == "en":
                rows.append({"id": str(item), "lang": lang, "query": text(rng), "passage": text(rng)})
                if item % 7 == 0:  # another answer
                    rows.append({**rows[-1], "passage": text(rng)})
            if item % 5 == 4 and len(rows) > 9:
                rows[-1]["passage"] = rows[-8]["passage"]
            if item % 6 == 5 and lang == "en":
                rows[-1]["query"] = next(row["query"] for row in rows if row["lang"] == "en")
    return rows


ROWS = make_rows()


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    torch.manual_seed(0)
    built = loading.build_static(loading.train_tokenizer([row["passage"] for row in ROWS], 300), 48)
    loading.set_prompts(built, "Query: ", "Passage: ")
    return built


@pytest.fixture(scope="module")
def tokens(model: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> TokenizedCorpus:
    return tokenized(model, ROWS, tmp_path_factory.mktemp("tokens"))


def tokenized(model: SentenceTransformer, rows: Any, folder: Path) -> TokenizedCorpus:
    return embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=folder, progress=False)


def tokens_of(model: SentenceTransformer, text: str) -> list[int]:
    return model.tokenizer.encode("Query: Passage: " + text, add_special_tokens=False).ids


def questions(rows: list[dict[str, str]]) -> list[int]:
    """Items that share a query, in whatever way, are one question."""
    group = {row["id"]: {row["id"]} for row in rows}
    for one in rows:
        for other in rows:
            if one["query"] == other["query"] and group[one["id"]] is not group[other["id"]]:
                group[one["id"]] |= group[other["id"]]
                for item in group[one["id"]]:
                    group[item] = group[one["id"]]
    return [min(map(int, group[row["id"]])) for row in rows]


def by_brute_force(model: SentenceTransformer, rows: list[dict[str, str]], scope: str) -> list[list[str]]:
    """Every row's candidates, best first."""
    queries = model.encode_query([row["query"] for row in rows], normalize_embeddings=True)
    passages = model.encode_document([row["passage"] for row in rows], normalize_embeddings=True)
    scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    question = questions(rows)
    ranked = []
    for i, row in enumerate(rows):
        own = {other["passage"] for j, other in enumerate(rows) if question[j] == question[i]}
        kept: dict[str, None] = {}
        for j in np.argsort(-scores[i], kind="stable"):
            fits = {
                "all": True,
                "same": rows[j]["lang"] == row["lang"],
                "other": rows[j]["lang"] != row["lang"],
            }
            if fits[scope] and rows[j]["passage"] not in own:
                kept.setdefault(rows[j]["passage"])
        ranked.append(list(kept))
    return ranked


@pytest.mark.parametrize("scope", ["all", "same", "other"])
def test_equals_brute_force(model: SentenceTransformer, tokens: TokenizedCorpus, scope: Any) -> None:
    assert len(set(questions(ROWS))) < 30 - 3  # there are shared queries
    mined = mine(model, tokens, MiningSettings(num_negatives=5, scope=scope))
    for negatives, expected in zip(mined.negative_VK, by_brute_force(model, ROWS, scope), strict=True):
        assert [ROWS[row]["passage"] for row in negatives] == expected[:5]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"range_min": 3, "num_negatives": 2},
        {"range_min": 1, "range_max": 9, "relative_margin": 0.15},
        {"absolute_margin": 0.25, "num_negatives": 4},
        {"absolute_margin": 0.1, "relative_margin": 0.15, "range_max": 12},
        {"range_max": 5, "relative_margin": 0.0},
    ],
)
def test_equals_sentence_transformers(
    model: SentenceTransformer, tmp_path: Path, options: dict[str, Any]
) -> None:
    """On data that both see alike: a passage a query, no text twice."""
    rng = np.random.default_rng(5)
    rows = [{"anchor": text(rng), "positive": text(rng), "lang": "en"} for _ in range(60)]
    # Words in common, so that positives score above some and below other passages.
    for row in rows:
        row["positive"] = " ".join([*row["anchor"].split()[: int(rng.integers(3, 7))], *rng.choice(WORDS, 2)])
    theirs = mine_hard_negatives(
        Dataset.from_list([{"anchor": row["anchor"], "positive": row["positive"]} for row in rows]),
        model,
        output_format="n-tuple",
        output_scores=True,
        verbose=False,
        **options,
    )
    mined = mine(model, tokenized(model, rows, tmp_path), MiningSettings(**options))
    full = (mined.negative_VK >= 0).all(axis=1)
    assert 10 < full.sum() == len(theirs)
    assert theirs["anchor"] == [row["anchor"] for row, whole in zip(rows, full, strict=True) if whole]
    for k in range(mined.negative_VK.shape[1]):
        ours = [rows[row]["positive"] for row in mined.negative_VK[full, k]]
        assert theirs[f"negative_{k + 1}"] == ours
    scores = np.column_stack([mined.positive_V, mined.score_VK])[full]
    np.testing.assert_allclose(scores, np.array(theirs["scores"]), atol=1e-6)


def test_random_draws_from_what_top_would_look_at(
    model: SentenceTransformer, tokens: TokenizedCorpus
) -> None:
    def drawn(**options: Any) -> NDArray[np.int64]:
        return mine(model, tokens, MiningSettings(range_min=1, range_max=10, **options)).negative_VK

    looked_at = drawn(num_negatives=9)
    once = drawn(num_negatives=3, sampling_strategy="random", seed=1)
    np.testing.assert_array_equal(once, drawn(num_negatives=3, sampling_strategy="random", seed=1))
    assert (once != drawn(num_negatives=3, sampling_strategy="random", seed=2)).any()
    for negatives, allowed in zip(once, looked_at, strict=True):
        places = [allowed.tolist().index(row) for row in negatives]
        assert places == sorted(set(places))  # best first


def test_an_index_that_finds_all(model: SentenceTransformer, tokens: TokenizedCorpus) -> None:
    pytest.importorskip("faiss")
    exact, found = (mine(model, tokens, MiningSettings(index=index)) for index in (None, "Flat"))
    np.testing.assert_array_equal(found.negative_VK, exact.negative_VK)
    assert (exact.recall, found.recall) == (None, 1.0)


class Counted:
    """Counts the texts embedded, and ends the call in front of a shard."""

    def __init__(self, stop_before: int = -1) -> None:
        self.texts = self.calls = 0
        self.stop_before = stop_before
        self.embed = vectors._embed

    def __call__(self, side: Any, tokens: Any, texts: Any, *rest: Any) -> Any:
        if self.calls == self.stop_before:
            raise KeyboardInterrupt
        self.calls += 1
        self.texts += len(texts)
        return self.embed(side, tokens, texts, *rest)


def test_goes_on_where_it_was_interrupted(
    model: SentenceTransformer, tokens: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 16)
    monkeypatch.setattr(mining, "STEP_PRODUCTS", 1)
    monkeypatch.setattr(mining, "STEP", 7)
    wanted = mine(model, tokens, MiningSettings(scope="same"))
    distinct = len({row["query"] for row in ROWS}) + len({row["passage"] for row in ROWS})
    embedded = 0
    for stop in (3, 2, 1):
        counted = Counted(stop)
        monkeypatch.setattr(vectors, "_embed", counted)
        try:
            mine(model, tokens, MiningSettings(scope="same"), folder=tmp_path)
        except KeyboardInterrupt:
            (folder,) = tmp_path.iterdir()
            with open(next(folder.glob("*.part")), "ab") as file:
                file.write(b"half a row")  # what a kill leaves behind
        embedded += counted.texts
        monkeypatch.setattr(vectors, "_embed", counted.embed)
    searched: list[int] = []
    search = mining.search
    monkeypatch.setattr(mining, "search", lambda *a, **o: searched.append(len(a[0])) or search(*a, **o))
    counted = Counted()
    monkeypatch.setattr(vectors, "_embed", counted)
    found = mine(model, tokens, MiningSettings(scope="same"), folder=tmp_path)
    assert embedded + counted.texts == distinct
    np.testing.assert_array_equal(found.negative_VK, wanted.negative_VK)
    np.testing.assert_array_equal(found.score_VK, wanted.score_VK)

    # What was found is kept too, each step by itself.
    steps = len(searched)
    assert steps > 5
    next(folder.glob("found-*/1-7.npz")).unlink()
    mine(model, tokens, MiningSettings(scope="same"), folder=tmp_path)
    assert len(searched) == steps + 1
    assert embedded + counted.texts == distinct


def test_two_at_once_are_refused(
    model: SentenceTransformer, tokens: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: Any, **__: Any) -> Any:
        with pytest.raises(ValueError, match="another process is mining with this model and data, in "):
            mine(model, tokens, MiningSettings(), folder=tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(vectors, "_embed", again)
    with pytest.raises(KeyboardInterrupt):
        mine(model, tokens, MiningSettings(), folder=tmp_path)


def test_another_model_starts_anew(
    model: SentenceTransformer, tokens: TokenizedCorpus, tmp_path: Path
) -> None:
    mine(model, tokens, MiningSettings(), folder=tmp_path)
    weight = model[0].embedding.weight.data  # type: ignore[union-attr]
    weight[0, 0] += 1  # type: ignore[index, operator]
    try:
        mine(model, tokens, MiningSettings(), folder=tmp_path)
    finally:
        weight[0, 0] -= 1  # type: ignore[index, operator]
    assert len(list(tmp_path.iterdir())) == 2


PROGRAM = """
import os, signal, sys
from hybridfast import mine
from hybridfast.encoder import shards
shards.SHARD = 16
write = shards.write_whole
def killed(path, data):
    write(path, data)
    if b'"rows": 32' in data and "passages" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
shards.write_whole = killed
mine.main(sys.argv[1:])
"""


def test_killed_and_given_again(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridfast import mine as command

    model.save(str(tmp_path / "model"))
    ParallelCorpus.from_rows(ROWS).table.drop_columns(["negatives"]).to_pandas().to_json(
        tmp_path / "rows.jsonl", orient="records", lines=True
    )
    flags = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    flags += ["--output_file", str(tmp_path / "mined.jsonl")]
    again = [*flags, "--cache_dir", str(tmp_path / "cache")]
    process = subprocess.run([sys.executable, "-c", PROGRAM, *again], capture_output=True, env={**os.environ})
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not list(tmp_path.glob("mined*"))
    monkeypatch.setattr(shards, "SHARD", 16)
    counted = Counted()
    monkeypatch.setattr(vectors, "_embed", counted)
    command.main(again)
    assert counted.texts == len({row["passage"] for row in ROWS}) - 32  # all queries were there
    mined = (tmp_path / "mined.jsonl").read_bytes()
    os.rename(tmp_path / "mined.jsonl", tmp_path / "resumed.jsonl")
    os.unlink(tmp_path / "mined.png")
    command.main([*flags, "--cache_dir", str(tmp_path / "other")])
    assert (tmp_path / "mined.jsonl").read_bytes() == mined


def test_training_goes_on_with_what_was_mined(
    model: SentenceTransformer, tokens: TokenizedCorpus, tmp_path: Path
) -> None:
    negative_VK = mine(model, tokens, MiningSettings(num_negatives=2)).negative_VK
    negative_VK[3, 1] = negative_VK[5] = -1
    again = with_negatives(tokens, negative_VK, tmp_path)
    assert again.fingerprint != tokens.fingerprint
    for version in range(len(tokens)):
        texts = range(again.version_indptr[version], again.version_indptr[version + 1])
        begin = tokens.version_indptr[version]
        expected = [begin, begin + 1]
        expected += [tokens.version_indptr[row] + 1 for row in negative_VK[version] if row >= 0]
        for text_there, text_here in zip(texts, expected, strict=True):
            np.testing.assert_array_equal(again.text(text_there), tokens.text(text_here))
    np.testing.assert_array_equal(again.negative_hash_H, tokens.passage_hash_V[negative_VK[negative_VK >= 0]])
    assert with_negatives(tokens, negative_VK, tmp_path).path == again.path
    trained = train(model, again, TrainConfig(batch_size=8, max_steps=2, negatives=2))
    assert trained["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives must be >= 1, got 0"),
        ({"range_min": -1}, "range_min must be >= 0, got -1"),
        (
            {"range_min": 3, "range_max": 5},
            r"range_max must be at least range_min \+ num_negatives, 6, got 5",
        ),
        ({"absolute_margin": float("nan")}, "absolute_margin must be finite, got nan"),
        ({"scope": "near"}, "scope must be one of all, same, other, got 'near'"),
        ({"sampling_strategy": "worst"}, "sampling_strategy must be one of top, random, got 'worst'"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningSettings(**options)


def test_what_cannot_be_mined(model: SentenceTransformer, tokens: TokenizedCorpus, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no row has a hard negative: scope all, range_min 200 leave no cand"
    ):
        mine(model, tokens, MiningSettings(range_min=200))
    english = tokenized(model, [row for row in ROWS if row["lang"] == "en"], tmp_path)
    with pytest.raises(ValueError, match=r"scope 'other' needs two languages, the data has \['en'\]"):
        mine(model, english, MiningSettings(scope="other"))
    broken = loading.build_static(model.tokenizer, 4)
    loading.set_prompts(broken, "Query: ", "Passage: ")
    weight: Any = broken[0].embedding.weight  # type: ignore[union-attr]
    checked = {int(token) for side in english.samples for text in side for token in tokens_of(broken, text)}
    weight.data[next(int(token) for token in english.token_ids if int(token) not in checked)] = np.nan
    with pytest.raises(ValueError, match=r"embeds \d+ of \d+ texts as NaN or infinity, the first of them a "):
        mine(broken, english, MiningSettings())
