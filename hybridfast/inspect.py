"""What is in the data, before anything is trained on it: coverage, lengths, duplicates, evaluation texts.

    python -m hybridfast.inspect pairs.jsonl
    python -m hybridfast.inspect pairs.jsonl --batch_size 1024 --model intfloat/multilingual-e5-base
    python -m hybridfast.inspect pairs.jsonl --model e5/ --max_passage_length 96 --output_file pairs.json
    python -m hybridfast.inspect pairs.jsonl --against xquad-r=data/xquad-r mlqa-r=data/mlqa-r held_out.jsonl

DATA is what --data of hybridfast.train takes, and is read as there. Shown are: rows, groups and sources by
language, missing translations, groups that two languages have in common, and what cannot fill a batch; how
long texts are, with a model in its tokens, with what it cuts off and the lengths that would keep 99 %; texts
that are equal within an item, between items (in a batch, negatives that are answers) and between sources;
and, with --against, texts that also occur in an evaluation set, as they are or but for case, blanks and
punctuation. At the end stands what should worry you. All of it is about the rows that training reads: those
whose split is dev or test are counted, and compared with the others.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hybridfast import cli
from hybridfast.data import cldr
from hybridfast.data.columns import language_tag
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.inspection import coverage, duplicates, lengths, overlap, report
from hybridfast.training.project import PROMPTS

__all__ = ["InspectConfig", "main"]


@dataclass
class InspectConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.inspect``."""

    SECTIONS = ModelSettings.SECTIONS | {"data": "data and output", "batch_size": "what is looked at"}

    model: str | None = setting(  # type: ignore[assignment]
        None,
        "Count tokens as this SentenceTransformer or transformers encoder reads them: a folder or a hub "
        "name. Default: characters alone.",
    )
    data: str = setting(
        "cldr",
        "The same as DATA. cldr: the embedded corpus. Or a file of JSON lines, CSV, TSV or Parquet, a folder "
        "of them, or a hub name, with columns id, lang, query, passage[, source][, split].",
    )
    data_config: str | None = setting(None, "Configuration of a data set on the hub.")
    data_split: str = setting("train", "Split of a data set on the hub.")
    language: str | None = setting(None, "Language of all rows, for data without a lang column.")
    languages: list[str] | None = setting(
        None, "Look at these languages only, such as ar de en. Default: all."
    )
    output_file: str | None = setting(None, "New file for all of the numbers, as JSON.")

    batch_size: int = setting(512, "Pairs in a batch, each of another item: who cannot fill one is told.")
    sample: int = setting(
        100_000, "Count the tokens of about so many rows: groups evenly spread over the data. 0: all."
    )
    against: list[str] | None = setting(
        None,
        "Evaluation sets whose texts should not be trained on: xquad-r, mlqa-r, miracl, beir, cldr, each "
        "with =FOLDER or else from the hub, or files or folders of rows, or folders like BEIR's.",
    )

    def __post_init__(self) -> None:
        if self.model is not None:
            super().__post_init__()
        else:
            for of_model in fields(ModelSettings):
                if (value := getattr(self, of_model.name)) not in (None, False) and of_model.name != "model":
                    raise ValueError(f"{of_model.name} {value} needs model")
        if self.model == "static":
            raise ValueError("model static learns its vocabulary in training; give a folder or a hub name")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, got {self.batch_size}")
        if self.sample < 0:
            raise ValueError(f"sample must be >= 0, got {self.sample}")


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    argv = _named(sys.argv[1:] if argv is None else argv)
    config = cli.parse(InspectConfig, "python -m hybridfast.inspect [DATA]", __doc__ or "", argv)
    with cli.usage_errors():
        output = None if config.output_file is None else _output(config.output_file)
        found = inspect(config)
        print(report.text(found))
        if output:
            _write(output, found)
            print(f"\nNumbers: {output}")


def _named(argv: list[str]) -> list[str]:
    """The data as a flag, where it stands alone in front."""
    if not argv or argv[0].startswith("-") or argv[0].endswith((".yaml", ".yml")):
        return argv
    data, *rest = argv
    settings = int(bool(rest) and rest[0].endswith((".yaml", ".yml")))
    return [*rest[:settings], "--data", data, *rest[settings:]]


def inspect(config: InspectConfig) -> dict[str, Any]:
    """All that the command shows, as numbers."""
    everything = _corpus(config)
    model = config.load(PROMPTS) if config.model is not None else None
    sets = [overlap.read(named, everything.languages) for named in config.against or ()]
    corpus = everything
    counts = coverage.splits(everything)
    if held_out := counts["dev"] + counts["test"]:
        if not counts["train"]:
            raise ValueError(f"{everything.name}: the split of all rows is dev or test: none is trained on")
        train_V = everything.in_split("train")
        corpus = everything.where(train_V)
        name = f"{everything.name}, {held_out:,} rows whose split is dev or test"
        sets.append(overlap.held_rows(everything.where(~train_V), name))
    covered = coverage.coverage(corpus)
    found = {
        "name": everything.name,
        "settings": asdict(config),
        "splits": counts,
        "coverage": covered,
        "batches": coverage.batches(covered, config.batch_size),
        "characters": lengths.characters(corpus),
        "tokens": lengths.tokens(model, corpus, config.sample or len(corpus)) if model else None,
        "duplicates": duplicates.duplicates(corpus) | duplicates.unlike_texts(corpus),
        "against": overlap.overlap(corpus, sets) if sets else [],
    }
    return found | {"notes": report.notes(found)}


def _corpus(config: InspectConfig) -> ParallelCorpus:
    if config.data == "cldr":
        corpus = ParallelCorpus.from_rows(cldr.training_rows(), name="cldr")
    else:
        corpus = ParallelCorpus.load(
            config.data, config=config.data_config, split=config.data_split, language=config.language
        )
    if not config.languages:
        return corpus
    tags = [language_tag(tag) for tag in config.languages]
    if unknown := [tag for tag in tags if tag not in corpus.languages]:
        raise ValueError(f"languages must be some of {', '.join(corpus.languages)}, got {unknown[0]}")
    return corpus.where(np.isin(corpus.language_V, [corpus.languages.index(tag) for tag in tags]))


def _output(name: str) -> Path:
    """The path, if a file may be written there."""
    path = Path(name)
    if path.exists():
        raise FileExistsError(f"output_file {path} exists; name another one")
    above = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OSError(f"output_file {path} cannot be made: {above} is no folder to write in")
    return path


def _write(path: Path, found: dict[str, Any]) -> None:
    """The file, which is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as unfinished:
        written = Path(unfinished, path.name)
        written.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(written, path)


if __name__ == "__main__":
    main()
