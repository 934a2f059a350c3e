"""Rows in files of the cache: the same corpus as in memory, read once, and never half of it."""

from __future__ import annotations

import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from hybridfast.data import assembly, blocks, numbering
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.data.spool import Store

ITEMS, LANGUAGES = 40, ("de", "en", "th")


def rows() -> list[dict[str, Any]]:
    """Two passages a question in one of three, in three languages."""
    found = [
        {"id": f"i{i}", "lang": lang, "query": f"q {i} {lang}", "passage": f"p {i} {k}", "negative": "n é"}
        for i in range(ITEMS)
        for lang in LANGUAGES
        for k in range(1 + (i % 3 == 0))
    ]
    random.Random(0).shuffle(found)
    return found


def write(path: Path, some: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BYTES", 500)
    monkeypatch.setattr(numbering, "BUCKET", 50)
    monkeypatch.setattr(numbering, "HELD", 0)


def told(corpus: ParallelCorpus) -> dict[str, Any]:
    arrays = ("item_V", "group_V", "language_V", "source_V", "repeat_V", "version_GL", "source_G", "item_G")
    arrays += ("query_hash_V", "passage_hash_V", "item_hash_I")
    return {
        **{name: np.asarray(getattr(corpus, name)).tolist() for name in arrays},
        **{
            name: getattr(corpus, name) for name in ("items", "groups", "languages", "sources", "fingerprint")
        },
        "samples": corpus.samples(),
        "texts": [*corpus.texts()],
        "taken": corpus.taken("passage", np.array([5, 0, 170, 5])),
        "rows": corpus.table.to_pylist(),
    }


def test_a_mapped_corpus_is_the_one_in_memory(tmp_path: Path, small: None) -> None:
    path = write(tmp_path / "rows.jsonl", rows())
    held = ParallelCorpus.load(path, cache_dir=tmp_path / "unused")
    mapped = ParallelCorpus.load(path, cache_dir=tmp_path / "cache", memory=2_000)
    assert told(mapped) == told(held)
    assert [*tmp_path.glob("unused/*")] == []
    assert "GB mapped" in repr(mapped)
    assert "mapped" not in repr(held)
    assert isinstance(mapped.item_V, np.memmap)
    some = np.arange(len(held)) % 3 > 0
    assert told(mapped.where(some)) == told(held.where(some))
    assert len([*(tmp_path / "cache").iterdir()]) == 1  # what has no name is gone


def test_a_file_is_read_once_as_long_as_it_is_the_same(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further file costs that file, and a changed one is read anew."""
    folder, read = tmp_path / "set", []
    folder.mkdir()
    real = assembly._validated

    def validated(file: Any, *, id_needed: bool) -> Any:
        for batch in real(file, id_needed=id_needed):
            read.append(file.path.name)
            yield batch

    monkeypatch.setattr(assembly, "_validated", validated)

    def load() -> tuple[ParallelCorpus, set[str]]:
        read.clear()
        corpus = ParallelCorpus.load(folder, cache_dir=tmp_path / "cache", memory=0)
        assert told(corpus) == told(ParallelCorpus.from_rows(corpus.table, name="set"))
        return corpus, {*read} - {"set"}

    some = rows()
    write(folder / "part-0.jsonl", some[:60])
    assert load()[1] == {"part-0.jsonl"}
    assert load()[1] == set()
    write(folder / "part-1.jsonl", some[60:])
    corpus, names = load()
    assert names == {"part-1.jsonl"}
    assert corpus.sources == ["set"]
    write(folder / "part-0.jsonl", some[:59])
    assert load()[1] == {"part-0.jsonl"}
    assert (
        ParallelCorpus.load(folder / "part-0.jsonl", cache_dir=tmp_path / "cache", memory=0).table.num_rows
        == 59
    )


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_group_in_any_order_and_any_file(tmp_path: Path, small: None, seed: int) -> None:
    """Errors are those of one file; duplicates are found however far apart they are."""
    some, dealt = [{**row, "source": "s"} for row in rows()], random.Random(seed)
    for row in some:  # of several passages the order counts
        row["passage"] = row["id"]
    some = list({(row["id"], row["lang"]): row for row in some}.values())
    dealt.shuffle(some)
    folder = tmp_path / "set"
    folder.mkdir()
    cuts = sorted(dealt.sample(range(len(some)), 3))
    for i, (begin, end) in enumerate(itertools.pairwise([0, *cuts, len(some)])):
        write(folder / f"{i}.jsonl", some[begin:end])

    def load() -> ParallelCorpus:
        return ParallelCorpus.load(folder, cache_dir=tmp_path / "cache", memory=0)

    corpus = load()
    assert told(corpus) == told(ParallelCorpus.from_rows(some))
    assert (np.sort(corpus.version_GL.ravel()) == np.arange(len(some))).all()
    path = folder / "9.jsonl"
    for change, message in (
        ({}, "with this query and passage"),
        ({"query": "another"}, f"with another query: {some[0]['query']!r}"),
        ({"passage": "b", "source": "t"}, "is in source 't', but in 's' before"),
    ):
        write(path, [{**some[0], **change}])
        with pytest.raises(ValueError, match=rf"9.jsonl:1: id {some[0]['id']!r} .*{message}") as error:
            load()
        assert "source" in message or f"{folder / '0.jsonl'}:1" in str(error.value)


def test_what_an_error_names_is_found_behind_blank_lines(tmp_path: Path, small: None) -> None:
    lines = [json.dumps(row) for row in rows()]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:100], "", "", *lines[100:], lines[7]]) + "\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl:{len(lines) + 3}: .* is already at .*rows.jsonl:8,"):
        ParallelCorpus.load(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache", memory=0)


def test_a_stream_of_the_hub_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    asked: list[bool] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
        asked.append(streaming)
        return Dataset.from_list(rows()).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    first, again = (
        ParallelCorpus.load("someone/pairs", streaming=True, cache_dir=tmp_path) for _ in range(2)
    )
    assert asked == [True]
    assert told(first) == told(again) == told(ParallelCorpus.from_rows(rows(), name="someone/pairs"))
    assert len(ParallelCorpus.load("someone/pairs", split="dev", streaming=True, cache_dir=tmp_path)) == len(
        rows()
    )
    assert len(asked) == 2


def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows())
    ParallelCorpus.load(path, cache_dir=tmp_path / "cache", memory=0)
    [kept] = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{kept.name}: damaged .*; delete it to read the data again"):
        ParallelCorpus.load(path, cache_dir=tmp_path / "cache", memory=0)


# --- processes that end -------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from hybridfast.data import blocks, numbering, spool, tokenizing
from hybridfast.data.corpus import ParallelCorpus
from tokenizers import Tokenizer

path, cache, deadly = sys.argv[1], sys.argv[2], int(sys.argv[3])
blocks.BYTES, numbering.BUCKET, numbering.HELD, tokenizing.CHUNK, tokenizing.SHARD = 500, 50, 0, 7, 2
calls = 0

def counted(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call

os.fsync, os.replace, os.rename = map(counted, (os.fsync, os.replace, os.rename))
tokenizing._Growing.append = counted(tokenizing._Growing.append)
numbering._runs, blocks._parsed_json = counted(numbering._runs), counted(blocks._parsed_json)
corpus = ParallelCorpus.load(path, cache_dir=cache, memory=0)
tokens = corpus.tokenize(Tokenizer.from_file(sys.argv[4]), cache_dir=cache, progress=False)
print(tokens.path, calls)
"""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = ["[UNK]", "q", "p", "n", *map(str, range(ITEMS)), *LANGUAGES]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def run(*arguments: object, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_from(
    tmp_path: Path, tokenizer: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", rows())
    whole = run(path, tmp_path / "whole", 0, tokenizer)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout.split()[1])
    # At a place early on, while rows are read; then wherever the rest of it falls.
    rng, killed = random.Random(0), 0
    for deadly in (rng.randrange(5, 60), *(rng.randrange(60, calls) for _ in range(3))):
        killed += run(path, tmp_path / "cache", deadly, tokenizer).returncode == -signal.SIGKILL
    assert killed >= 2
    last = run(path, tmp_path / "cache", 0, tokenizer)
    assert last.returncode == 0, last.stderr
    assert int(last.stdout.split()[1]) < calls  # some of it was there
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


@pytest.mark.parametrize("size", [5_000, 14_000])
def test_a_disk_that_fills_up_is_an_error_and_no_harm(tmp_path: Path, tokenizer: Path, size: int) -> None:
    """First there is no room for the rows, then none for arrays of the tokens."""
    path = write(tmp_path / "rows.jsonl", rows())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    full = run(path, tmp_path / "cache", 0, tokenizer, limit=limit)
    assert full.returncode == 1
    assert "OSError" in full.stderr.splitlines()[-1]
    done = run(path, tmp_path / "cache", 0, tokenizer)
    assert done.returncode == 0, done.stderr
    run(path, tmp_path / "whole", 0, tokenizer)
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


def test_two_processes_write_one_cache(tmp_path: Path, tokenizer: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows())
    command = [sys.executable, "-c", PROGRAM, *map(str, (path, tmp_path / "cache", 0, tokenizer))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split()[0] for process in both]
    assert said[0] == said[1]
    assert len([*(tmp_path / "cache").iterdir()]) == 2  # rows and tokens


def test_an_array_that_does_not_fit_is_an_error_where_it_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path, room=0)
    schema = pa.schema([("x", pa.int64())])
    table = store.table([pa.record_batch([pa.array([1, 2])], schema=schema)], schema)
    assert table.column("x").to_pylist() == [1, 2]
    with pytest.raises(OSError, match=r"an array of [\d,]+ bytes does not fit"):
        store.empty(2 * shutil.disk_usage(tmp_path).total, np.uint8)
    filled = store.empty((2, 3), np.int32)
    filled[:] = 7
    assert filled.tolist() == [[7] * 3] * 2
    assert list(tmp_path.iterdir()) == []
