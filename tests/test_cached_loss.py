"""InfoNCELoss with gradient caching and several ranks' negatives, against sentence-transformers' losses."""

from __future__ import annotations

import copy

import pytest
import torch
from encoder import model_kinds
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from hybridfast.encoder.feature_chunks import taken
from hybridfast.infonce import distributed
from hybridfast.sentence_transformers import InfoNCELoss

COLUMNS = ("query", "passage", "negative_1")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    model_kinds.FOLDER = str(tmp_path_factory.mktemp("models"))
    return lambda dropout=0.0, **options: model_kinds.sentence(
        model_kinds.transformer(
            "Bert",
            **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
            **model_kinds.SIZE,
        ),
        **options,
    )


def features_of(model, rows=model_kinds.ROWS, **options):
    return [model.preprocess([row[name] for row in rows], **options) for name in COLUMNS]


def gradients(loss, model, features, labels=None, seed=0):
    """The loss's value and the gradients of all weights, of a copy of the features."""
    model.zero_grad()
    torch.manual_seed(seed)
    value = loss(copy.deepcopy(features), labels)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def close(got, wanted):
    assert got[0] == pytest.approx(wanted[0], rel=1e-5)
    assert (got[1] - wanted[1]).norm() <= 1e-4 * wanted[1].norm()


@pytest.mark.parametrize("tokens", [60, 10_000])  # some mini-batches with a longer text alone, and one
def test_it_is_sentence_transformers_cached_loss(bert, tokens):
    model = bert()
    features = features_of(model)
    theirs = CachedMultipleNegativesRankingLoss(model, mini_batch_num_tokens=60)
    own = InfoNCELoss(model, mini_batch_num_tokens=tokens)
    labels = torch.arange(len(model_kinds.ROWS))  # some rows have equal passages, which theirs does not see
    wanted = gradients(theirs, model, features)
    close(gradients(own, model, features, labels), wanted)
    assert wanted[1].norm() > 0.1


def test_no_more_places_than_asked_for_go_through_at_once(bert, monkeypatch):
    model, seen = bert(), []
    forward = type(model[0]).forward

    def noted(self, features, **options):
        seen.append(features["input_ids"].shape)
        return forward(self, features, **options)

    monkeypatch.setattr(type(model[0]), "forward", noted)
    features = features_of(model)
    gradients(InfoNCELoss(model, mini_batch_num_tokens=90), model, features)
    assert all(rows * width <= 90 for rows, width in seen)
    assert max(width for _, width in seen) == max(part["input_ids"].shape[1] for part in features)
    assert len(seen) % 2 == 0  # once without activations, once with them
    seen.clear()
    with torch.no_grad():
        InfoNCELoss(model, mini_batch_num_tokens=90)(features, None)
    assert sum(rows for rows, _ in seen) == 3 * len(model_kinds.ROWS)


def test_the_second_time_has_the_dropout_of_the_first(bert):
    """In one mini-batch, so that random numbers are drawn in the order of the plain loss."""
    model = bert(dropout=0.3)
    rows = model_kinds.ROWS[:1] * 5
    features = features_of(model.train(), rows)
    labels = torch.arange(5)
    wanted = gradients(InfoNCELoss(model), model, features, labels)
    close(gradients(InfoNCELoss(model, mini_batch_num_tokens=10_000), model, features, labels), wanted)
    other = gradients(InfoNCELoss(model), model, features, labels, seed=1)
    assert (other[1] - wanted[1]).norm() > 0.05 * wanted[1].norm()


def test_a_module_may_change_its_features(bert):
    """Pooling without the prompt hides it in the mask, which the second pass must not find hidden."""
    model = bert(include_prompt=False)
    features = features_of(model, prompt="Query : ")
    assert all("prompt_length" in part for part in features)
    wanted = gradients(InfoNCELoss(model), model, features)
    close(gradients(InfoNCELoss(model, mini_batch_num_tokens=60), model, features), wanted)


@pytest.mark.parametrize("kind", ["padded left", "Router, two encoders", "static"])
def test_of_other_models(bert, kind):
    if kind == "padded left":  # by a BERT, for which padding counts as positions
        words = model_kinds.tokenizer(padding_side="left")
        model = model_kinds.sentence(model_kinds.transformer("Bert", words, **model_kinds.SIZE))
    else:
        model = model_kinds.KINDS[kind]()
    model.eval()
    columns = zip(COLUMNS, ("query", "document", "document"), strict=True)
    features = [
        model.preprocess([row[name] for row in model_kinds.ROWS], task=task) for name, task in columns
    ]
    wanted = gradients(InfoNCELoss(model), model, features)
    close(gradients(InfoNCELoss(model, mini_batch_num_tokens=80), model, features), wanted)


def test_texts_are_taken_out_of_flat_features():
    lengths = torch.tensor([2, 4, 1])
    ends = torch.tensor([0, 2, 6, 7], dtype=torch.int32)
    features = {
        "input_ids": torch.arange(7)[None],
        "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3, 0]]),
        "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1, 2]], dtype=torch.int32),
        **{"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4},
    }
    got = taken(features, torch.tensor([2, 0]), lengths)
    assert got["input_ids"].tolist() == [[6, 0, 1]]
    assert got["position_ids"].tolist() == [[0, 0, 1]]
    assert got["seq_idx"].tolist() == [[0, 1, 1]]
    assert got["cu_seq_lens_q"].tolist() == got["cu_seq_lens_k"].tolist() == [0, 1, 3]
    assert got["cu_seq_lens_q"].dtype == got["seq_idx"].dtype == torch.int32
    assert got["max_length_q"] == got["max_length_k"] == 2


def test_what_does_not_go_is_said(bert):
    model = bert()
    with pytest.raises(ValueError, match="mini_batch_num_tokens must be >= 1 or None, got 0"):
        InfoNCELoss(model, mini_batch_num_tokens=0)
    with pytest.raises(TypeError, match="InfoNCE takes no option 'backend'"):
        InfoNCELoss(model, gather_across_devices=True, backend="torch")
    own = InfoNCELoss(model, mini_batch_num_tokens=60)
    with pytest.raises(ValueError, match=r"after MatryoshkaLoss .* leave it out"):
        MatryoshkaLoss(model, own, [32, 16])(features_of(model), None)
    plain = MatryoshkaLoss(model, InfoNCELoss(model), [32, 16])(features_of(model), torch.arange(24))
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16])(features_of(model), None)
    assert plain.item() == pytest.approx(theirs.item(), rel=1e-5)
    with pytest.raises(ValueError, match="needs a model that reads token ids with an attention mask"):
        own([{"sentence_lengths": torch.ones(2)}] * 2, None)


def test_alone_all_ranks_are_this_one(bert):
    model = bert()
    features, labels = features_of(model), torch.arange(24) // 2
    everyone = InfoNCELoss(model, gather_across_devices=True, exchange="ring", bidirectional=True)
    assert isinstance(everyone.info_nce, distributed.InfoNCE)
    close(
        gradients(everyone, model, features, labels),
        gradients(InfoNCELoss(model, bidirectional=True), model, features, labels),
    )
    assert everyone.get_config_dict() == {
        **{"temperature": 0.05, "normalize": True, "exchange": "ring", "bidirectional": True},
        "gather_across_devices": True,
    }
