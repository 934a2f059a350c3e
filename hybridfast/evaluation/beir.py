"""BEIR's layout (Thakur et al., arXiv 2104.08663), and that of mlir-benchmarks, in one or several languages.

BEIR: ``corpus.jsonl`` of ``{"_id", "title", "text", "lang"}``, ``queries.jsonl`` of the same without title,
``qrels/SPLIT.tsv`` of query, passage and grade. mlir-benchmarks: ``corpus.jsonl`` and ``queries.jsonl`` of
``{id: {"text", "lang"}}`` or ``{id: text}``, ``qrels.jsonl`` of ``{query: {passage: grade}}``. Each file may
be gzipped, and each row may have either form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hybridfast.data.reading import files_at, lines
from hybridfast.evaluation import hub
from hybridfast.evaluation.evalset import EvalSet
from hybridfast.evaluation.judged import BLANKS, Judgment, Texts, grade, judged_set, with_title

__all__ = ["is_beir", "load"]

Rows = Iterable[tuple[int, Any]]  # each with its line, or its number


def is_beir(folder: Path) -> bool:
    """Whether a folder has BEIR's files."""
    return all(_file(folder, name) is not None for name in ("corpus.jsonl", "queries.jsonl"))


def load(
    data_dir: str | Path,
    split: str = "test",
    language: str | None = None,
    title_separator: str = " ",
) -> EvalSet:
    """Read a folder, or from the hub OWNER/NAME, such as BeIR/scifact, or a folder there, OWNER/NAME/FOLDER.

    `language` is that of rows without ``lang``. A passage is its title, if it has one, `title_separator` and
    its text: " " as mteb, "\\n\\n" as pyserini has it. Grades above 0 are relevant. What is left out is
    said in :func:`hybridfast.evaluation.judged.judged_set`.

    Raises FileNotFoundError for a missing folder or file, OSError for what the hub does not give, ValueError
    naming file and line for broken content.
    """
    queries, passages = Texts("queries", language), Texts("passages", language)
    source = str(data_dir)
    parts = source.split("/")
    if not Path(source).exists() and len(parts) == 2 and all(parts):
        for texts, config in ((passages, "corpus"), (queries, "queries")):
            rows = enumerate(hub.rows_of(source, config, config), start=1)
            _add(texts, rows, f"{source} {config}", title_separator)
        judged: Iterator[Judgment] = _of_rows(
            enumerate(hub.rows_of(f"{source}-qrels", None, split), start=1), f"{source}-qrels {split}"
        )
        return judged_set(parts[1], queries, passages, judged, source)
    folder = Path(source)
    if not folder.exists() and len(parts) > 2 and all(parts):
        inside = "/".join(parts[2:])
        folder = hub.folder_of("/".join(parts[:2]), [f"{inside}/*"]) / inside
    if not folder.is_dir():
        raise FileNotFoundError(f"BEIR folder {folder} does not exist")
    for texts, name in ((passages, "corpus.jsonl"), (queries, "queries.jsonl")):
        path = _file(folder, name)
        if path is None:
            raise FileNotFoundError(f"BEIR folder {folder} lacks {name}")
        _add(texts, files_at(path)[0].rows, path, title_separator)
    table, objects = _file(folder / "qrels", f"{split}.tsv"), _file(folder, "qrels.jsonl")
    if table is not None:
        judged = _of_table(table)
    elif objects is not None:
        judged = _of_rows(files_at(objects)[0].rows, objects)
    else:
        raise FileNotFoundError(f"BEIR folder {folder} lacks qrels/{split}.tsv and qrels.jsonl")
    return judged_set(folder.name, queries, passages, judged, folder)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)


def _add(texts: Texts, rows: Rows, file: Path | str, separator: str) -> None:
    for line, row in rows:
        for identifier, entry in _entries(row, file, line):
            if isinstance(entry, str):
                entry = {"text": entry}
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                raise ValueError(f"{file}:{line}: {identifier!r} has no text: {str(entry)[:60]}")
            title = entry.get("title") or ""
            if not isinstance(title, str):
                raise ValueError(f"{file}:{line}: the title of {identifier!r} must be text, got {title!r}")
            text = with_title(title, entry["text"], separator)
            texts.add(identifier, text, entry.get("lang"), file, line)


def _entries(row: Any, file: Path | str, line: int) -> Iterator[tuple[Any, Any]]:
    if not isinstance(row, dict):
        raise ValueError(f"{file}:{line}: expected a JSON object, got {type(row).__name__}")
    if "_id" in row:
        yield row["_id"], row
    else:
        yield from row.items()


def _of_table(path: Path) -> Iterator[Judgment]:
    """Three columns, or TREC's four, between tabs; a first line whose grade is no number is a header."""
    for line, text in lines(path):
        parts = text.rstrip("\r\n").split("\t")
        if not any(parts):
            continue
        if len(parts) not in (3, 4) or not all(part.strip(BLANKS) for part in parts):
            raise ValueError(f"{path}:{line}: expected query, passage and grade between tabs, got {parts}")
        if line == 1 and not parts[-1].strip().lstrip("+-").replace(".", "", 1).isdigit():
            continue
        value = grade(parts[-1], path, line)
        yield Judgment(parts[0].strip(BLANKS), parts[-2].strip(BLANKS), value, path, line)


def _of_rows(rows: Rows, file: Path | str) -> Iterator[Judgment]:
    for line, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{file}:{line}: expected a JSON object, got {type(row).__name__}")
        if "query-id" in row or "corpus-id" in row:
            missing = [key for key in ("query-id", "corpus-id", "score") if row.get(key) in (None, "")]
            if missing:
                raise ValueError(f"{file}:{line}: no {missing[0]} in {str(row)[:60]}")
            value = grade(row["score"], file, line)
            pair = str(row["query-id"]).strip(BLANKS), str(row["corpus-id"]).strip(BLANKS)
            yield Judgment(*pair, value, file, line)
            continue
        for query, passages in row.items():
            if not isinstance(passages, dict):
                raise ValueError(f"{file}:{line}: {query!r} must have {{passage: grade}}, got {passages!r}")
            for passage, value in passages.items():
                pair = query.strip(BLANKS), passage.strip(BLANKS)
                yield Judgment(*pair, grade(value, file, line), file, line)
