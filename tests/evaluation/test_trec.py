"""Runs and qrels against trec_eval itself; the best passages against a sort; faiss against them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from evaluation.damage import damaged, refused_or_sound, write
from hypothesis import HealthCheck, given, settings

from hybridfast.evaluation import search, trec
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.measures import Golds, average_precision, ndcg, recall, reciprocal_rank
from hybridfast.evaluation.metrics import evaluate_counts, evaluate_embeddings
from hybridfast.evaluation.ranks import gold_ranks, matrix_of

QUERIES, PASSAGES = 23, 60  # small enough for a sort, large enough for ties and for languages of unlike size


@pytest.fixture(params=[0, 1, 2])
def problem(request: pytest.FixtureRequest) -> tuple[EvalSet, np.ndarray, np.ndarray]:
    """Random judgments over three languages, and embeddings with few values, so that many scores tie."""
    rng = np.random.default_rng(request.param)
    languages = np.array(["de", "en", "sw"])
    golds = [np.flatnonzero(rng.random(PASSAGES) < 0.1) for _ in range(QUERIES)]
    golds = [rows if len(rows) else np.array([query]) for query, rows in enumerate(golds)]
    grades = rng.integers(0, 4, size=sum(map(len, golds)))
    grades[np.cumsum([0, *map(len, golds[:-1])])] = 1  # something is relevant to each
    names = rng.permutation([f"p{number}" for number in range(PASSAGES)])  # ids that do not sort as rows do
    eval_set = EvalSet(
        name="random",
        queries=[""] * QUERIES,
        query_languages=languages[rng.integers(3, size=QUERIES)].tolist(),
        items=[f"i{query // 2}" for query in range(QUERIES)],
        passages=[""] * PASSAGES,
        passage_languages=languages[rng.choice(3, PASSAGES, p=[0.6, 0.3, 0.1])].tolist(),
        gold_indptr=np.cumsum([0, *map(len, golds)]),
        gold_indices=np.concatenate(golds),
        grades=grades,
        query_ids=[f"q{query}" for query in range(QUERIES)],
        passage_ids=names.tolist(),
    )
    queries, passages = (
        rng.integers(-1, 2, size=(rows, 6)).astype(np.float32) for rows in (QUERIES, PASSAGES)
    )
    return eval_set, queries, passages


def trec_eval(run: Path, qrels: Path, measures: set[str]) -> dict[str, dict[str, float]]:
    with open(run) as lines, open(qrels) as judgments:
        judged = pytrec_eval.parse_qrel(judgments)
        found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(pytrec_eval.parse_run(lines))
    # -c: queries without results count 0.
    names = next(iter(found.values())).keys()
    return {query: found.get(query, dict.fromkeys(names, 0.0)) for query in judged}


@pytest.mark.parametrize("depth", [3, 20, PASSAGES])
def test_equals_trec_eval(
    problem: tuple[EvalSet, np.ndarray, np.ndarray], tmp_path: Path, depth: int
) -> None:
    eval_set, queries, passages = problem
    found = search.top_k(queries, passages, depth, trec.id_order(eval_set))
    trec.write_run(tmp_path / "run", trec.run_of(eval_set, *found), eval_set, "a name")
    trec.write_qrels(tmp_path / "qrels", eval_set)
    # A system that has no answer to one question.
    lines = (tmp_path / "run").read_text().splitlines(keepends=True)
    (tmp_path / "run").write_text("".join(line for line in lines if not line.startswith("q5 ")))
    expected = trec_eval(
        tmp_path / "run", tmp_path / "qrels", {"map", "recip_rank", "ndcg_cut.10", "recall.10"}
    )
    counts = trec.run_counts(trec.read_run(tmp_path / "run", eval_set), eval_set)
    golds = Golds.of(counts, "trec", eval_set.relevant().grades)
    for name, values in (
        ("map", average_precision(golds)),
        ("recip_rank", reciprocal_rank(golds)),
        ("ndcg_cut_10", ndcg(golds, 10)),
        ("recall_10", recall(golds, 10)),
    ):
        theirs = [expected[query][name] for query in eval_set.query_ids]
        np.testing.assert_allclose(values, theirs, rtol=0, atol=1e-12, err_msg=name)
    assert values[5] == 0


def test_a_whole_run_is_the_exact_evaluation(problem: tuple[EvalSet, np.ndarray, np.ndarray]) -> None:
    """In all pools, for ties of every kind; the order of ids is that of rows here."""
    eval_set, queries, passages = problem
    eval_set.passage_ids.sort()
    run = trec.run_of(eval_set, *search.top_k(queries, passages, PASSAGES))
    counts = trec.run_counts(run, eval_set)
    for ties in ("expected", "best", "worst", "trec"):
        exact = evaluate_embeddings(eval_set, queries, passages, ties, list_depth=PASSAGES)
        lists = trec.top_lists_of(run, eval_set, PASSAGES)
        assert evaluate_counts(eval_set, counts, ties, lists).to_dict() == exact.to_dict()


def test_what_was_not_retrieved_has_no_rank(problem: tuple[EvalSet, np.ndarray, np.ndarray]) -> None:
    eval_set, queries, passages = problem
    rows, scores = search.top_k(queries, passages, 10)
    run = trec.run_of(eval_set, rows, scores)
    counts = trec.run_counts(run, eval_set)
    eval_set = eval_set.relevant()
    query_G = np.repeat(np.arange(QUERIES), np.diff(eval_set.gold_indptr))
    found = [gold in rows[query] for query, gold in zip(query_G, eval_set.gold_indices, strict=True)]
    for ties in ("expected", "best", "worst", "trec"):
        assert (np.isfinite(counts.ranks(ties)) == found).all()
        assert (counts.ranks(ties)[found] <= 10).all()
    assert 0 < evaluate_counts(eval_set, counts).multi("mAP") < 1


def test_top_k_sorts_by_score_then_id(
    problem: tuple[EvalSet, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("QUERIES", 9), ("QUERY_TILE", 5), ("PASSAGE_TILE", 7)):  # so that tiles meet within
        monkeypatch.setattr(search, name, size)
    eval_set, queries, passages = problem
    queries[0], queries[1] = 0, -0.0  # all tied, at 0 and at -0
    scores = queries @ passages.T
    order = trec.id_order(eval_set)
    names = np.array(eval_set.passage_ids)
    assert (names[np.argsort(order)] == sorted(names)).all()
    for k in (1, 9, PASSAGES + 5):
        half = torch.tensor(passages).half()
        most = min(k, PASSAGES)
        for rows_QK, scores_QK in (
            search.top_k(queries, half, k, order),
            search.on_device(torch.tensor(queries), half, most, order, np.argsort(order)),
        ):
            assert rows_QK.shape == scores_QK.shape == (QUERIES, most)
            for query in range(QUERIES):
                expected = sorted(range(PASSAGES), key=lambda row: (-scores[query, row], -order[row]))[:k]
                assert rows_QK[query].tolist() == expected
                assert (scores_QK[query] == scores[query, expected]).all()


def test_equal_passages_have_equal_scores() -> None:
    """Those of `gold_ranks`, in any place: a product's columns may differ in the last bit."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((7, 77)).astype(np.float32)
    passages = np.repeat(rng.standard_normal((2, 77)).astype(np.float32), 3001, axis=0)[rng.permutation(6002)]
    rows_QK, scores_QK = search.top_k(queries, passages, 6002)
    sides = torch.tensor(queries), torch.tensor(passages)
    for scores in (scores_QK, search.on_device(*sides, 6002, np.arange(6002), np.arange(6002))[1]):
        assert [len(np.unique(row)) for row in scores] == [2] * len(queries)
    # The worse of the two passages stands behind all of the better one.
    ranks = gold_ranks(queries, passages, np.arange(len(queries) + 1), rows_QK[:, -1])
    assert (ranks == 1 + 3001 + 3000 / 2).all()


def test_a_map_is_searched_without_a_copy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    queries, passages = (rng.standard_normal((rows, 16)).astype(np.float16) for rows in (5, 90))
    np.save(tmp_path / "passages.npy", passages)
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    assert np.shares_memory(matrix_of(search.rows_of(mapped, "passages"), "passages"), mapped)
    for found, wanted in zip(
        search.top_k(queries, mapped, 7), search.top_k(queries, passages, 7), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_scores_come_back_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    queries, passages = (rng.standard_normal((rows, 33)).astype(np.float32) for rows in (4, 90))
    passages *= np.float32(10.0) ** rng.integers(-30, 20, size=(90, 1))
    eval_set = some_set(["a b", "c", "d", "e"], [f"x {row}" for row in range(90)])
    run = trec.run_of(eval_set, *search.top_k(queries, passages, 50, trec.id_order(eval_set)))
    trec.write_run(tmp_path / "run", run, eval_set)
    first = (tmp_path / "run").read_text().splitlines()[0].split()
    assert (first[0], first[1], first[3], first[5]) == ("a_b", "Q0", "1", "hybridfast")
    again = trec.read_run(tmp_path / "run", eval_set)
    assert (again.rows == run.rows).all()
    assert again.scores.tobytes() == run.scores.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def some_set(queries: list[str], passages: list[str]) -> EvalSet:
    return EvalSet(
        name="some",
        queries=queries,
        query_languages=["en"] * len(queries),
        items=queries,
        passages=passages,
        passage_languages=["en"] * len(passages),
        gold_indptr=np.arange(len(queries) + 1),
        gold_indices=np.zeros(len(queries), np.int64),
        query_ids=queries,
        passage_ids=passages,
    )


def test_a_run_of_others_with_a_table_of_languages(tmp_path: Path) -> None:
    (tmp_path / "bm25.trec").write_text("q1 Q0 d2 0 7 bm25\nq1 Q0 d3 0 8.5 bm25\nq9 Q0 d4 0 1 x\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d2 2\nq1 0 d5 0\nq2 0 d1 1\n")
    (tmp_path / "passages.tsv").write_text("d1\tde\nd2\tzh_hans\nd7\tde\n")
    (tmp_path / "queries.tsv").write_text("q2\tde\n")
    tables = (tmp_path / "passages.tsv", tmp_path / "queries.tsv")
    eval_set = trec.eval_set_of(tmp_path / "qrels.txt", tmp_path / "bm25.trec", *tables, "en")
    assert eval_set.passage_ids == ["d1", "d2", "d7", "d5", "d3"]
    assert eval_set.passage_languages == ["de", "zh-Hans", "de", "en", "en"]
    assert dict(zip(eval_set.query_ids, eval_set.query_languages, strict=True)) == {"q2": "de", "q1": "en"}
    run = trec.read_run(tmp_path / "bm25.trec", eval_set)
    assert run.notes == (
        "1 lines of the run name queries that are not in the set; they are left out; the first: 'q9' at "
        f"{tmp_path / 'bm25.trec'}:3",
    )
    ranks = trec.run_counts(run, eval_set).ranks()
    assert ranks.tolist() == [np.inf, 2]  # d1 for q2, which has no results; d2 behind d3
    with pytest.raises(ValueError, match=r"qrels\.txt:1: 'q1' has no lang \(or pass language\)"):
        trec.eval_set_of(tmp_path / "qrels.txt", tmp_path / "bm25.trec", *tables)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a Q0 x 1 0.5\n", "run:1: expected query Q0 passage rank score tag, got"),
        ("a Q0 x 1 0.5 t u\n", "run:1: expected query Q0 passage rank score tag, got"),
        ("\na Q0 x 1 high t\n", "run:2: the score must be a finite float32, got 'high'"),
        ("a Q0 x 1 nan t\n", "run:1: the score must be a finite float32, got 'nan'"),
        ("a Q0 x 1 1e39 t\n", "run:1: the score must be a finite float32, got '1e39'"),
        ("a Q0 x 1 2 t\na Q0 y 1 2 t\na Q0 x 2 1 t\n", "run:3: passage 'x' appears twice for query 'a'"),
    ],
)
def test_broken_runs_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run").write_text(content)
    with pytest.raises(ValueError) as error:
        trec.read_run(tmp_path / "run", some_set(["a"], ["x", "y"]))
    assert message in str(error.value)


def test_ids_that_trec_cannot_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two are 'x_1'"):
        trec.write_qrels(tmp_path / "qrels", some_set(["a"], ["x 1", "x_1"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("index", search.INDEXES)
def test_an_index_and_its_recall(index: str) -> None:
    """On clustered embeddings, as a model's are, both find nearly all; on fewer passages than K, all."""
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 16)).astype(np.float32)
    passages = centres[rng.integers(20, size=2000)] + 0.3 * rng.standard_normal((2000, 16)).astype(np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    queries = passages[:40]
    exact, _ = search.top_k(queries, passages, 10)
    rows, scores = search.index_top_k(queries, passages, 10, index)
    assert search.recall_of_exact(rows, exact) > 0.9
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, passages[rows]), atol=1e-5)
    rows, _ = search.index_top_k(queries, passages[:5], 10, index)
    assert sorted(rows[0]) == [0, 1, 2, 3, 4]


def test_recall_of_exact() -> None:
    assert search.recall_of_exact(np.array([[3, 1], [-1, -1]]), np.array([[1, 2], [0, 1]])) == 0.25


def test_what_search_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        search.top_k(ones, ones, 0)
    with pytest.raises(ValueError, match=r"equally wide, got \(2, 3\) and \(2, 2\)"):
        search.top_k(ones, ones[:, :2], 1)
    with pytest.raises(ValueError, match="passages must be finite, but row 0 holds NaN"):
        search.top_k(ones, ones * np.nan, 1)
    with pytest.raises(ValueError, match="index must be one of hnsw, ivf, got 'flat'"):
        search.index_top_k(ones, ones, 1, "flat")
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match="index hnsw needs the package faiss-cpu"):
        search.index_top_k(ones, ones, 1, "hnsw")


FILES = {
    "run": b"q1 Q0 d2 1 0.5 t\nq1 Q0 d1 2 0.5 t\nq2 Q0 d3 1 -1e-3 t\n",
    "qrels": b"q1 0 d1 1\nq1 0 d3 2\nq2 0 d3 0\nq2 0 d1 1\n",
    "languages": b"d1 en\nd2 de\nd3 en\n",
}


def test_control_characters_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, FILES | {"qrels": FILES["qrels"].replace(b"d1 1", b"d1\x00 1")})
    with pytest.raises(ValueError, match=r"qrels:1: holds the control character '\\x00'"):
        trec.eval_set_of(folder / "qrels", folder / "run", folder / "languages", language="sw")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=damaged(FILES))
def test_damaged_files_are_named_or_read_as_trec_eval_does(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = write(tmp_path, files)
    runs: list[trec.Run] = []

    def read() -> EvalSet:
        paths = (folder / "qrels", folder / "run", folder / "languages")
        eval_set = trec.eval_set_of(*paths, language="sw")
        runs.append(trec.read_run(folder / "run", eval_set))
        return eval_set

    eval_set = refused_or_sound(read, folder)
    if eval_set is None:
        return
    counts = trec.run_counts(runs[0], eval_set)
    ours = average_precision(Golds.of(counts, "trec"))
    lines = {name: list(parsed(files[name])) for name in ("run", "qrels")}
    judged: dict[str, dict[str, int]] = {}
    for query, _, passage, grade in lines["qrels"]:
        judged.setdefault(query, {}).setdefault(passage, int(float(grade)))
    found: dict[str, dict[str, float]] = {}
    for query, _, passage, _, score, _ in lines["run"]:
        found.setdefault(query, {})[passage] = float(score)
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"map"}).evaluate(found)
    assert ours.tolist() == pytest.approx(
        [theirs.get(query, {"map": 0.0})["map"] for query in eval_set.query_ids], abs=1e-12
    )


def parsed(content: bytes) -> Iterator[list[str]]:
    for line in content.decode("utf-8-sig").split("\n"):
        if fields := [field for field in line.rstrip("\r").replace("\t", " ").split(" ") if field]:
            yield fields
