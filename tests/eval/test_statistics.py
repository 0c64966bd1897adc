"""Intervals equal to a slow bootstrap."""

import numpy as np
import pytest

from recipe_ray.eval import statistics
from recipe_ray.eval.statistics import Score, bootstrap, scores_by_name


def slow(sums, counts, seed, num_resamples):
    """Case by case, resample by resample."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = rng.integers(0, len(sums), len(sums))
        if total := sum(counts[case] for case in drawn):
            means.append(sum(sums[case] for case in drawn) / total)
    return np.quantile(means, 0.025), np.quantile(means, 0.975)


@pytest.mark.parametrize("draws_per_block", [1, 70, 10**6])
def test_means_and_intervals_are_those_of_a_slow_reference(monkeypatch, draws_per_block):
    monkeypatch.setattr(statistics, "_DRAWS_PER_BLOCK", draws_per_block)
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (23, 3))
    counts[:, 2] = 0
    counts[4, 2] = 2  # a rare kind: many a resample holds none of it
    sums = counts * rng.random((23, 3))
    scores = bootstrap(sums, counts, seed=5, num_resamples=60)
    for measure, score in enumerate(scores):
        low, high = slow(sums[:, measure], counts[:, measure], 5, 60)
        assert score.value == pytest.approx(sums[:, measure].sum() / counts[:, measure].sum())
        assert (score.low, score.high) == pytest.approx((low, high))
        assert score.n == counts[:, measure].sum()
    assert scores[0].low < scores[0].value < scores[0].high
    assert bootstrap(sums, counts, seed=5, num_resamples=60) == scores
    assert bootstrap(sums, counts, seed=6, num_resamples=60) != scores


def test_a_measure_that_nothing_counts_to_is_missing_and_not_zero():
    case_of = np.array([0, 0, 1])
    values = np.array([1.0, 0.0, 1.0])
    scores = scores_by_name(
        case_of,
        [("all", values, np.ones(3, bool)), ("none", values, np.zeros(3, bool)), ("last", values, case_of == 1)],
        num_cases=2,
        seed=0,
    )
    assert list(scores) == ["all", "last"]
    assert scores["last"] == Score(value=1.0, low=1.0, high=1.0, n=1)
    assert scores["all"].value == pytest.approx(2 / 3)
