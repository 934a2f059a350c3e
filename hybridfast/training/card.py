"""The card of a trained model: README.md, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder.loading import TASKS, is_static, prompt_of, similarity
from hybridfast.evaluation.comparison import SUMMARY, Comparison
from hybridfast.evaluation.results import environment
from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from sentence_transformers import SentenceTransformer

__all__ = ["text"]

SOURCES = 8  # columns of the data's table; further sources are counted together
STRATEGIES = {
    "mono": "monolingual batches: query and passage of all pairs of a batch are in one language",
    "cross": "cross-lingual batches: query and passage of a pair are in different languages",
    "same": "batches of pairs whose query and passage are in one language, languages mixed in a batch",
    "hybrid": "hybrid batches: monolingual with probability alpha, cross-lingual otherwise",
}


def text(
    name: str,
    model: SentenceTransformer,
    config: TrainConfig,
    settings: Mapping[str, Any],
    corpus: ParallelCorpus,
    training: Mapping[str, Any],
    comparison: Comparison | None,
    evaluated_on: str | None,
) -> str:
    """The card as Markdown below its YAML.

    Args:
        name: of the run: mono, cross or hybrid, perhaps with its seed.
        settings: what ``train_config.yaml`` holds.
        corpus: what was trained on.
        training: figures, as :func:`hybridfast.training.loop.train` returns them.
        comparison: of this run and, perhaps, others, on the set that is named.
        evaluated_on: the set that they are of.
    """
    strategy = name.split("-seed")[0]
    title = f"{'Static encoder' if config.model == 'static' else Path(config.model).name}, {strategy} batches"
    head = _metadata(title, name, config, corpus, comparison, evaluated_on).to_yaml()
    return f"---\n{head}\n---\n\n" + "\n".join(
        [
            f"# {title}\n",
            f"A sentence-transformers model of {_kind(model)} for retrieval in and across "
            f"{_count(len(corpus.languages), 'language')}, trained with "
            "[hybrid batches](https://arxiv.org/abs/2408.10536) by hybridfast.\n",
            _use(model),
            _data(corpus, config),
            _training(strategy, config, training),
            _figures(training, comparison, evaluated_on),
            "## Settings\n",
            "Those that are not the defaults; `train_config.yaml` has all.\n",
            "```yaml",
            yaml.safe_dump(_own(settings), sort_keys=False, allow_unicode=True).strip(),
            "```\n",
            "## Versions\n",
            ", ".join(f"{what} {which}" for what, which in environment().items()) + "\n",
            "## Licence\n",
            config.license or "Not stated; that of the data and of the model it began with may bind it.",
            "",
        ]
    )


def _metadata(
    title: str,
    name: str,
    config: TrainConfig,
    corpus: ParallelCorpus,
    comparison: Comparison | None,
    evaluated_on: str | None,
) -> ModelCardData:
    """What the hub reads: languages as ISO 639 codes, names of the hub alone, numbers that are numbers."""
    from huggingface_hub import EvalResult, ModelCardData

    codes = dict.fromkeys(tag.split("-")[0].lower() for tag in corpus.languages)
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type="unknown",
            dataset_name=evaluated_on or "unknown",
            metric_type=re.sub("[^a-z0-9]+", "_", figure.lower()),
            metric_name=figure,
            metric_value=round(estimates[figure].value, 4),
        )
        for row, estimates in (comparison.estimates if comparison else {}).items()
        if row == name.split("-seed")[0]
        for figure in SUMMARY
        if not math.isnan(estimates[figure].value)
    ]
    return ModelCardData(
        language=[code for code in codes if re.fullmatch("[a-z]{2,3}", code)] or None,
        license=config.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "dense", "multilingual", "hybridfast"],
        base_model=config.model if _on_the_hub(config.model) else None,
        datasets=[config.data] if _on_the_hub(config.data) else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _on_the_hub(name: str) -> bool:
    """Whether a model or data set was read from there: a path is nobody else's business."""
    return "/" in name and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def _kind(model: SentenceTransformer) -> str:
    width, length = model.get_embedding_dimension(), model.max_seq_length
    if is_static(model):
        return f"{width} dimensions, the mean of a text's token embeddings,"
    return f"{width} dimensions, for texts up to {length} tokens," if length else f"{width} dimensions"


def _use(model: SentenceTransformer) -> str:
    query, passage = (prompt_of(model, task) for task in TASKS)
    prompts = (
        f"`encode_query` puts `{query!r}` before a text, `encode_document` `{passage!r}`; the model was "
        "trained so."
        if query or passage
        else "Texts have no prompts."
    )
    compared = {"cosine": "cosines", "dot": "inner products"}[similarity(model)]
    return f"""## How to use it

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH OR NAME")
queries = model.encode_query(["Where is the Louvre?"])
passages = model.encode_document(["Der Louvre steht in Paris.", "The Prado is in Madrid."])
print(model.similarity(queries, passages))
```

{prompts} Embeddings are compared by their {compared}.
"""


def _data(corpus: ParallelCorpus, config: TrainConfig) -> str:
    """Versions by language and source."""
    counts_LS = np.zeros((len(corpus.languages), len(corpus.sources)), np.int64)
    np.add.at(counts_LS, (corpus.language_V, corpus.source_V), 1)
    order_S = np.argsort(-counts_LS.sum(axis=0), kind="stable")
    shown_S, rest_S = order_S[:SOURCES], order_S[SOURCES:]
    columns = [corpus.sources[source].replace("|", "\\|") for source in shown_S]
    cells_LS = counts_LS[:, shown_S]
    if len(rest_S):
        columns.append(f"{len(rest_S)} others")
        cells_LS = np.column_stack([cells_LS, counts_LS[:, rest_S].sum(axis=1)])
    lines = [
        f"| language | {' | '.join(columns)} | all |",
        "| --- |" + " ---: |" * (len(columns) + 1),
        *(
            f"| {language} | {' | '.join(f'{count:,}' for count in cells)} | {cells.sum():,} |"
            for language, cells in zip(corpus.languages, cells_LS, strict=True)
        ),
        f"| all | {' | '.join(f'{count:,}' for count in cells_LS.sum(axis=0))} | {cells_LS.sum():,} |",
    ]
    used = "" if config.languages is None else f"; of these, {', '.join(config.languages)} were trained on"
    return (
        f"## Data\n\n{corpus.name}: {corpus.num_groups:,} groups of translations, pairs of a query and a "
        f"passage by language and source{used}:\n\n" + "\n".join(lines) + "\n"
    )


def _training(strategy: str, config: TrainConfig, training: Mapping[str, Any]) -> str:
    lines = [
        f"- {STRATEGIES[strategy]}",
        f"- alpha {_alpha(config)}, cross-lingual batches {config.cross}, seed {config.seed}",
        f"- {training['steps']:,} steps of {config.batch_size:,} pairs"
        + (f", {config.negatives} hard negatives a pair at most" if config.negatives else ""),
        f"- {_loss(config)}, temperature {training['temperature']}; loss of the last steps "
        f"{training['loss']:.4f}",
        *_distillation(config),
        f"- {training['seconds']:,.0f} s, {training['pairs_per_second']:,.0f} pairs/s",
    ]
    if "best_step" in training:
        lines.append(
            f"- the weights are of step {training['best_step']:,}, best in {config.metric_for_best_model}"
        )
    return "## Training\n\n" + "\n".join(lines) + "\n"


def _alpha(config: TrainConfig) -> str:
    alphas = config.alpha_schedule or [config.alpha]
    said = str(alphas[0]) if len(alphas) == 1 else f"from {' to '.join(map(str, alphas))} over the steps"
    return said + (", of the pairs in every batch" if config.mix == "rows" else "")


def _loss(config: TrainConfig) -> str:
    said = f"InfoNCE{' in both directions' if config.bidirectional else ''}"
    if config.positives == "group":
        said += " with the passage in a second language as another positive"
    if config.other_language_weight < 1:
        weight = config.other_language_weight
        said += f", negatives in another language than the positive's counted {weight:g} times"
    if config.consistency_weight:
        said += (
            f"; (1 - w) of it and w of the divergence of a query's and its translation's rankings, w "
            f"{config.consistency_weight:g}"
        )
    if config.alignment_weight:
        said += f"; plus {config.alignment_weight:g} times 1 - cosine of translations"
    return said


def _distillation(config: TrainConfig) -> list[str]:
    if config.teacher is None:
        return []
    name = config.teacher if _on_the_hub(config.teacher) else Path(config.teacher).name
    return [
        f"- distillation is {config.distillation_weight:g} of the loss: 1 - cosine to what {name} makes of "
        f"the texts in {config.teacher_language!r}"
        + (", through a linear layer that is not kept" if config.distillation_projection else "")
    ]


def _figures(training: Mapping[str, Any], comparison: Comparison | None, evaluated_on: str | None) -> str:
    parts = ["## Figures\n"]
    if comparison:
        parts.append(
            f"On {evaluated_on}; higher is better but for the rank distance, which is of language bias:\n"
        )
        parts.append(comparison.table() + "\n")
    if validation := training.get("validation"):
        figures = ", ".join(f"{name} {value:.3f}" for name, value in validation.items() if "@" not in name)
        parts.append(f"In validation: {figures}\n")
    if len(parts) == 1:
        parts.append("It was not evaluated.\n")
    return "\n".join(parts)


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model, the data, and what was not left as it is."""
    defaults = {setting.name: setting.default for setting in fields(TrainConfig)}
    return {
        name: value
        for name, value in settings.items()
        if name in ("model", "data", "alpha", "seed") or value != defaults[name]
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
