"""XQuAD-R (LAReQA, arXiv 2004.05484): questions in eleven languages, answered by sentences in all of them.

The folder holds one SQuAD file per language, ``ar.json`` to ``zh.json``, whose paragraphs also carry
``sentences`` and ``sentence_breaks``: https://github.com/google-research-datasets/lareqa. For evaluation,
never for training.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hybridfast.evaluation.evalset import EvalSet

__all__ = ["CANDIDATES", "LANGUAGES", "load"]

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
CANDIDATES = ("sentence", "context")


def load(data_dir: str | Path, candidates: str = "sentence") -> EvalSet:
    """Read the eleven files under `data_dir`: 13,090 questions, 13,014 candidates, 11 golds a question.

    Every sentence of every paragraph is a candidate, also where two have the same text. Its text is the
    sentence, or with `candidates` = "context" the sentence, a space and its paragraph (XTREME's choice). The
    gold in each language is the sentence whose break [start, end) holds the answer's start in the translation
    of the question, found by the question's id.

    Raises FileNotFoundError for a missing folder or file, ValueError naming the file for broken content.
    """
    if candidates not in CANDIDATES:
        raise ValueError(f"candidates must be one of {', '.join(CANDIDATES)}, got {candidates!r}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"XQuAD-R folder {folder} does not exist")
    missing = [language for language in LANGUAGES if not (folder / f"{language}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"XQuAD-R folder {folder} lacks {', '.join(f'{name}.json' for name in missing)}"
        )

    queries: list[str] = []
    query_languages: list[str] = []
    items: list[str] = []
    passages: list[str] = []
    passage_languages: list[str] = []
    golds: defaultdict[str, list[int]] = defaultdict(list)  # of each item, ascending as passages are appended
    for language in LANGUAGES:
        seen: set[str] = set()
        path = folder / f"{language}.json"
        for paragraph in _paragraphs(path):
            try:
                sentences, breaks = paragraph["sentences"], paragraph["sentence_breaks"]
                if len(sentences) != len(breaks):
                    raise ValueError(
                        f"{path}: {len(sentences)} sentences but {len(breaks)} sentence_breaks "
                        f"in the paragraph {paragraph['context'][:40]!r}"
                    )
                for question in paragraph["qas"]:
                    if question["id"] in seen:
                        raise ValueError(f"{path}: question {question['id']} appears twice")
                    seen.add(question["id"])
                    if not question["answers"]:
                        raise ValueError(f"{path}: question {question['id']} has no answer")
                    sentence = _sentence_at(question["answers"][0]["answer_start"], breaks)
                    if sentence is None:
                        raise ValueError(f"{path}: the answer to question {question['id']} is in no sentence")
                    queries.append(question["question"])
                    items.append(question["id"])
                    golds[question["id"]].append(len(passages) + sentence)
                context = f" {paragraph['context']}" if candidates == "context" else ""
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{path}: not in XQuAD-R's layout ({error!r})") from error
            passages += [sentence + context for sentence in sentences]
        query_languages += [language] * (len(queries) - len(query_languages))
        passage_languages += [language] * (len(passages) - len(passage_languages))

    return EvalSet(
        name="XQuAD-R",
        queries=queries,
        query_languages=query_languages,
        items=items,
        passages=passages,
        passage_languages=passage_languages,
        gold_indptr=np.cumsum([0] + [len(golds[item]) for item in items]),
        gold_indices=np.array([row for item in items for row in golds[item]], dtype=np.int64),
    )


def _paragraphs(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error
    try:
        return [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not in XQuAD-R's layout ({error!r})") from error


def _sentence_at(position: int, breaks: list[list[int]]) -> int | None:
    return next((i for i, (start, end) in enumerate(breaks) if start <= position < end), None)
