"""Mine hard negatives: passages that a model takes for answers and that are none, added to the rows.

    python -m hybridfast.mine --model runs/hybrid-1 --data pairs.jsonl --output_file mined.jsonl
    python -m hybridfast.mine --model intfloat/multilingual-e5-base --data pairs.jsonl \\
        --query_prefix "query: " --passage_prefix "passage: " --scope other \\
        --relative_margin 0.05 --num_negatives 7 --output_file mined.parquet
    python -m hybridfast.train --data mined.jsonl --negatives 3

The search over the corpus's passages is exact. No passage of a query's item, in any language, is a negative
of it, nor is an equal text or what answers an equal query. Where the command is interrupted, the same one
goes on: embeddings and what was found are kept in the cache. Flags that sentence-transformers'
mine_hard_negatives has mean what they mean there.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from hybridfast import cli
from hybridfast.data import cldr
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding
from hybridfast.encoder.loading import ModelSettings, setting
from hybridfast.mining.mine import Mined, MiningSettings, mine
from hybridfast.mining.writing import FORMATS, draw_histogram, histogram, write_rows

__all__ = ["MineConfig", "main"]


@dataclass
class MineConfig(ModelSettings):
    """Every setting of ``python -m hybridfast.mine``."""

    SECTIONS = ModelSettings.SECTIONS | {
        "data": "data and output",
        "num_negatives": "what is a hard negative",
    }

    model: str = field(
        metadata={"help": "SentenceTransformer or transformers encoder: a folder or a hub name. Required."}
    )
    data: str = setting(
        "cldr",
        "cldr: the embedded corpus. Or a file of JSON lines, CSV, TSV or Parquet, a folder of them, or a hub "
        "name, with columns id, lang, query, passage[, source].",
    )
    data_config: str | None = setting(None, "Configuration of a data set on the hub.")
    data_split: str = setting("train", "Split of a data set on the hub.")
    language: str | None = setting(None, "Language of all rows, for data without a lang column.")
    output_file: str | None = setting(
        None,
        "New file, .jsonl or .parquet; a histogram of scores goes beside it, as .png. Default: the next free "
        "runs/mined-1.jsonl, -2, ...",
    )
    cache_dir: str | None = setting(
        None,
        "Where tokens, embeddings and what was found are kept. Default: $HYBRIDFAST_CACHE or "
        "~/.cache/hybridfast.",
    )

    num_negatives: int = setting(3, "Hard negatives of a row at most.")
    scope: Literal["all", "same", "other"] = setting(
        "all", "Where negatives come from: passages in the query's language (same), in others, or in all."
    )
    range_min: int = setting(0, "Skip so many of the best candidates: they may be answers nobody marked.")
    range_max: int | None = setting(
        None,
        "Look at so many of the best candidates. Default: range_min + num_negatives, with a margin "
        "range_min + 10 * num_negatives, plus the most passages that a query has.",
    )
    absolute_margin: float | None = setting(
        None, "A negative scores at least this much less than the positive."
    )
    relative_margin: float | None = setting(
        None, "A negative scores less than the positive by at least this share of the positive's score."
    )
    sampling_strategy: Literal["top", "random"] = setting(
        "top", "Take the best of the candidates that are left, or any of them."
    )
    seed: int = setting(0, "Decides what random takes.")
    index: str | None = setting(
        None,
        "Search a faiss index, such as HNSW32 or IVF1024,Flat, instead of all passages; how much of the "
        "exact result it finds is reported.",
    )
    tokens_per_chunk: int | None = setting(
        None, "Tokens, padding counted, encoded at once. Default: 2048 on a CPU, 32768 on a GPU."
    )

    @property
    def mining(self) -> MiningSettings:
        """What is a hard negative."""
        return MiningSettings(
            num_negatives=self.num_negatives,
            scope=self.scope,
            range_min=self.range_min,
            range_max=self.range_max,
            absolute_margin=self.absolute_margin,
            relative_margin=self.relative_margin,
            sampling_strategy=self.sampling_strategy,
            seed=self.seed,
            index=self.index,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.mining  # which checks its settings
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.tokens_per_chunk is not None and self.tokens_per_chunk < 1:
            raise ValueError(f"tokens_per_chunk must be >= 1, got {self.tokens_per_chunk}")


def main(argv: list[str] | None = None) -> None:
    """The command: see the module's text."""
    config = cli.parse(MineConfig, "python -m hybridfast.mine", __doc__ or "", argv)
    with cli.usage_errors():
        output = _output(config.output_file)
        corpus = _corpus(config)
        print(corpus)
        model = config.load()
        home = Path.home() / ".cache" / "hybridfast"
        cache = config.cache_dir or os.environ.get("HYBRIDFAST_CACHE") or home
        tokens = embedding.tokenize(model, corpus, cache_dir=cache)
        mined = mine(model, tokens, config.mining, folder=cache, tokens_per_chunk=config.tokens_per_chunk)
        picture = _write(output, corpus, mined)
    print(f"\n{histogram(mined)}")
    if mined.recall is not None:
        print(f"Index {config.index}: {mined.recall:.1%} of what the exact search finds for some queries")
    print(
        f"\nRows: {output}  (python -m hybridfast.train --data {output} --negatives {config.num_negatives})"
    )
    print(f"Picture of the scores: {picture}")
    print(f"Kept for the next time: {mined.folder}")


def _output(name: str | None) -> Path:
    """The path, if a file may be written there."""
    free = (path for n in count(1) if not (path := Path("runs", f"mined-{n}.jsonl")).exists())
    path = Path(name) if name else next(free)
    if path.suffix not in FORMATS:
        raise ValueError(f"output_file must end in {' or '.join(FORMATS)}, got {path}")
    for file in (path, path.with_suffix(".png")):
        if file.exists():
            raise FileExistsError(f"output_file {path}: {file} exists; name another one")
    above = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OSError(f"output_file {path} cannot be made: {above} is no folder to write in")
    return path


def _corpus(config: MineConfig) -> ParallelCorpus:
    if config.data == "cldr":
        return ParallelCorpus.from_rows(cldr.training_rows(), name="cldr")
    return ParallelCorpus.load(
        config.data, config=config.data_config, split=config.data_split, language=config.language
    )


def _write(path: Path, corpus: ParallelCorpus, mined: Mined) -> Path:
    """Both files, of which none is ever there in part; returns the picture's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix(".png")
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as unfinished:
        rows, drawn = Path(unfinished, path.name), Path(unfinished, picture.name)
        write_rows(rows, corpus, mined)
        draw_histogram(mined, f"{corpus.name}: scores of positives and of mined negatives", drawn)
        os.replace(drawn, picture)
        os.replace(rows, path)
    return picture


if __name__ == "__main__":
    main()
