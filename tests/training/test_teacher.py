"""Distillation against a plain definition in float64; a teacher's embeddings, which are never made twice."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cosine_similarity
from training import processes

from hybridfast import info_nce, train
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder import embedding, loading, shards
from hybridfast.training import checkpoint, loop
from hybridfast.training.chunks import Chunks, Embedded
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler
from hybridfast.training.optimizer import make_optimizer
from hybridfast.training.teacher import Distillation, Teacher, teacher_of

WIDTH = 12  # of the teacher; the student's is 32
# The pivot is missing of every fourth group; queries of some groups are equal.
ROWS = [
    {"id": str(i), "lang": lang, "query": f"Query {i % 9} {lang} ?", "passage": f"Passage {i} : {i} {lang}"}
    for i in range(24)
    for lang in ("de", "en")
    if lang == "de" or i % 4
]
KNOWN = [bool(i % 4) for i in range(24)]


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A static encoder with prompts of its own."""
    torch.manual_seed(7)
    texts = [text for row in [*ROWS, *processes.WORDS] for text in (row["query"], row["passage"])]
    model = loading.build_static(loading.train_tokenizer(texts, 300), WIDTH)
    loading.set_prompts(model, "Query ", ": ")
    folder = tmp_path_factory.mktemp("teacher") / "words"
    model.save(str(folder))
    return str(folder)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the teacher has been given, by side."""
    texts: list[tuple[str, str]] = []
    encode = embedding.encode

    def noted(model: Any, task: str, some: list[str], **options: Any) -> Any:
        if model.get_embedding_dimension() == WIDTH:
            texts.extend((task, text) for text in some)
        return encode(model, task, some, **options)

    monkeypatch.setattr(embedding, "encode", noted)
    return texts


def settings(folder: str, **more: Any) -> TrainConfig:
    small = {"batch_size": 8, "max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "device": "cpu"}
    return TrainConfig(**small | {"teacher": folder} | more)


# --- the teacher's embeddings ------------------------------------------------------------------------------


def test_embeddings_are_made_once(
    teacher_folder: str, encoded: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Interrupted after every shard of 5 groups, with equal texts in several; as the model itself encodes."""
    monkeypatch.setattr(shards, "SHARD", 5)
    config, corpus = settings(teacher_folder), ParallelCorpus.from_rows(ROWS)
    replaced, interrupted = shards.os.replace, 0

    def after_a_shard(source: Any, target: Any) -> None:
        replaced(source, target)
        if str(target).endswith(".json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(shards.os, "replace", after_a_shard)
    for _ in range(40):
        try:
            found = teacher_of(config, corpus, tmp_path)
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 10
    assert len(encoded) == len(set(encoded))
    assert set(encoded) >= {("query", "Query 1 en ?"), ("document", "Passage 1 : 1 en")}
    assert not any("de" in text for _, text in encoded)
    assert "18 groups in 'en'" in (out := capsys.readouterr().out)
    assert "6 groups have no 'en' and are not distilled" in out

    model = SentenceTransformer(teacher_folder, device="cpu")
    for rows_GK, encode, text in (
        (found.queries_GK, model.encode_query, "Query {0} en ?"),
        (found.passages_GK, model.encode_document, "Passage {1} : {1} en"),
    ):
        wanted = encode([text.format(i % 9, i) for i in range(24)], normalize_embeddings=True)
        wanted[~np.array(KNOWN)] = 0
        np.testing.assert_allclose(rows_GK, wanted, atol=1e-3)
        assert isinstance(rows_GK, np.memmap)
        assert rows_GK.dtype == np.float16

    before = len(encoded)
    again = teacher_of(config, ParallelCorpus.from_rows(ROWS), tmp_path)
    assert again.key == found.key
    assert len(encoded) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_other_texts_and_other_weights_are_other_embeddings(
    teacher_folder: str, encoded: list[Any], tmp_path: Path
) -> None:
    config = settings(teacher_folder)
    first = teacher_of(config, ParallelCorpus.from_rows(ROWS), tmp_path)
    rows = [dict(row) for row in ROWS]
    rows[2]["passage"] += " more"  # of group 1, in English
    assert rows[2]["lang"] == "en"
    encoded.clear()
    changed = teacher_of(config, ParallelCorpus.from_rows(rows), tmp_path)
    np.testing.assert_array_equal(changed.queries_GK, first.queries_GK)
    assert {task for task, _ in encoded} == {"document"}  # queries were found
    assert (changed.passages_GK != first.passages_GK).any(axis=1).nonzero()[0].tolist() == [1]

    model = SentenceTransformer(teacher_folder, device="cpu")
    with torch.no_grad():
        model[0].embedding.weight[0] += 1
    model.save(str(tmp_path / "other"))
    keys = {first.key, changed.key}
    keys.add(teacher_of(settings(str(tmp_path / "other")), ParallelCorpus.from_rows(ROWS), tmp_path).key)
    keys.add(teacher_of(replace(config, teacher_language="de"), ParallelCorpus.from_rows(ROWS), tmp_path).key)
    assert len(keys) == 4


def test_what_cannot_be_is_said(
    teacher_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: SentenceTransformer,
    tokens: TokenizedCorpus,
) -> None:
    corpus = ParallelCorpus.from_rows(ROWS)
    with pytest.raises(ValueError, match="one of the data's, de, en; got 'fr'"):
        teacher_of(settings(teacher_folder, teacher_language="fr"), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"teacher \./nowhere cannot be loaded: .*no such model folder"):
        teacher_of(settings("./nowhere"), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"distillation_weight must be in \[0, 1\], got 1.5"):
        TrainConfig(distillation_weight=1.5)
    with pytest.raises(ValueError, match="teacher must be a folder or a hub name, got"):
        TrainConfig(teacher="")
    with pytest.raises(ValueError, match="words needs its embeddings, as teacher_of gives them; got None"):
        loop.train(model, tokens, settings(teacher_folder))
    config = settings(teacher_folder, distillation_projection=False)
    with pytest.raises(ValueError, match=r"needs a teacher of the model's 32 dimensions; .* has 12"):
        Distillation(teacher_of(config, corpus, tmp_path), model, config)
    # The command says it in a line, before anything is trained.
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    flags = ["--data", str(data), "--batch_size", "8", "--output_dir", str(tmp_path / "run")]
    for more, words in (
        (["--teacher", "./nowhere"], "./nowhere: no such model folder"),
        (["--teacher", teacher_folder, "--teacher_language", "el"], "must be one of the data's, de, en; got"),
    ):
        with pytest.raises(SystemExit) as stop:
            train.main([*flags, *more])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


# --- the term ----------------------------------------------------------------------------------------------


def plainly(rows_BD: torch.Tensor, teacher_BK: torch.Tensor, layer: torch.nn.Linear | None) -> torch.Tensor:
    """1 - cosine, row by row; 0 where there is no teacher."""
    losses = []
    for row_D, teacher_K in zip(rows_BD.double(), teacher_BK.double(), strict=True):
        seen_K = row_D if layer is None else layer.weight.double() @ row_D + layer.bias.double()
        losses.append(
            (1 - cosine_similarity(seen_K, teacher_K, dim=0)) if teacher_K.any() else 0 * seen_K.sum()
        )
    return torch.stack(losses)


@pytest.mark.parametrize("projected", [True, False])
def test_the_term_is_its_plain_definition(projected: bool, model: SentenceTransformer) -> None:
    width = WIDTH if projected else 32
    rows_GK = torch.randn(10, width, dtype=torch.float16)
    rows_GK[[2, 5]] = 0
    those = Teacher("of numbers", "key", rows_GK.numpy(), rows_GK.flip(0).numpy())
    distillation = Distillation(those, model, settings("of numbers", distillation_projection=projected))
    assert len(distillation.parameters) == 2 * projected
    # Of 10 rows; 4 hard negatives behind the passages are not distilled.
    queries_BD, passages_ND = (torch.randn(rows, 32, requires_grad=True) for rows in (10, 14))
    batch = type("Batch", (), {"group_vectors": tuple(map(torch.from_numpy, those.vectors))})()
    embedded = Embedded(queries_BD, passages_ND)
    inputs = [queries_BD, passages_ND, *distillation.parameters]
    values, gradients = [], []
    halves = [
        plainly(rows, torch.from_numpy(of), distillation.projection)
        for rows, of in zip((queries_BD, passages_ND[:10]), those.vectors, strict=True)
    ]
    for rows_B in (distillation(embedded, batch), sum(halves) / 2):
        values.append(rows_B.detach().double())
        gradients.append(torch.autograd.grad(rows_B.mean(), inputs))
    torch.testing.assert_close(*values, atol=1e-6, rtol=1e-6)
    assert values[0][2] > 0  # the passage's half, whose teacher is another row's
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-7, rtol=1e-5)
    assert not gradients[0][0][[2, 5]].any()
    assert not gradients[0][1][10:].any()


def first_loss(student: Path, config: TrainConfig, those: Teacher, tokens: Any) -> tuple[Any, ...]:
    """The figures of one step, and what plain torch makes of the same batch: InfoNCE and distances."""
    model = loading.load(str(student), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    distillation = Distillation(those, model, config)
    with make_sampler(tokens, config) as sampler:
        batch = next(iter(sampler))
    chunks = Chunks(model, embedding.sides(model, tokens))
    with torch.no_grad():
        embedded = chunks.embed(batch)
        groups = batch.groups.numpy()
        halves = [
            plainly(rows, torch.from_numpy(of[groups]), distillation.projection)
            for rows, of in zip((embedded.queries, embedded.passages), those.vectors, strict=True)
        ]
        nce = info_nce(
            embedded.queries,
            embedded.passages,
            0.05,
            query_groups=batch.mask_groups,
            passage_groups=batch.mask_groups,
        )
    figures = loop.train(model, tokens, replace(config, max_steps=1), teacher=those)
    return figures, nce.item(), torch.cat(halves).mean().item()


@pytest.mark.parametrize(
    ("weight", "more"), [(0.8, {}), (0.3, {"matryoshka_dims": [32, 8]}), (1.0, {"alpha": 1.0})]
)
def test_a_step_weighs_both(
    weight: float, more: dict[str, Any], teacher_folder: str, tiny_xlm_r: Path, tmp_path: Path
) -> None:
    """All of the embedding is distilled, whatever prefixes InfoNCE has too."""
    corpus = ParallelCorpus.from_rows(ROWS)
    tokens = embedding.tokenize(
        loading.load(str(tiny_xlm_r), device="cpu"), corpus, cache_dir=tmp_path, progress=False
    )
    config = settings(
        teacher_folder, distillation_weight=weight, warmup_ratio=0.0, projection_learning_rate=1.0, **more
    )
    those = teacher_of(config, corpus, tmp_path)
    figures, nce, distance = first_loss(tiny_xlm_r, config, those, tokens)
    assert figures["loss/distillation"] == pytest.approx(distance, rel=1e-5)
    assert figures["learning_rate"] == config.learning_rate
    if weight == 1:
        assert figures["loss"] == pytest.approx(distance, rel=1e-5)
        assert "loss/infonce" not in figures
    elif not more:
        assert figures["loss/infonce"] == pytest.approx(nce, rel=1e-5)
    if weight < 1:
        parts = weight * distance + (1 - weight) * figures["loss/infonce"]
        assert figures["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_layer_is_of_the_seed_and_not_decayed(
    teacher_folder: str, tmp_path: Path, model: SentenceTransformer
) -> None:
    config = settings(teacher_folder)
    those = teacher_of(config, ParallelCorpus.from_rows(ROWS), tmp_path)
    layers = []
    for seed in (0, 0, 1):
        torch.rand(3)
        distillation = Distillation(those, model, replace(config, seed=seed))
        layers.append(distillation.parameters[0])
    assert torch.equal(*layers[:2])
    assert not torch.equal(*layers[1:])
    # It has the run's rate or, where that is an encoder's, one in which it can learn.
    for rate, own, wanted in ((1e-2, None, 1e-2), (3e-5, None, 1e-3), (3e-5, 1e-4, 1e-4)):
        rated = replace(config, learning_rate=rate, projection_learning_rate=own)
        *_, group = make_optimizer(model, rated, (), distillation.parameters).param_groups
        assert (group["lr"], group["weight_decay"]) == (wanted, 0)
        assert [id(parameter) for parameter in group["params"]] == [*map(id, distillation.parameters)]


# --- runs --------------------------------------------------------------------------------------------------


def test_a_checkpoint_leads_to_the_same_bits(teacher_folder: str, tiny_xlm_r: Path, tmp_path: Path) -> None:
    """The layer, and its moments, are part of it; the mean over steps is of the model's weights alone."""
    corpus = ParallelCorpus.from_rows(ROWS)
    config = settings(teacher_folder, save_steps=2, ema_decay=0.5)
    those = teacher_of(config, corpus, tmp_path)
    left = []
    for state in (None, 2):
        model = loading.load(str(tiny_xlm_r), device="cpu")
        tokens = embedding.tokenize(model, corpus, cache_dir=tmp_path, progress=False)
        resume = None if state is None else checkpoint.read(tmp_path / "run" / "checkpoint-2")
        if resume is not None:
            assert resume["distillation"]["projection"]["weight"].shape == (WIDTH, 32)
        loop.train(model, tokens, config, folder=tmp_path / "run", resume=resume, teacher=those)
        left.append(model.state_dict())
    assert left[0].keys() == left[1].keys()
    for name, weight in left[0].items():
        assert torch.equal(weight, left[1][name]), name
    state = checkpoint.read(tmp_path / "run" / "checkpoint-2")
    other = replace(those, key="other")
    with pytest.raises(ValueError, match="the checkpoint is of another teacher"):
        loop.train(model, tokens, config, resume=state, teacher=other)


def test_a_killed_command_goes_on_and_leaves_a_model_without_the_layer(
    teacher_folder: str, tmp_path: Path, encoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with queries embedded and passages not; and a second run of this data embeds nothing."""
    data = tmp_path / "words.jsonl"
    data.write_text("\n".join(map(json.dumps, processes.WORDS)))
    teach = ["--teacher", teacher_folder, "--teacher_language", "bb", "--teacher_dir", str(tmp_path / "kept")]

    def flags(folder: Path) -> list[str]:
        return processes.flags(data, folder, 3, *teach)

    # os.replace: queries' state, queries, passages' state.
    process = processes.start(flags(tmp_path / "run"), tmp_path / "output", die=("replace", 3))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [file.name.split("-")[0] for file in (tmp_path / "kept").glob("*.npy")] == ["queries"]
    train.main(flags(tmp_path / "run"))
    assert {task for task, _ in encoded} == {"document"}
    encoded.clear()
    train.main(flags(tmp_path / "again"))
    assert not encoded
    one, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "again"))
    assert one == other
    trained = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    assert [name for name, _ in trained.named_parameters()] == ["0.embedding.weight"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "distillation is 0.8 of the loss: 1 - cosine to what words makes of the texts in 'bb'" in card
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["loss/distillation"] < 2 for line in lines)


def test_languages_come_to_the_teachers_place(teacher_folder: str, tmp_path: Path) -> None:
    """Distillation alone, of a student that knows neither language, in monolingual batches."""
    corpus = ParallelCorpus.from_rows(processes.WORDS)
    torch.manual_seed(0)
    student = loading.build_static(loading.train_tokenizer(corpus.texts(), 300), WIDTH)
    tokens = embedding.tokenize(student, corpus, cache_dir=tmp_path, progress=False)
    config = settings(
        teacher_folder,
        teacher_language="bb",
        distillation_weight=1.0,
        alpha=1.0,
        batch_size=20,
        max_steps=150,
        learning_rate=5e-2,
    )
    those = teacher_of(config, corpus, tmp_path)

    def distance() -> float:
        """Of both languages' queries to one another."""
        rows = [student.encode_query([row["query"] for row in processes.WORDS[i::2]]) for i in range(2)]
        return float(1 - cosine_similarity(*map(torch.from_numpy, rows)).mean())

    before = distance()
    loop.train(student, tokens, config, teacher=those)
    assert before > 0.5
    assert distance() < 0.1
