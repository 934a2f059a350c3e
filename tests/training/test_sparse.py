"""Rows that a batch touched get AdamW's step; others keep their bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from encoder import model_kinds
from encoder.model_kinds import KINDS, ROWS
from torch.nn import Embedding, EmbeddingBag, Linear, Parameter

from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding
from hybridfast.training import sparse
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train
from hybridfast.training.sparse import LazyAdamW, SparseTables, clip_gradients

V, D = 40, 8
OPTIONS = {"lr": 0.1, "weight_decay": 0.3, "fused": True}


def table() -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(0))


def gradient(rows: list[int], seed: int) -> torch.Tensor:
    """A sparse gradient of a table, uncoalesced where rows appear twice."""
    values = torch.randn(len(rows), D, generator=torch.Generator().manual_seed(seed))
    return torch.sparse_coo_tensor([rows], values, (V, D), check_invariants=True)


def lazy(weight: Parameter, **options: float) -> LazyAdamW:
    return LazyAdamW([{"params": [weight], "lazy": True}], **(OPTIONS | options))


def tables_of(model, setting: str = "true", **settings) -> SparseTables:
    class Tokens:
        text_indptr, token_ids = range(3), range(10)  # two texts of five tokens

    return SparseTables(model, TrainConfig(sparse_embeddings=setting, **settings), Tokens())


def test_where_every_row_is_touched_it_is_adamw():
    one, other = Parameter(table()), Parameter(table())
    ours, theirs = lazy(one), torch.optim.AdamW([other], **OPTIONS)
    for step in range(6):
        one.grad = gradient([*range(V), *range(0, V, 3)], step)
        other.grad = one.grad.to_dense()
        ours.step()
        theirs.step()
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_make_up_for_steps_that_did_not_touch_them(decay):
    """Rows of any frequency, under a falling rate: what dense AdamW makes of the same gradients."""
    one, other = Parameter(table()), Parameter(table())
    start = one.detach().clone()
    ours = lazy(one, lr=1e-3, weight_decay=decay)
    theirs = torch.optim.AdamW([other], lr=1e-3, weight_decay=decay)
    for step in range(300):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 300)
        one.grad = gradient([row for row in range(V) if step % (1 + row) == row], step)
        other.grad = one.grad.to_dense()
        ours.step()
        theirs.step()
    moved = (other - start).norm(dim=1)
    ours.catch_up()
    apart = (one - other).norm(dim=1) / moved
    assert apart[0] < 1e-5  # touched in every step
    assert apart.mean() < 0.04
    assert apart.max() < 0.1  # of rows that are touched seven times
    done = one.detach().clone()
    ours.catch_up()
    assert torch.equal(one, done)


def test_sparse_adam_is_farther_from_it():
    """Rare rows, whose v it does not let shrink, go a fraction of the way."""
    weights = [Parameter(table()) for _ in range(3)]
    optimizers = [
        lazy(weights[0], lr=1e-3, weight_decay=0.0),
        torch.optim.SparseAdam([weights[1]], lr=1e-3),
        torch.optim.AdamW([weights[2]], lr=1e-3, weight_decay=0.0),
    ]
    for step in range(300):
        for optimizer, weight in zip(optimizers, weights, strict=True):
            weight.grad = gradient([row for row in range(V) if step % (1 + row) == row], step)
            if weight is weights[2]:
                weight.grad = weight.grad.to_dense()
            optimizer.step()
    optimizers[0].catch_up()
    ours, theirs = ((weight - weights[2])[20:].norm() for weight in weights[:2])
    assert ours < 0.1 * theirs


def test_rows_not_touched_keep_their_bits():
    weight = Parameter(table())
    optimizer = lazy(weight)
    weight.grad = gradient([*range(V)], 0)  # from here on all have momentum
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = gradient([3, 5], 1)
    optimizer.step()
    assert (weight != before).any(dim=1).nonzero()[:, 0].tolist() == [3, 5]


def test_groups_that_are_not_lazy_take_it_as_dense():
    one, other = Parameter(table()), Parameter(table())
    ours, theirs = LazyAdamW([one], **OPTIONS), torch.optim.AdamW([other], **OPTIONS)
    for step in range(3):
        one.grad = gradient([step, 9], step)
        other.grad = one.grad.to_dense()
        ours.step()
        theirs.step()
    assert torch.equal(one, other)


def test_state_goes_on_where_it_was_saved():
    one, other = Parameter(table()), Parameter(table())
    first, second = lazy(one), lazy(other, lr=7.0)
    for step in range(5):
        if step == 2:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            with torch.no_grad():
                other.copy_(one)
        for optimizer, weight in ((first, one), (second, other)):
            weight.grad = gradient([step, 9], step)
            optimizer.step()
    assert torch.equal(one, other)
    torch.optim.AdamW([other], **OPTIONS).load_state_dict(first.state_dict())


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_bag_has_the_gradient_of_torch(mode, dtype):
    """Against the dense one, summed over two batches; texts without tokens among them."""
    generator = torch.Generator().manual_seed(1)
    bag = EmbeddingBag(V, D, mode=mode, _weight=table())
    found = []
    with tables_of(torch.nn.Sequential(Linear(1, 1), bag)) as tables:
        assert bag.weight in tables.lazy
        for _ in range(2):
            batches = []
            for offsets in ([0, 0, 3, 9, 20], [0, 5]):
                ids = torch.randint(0, V, (20,), generator=generator).to(dtype)
                batches.append((ids, torch.tensor(offsets).to(dtype), torch.randn(len(offsets), D)))
            found.append((batches, *_through(bag, batches)))
            assert found[-1][2].is_sparse
    for batches, outputs, grad in found:
        expected, dense = _through(bag, batches)
        assert not dense.is_sparse
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
        torch.testing.assert_close(grad.to_dense(), dense)


def _through(bag, batches):
    bag.zero_grad()
    outputs = [bag(ids, offsets) for ids, offsets, _ in batches]
    torch.autograd.backward(outputs, [grad for *_, grad in batches])
    return outputs, bag.weight.grad


def test_gradients_do_not_depend_on_threads():
    bag = EmbeddingBag(V, D, mode="mean", _weight=table())
    ids = torch.randint(0, V, (30_000,), generator=torch.Generator().manual_seed(2))
    batch = [(ids, torch.arange(0, 30_000, 10), torch.randn(3_000, D))]
    grads, threads = [], torch.get_num_threads()
    try:
        with tables_of(torch.nn.Sequential(Linear(1, 1), bag)):
            for count in (1, 2):
                torch.set_num_threads(count)
                grads.append(_through(bag, batch)[1].to_dense())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*grads)


def test_the_norm_counts_every_row_once():
    weights = [Parameter(table()), Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    expected = [Parameter(weight.detach().clone()) for weight in weights]
    weights[0].grad = gradient([4, 4, 9], 0)
    weights[1].grad = torch.tensor([1.0, 2.0, 3.0])
    for weight, other in zip(weights, expected, strict=True):
        other.grad = None if weight.grad is None else weight.grad.to_dense().clone()
    for limit in (1e9, 0.5):
        clip_gradients(weights, limit)
        torch.nn.utils.clip_grad_norm_(expected, limit)
        torch.testing.assert_close(weights[0].grad.to_dense(), expected[0].grad)
        torch.testing.assert_close(weights[1].grad, expected[1].grad)
    assert weights[2].grad is None


class Tied(torch.nn.Sequential):
    """A table that a head shares, one that is renormed, one that is read for maxima, one that is free."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        head = Linear(D, V, bias=False)
        super().__init__(
            Embedding(V, D),
            head,
            Embedding(V, D, max_norm=1.0),
            EmbeddingBag(V, D, mode="max"),
            Embedding(V, D),
        )
        self[0].weight = head.weight


def test_tables_that_others_read_stay_dense():
    model = Tied()
    tables = tables_of(model)
    assert tables.modules == [model[4]]
    assert tables_of(model, "false").modules == tables_of(model).lazy[1:] == []
    model[4].requires_grad_(False)
    assert tables_of(model).modules == []


@pytest.mark.parametrize(
    ("rows", "batch_size", "sparse", "lazily"),
    [(4_095, 2, False, False), (4_096, 2, True, True), (4_096, 41, True, False)],
)
def test_auto_weighs_a_table_against_a_batch(rows, batch_size, sparse, lazily):
    """A batch of 41 pairs has 410 tokens."""
    model = Tied()
    model[4] = Embedding(rows, 1)
    tables = tables_of(model, "auto", batch_size=batch_size)
    assert (model[4] in tables.modules, bool(tables.lazy)) == (sparse, lazily)


def test_models_are_left_as_they_were():
    model = KINDS["static"]()
    before, bag = dict(vars(model[0].embedding)), model[0].embedding
    with tables_of(model, "auto"):
        twin = copy.deepcopy(bag)
        with torch.no_grad():
            twin.weight.zero_()
        assert not twin(torch.tensor([1, 2]), torch.tensor([0])).any()
        assert bag(torch.tensor([1, 2]), torch.tensor([0])).any()
    assert vars(bag) == before
    assert not bag.weight._post_accumulate_grad_hooks


@pytest.mark.filterwarnings("default")  # of models that are made up
@pytest.mark.parametrize("kind", ["XLM-R", "T5 encoder", "Gemma3, mean", "Router, static queries"])
def test_sparse_gradients_train_what_dense_ones_do(kind, tmp_path: Path, monkeypatch):
    """As dense AdamW takes them, and with several chunks a batch, recomputed ones among them."""
    monkeypatch.setattr(model_kinds, "FOLDER", str(tmp_path))
    monkeypatch.setattr(sparse, "PAYS", 1)
    monkeypatch.setattr(sparse, "ROWS_PER_TOKEN", float("inf"))
    start = KINDS[kind]()
    tokens = embedding.tokenize(start, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    found = []
    for setting in ("false", "auto"):
        model = copy.deepcopy(start)
        config = TrainConfig(
            batch_size=12,
            max_steps=4,
            learning_rate=1e-3,
            tokens_per_chunk=50,
            activation_memory=1e-4,
            sparse_embeddings=setting,
        )
        assert bool(SparseTables(model, config, tokens).modules) is (setting == "auto")
        torch.manual_seed(0)
        train(model, tokens, config)
        found.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_static_encoder_learns_and_leaves_other_words_alone(tmp_path: Path):
    model = KINDS["static"]()
    tokens = embedding.tokenize(model, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    before = model[0].embedding.weight.detach().clone()
    config = TrainConfig(batch_size=8, max_steps=5, weight_decay=0.0, sparse_embeddings="true")
    train(model, tokens, config)
    changed = (model[0].embedding.weight != before).any(dim=1).nonzero()[:, 0].tolist()
    assert len(changed) > 0
    assert {*changed} <= {*tokens.token_ids.tolist()} < {*range(len(before))}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_lazy_steps_train_a_static_encoder_as_dense_ones_do(ema, tmp_path: Path):
    start = KINDS["static"]()
    tokens = embedding.tokenize(start, ParallelCorpus.from_rows(ROWS), cache_dir=tmp_path, progress=False)
    before = start[0].embedding.weight.detach()
    found = []
    for setting in ("false", "true"):
        model = copy.deepcopy(start)
        config = TrainConfig(
            batch_size=8, max_steps=40, learning_rate=1e-3, ema_decay=ema, sparse_embeddings=setting
        )
        train(model, tokens, config)
        found.append(model[0].embedding.weight.detach() - before)
    assert (found[1] - found[0]).norm() < (0.1 if ema else 0.05) * found[0].norm()
