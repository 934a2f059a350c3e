"""Comparisons of systems, and the file of ranks that they can be made from later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridfast.evaluation import ranked, results, trec
from hybridfast.evaluation.comparison import SUMMARY, compare
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import Evaluation, evaluate_counts, evaluate_embeddings, evaluate_ranked
from hybridfast.evaluation.ranked import Ranked

QUESTIONS, LANGUAGES = 40, ("de", "en", "fr")


def parallel_set() -> EvalSet:
    """40 questions in three languages, a passage of each, and a grade 2 for the English one."""
    languages = list(LANGUAGES) * QUESTIONS
    items = [f"q{i // 3}" for i in range(len(languages))]
    golds = np.arange(QUESTIONS)[:, None, None] * 3 + np.zeros((1, 3, 1), int) + np.arange(3)
    return EvalSet(
        name="parallel",
        queries=items,
        query_languages=languages,
        items=items,
        passages=items,
        passage_languages=languages,
        gold_indptr=np.arange(len(languages) + 1) * 3,
        gold_indices=golds.ravel(),
        grades=np.tile([1, 2, 1], len(languages)),
    )


def evaluation(noise: float, seed: int, questions: int = 0) -> Evaluation:
    """Passages lie near their question, by `noise`; `seed` draws the noise, `questions` the rest."""
    eval_set = parallel_set()
    rng = np.random.default_rng(questions)
    about = rng.standard_normal((QUESTIONS, 24))[np.arange(len(eval_set.queries)) // 3]
    rng = np.random.default_rng([seed, 1])
    sides = [(about + noise * rng.standard_normal(about.shape)).astype("f") for _ in range(2)]
    return evaluate_embeddings(eval_set, *sides, list_depth=10)


def ranks_of(noise: float, seed: int) -> Ranked:
    found = evaluation(noise, seed).ranked
    assert found is not None
    return found


def test_a_better_system_is_marked_and_an_equal_one_is_not() -> None:
    base = ranks_of(1.5, 0)
    found = compare({"base": base, "same": base, "better": ranks_of(0.5, 1)}, "base", resamples=999)
    for name in SUMMARY:
        same, better = found.differences["same"][name], found.differences["better"][name]
        assert (same.value, same.low, same.high, same.p, same.significant) == (0, 0, 0, 1, False)
        assert better.significant
        assert (better.low > 0) == (name != "rank distance")
        one, other = (found.estimates[system][name].value for system in ("better", "base"))
        assert better.value == pytest.approx(one - other)
        assert better.p == 1 / 1000
        assert better.p_holm == pytest.approx(14 / 1000)
    header, _, *rows = found.table().splitlines()
    assert header.count("|") == len(SUMMARY) + 2
    assert [row.count("*") for row in rows[:3]] == [0, 0, len(SUMMARY)]
    assert rows[4].endswith("after Holm's correction for 14 comparisons")
    assert np.isnan(found.differences["better"]["MRR multi"].p_holm)


def test_estimates_are_the_evaluations_figures_within_their_intervals() -> None:
    found = evaluation(1.5, 0)
    assert found.ranked is not None
    estimates = compare({"one": found.ranked}, resamples=200).estimates["one"]
    for name, value in found.summary().items():
        assert estimates[name].value == pytest.approx(value)
        assert estimates[name].low <= value <= estimates[name].high
        assert estimates[name].se_questions > 0
    assert estimates["AWRF@10"].value == pytest.approx(found.bias["AWRF@10"]["mean"])
    assert repr(compare({"one": found.ranked}, resamples=200).estimates["one"]) == repr(estimates)


def test_seeds_widen_an_interval() -> None:
    runs = [ranks_of(noise, seed) for seed, noise in enumerate((1.0, 1.5, 2.0))]
    found = compare({"one": runs[1], "three": runs}, "one", resamples=500)
    one, three = (found.estimates[name]["mAP multi"] for name in ("one", "three"))
    assert (one.seeds, three.seeds) == (1, 3)
    assert np.isnan(one.sd_seeds)
    values = [compare({"": run}, resamples=1).estimates[""]["mAP multi"].value for run in runs]
    assert three.sd_seeds == pytest.approx(np.std(values, ddof=1))
    assert three.high - three.low > 1.5 * (one.high - one.low)
    assert " ± " in found.table().splitlines()[3]
    assert " ± " not in found.table().splitlines()[2]
    assert "interval over questions and seeds" in found.table()


def test_only_what_both_know_is_compared() -> None:
    """A run that lost golds has no rank distance there: the difference is over the others."""
    eval_set = parallel_set()
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(eval_set.queries), len(eval_set.passages))).astype("f")
    order = np.argsort(-scores, axis=1)
    systems, known = {}, []
    for name, depth in (("whole", 120), ("cut", 100)):
        top = order[:, :depth]
        run = trec.run_of(eval_set, top, np.take_along_axis(scores, top, axis=1))
        systems[name] = evaluate_counts(eval_set, trec.run_counts(run, eval_set), "trec").ranked
        known.append(systems[name].figures["rank distance"].values_V)
    assert 0 < np.isnan(known[1]).mean() < 1
    assert not np.isnan(known[0]).any()
    found = compare(systems, "whole", resamples=50)
    # Both rank the golds that the cut one has alike.
    assert found.differences["cut"]["rank distance"].value == 0
    assert found.estimates["cut"]["rank distance"].value < found.estimates["whole"]["rank distance"].value


def test_what_cannot_be_compared_is_named() -> None:
    base = ranks_of(1.5, 0)
    for systems, baseline, message in (
        ({}, None, "systems must hold at least one"),
        ({"a": []}, None, "with at least one run each"),
        ({"a": base}, "b", "baseline must be one of a, got 'b'"),
        (
            {"a": base, "b": replace(base, query_ids=[*base.query_ids[:-1], "other"])},
            "a",
            "a and b cannot be compared: parallel and parallel differ in their queries",
        ),
        ({"a": base, "b": replace(base, ties="trec")}, "a", "differ in their rules for ties"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(systems, baseline, resamples=2)
    with pytest.raises(ValueError, match="unknown figure 'F1'; there are mAP mono"):
        compare({"a": base}, family=("F1",), resamples=2)


def test_stored_ranks_give_the_same_evaluation(tmp_path: Path) -> None:
    found = evaluation(1.5, 0)
    assert found.ranked is not None
    ranked.write(tmp_path / "ranks.parquet", found.ranked)
    again = ranked.read(tmp_path / "ranks.parquet")
    assert evaluate_ranked(again).to_dict() == found.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.parquet"]
    table = pq.read_table(tmp_path / "ranks.parquet")
    assert table.num_rows == 3 * QUESTIONS
    assert table.column("gold_language").to_pylist()[0] == list(LANGUAGES)
    assert table.column("grade").to_pylist()[0] == [1, 2, 1]


def test_stored_ranks_keep_what_was_not_retrieved(tmp_path: Path) -> None:
    eval_set = parallel_set()
    run = trec.run_of(eval_set, np.tile([0, 1], (120, 1)), np.tile(np.array([2, 1], "f"), (120, 1)))
    lists = trec.top_lists_of(run, eval_set, 10)
    found = evaluate_counts(eval_set, trec.run_counts(run, eval_set), "trec", lists)
    assert found.ranked is not None
    ranked.write(tmp_path / "ranks.parquet", found.ranked)
    assert evaluate_ranked(ranked.read(tmp_path / "ranks.parquet")).to_dict() == found.to_dict()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.parquet does not exist"):
        ranked.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: not ranks that this library has written"):
        ranked.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"table\.parquet: not ranks"):
        ranked.read(tmp_path / "table.parquet")


def test_folders_of_runs(tmp_path: Path) -> None:
    """Seeds of one system are gathered; equal names get their folder's before them."""
    ranks = ranks_of(1.5, 0)
    for folder in ("a/x-seed0", "a/x-seed1", "a/y", "b/y"):
        (tmp_path / folder).mkdir(parents=True)
        ranked.write(tmp_path / folder / "ranks.parquet", ranks)
    found = results.read_runs([tmp_path / "a", tmp_path / "b" / "y"])
    assert {name: len(runs) for name, runs in found.items()} == {"x": 2, "a/y": 1, "b/y": 1}
    with pytest.raises(FileNotFoundError, match=r"none holds no ranks\.parquet"):
        results.read_runs([tmp_path / "none"])
    with pytest.raises(ValueError, match="y is given twice"):
        results.read_runs([tmp_path / "a", tmp_path / "a" / "y"])
