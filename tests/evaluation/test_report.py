"""The page: what stands on it, and what a text in it cannot do."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hybridfast.evaluation import ranked, report, results
from hybridfast.evaluation.comparison import SUMMARY, compare
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.metrics import evaluate_embeddings, evaluate_ranked
from hybridfast.evaluation.ranked import Ranked
from hybridfast.evaluation.table import figure_text

EVIL = "<script>alert('x')</script>\"><img src=//evil.example onerror=alert(1)>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes and texts; raises where a tag is not closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parallel_set(
    questions: int = 20, languages: tuple[str, ...] = ("ar", "de", "en"), evil: str = ""
) -> EvalSet:
    queries = [f"what is {i} in {language}?{evil}" for i in range(questions) for language in languages]
    size = len(languages)
    golds = np.arange(questions)[:, None, None] * size + np.zeros((1, size, 1), int) + np.arange(size)
    return EvalSet(
        name=f"parallel{evil}",
        queries=queries,
        query_languages=list(languages) * questions,
        items=[f"q{i}" for i in range(questions) for _ in languages],
        passages=[f"it is {i} in {language}.{evil}" for i in range(questions) for language in languages],
        passage_languages=list(languages) * questions,
        gold_indptr=np.arange(len(queries) + 1) * size,
        gold_indices=golds.ravel(),
    )


def ranks_of(eval_set: EvalSet, noise: float, seed: int) -> Ranked:
    rng = np.random.default_rng(seed)
    size = len(eval_set.languages)
    about = np.random.default_rng(0).standard_normal((len(eval_set.queries) // size, 16)).repeat(size, axis=0)
    sides = [(about + noise * rng.standard_normal(about.shape)).astype("f") for _ in range(2)]
    found = evaluate_embeddings(eval_set, *sides, list_depth=10).ranked
    assert found is not None
    return found


def test_the_figures_of_a_comparison_stand_on_the_page(tmp_path: Path) -> None:
    eval_set = parallel_set()
    systems = {
        "base": [ranks_of(eval_set, 1.5, 0)],
        "better": [ranks_of(eval_set, 0.3, 1), ranks_of(eval_set, 0.3, 2)],
    }
    comparison = compare(systems, "base", resamples=200)
    results.write_comparison(tmp_path, comparison, systems, "python -m hybridfast.evaluate --model 'a & b'")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    rows = {row[0]: row[1] for row in re.findall(r"<tr[^>]*><th>(\w+)</th>(.*?)</tr>", text)}
    for name, estimates in comparison.estimates.items():
        for figure in SUMMARY:
            one = estimates[figure]
            value, low, high = (figure_text(figure, x) for x in (one.value, one.low, one.high))
            mark = "*" if name == "better" and comparison.differences[name][figure].significant else ""
            assert f">{value}{mark}</span>" in rows[name]
            assert f"[{low}, {high}]" in rows[name]
    assert rows["better"].count('"better best"') == len(
        SUMMARY
    )  # the smaller rank distance is the better one
    assert (
        f"± {figure_text('mAP mono', comparison.estimates['better']['mAP mono'].sd_seeds)}" in rows["better"]
    )
    assert comparison.legend() in unescape(text)
    # Pictures: the cells are those of the means over runs; all bars have their values.
    runs = [evaluate_ranked(run) for run in systems["better"]]
    cell = np.mean([run.pairs["mAP"][0, 1] for run in runs])
    assert f"{cell:.2f}".removeprefix("0") in page.texts
    multi = np.mean([run.multilingual["mAP"] for run in runs], axis=0)
    assert {f"{value:.3f}" for value in multi} <= {*page.texts}
    assert page.tags["svg"] == 2 * 2 + 2 + 3
    # The worst question, what stands above its golds, what was run on what.
    failure = systems["base"][0].failures[0]
    assert {failure.query, failure.gold[1], *(above for _, above in failure.above)} <= {*page.texts}
    assert failure.average_precision == min(systems["base"][0].figures["mAP multi"].values_V)
    assert "python -m hybridfast.evaluate --model 'a & b'" in page.texts
    assert {eval_set.fingerprint, systems["base"][0].fingerprint, results.environment()["torch"]} <= {
        *page.texts
    }
    assert len({run.fingerprint for runs in systems.values() for run in runs}) == 3


def test_texts_and_names_are_text_alone() -> None:
    systems = {f"model{EVIL}": ranks_of(parallel_set(evil=EVIL, languages=("en", f"x{EVIL}")), 2.0, 0)}
    text = report.html(
        compare(systems, resamples=20), {name: [run] for name, run in systems.items()}, EVIL, {EVIL: EVIL}
    )
    page = Page(text)
    assert not {"script", "img", "link", "iframe"} & {*page.tags}
    assert not {
        name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "srcset")
    }
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert any(EVIL in shown and shown.startswith("what is") for shown in page.texts)
    assert "default-src 'none'" in unescape(text)


def test_half_a_character_is_written_and_kept(tmp_path: Path) -> None:
    run = ranks_of(parallel_set(evil="\ud800"), 2.0, 0)
    ranked.write(tmp_path / "ranks.parquet", run)
    assert ranked.read(tmp_path / "ranks.parquet").failures == run.failures
    results.write_comparison(tmp_path, compare({"one": run}, resamples=20), {"one": [run]})
    assert "in ar?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_ranks_from_a_file_make_the_same_page_and_those_without_texts_name_ids(tmp_path: Path) -> None:
    run = ranks_of(parallel_set(), 2.0, 0)
    ranked.write(tmp_path / "ranks.parquet", run)
    again = ranked.read(tmp_path / "ranks.parquet")
    assert (again.failures, again.hashes, again.fingerprint) == (run.failures, run.hashes, run.fingerprint)
    comparison = compare({"one": run}, resamples=20)
    assert report.html(comparison, {"one": [again]}) == report.html(comparison, {"one": [run]})
    bare = replace(run, failures=[], hashes={}, list_values={})
    page = Page(report.html(compare({"one": bare}, resamples=20), {"one": [bare]}))
    assert [failure.golds for failure in bare.worst_queries()] == [failure.golds for failure in run.failures]
    assert {failure.query_id for failure in run.failures} <= {*page.texts}
    assert not any("it is" in shown for shown in page.texts)


def test_a_perfect_system_has_no_worst_question_and_one_language_no_others() -> None:
    run = ranks_of(parallel_set(languages=("en",)), 0.0, 0)
    assert run.failures == run.worst_queries() == []
    page = Page(report.html(compare({"one": run}, resamples=20), {"one": [run]}))
    assert "All golds stand first." in page.texts


def test_failures_are_one_a_question_and_show_what_is_above() -> None:
    run = ranks_of(eval_set := parallel_set(), 2.0, 0)
    texts = dict(zip(eval_set.query_ids, eval_set.queries, strict=True))
    assert len({failure.query_id.split("-")[0] for failure in run.failures}) == len(run.failures) == 12
    precision = [failure.average_precision for failure in run.failures]
    assert precision == sorted(precision)
    for failure in run.failures:
        number = failure.query.split()[2]
        assert failure.query == texts[failure.query_id]
        assert failure.gold == (failure.language, f"it is {number} in {failure.language}.")
        assert len(failure.golds) == 3
        assert failure.above
        assert not any(above.startswith(f"it is {number} ") for _, above in failure.above)
        # All that is above is: the last gold's rank says so.
        assert failure.golds[-1][1] > len(failure.above)


def test_many_languages_and_systems_stay_small(tmp_path: Path) -> None:
    languages = tuple(f"l{i:03}" for i in range(120))
    run = ranks_of(parallel_set(1, languages), 1.0, 0)
    systems = {f"system {i}": [run] for i in range(5)}
    comparison = compare({name: runs[0] for name, runs in systems.items()}, resamples=20)
    text = report.html(comparison, systems)
    assert len(text.encode()) < 3e6
    assert "1 more systems are not drawn" in text
    Page(text)


def test_it_looks_like_something_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here to take a screenshot")
    from PIL import Image

    run = ranks_of(parallel_set(), 1.0, 0)
    results.write_comparison(tmp_path, compare({"one": run}, resamples=20), {"one": [run]})
    shot = tmp_path / "shot.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,1200",
        f"--user-data-dir={tmp_path}/b",
    ]
    page = (tmp_path / "report.html").as_uri()
    subprocess.run(
        [browser, *flags, f"--screenshot={shot}", page], check=True, capture_output=True, timeout=120
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    assert len(colours) > 50  # heat maps and letters, not an empty page
    assert counts.max() < 0.95 * len(pixels)
