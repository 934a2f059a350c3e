"""Terms of the loss against their formulas in plain torch, written out with full matrices in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from hybridfast.data.sampler import Batch, HybridSampler
from hybridfast.infonce import consistency
from hybridfast.training import loop
from hybridfast.training.chunks import Chunks, Embedded
from hybridfast.training.config import TrainConfig
from hybridfast.training.objective import Objective
from hybridfast.training.project import batch_type, runs_of

B, M, D, LANGUAGES = 11, 7, 12, 3


def batch_of(seed: int = 0) -> Batch:
    """Rows 2 and 9 repeat each other; one hard negative is a passage of the batch."""
    generator = torch.Generator().manual_seed(seed)
    languages = torch.randint(0, LANGUAGES, (4, B), generator=generator)
    groups = torch.arange(100, 100 + B)
    mask_groups = groups.clone()
    mask_groups[9] = groups[2]
    rows = torch.randint(0, B, (M,), generator=generator).sort().values
    negative_groups = torch.full((M,), -1)
    negative_groups[3] = groups[5]
    return Batch(
        **{"epoch": 0, "index": 0, "mode": "cross", "groups": groups, "flagged": groups != mask_groups},
        **{"query_languages": languages[0], "passage_languages": languages[1], "mask_groups": mask_groups},
        **{"queries": None, "passages": None, "negatives": None},
        **{"negative_rows": rows, "negative_mask_groups": negative_groups},
        **{"second_query_languages": languages[2], "second_passage_languages": languages[3]},
    )


def embedded_of(dtype: torch.dtype = torch.float64, seed: int = 1) -> Embedded:
    """Queries near their passages, so that no softmax is flat or one-hot."""
    generator = torch.Generator().manual_seed(seed)
    passages = torch.randn(B + M, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, B, D, generator=generator, dtype=torch.float64)
    texts = [passages[:B] + noise[0], passages, passages[:B] + noise[1], passages[:B] + 0.5 * noise[2]]
    return Embedded(*((rows * 1.7).to(dtype).requires_grad_() for rows in texts))


def objective_of(cosine: bool = True, **settings: Any) -> Objective:
    return Objective(TrainConfig(batch_size=B, **settings), cosine=cosine, languages=LANGUAGES)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    return cosine_similarity(left[:, None], right[None], dim=2)


def gradients(value: Tensor, embedded: Embedded) -> list[Tensor]:
    grads = torch.autograd.grad(value, embedded, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, embedded, strict=True)]


def assert_same(got: Tensor, wanted: Tensor, embedded: Embedded, **tolerance: float) -> None:
    """Value and gradients; of some of the texts there has to be one."""
    torch.testing.assert_close(got, wanted, **tolerance)
    found, defined = gradients(got, embedded), gradients(wanted, embedded)
    assert any(grad.abs().max() > 1e-4 for grad in defined)
    for one, other in zip(found, defined, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def prefixes(embedded: Embedded, dims: list[int] | None) -> list[Embedded]:
    return [Embedded(*(rows[:, :dim] for rows in embedded)) for dim in dims or [D]]


def infonce(
    scores_QN: Tensor, positive_QN: Tensor, negative_QN: Tensor, weight_QN: Tensor | None = None
) -> Tensor:
    """-log of a positive's share among it and the negatives; the mean over positives, then over queries."""
    weights_QN = negative_QN.double() if weight_QN is None else negative_QN * weight_QN
    sums_Q1 = (weights_QN * scores_QN.exp()).sum(1, keepdim=True)
    costs_QN = -(scores_QN.exp() / (scores_QN.exp() + sums_Q1)).log()
    return ((costs_QN * positive_QN).sum(1) / positive_QN.sum(1)).mean()


DIMS = [None, [D, 5]]


# --- consistency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", DIMS)
def test_consistency_is_the_divergence_of_two_rankings(dims, monkeypatch) -> None:
    """KL(P_b || P_a) is torch's kl_div of log P_a from log P_b. In tiles of two rows."""
    monkeypatch.setattr(consistency, "TILE", 2 * (B + M) + 1)
    embedded = embedded_of()
    wanted = torch.stack(
        [
            kl_div(
                log_softmax(cosines(part.queries, part.passages), 1),
                log_softmax(cosines(part.second_queries, part.passages), 1),
                reduction="batchmean",
                log_target=True,
            )
            for part in prefixes(embedded, dims)
        ]
    ).mean()
    objective = objective_of(consistency_weight=0.5, matryoshka_dims=dims)
    assert_same(objective.consistency(embedded, batch_of()), wanted, embedded, rtol=1e-9, atol=1e-12)


def test_consistency_has_the_gradients_of_its_value(monkeypatch) -> None:
    monkeypatch.setattr(consistency, "TILE", 50)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (5, 5, 17)]
    for rows in inputs:
        rows.requires_grad_()
    assert torch.autograd.gradcheck(consistency.divergence, inputs)
    frozen = [rows.detach() for rows in inputs[:2]]
    assert torch.autograd.gradcheck(lambda rows: consistency.divergence(*frozen, rows), inputs[2:])
    alike = consistency.divergence(inputs[0], inputs[0], inputs[2])
    assert alike.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_consistency_of_narrow_types_is_found_in_float32(dtype) -> None:
    embedded = embedded_of(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = objective_of(consistency_weight=0.5).consistency(embedded, batch_of())
    wide = Embedded(*(rows.detach().double().requires_grad_() for rows in embedded))
    wanted = objective_of(consistency_weight=0.5).consistency(wide, batch_of())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-7)
    for one, other in zip(gradients(got, embedded), gradients(wanted, wide), strict=True):
        scale = 1e-6 if dtype == torch.float32 else 1e-2
        assert (one.double() - other).norm() <= scale * max(other.norm(), 1e-3)


def test_consistency_never_holds_all_scores(monkeypatch) -> None:
    """Of 256 queries and 512 passages, in both passes no tensor is larger than a tile or the embeddings."""
    monkeypatch.setattr(consistency, "TILE", 4096)
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            got = function(*args, **(kwargs or {}))
            if isinstance(got, Tensor):
                largest[0] = max(largest[0], got.numel())
            return got

    inputs = [torch.randn(rows, 8, requires_grad=True) for rows in (256, 256, 512)]
    with Sizes():
        consistency.divergence(*inputs).backward()
    assert largest[0] == 4096  # a tile; the passages have as many
    assert all(rows.grad is not None for rows in inputs)


# --- alignment and positives -------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", DIMS)
def test_alignment_is_what_cosines_of_translations_lack(dims) -> None:
    embedded = embedded_of()
    wanted = torch.stack(
        [
            1
            - cosine_similarity(part.queries, part.second_queries).mean() / 2
            - cosine_similarity(part.passages[:B], part.second_passages).mean() / 2
            for part in prefixes(embedded, dims)
        ]
    ).mean()
    objective = objective_of(alignment_weight=0.5, matryoshka_dims=dims)
    assert_same(objective.alignment(embedded, batch_of()), wanted, embedded)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("dims", DIMS)
def test_all_passages_of_a_group_are_positives(in_batch, dims) -> None:
    """Those of the rows it repeats and the hard negative that is one of them, too."""
    embedded, batch = embedded_of(), batch_of()
    groups_N = torch.cat([batch.mask_groups, batch.negative_mask_groups, batch.mask_groups])
    positive_QN = batch.mask_groups[:, None] == groups_N
    assert sorted(positive_QN.sum(1).tolist()) == [2] * 8 + [3] + [4] * 2
    negative_QN = ~positive_QN if in_batch else ~positive_QN & ~positive_QN.any(0)
    wanted = torch.stack(
        [
            infonce(
                cosines(part.queries, torch.cat([part.passages, part.second_passages])) / 0.05,
                positive_QN,
                negative_QN,
            )
            for part in prefixes(embedded, dims)
        ]
    ).mean()
    objective = objective_of(positives="group", in_batch=in_batch, negatives=1, matryoshka_dims=dims)
    assert_same(objective.infonce(embedded, batch), wanted, embedded)


# --- negatives in other languages --------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1e-3, 0.3, 1.0])
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("cosine", "in_batch"), [(True, True), (False, True), (True, False)])
def test_negatives_in_other_languages_count_by_their_weight(weight, dims, cosine, in_batch) -> None:
    embedded, batch = embedded_of(), batch_of()
    groups_N = torch.cat([batch.mask_groups, batch.negative_mask_groups])
    languages_N = torch.cat([batch.passage_languages, batch.passage_languages[batch.negative_rows]])
    positive_QN = torch.arange(B)[:, None] == torch.arange(B + M)
    negative_QN = batch.mask_groups[:, None] != groups_N
    if not in_batch:
        negative_QN[:, :B] = False
    weight_QN = torch.where(batch.passage_languages[:, None] == languages_N, 1.0, weight).double()
    wanted = torch.stack(
        [
            infonce(
                cosines(part.queries, part.passages) / 0.07
                if cosine
                else part.queries @ part.passages.T / 9.0,
                positive_QN,
                negative_QN,
                weight_QN,
            )
            for part in prefixes(embedded, dims)
        ]
    ).mean()
    settings = {"temperature": 0.07 if cosine else 9.0, "in_batch": in_batch, "negatives": 1}
    objective = objective_of(cosine, other_language_weight=weight, matryoshka_dims=dims, **settings)
    assert_same(objective.infonce(embedded, batch), wanted, embedded)


def test_weight_0_is_exact_in_float32_too() -> None:
    """Against the same loss with each language's rows by themselves, for which it is InfoNCE as ever."""
    batch = replace(batch_of(), negative_rows=None, negative_mask_groups=None)
    whole = embedded_of(torch.float32)
    embedded = Embedded(whole.queries, whole.passages[:B])
    got = objective_of(other_language_weight=0.0).infonce(embedded, batch)
    parts = []
    for language in range(LANGUAGES):
        rows = (batch.passage_languages == language).nonzero()[:, 0]
        groups = batch.mask_groups[rows]
        parts.append(
            len(rows)
            * objective_of().loss_of(embedded.queries[rows], embedded.passages[rows], groups, groups)
        )
    torch.testing.assert_close(got, torch.stack(parts).sum() / B, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"other_language_weight": 1.5}, r"other_language_weight must be in \[0, 1\], got 1.5"),
        ({"consistency_weight": 1.0}, r"consistency_weight must be in \[0, 1\), got 1.0"),
        ({"alignment_weight": -0.1}, "alignment_weight must be >= 0, got -0.1"),
        ({"alpha_schedule": [0.5, 2]}, r"alpha_schedule must be one or more numbers in \[0, 1\], got"),
        ({"alpha_schedule": []}, r"alpha_schedule must be one or more numbers in \[0, 1\], got \[\]"),
        ({"mix": "rows", "cross": "paired"}, "mix rows needs cross mixed, got paired"),
        (
            {"other_language_weight": 0.5, "bidirectional": True},
            "other_language_weight 0.5 and bidirectional exclude each other",
        ),
        (
            {"other_language_weight": 0.5, "positives": "group"},
            "other_language_weight 0.5 and positives group exclude each other",
        ),
        (
            {"other_language_weight": 0.5, "negatives": 1, "mine_steps": 5},
            "other_language_weight 0.5 and mine_scope all exclude each other",
        ),
    ],
)
def test_bad_settings_are_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_seconds_need_another_language(tokens) -> None:
    for settings, name in (
        ({"consistency_weight": 0.5}, "consistency_weight 0.5"),
        ({"alignment_weight": 2.0}, "alignment_weight 2.0"),
        ({"positives": "group"}, "positives group"),
    ):
        with pytest.raises(ValueError, match=f"{name} needs two or more languages, got .'de'"):
            loop.make_sampler(tokens, TrainConfig(batch_size=8, alpha=1.0, languages=["de"], **settings))


# --- together ----------------------------------------------------------------------------------------------


def test_terms_are_weighted_and_named() -> None:
    embedded, batch = embedded_of(), batch_of()
    settings = {"consistency_weight": 0.3, "alignment_weight": 0.7}
    loss, terms = objective_of(**settings)(embedded, batch)
    infonce_alone, none = objective_of()(embedded, batch)
    assert none == {}
    assert terms["infonce"].item() == infonce_alone.item()
    wanted = 0.7 * infonce_alone + 0.3 * terms["consistency"] + 0.7 * terms["alignment"]
    assert [*terms] == ["infonce", "consistency", "alignment"]
    assert_same(loss, wanted, embedded)


def test_the_log_has_the_mean_of_every_term(model, tokens, tmp_path: Path, monkeypatch) -> None:
    seen: list[dict[str, float]] = []
    call = Objective.__call__

    def noted(self: Objective, *args: Any) -> Any:
        loss, terms = call(self, *args)
        seen.append({"loss": loss.item()} | {f"loss/{name}": term.item() for name, term in terms.items()})
        return loss, terms

    monkeypatch.setattr(Objective, "__call__", noted)
    settings = {"consistency_weight": 0.3, "alignment_weight": 0.1, "positives": "group", "cross": "same"}
    config = TrainConfig(batch_size=8, max_steps=6, logging_steps=3, **settings)
    loop.train(model, tokens, config, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    modes = {name for line in lines for name in line if name in ("loss/mono", "loss/cross", "loss/same")}
    assert modes == {"loss/mono", "loss/same"}
    for line, steps in zip(lines, (seen[:3], seen[3:]), strict=True):
        for name in ("loss", "loss/infonce", "loss/consistency", "loss/alignment"):
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / 3, rel=1e-6)


def test_second_texts_are_embedded_with_the_others(model, tokens) -> None:
    """Without dropout, alone or among others; with it, the others' masks are those without seconds."""
    sampler = HybridSampler(tokens, 8, layout="flat", second="both")
    batch, without = sampler[0, 0], HybridSampler(tokens, 8, layout="flat")[0, 0]
    sides = loop.embedding.sides(model, tokens)
    model.eval()
    found = Chunks(model, sides, 60).embed(batch)
    swapped = replace(without, queries=batch.second_queries, passages=batch.second_passages)
    alone = Chunks(model, sides).embed(swapped)
    torch.testing.assert_close(found.second_queries, alone.queries)
    torch.testing.assert_close(found.second_passages, alone.passages)
    model.train()
    with_dropout = Chunks(model, sides).embed(batch, 3)
    plain = Chunks(model, sides).embed(without, 3)
    assert plain.second_queries is plain.second_passages is None
    torch.testing.assert_close(with_dropout.queries, plain.queries)
    torch.testing.assert_close(with_dropout.passages, plain.passages)
    assert not torch.allclose(plain.queries, found.queries, atol=1e-3)


@pytest.mark.parametrize("length", [{"max_steps": 41}, {"num_train_epochs": 5.0}])
def test_alphas_go_from_the_first_step_to_the_last(tokens, length) -> None:
    """0 1 0: the middle step is monolingual, the first and the last are not."""
    config = TrainConfig(batch_size=8, alpha_schedule=[0, 1, 0], num_workers=0, **length)
    with loop.make_sampler(tokens, config) as sampler:
        steps = loop.steps_of(config, sampler)
        epochs = -(-steps // len(sampler))
        alphas = [alpha for epoch in range(epochs) for alpha in sampler._alphas(epoch)][:steps]
    middle = (steps - 1) / 2
    assert alphas == pytest.approx([1 - abs(step - middle) / middle for step in range(steps)])
    with loop.make_sampler(tokens, replace(config, alpha_schedule=[0.25])) as sampler:
        assert sampler.alpha == 0.25


def test_runs_are_named_by_their_batches() -> None:
    """And compared to the two kinds by themselves, whatever mixes them."""
    for settings, name in (
        ({"alpha": 1.0}, "mono"),
        ({"alpha": 0.0}, "cross"),
        ({"alpha": 0.0, "cross": "same"}, "same"),
        ({"alpha": 1.0, "mix": "rows"}, "same"),
        ({"alpha": 0.4, "cross": "same"}, "hybrid"),
        ({"alpha": 1.0, "alpha_schedule": [0.0, 1.0]}, "hybrid"),
        ({"alpha_schedule": [0.0, 0.0]}, "cross"),
    ):
        assert batch_type(TrainConfig(**settings)) == name
    config = TrainConfig(compare=True, alpha_schedule=[1, 0], mix="rows", alignment_weight=0.5)
    runs = dict(runs_of(config))
    assert [*runs] == ["mono", "cross", "hybrid"]
    assert runs["hybrid"] == config
    for name, alpha in (("mono", 1.0), ("cross", 0.0)):
        assert runs[name] == replace(config, alpha=alpha, alpha_schedule=None, mix="batches")
