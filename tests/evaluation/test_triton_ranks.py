"""The counts of a GPU against those of the CPU, whose own tests compare with a sort.

Where TRITON_INTERPRET=1 (tests/conftest.py) the kernels run on the CPU; with TRITON_INTERPRET=0, on a GPU.
"""

import numpy as np
import pytest
import torch
from evaluation.rank_problems import BAD_ROW, PASSAGES, QUERIES, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridfast import _core, gold_ranks
from hybridfast.evaluation import ranks
from hybridfast.evaluation.ranks import rank_counts
from hybridfast.infonce import backends

triton_ranks = pytest.importorskip("hybridfast.evaluation.triton_ranks", reason="needs the package triton")
Tiles = type(triton_ranks.HALF)

if not (backends.TRITON_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
DEVICE = "cpu" if backends.TRITON_INTERPRETED else "cuda"


class Interpreted:
    """The kernels as `ranks` calls them, given what it gives to those of the CPU."""

    @staticmethod
    def largest_norm(embeddings, _threads):
        return triton_ranks.largest_norm(tensor(embeddings))

    @staticmethod
    def rank_counts(queries, passages, *others):
        return triton_ranks.rank_counts(tensor(queries), tensor(passages), *others)


def tensor(embeddings):
    rows = torch.as_tensor(embeddings)
    return rows.view(torch.bfloat16) if rows.dtype == torch.int16 else rows


def counts_there(queries, passages, *others):
    """`rank_counts` by the kernels under test."""
    if DEVICE == "cuda":
        return rank_counts(queries.cuda(), passages.cuda(), *others)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranks, "kernels_of", lambda *_: Interpreted)
        return rank_counts(queries, passages, *others)


def check(problem, group_N=None, dtype=torch.float32):
    """Embeddings are small integers: products and sums are exact, and many of them equal."""
    rows = [torch.tensor(embeddings).to(dtype) for embeddings in problem[:2]]
    counts, wanted = (run(*rows, *problem[2:], group_N) for run in (counts_there, rank_counts))
    for name in ("greater_GL", "tied_GL", "later_GL"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(wanted, name))
    return wanted


@pytest.fixture
def small_tiles(monkeypatch):
    tiles = Tiles(16, 16, 16, 4, 2)
    monkeypatch.setattr(triton_ranks, "FLOAT32", tiles)
    monkeypatch.setattr(triton_ranks, "HALF", tiles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("queries", "passages", "dim"), [(1, 1, 1), (5, 200, 3), (129, 127, 16), (64, 129, 33)]
)
def test_whole_tiles(queries, passages, dim, dtype):
    check(make_problem(queries, passages, dim), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_groups_of_passages(dtype):
    """Five groups, one of them empty, and passages in none; several tiles of each, the last one odd."""
    problem = make_problem(37, 301, 19)
    group_N = np.random.default_rng(1).choice([-1, 0, 1, 3, 4], 301)
    group_N[problem[3]] = np.abs(group_N[problem[3]])
    counts = check(problem, group_N, dtype)
    assert counts.greater_GL.any()
    assert counts.tied_GL.any()
    assert counts.later_GL.any()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(0, 34),
    passages=st.integers(1, 50),
    dim=st.integers(1, 34),
    max_golds=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_odd_shapes(queries, passages, dim, max_golds, seed):
    """Up to two whole tiles of queries and dimensions, three of passages, and a little more."""
    problem = make_problem(queries, passages, dim, max_golds, seed=seed)
    group_N = np.random.default_rng(seed).integers(0, 3, passages)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triton_ranks, "FLOAT32", Tiles(16, 16, 16, 4, 2))
        check(problem, group_N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equal_passages_tie_whatever_their_scores(dtype):
    """Real-valued scores round, but equal passages must round alike in every place of every tile."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(200, 77, generator=generator).to(dtype)
    passages = torch.randn(1, 77, generator=generator).to(dtype).expand(300, 77)
    golds = np.random.default_rng(0).integers(0, 300, 200)
    counts = counts_there(queries, passages, np.arange(201), golds)
    assert not counts.greater_GL.any()
    np.testing.assert_array_equal(counts.tied_GL[:, 0], 299)
    np.testing.assert_array_equal(counts.later_GL[:, 0], 299 - golds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_nothing_is_read_around_a_view(dtype):
    """Rows and dimensions lie in storage that is otherwise NaN."""
    problem = make_problem(21, 50, 19)
    rows = []
    for embeddings in problem[:2]:
        poisoned = torch.full((len(embeddings) + 40, 19 + 24), torch.nan, dtype=dtype)
        poisoned[8:-32, 8:-16] = torch.tensor(embeddings)
        rows.append(poisoned[8:-32, 8:-16].to(DEVICE))
    everything = np.array([0, 50]), np.arange(50)
    got = triton_ranks.rank_counts(*rows, *everything, *problem[2:], 1)
    wanted = _core.rank_counts(*problem[:2], *everything, *problem[2:], 1)
    for counts, exact in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(counts, exact)


def test_largest_norm(monkeypatch):
    """By chunks of two rows; half-precision rows whose squares would overflow are summed in float64."""
    monkeypatch.setattr(triton_ranks, "NORM_BYTES", 2 * 8 * 3)
    rows = torch.tensor([[1, 2, 2], [0, 0, 0], [6e4, 0, 0], [0, 6e4, 0], [3, 4, 0]], device=DEVICE)
    assert triton_ranks.largest_norm(rows.half()) == (2, float(torch.tensor(6e4).half()))
    rows[4, 0], rows[3, 1] = torch.nan, -torch.inf
    row, norm = triton_ranks.largest_norm(rows)
    assert row == 3
    assert norm == np.inf
    assert triton_ranks.largest_norm(rows[:0]) == (0, 0.0)


@pytest.mark.parametrize(
    ("queries", "passages", "message"),
    [
        (QUERIES, BAD_ROW, "passages must be finite, but row 2 holds NaN or infinity"),
        (QUERIES, PASSAGES * 3e38, "scores would overflow float32: row 0 of queries has norm 1.73"),
    ],
)
def test_scores_that_are_not_finite_are_named(queries, passages, message):
    with pytest.raises(ValueError, match=message):
        counts_there(torch.tensor(queries), torch.tensor(passages), [0, 1, 2], [0, 1])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_embeddings_on_a_gpu():
    queries, passages, *golds = make_problem(30, 100, 11)
    on_gpu = [torch.tensor(rows, device="cuda") for rows in (queries, passages)]
    np.testing.assert_array_equal(gold_ranks(*on_gpu, *golds), gold_ranks(queries, passages, *golds))
