"""MIRACL (Zhang et al., TACL 2023): questions over the Wikipedias of 18 languages, each over its own.

The files are those of https://huggingface.co/datasets/miracl/miracl (topics and qrels) and miracl-corpus:
``miracl-v1.0-{l}/topics/topics.miracl-v1.0-{l}-dev.tsv``, ``qrels/qrels.miracl-v1.0-{l}-dev.tsv`` beside
``topics`` and ``miracl-corpus-v1.0-{l}/docs-{i}.jsonl.gz``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hybridfast.data.reading import files_at
from hybridfast.evaluation import hub
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.judged import Judgment, Texts, fields, grade, judged_set, with_title

__all__ = ["LANGUAGES", "load"]

LANGUAGES = (
    "ar", "bn", "de", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "yo", "zh"
)  # fmt: skip


def load(
    data_dir: str | Path | None,
    languages: Sequence[str] | None = None,
    split: str = "dev",
    title_separator: str = " ",
) -> EvalSet:
    """Read a folder that holds the folders above, or the hub where it is None.

    `languages` are all that have topics in the folder by default; on the hub they must be named, for the
    corpora are large. A passage is its title, `title_separator` and its text: " " as mteb, "\\n\\n" as
    pyserini has it. Ids are the files' own where one language is read; several repeat them, and so
    they begin with ``ar:``. Every question is an item of its own, for none is a translation.

    The official measures are nDCG@10 and Recall@100 of the monolingual pools. What is left out is said in
    :func:`hybridfast.evaluation.judged.judged_set`; nothing is where the corpora are complete.

    Raises FileNotFoundError for a missing folder or file, ValueError naming file and line for broken content.
    """
    unknown = [language for language in languages or () if language not in LANGUAGES]
    if unknown:
        raise ValueError(f"languages must be of MIRACL's, {', '.join(LANGUAGES)}, got {unknown[0]!r}")
    if data_dir is None:
        folder, corpora = _from_hub(languages, split)
    else:
        folder = corpora = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"MIRACL folder {folder} does not exist")
    chosen = [tag for tag in languages or LANGUAGES if languages or _topics(folder, tag, split).is_file()]
    if not chosen:
        raise FileNotFoundError(
            f"MIRACL folder {folder} has no topics, such as {_topics(folder, 'ar', split)}"
        )
    shards = {language: _shards(corpora, language) for language in chosen}
    queries, passages = Texts("queries"), Texts("passages")
    judgments: list[Judgment] = []
    for language in chosen:
        prefix = f"{language}:" if len(chosen) > 1 else ""
        topics, qrels = _topics(folder, language, split), _qrels(folder, language, split)
        if not topics.is_file() or not qrels.is_file():
            raise FileNotFoundError(f"MIRACL folder {folder} lacks {topics} or {qrels}")
        for line, (identifier, text) in fields(topics, "id text", "\t"):
            queries.add(prefix + identifier, text, language, topics, line)
        for line, (query, _, passage, relevance) in fields(qrels, "query Q0 passage grade"):
            value = grade(relevance, qrels, line)
            judgments.append(Judgment(prefix + query, prefix + passage, value, qrels, line))
        for path, line, identifier, text in _passages(shards[language], title_separator):
            passages.add(prefix + identifier, text, language, path, line)
    items = [f"{tag}:{name}" for tag, name in zip(queries.languages, queries.ids, strict=True)]
    return judged_set("MIRACL", queries, passages, judgments, folder, items)


def _topics(folder: Path, language: str, split: str) -> Path:
    return folder / f"miracl-v1.0-{language}" / "topics" / f"topics.miracl-v1.0-{language}-{split}.tsv"


def _qrels(folder: Path, language: str, split: str) -> Path:
    return folder / f"miracl-v1.0-{language}" / "qrels" / f"qrels.miracl-v1.0-{language}-{split}.tsv"


def _shards(folder: Path, language: str) -> list[Path]:
    """In the order of their numbers, which must be 0, 1, ...: a shard that was not downloaded is an error."""
    home = folder / f"miracl-corpus-v1.0-{language}"
    number = {
        int(found[1]): path
        for path in home.glob("docs-*.jsonl*")
        if (found := re.fullmatch(r"docs-(\d+)\.jsonl(\.gz)?", path.name))
    }
    if not number:
        raise FileNotFoundError(f"MIRACL folder {home} has no docs-0.jsonl.gz, docs-1.jsonl.gz, ...")
    missing = sorted({*range(max(number) + 1)} - {*number})
    if missing:
        raise FileNotFoundError(f"MIRACL folder {home} lacks docs-{missing[0]}.jsonl.gz")
    return [number[i] for i in sorted(number)]


def _passages(shards: list[Path], separator: str) -> Iterator[tuple[Path, int, str, str]]:
    for path in tqdm(shards, desc=f"reading {shards[0].parent.name}", disable=None, leave=False):
        for line, row in files_at(path)[0].rows:
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: expected a JSON object, got {type(row).__name__}")
            for key in ("docid", "title", "text"):
                if not isinstance(row.get(key), str):
                    raise ValueError(f"{path}:{line}: {key} must be text, got {row.get(key)!r}")
            yield path, line, row["docid"], with_title(row["title"], row["text"], separator)


def _from_hub(languages: Sequence[str] | None, split: str) -> tuple[Path, Path]:
    if not languages:
        raise ValueError("dataset miracl without data_dir needs languages: the corpora are large")
    # The files themselves: both data sets are scripts, which `datasets` no longer runs.
    topics = hub.folder_of("miracl/miracl", [f"miracl-v1.0-{tag}/*/*-{split}.tsv" for tag in languages])
    corpora = hub.folder_of("miracl/miracl-corpus", [f"miracl-corpus-v1.0-{tag}/*" for tag in languages])
    return topics, corpora
