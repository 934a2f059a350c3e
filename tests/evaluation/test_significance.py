"""Intervals and p-values: by definition, by simulation, and against SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hybridfast.evaluation.significance import Sample, bootstrap, holm, interval, mixed, sign_flip_test

NAN = float("nan")


def sample(rng: np.random.Generator, clusters: int, cells: int, missing: float = 0.0) -> Sample:
    """A cluster's values share a part; each has `cells`, some of them missing."""
    values = rng.standard_normal((clusters, 1)) + rng.standard_normal((clusters, cells))
    values[rng.random(values.shape) < missing] = NAN
    cluster, cell = np.indices(values.shape)
    return Sample.of(values.ravel(), cluster.ravel(), cell.ravel(), clusters)


def test_a_figure_is_a_mean_over_cells_of_means() -> None:
    found = Sample.of([1, 2, 6, NAN, 10], [0, 0, 1, 1, 1], [5, 5, 5, 7, 8], 2)
    assert found.value == ((1 + 2 + 6) / 3 + 10) / 2
    np.testing.assert_allclose(found.contributions(), [1 / 2, (2 + 10) / 2])
    empty = Sample.of([NAN], [0], [0], 2)
    assert np.isnan(empty.value)
    np.testing.assert_array_equal(empty.contributions(), [0, 0])


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_bootstrap_equals_drawing_clusters_one_by_one(missing: float) -> None:
    """The draws themselves are those of the generator; every figure of them is computed anew."""
    rng = np.random.default_rng(0)
    samples = [sample(rng, 9, 3, missing), sample(rng, 9, 3, missing), Sample.of([NAN], [0], [0], 9)]
    draws = bootstrap(samples, 40, seed=3)
    generator = np.random.default_rng([3, 0])
    for b, drawn in enumerate(generator.integers(0, 9, (40, 9))):
        for f, one in enumerate(samples[:2]):
            sums, counts = one.sums_CP[drawn].sum(axis=0), one.counts_CP[drawn].sum(axis=0)
            np.testing.assert_allclose(draws[b, f], (sums[counts > 0] / counts[counts > 0]).mean())
    assert np.isnan(draws[:, 2]).all()
    np.testing.assert_array_equal(draws, bootstrap(samples, 40, seed=3))
    assert (draws[:, 0] != bootstrap(samples, 40, seed=4)[:, 0]).any()


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = sample(np.random.default_rng(0), 9, 2)
    whole, p = bootstrap([one], 50, 0), sign_flip_test(one.sums_CP, 50, 0)
    monkeypatch.setattr("hybridfast.evaluation.significance._BLOCK", 20)
    np.testing.assert_allclose(bootstrap([one], 50, 0), whole, rtol=1e-14)
    np.testing.assert_array_equal(sign_flip_test(one.sums_CP, 50, 0), p)


def test_intervals_of_clusters_hold_their_share() -> None:
    """1,500 data sets of 150 questions with 1 to 4 translations each, whose values share half their variance.

    A 95 % interval must hold the true mean, 0, in 93 to 97 of 100. Taken one by one, as if translations were
    independent, values would give intervals that hold it in fewer than 90.
    """
    rng = np.random.default_rng(0)
    sets, clusters, values = 1500, 150, 4
    there = np.arange(values) < rng.integers(1, values + 1, (sets, clusters, 1))
    data = rng.standard_normal((sets, clusters, 1)) + rng.standard_normal((sets, clusters, values))
    # One figure for each data set: the same draws serve all of them.
    samples = [
        Sample((x * t).sum(axis=1)[:, None], t.sum(axis=1)[:, None].astype(float))
        for x, t in zip(data, there, strict=True)
    ]
    ends = np.array([interval(draws) for draws in bootstrap(samples, 1000, 0).T])
    held = ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean()
    assert 0.93 <= held <= 0.97
    naive = [
        stats.t.interval(0.95, t.sum() - 1, x[t].mean(), stats.sem(x[t]))
        for x, t in zip(data, there, strict=True)
    ]
    assert np.mean([low <= 0 <= high for low, high in naive]) < 0.9


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """2,000 comparisons of 60 questions whose differences are skewed in size, symmetric in sign."""
    rng = np.random.default_rng(1)
    differences = rng.exponential(size=(60, 2000)) * rng.choice([-1, 1], (60, 2000))
    p = sign_flip_test(differences, 1999, seed=0)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.035 <= (p <= 0.05).mean() <= 0.065


def test_sign_flips_equal_scipys_permutation_test() -> None:
    """Ten questions have 1,024 patterns of signs; SciPy goes through all of them."""
    rng = np.random.default_rng(2)
    differences = rng.standard_normal(10) + 0.4
    exact = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    (found,) = sign_flip_test(differences[:, None], 20_000, seed=0)
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_equal_systems_have_a_p_of_one_and_far_ones_the_smallest() -> None:
    p = sign_flip_test(np.stack([np.zeros(30), np.ones(30), np.full(30, 0.1)], axis=1), 999, 0)
    np.testing.assert_array_equal(p, [1, 1 / 1000, 1 / 1000])


def test_holm_by_hand() -> None:
    """0.01 * 3, then 0.02 * 2 = 0.04, then 0.03, which is not below what stands before it."""
    np.testing.assert_allclose(holm([0.02, 0.01, NAN, 0.03]), [0.04, 0.03, NAN, 0.04])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1, 1])
    assert holm([]).shape == (0,)


def test_interval_of_percentiles() -> None:
    np.testing.assert_allclose(interval(np.arange(1001.0)), (25, 975))
    np.testing.assert_allclose(interval(np.array([NAN, 2, NAN])), (2, 2))
    assert np.isnan(interval(np.array([NAN]))).all()


def test_seeds_add_their_variance_to_that_of_questions() -> None:
    """Three runs 0, 3 and 9 apart: the variance of their mean is that of the values, 21, over 3; questions
    add 0.25, whose draws the runs share.
    """
    rng = np.random.default_rng(0)
    draws = np.array([[0.0], [3.0], [9.0]]) + 0.5 * rng.standard_normal(40_000)
    found = mixed(draws, 0)
    assert found.mean() == pytest.approx(4, abs=0.06)
    assert found.var() == pytest.approx(21 / 3 + 0.25, rel=0.03)
    np.testing.assert_array_equal(mixed(draws[:1], 0), draws[0])


def test_intervals_of_seeds_and_questions_hold_their_share() -> None:
    """1,000 times five runs on 100 questions, with effects of run, question and both: 95 % holds 0 in 90 to
    97 of 100, fewer than over many seeds, for five say little of their spread; without them in less than 70.
    """
    rng = np.random.default_rng(3)
    sets, seeds, clusters = 1000, 5, 100
    values = (
        0.2 * rng.standard_normal((sets, seeds, 1))
        + rng.standard_normal((sets, 1, clusters))
        + rng.standard_normal((sets, seeds, clusters))
    )
    samples = [Sample(of[:, None], np.ones((clusters, 1))) for of in values.reshape(-1, clusters)]
    draws = bootstrap(samples, 500, 0).T.reshape(sets, seeds, 500)
    held = [
        np.mean([low <= 0 <= high for low, high in map(interval, of)])
        for of in (
            [mixed(draws_SB, i) for i, draws_SB in enumerate(draws)],
            draws.mean(axis=1),
        )
    ]
    assert 0.9 <= held[0] <= 0.97
    assert held[1] < held[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bootstrap([sample(np.random.default_rng(0), n, 1) for n in (3, 4)], 5, 0),
            r"samples must have the same clusters, got \[3, 4\]",
        ),
        (
            lambda: bootstrap([sample(np.random.default_rng(0), 3, 1)], 0, 0),
            "resamples and clusters must be at least 1, got 0 and 3",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
