"""Hard negatives that are mined anew while training goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training.processes import steps_logged

from hybridfast import train
from hybridfast.data.corpus import ParallelCorpus
from hybridfast.encoder import embedding, loading
from hybridfast.mining.mine import mine
from hybridfast.mining.rewriting import with_negatives
from hybridfast.training import loop, refresh
from hybridfast.training.checkpoint import Checkpoints
from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import make_sampler

# 40 items in two languages: five batches of 16 rows are an epoch.
ROWS = [
    {"id": str(i), "lang": lang, "query": f"{stem}{i}", "passage": f"{stem}{i} {stem} {stem * (i % 5)}"}
    for i in range(40)
    for lang, stem in (("aa", "ka"), ("bb", "mo"))
]
EVERY = 3


def config_of(**options) -> TrainConfig:
    options = {"batch_size": 16, "max_steps": 11, "negatives": 2, "mine_steps": EVERY, **options}
    return TrainConfig(learning_rate=0.02, dimension=8, dedup="group", **options)


@pytest.fixture
def model():
    torch.manual_seed(0)
    texts = [text for row in ROWS for text in (row["query"], row["passage"])]
    return loading.build_static(loading.train_tokenizer(texts, 200), 8)


def tokens_of(model, folder: Path, rows=ROWS):
    return embedding.tokenize(model, ParallelCorpus.from_rows(rows), cache_dir=folder, progress=False)


def test_batches_have_what_the_model_of_their_step_mines(model, tmp_path, monkeypatch):
    """As a loop by hand: the same plan, over a corpus that is mined anew after every third step."""
    tokens, config = tokens_of(model, tmp_path), config_of()
    weights, batches = [], []

    class Noted(loop.Chunks):
        def embed(self, batch, step=0):
            weights.append(self.model[0].embedding.weight.detach().clone())
            batches.append(batch)
            return super().embed(batch, step)

    monkeypatch.setattr(loop, "Chunks", Noted)
    trained = loop.train(model, tokens, config, folder=tmp_path / "run")
    assert trained["time/mining"] > 0
    assert not (tmp_path / "run" / ".mining").exists()
    assert len(batches) == 11
    languages = []
    for step, batch in enumerate(batches):
        if step % EVERY == 0:
            with torch.no_grad():
                model[0].embedding.weight.copy_(weights[step])
            mined = mine(model, tokens, config.mining)
            own = make_sampler(with_negatives(tokens, mined.negative_VK, tmp_path), config)
        expected = own[divmod(step, len(own))]
        plain = make_sampler(tokens, config_of(mine_steps=None, negatives=0))[divmod(step, len(own))]
        assert torch.equal(batch.groups, plain.groups)
        for side in ("queries", "passages", "negatives"):
            for name, values in getattr(batch, side).items():
                assert torch.equal(values, getattr(expected, side)[name])
        languages.append(batch.negative_rows.tolist())
    assert len(languages[0]) == 32  # two for each row


@pytest.mark.parametrize("own", [False, True])
def test_going_on_gives_the_same_bits(own, model, tmp_path, monkeypatch, capsys):
    """Cut off in the middle of mining, and in a step after it whose checkpoint is two steps old."""
    rows = [row | {"negative_1": "ka mo"} for row in ROWS] if own else ROWS
    tokens, config = tokens_of(model, tmp_path, rows), config_of(save_steps=2, mine_scope="other")
    before = copy.deepcopy(model)

    def run(name: str) -> torch.Tensor:
        folder, begun = tmp_path / name, copy.deepcopy(before)
        folder.mkdir(exist_ok=True)
        loop.train(begun, tokens, config, folder=folder, resume=Checkpoints(folder).newest())
        assert not (folder / ".mining").exists()
        return begun[0].embedding.weight.detach()

    whole = run("whole")
    assert capsys.readouterr().out.count("Mined after step") == (3 if own else 4)

    calls, mined = [0], refresh.mine

    def cut_off(*arguments, **options):
        calls[0] += 1
        found = mined(*arguments, **options)
        if calls[0] == (2 if own else 3):
            raise RuntimeError("cut off after step 6")
        return found

    def killed(self, batch, *arguments):
        add(self, batch, *arguments)
        if self.step == 9:
            raise RuntimeError("killed in step 9")

    monkeypatch.setattr(refresh, "mine", cut_off)
    with pytest.raises(RuntimeError, match="cut off after step 6"):
        run("cut")
    add = loop.Log.add
    monkeypatch.setattr(loop.Log, "add", killed)
    with pytest.raises(RuntimeError, match="killed in step 9"):
        run("cut")
    assert Checkpoints(tmp_path / "cut").steps()[0] == 8
    monkeypatch.setattr(loop.Log, "add", add)
    for left in ("mining-0", "0"):  # by a process that was killed as it mined
        (tmp_path / "cut" / ".mining" / left).mkdir(parents=True)
    assert torch.equal(run("cut"), whole)
    assert len(steps_logged(tmp_path / "cut")) == 2  # steps 10 and 11


def test_a_dry_run_mines_nothing(tmp_path, monkeypatch, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.setattr(refresh, "mine", None)
    train.main(f"--data {data} --batch_size 8 --negatives 2 --mine_steps 50 --dimension 8 --dry_run".split())
    assert "Hard negatives are mined every 50 steps, and before the first\n" in capsys.readouterr().out


def test_the_datas_negatives_serve_until_it_is_time(model, tmp_path):
    tokens = tokens_of(model, tmp_path, [row | {"negative_1": "moka"} for row in ROWS])
    config = config_of(negatives=1)
    make = lambda corpus: make_sampler(corpus, config)  # noqa: E731
    batches = refresh.Batches(make, model, tokens, config, tmp_path / "run")
    with batches:
        first = next(iter(batches))
        own = make(tokens)[0, 0]
        assert torch.equal(first.negatives["input_ids"], own.negatives["input_ids"])
        given = [batch.index for batch in batches]  # up to the third
        assert given == [1, 2]
        third = next(iter(batches))
        assert third.index == 3
        assert not torch.equal(third.negatives["input_ids"], make(tokens)[0, 3].negatives["input_ids"])
        # A state says all: another one goes on with the same negatives, without the model.
        other = refresh.Batches(make, None, tokens, config, tmp_path / "other")
        other.load_state_dict(batches.state_dict())
        with other:
            one, two = next(iter(other)), next(iter(batches))
            assert one.index == two.index == 4
            assert torch.equal(one.negatives["input_ids"], two.negatives["input_ids"])


def test_where_nothing_is_left_negatives_stay(model, tmp_path):
    tokens = tokens_of(model, tmp_path, [row | {"negative_1": "moka"} for row in ROWS])
    config = config_of(negatives=1, absolute_margin=3.0)  # no cosine is that far from another
    batches = refresh.Batches(lambda corpus: make_sampler(corpus, config), model, tokens, config)
    with batches:
        list(batches)
        with pytest.warns(
            UserWarning, match=r"mining after step 3: no row has .*negatives stay as they were"
        ):
            batch = next(iter(batches))
        assert np.array_equal(
            batch.negatives["input_ids"], make_sampler(tokens, config)[0, 3].negatives["input_ids"]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mine_steps": 0}, "mine_steps must be >= 1, got 0"),
        ({"negatives": 0}, "mine_steps 3 needs negatives >= 1, got 0"),
        ({"languages": ["aa"]}, "mine_steps and languages exclude each other"),
        ({"range_max": 1}, "range_max must be at least range_min \\+ num_negatives, 2, got 1"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        config_of(**options)


def test_another_language_is_needed_for_its_scope(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS if row["lang"] == "aa"))
    with pytest.raises(SystemExit) as error:
        train.main(f"--data {data} --negatives 1 --mine_steps 5 --mine_scope other --alpha 1".split())
    assert error.value.code == 2
    assert "mine_scope other needs two languages, the data has ['aa']" in capsys.readouterr().err
