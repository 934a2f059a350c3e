"""LAReQA's layout (arXiv 2004.05484): questions in several languages, answered by sentences in all of them.

XQuAD-R and MLQA-R are folders of one SQuAD file per language, ``ar.json`` to ``zh.json``, whose paragraphs
also carry ``sentences`` and ``sentence_breaks``: https://github.com/google-research-datasets/lareqa. For
evaluation, never for training.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridfast.evaluation import hub
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["CANDIDATES", "DATASETS", "load"]

DATASETS = {
    "xquad-r": ("XQuAD-R", ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")),
    "mlqa-r": ("MLQA-R", ("ar", "de", "en", "es", "hi", "vi", "zh")),
}
CANDIDATES = ("sentence", "context")
# The last commit that holds both; the hub's xquad_r has no sentences.
SOURCE = (
    "https://raw.githubusercontent.com/google-research-datasets/lareqa/"
    "354d67d1cd066854cdfbf5ad0e6105528976141d/{dataset}/{language}.json"
)


def load(
    data_dir: str | Path | None,
    candidates: str = "sentence",
    dataset: str = "xquad-r",
    languages: Sequence[str] | None = None,
) -> EvalSet:
    """Read a folder, or what `datasets` downloads where it is None.

    XQuAD-R has 13,090 questions, 13,014 candidates and 11 golds a question. MLQA-R has 4,199 questions of
    1,148 ids, each in 2 to 4 of 7 languages, and 20,534 candidates: a question has golds in the languages
    that it was asked in, no others.

    Every sentence of every paragraph is a candidate, also where two have the same text. Its text is the
    sentence, or with `candidates` = "context" XTREME's: sentence and paragraph with nothing between them and
    without line breaks (arXiv 2003.11080). The gold in each language is the sentence whose break [start, end)
    holds the answer's start in the translation of the question, found by the question's id; with contexts,
    where equal sentences of a paragraph are one text, each of these. `languages` reads these alone.

    Raises FileNotFoundError for a missing folder or file, ValueError naming the file for broken content.
    """
    if candidates not in CANDIDATES:
        raise ValueError(f"candidates must be one of {', '.join(CANDIDATES)}, got {candidates!r}")
    name, known = DATASETS[dataset]
    unknown = [language for language in languages or () if language not in known]
    if unknown:
        raise ValueError(f"languages must be of {name}'s, {', '.join(known)}, got {unknown[0]!r}")
    paths = _files(name, dataset, [tag for tag in known if not languages or tag in languages], data_dir)
    queries: list[str] = []
    query_languages: list[str] = []
    items: list[str] = []
    passages: list[str] = []
    passage_languages: list[str] = []
    passage_ids: list[str] = []
    golds: defaultdict[str, list[int]] = defaultdict(list)  # of each item, ascending as passages are appended
    for language, path in paths.items():
        seen: set[str] = set()
        first = len(passages)
        for paragraph in _paragraphs(path):
            try:
                texts, paragraph_golds = _candidates(path, paragraph, candidates, seen)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: not in LAReQA's layout ({error!r})") from error
            for question, sentences in paragraph_golds:
                queries.append(question["question"])
                items.append(question["id"])
                golds[question["id"]] += [len(passages) + sentence for sentence in sentences]
            passages += texts
        query_languages += [language] * (len(queries) - len(query_languages))
        passage_languages += [language] * (len(passages) - len(passage_languages))
        passage_ids += [f"{language}-{row:05}" for row in range(len(passages) - first)]  # sorted as rows are
    return EvalSet(
        name=name,
        queries=queries,
        query_languages=query_languages,
        items=items,
        passages=passages,
        passage_languages=passage_languages,
        gold_indptr=np.cumsum([0] + [len(golds[item]) for item in items]),
        gold_indices=np.array([row for item in items for row in golds[item]], dtype=np.int64),
        passage_ids=passage_ids,
    )


def _files(name: str, dataset: str, languages: list[str], data_dir: str | Path | None) -> dict[str, Path]:
    if data_dir is None:
        addresses = {tag: SOURCE.format(dataset=dataset, language=tag) for tag in languages}
        return hub.files_at_addresses(name, addresses)
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} folder {folder} does not exist")
    missing = [language for language in languages if not (folder / f"{language}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name} folder {folder} lacks {', '.join(f'{name}.json' for name in missing)}"
        )
    return {language: folder / f"{language}.json" for language in languages}


def _paragraphs(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error
    try:
        return [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not in LAReQA's layout ({error!r})") from error


def _candidates(
    path: Path, paragraph: dict[str, Any], candidates: str, seen: set[str]
) -> tuple[list[str], list[tuple[dict[str, Any], list[int]]]]:
    """The candidates' texts, and each question with its golds among them."""
    sentences, breaks, context = paragraph["sentences"], paragraph["sentence_breaks"], paragraph["context"]
    if not isinstance(context, str) or not all(isinstance(sentence, str) for sentence in sentences):
        raise TypeError("context and sentences must be text")
    if len(sentences) != len(breaks):
        raise ValueError(
            f"{path}: {len(sentences)} sentences but {len(breaks)} sentence_breaks "
            f"in the paragraph {context[:40]!r}"
        )
    if not all(isinstance(pair, list) and [*map(type, pair)] == [int, int] for pair in breaks):
        raise TypeError("sentence_breaks must be pairs of integers")
    texts = [*sentences]
    if candidates == "context":
        texts = [(sentence + context).replace("\n", "") for sentence in sentences]
    golds = []
    for question in paragraph["qas"]:
        identifier, text, answers = question["id"], question["question"], question["answers"]
        if not isinstance(identifier, str) or not isinstance(text, str):
            raise TypeError(f"id and question must be text, got {identifier!r}, {text!r}")
        if identifier in seen:
            raise ValueError(f"{path}: question {identifier} appears twice")
        seen.add(identifier)
        if not answers:
            raise ValueError(f"{path}: question {identifier} has no answer")
        place = _sentence_at(answers[0]["answer_start"], breaks)
        if place is None:
            raise ValueError(f"{path}: the answer to question {identifier} is in no sentence")
        equal = [i for i, text in enumerate(texts) if text == texts[place]]
        golds.append((question, equal if candidates == "context" else [place]))
    return texts, golds


def _sentence_at(position: int, breaks: list[list[int]]) -> int | None:
    for i, (start, end) in enumerate(breaks):
        if start <= position < end:
            return i
    return None
