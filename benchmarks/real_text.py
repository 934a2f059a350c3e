"""Turn parallel news (NTREX-128), how-to pages (tldr) and LibreOffice's help into rows for hybridfast.

    python benchmarks/real_text.py DATA_DIR pairs/
    python benchmarks/real_text.py DATA_DIR pairs/ --sources lohelp ntrex --leave_out el vi
    python benchmarks/real_text.py DATA_DIR news/ --sources ntrex --sentences 600 --leave_out el vi

DATA_DIR holds ntrex/{ar,de,...}.txt, line-aligned, tldr/{ar,de,...}.jsonl with id, title, description and
examples, and lohelp/{ar,de,...}.jsonl with rows. Writes pairs/SOURCE.jsonl, which
``python -m hybridfast.train --data pairs/`` reads as so many sources; cldr is the embedded corpus.

A sentence is answered by itself: the query is a few of its words in a row (the inverse cloze task of Lee et
al., 2019), in whatever language; so a cross-lingual pair asks for the translation. NTREX is a translation
benchmark: a model trained on it must not be evaluated on it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from hybridfast.data import cldr

FRAGMENTS = 3  # queries made of each sentence, each an item of its own
UNSPACED = ("th", "zh")  # languages whose words stand together: fragments are cut by characters

Row = dict[str, str]


def ntrex_rows(folder: Path, sentences: int | None = None) -> Iterator[Row]:
    """Fragments of every sentence, which is their passage; of the first `sentences`, one each."""
    for path in sorted(folder.glob("??.txt")):
        language = path.stem
        for number, sentence in enumerate(path.read_text(encoding="utf-8").splitlines()[:sentences]):
            if not sentence.strip():
                continue
            for fragment in range(1 if sentences else FRAGMENTS):
                item = f"ntrex-{number}-{fragment}"
                query = cut(sentence, language, random.Random(f"{item}-{language}"))
                yield {"id": item, "lang": language, "query": query, "passage": sentence}


def tldr_rows(folder: Path) -> Iterator[Row]:
    """Every page's title with the first sentence about it asks for the page's text."""
    for path in sorted(folder.glob("??.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            page = json.loads(line)
            text = " ".join([page["description"], *(what for what, _ in page["examples"])])
            query = f"{page['title']}: {page['description'].split('. ')[0]}"
            yield {"id": f"tldr-{page['id']}", "lang": path.stem, "query": query, "passage": text}


def help_rows(folder: Path) -> Iterator[Row]:
    """A heading or a term asks for what explains it; the rows are such already, and say which are for dev."""
    for path in sorted(folder.glob("??.jsonl")):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def cut(sentence: str, language: str, rng: random.Random) -> str:
    """30 to 60 % of a sentence's words, in a row."""
    joint = "" if language in UNSPACED else " "
    words = list(sentence) if language in UNSPACED else sentence.split()
    length = max(1, int(len(words) * rng.uniform(0.3, 0.6)))
    start = rng.randint(0, len(words) - length)
    return joint.join(words[start : start + length]).strip() or sentence


SOURCES: dict[str, Callable[[Path], Iterable[Row]]] = {
    "ntrex": ntrex_rows,
    "tldr": tldr_rows,
    "lohelp": help_rows,
    "cldr": lambda _: cldr.training_rows(),
}


def main() -> None:
    """The command: see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["ntrex", "tldr", "cldr"])
    parser.add_argument("--leave_out", nargs="+", default=[], help="languages that are not to be seen")
    parser.add_argument("--sentences", type=int, help="of the news, so many alone, each with one fragment")
    arguments = parser.parse_args()
    sources = SOURCES | {"ntrex": partial(ntrex_rows, sentences=arguments.sentences)}
    arguments.output_dir.mkdir(parents=True)
    for name in arguments.sources:
        with open(arguments.output_dir / f"{name}.jsonl", "w", encoding="utf-8") as file:
            count = 0
            for row in sources[name](arguments.data_dir / name):
                if row["lang"] in arguments.leave_out:
                    continue
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        print(f"{name}: {count:,} rows")


if __name__ == "__main__":
    main()
