"""Means over cases with their uncertainty.

Shape letters: N cases, M measures, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_DRAWS_PER_BLOCK = 2**22  # bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean over questions and its bootstrap interval.

    Attributes:
        value: the mean.
        low, high: ends of the 95% interval.
        n: questions.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    sums_NM: npt.NDArray[np.float64],
    counts_NM: npt.NDArray[np.int64],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Score | None]:
    """Means of M measures and their 95% percentile intervals, cases drawn again with replacement.

    Cases are what is drawn, not questions: questions of one case hang together (Efron & Tibshirani 1993, section 8.6).
    All measures see the same draws.

    Args:
        sums_NM: of each case the sum of a measure over its questions.
        counts_NM: of each case the questions that a measure counts.
        seed: of the draws.
        num_resamples: R.

    Returns:
        M scores, None where no case has a question that counts.
    """
    num_cases, _ = sums_NM.shape
    rng = np.random.default_rng(seed)
    per_block = max(1, _DRAWS_PER_BLOCK // max(num_cases, 1))
    means = []
    for start in range(0, num_resamples, per_block):
        num = min(per_block, num_resamples - start)
        drawn = rng.integers(0, num_cases, (num, num_cases)) + num_cases * np.arange(num)[:, None]
        times_RN = np.bincount(drawn.ravel(), minlength=num * num_cases).reshape(num, num_cases).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((times_RN @ sums_NM) / (times_RN @ counts_NM))
    means_RM = np.concatenate(means)
    totals_M, n_M = sums_NM.sum(0), counts_NM.sum(0)
    scores: list[Score | None] = []
    for total, n, means_R in zip(totals_M.tolist(), n_M.tolist(), means_RM.T, strict=True):
        # A resample may hold no case that has a rare kind of question: it says nothing about that kind.
        drawn_R = means_R[np.isfinite(means_R)]
        if not n or not len(drawn_R):
            scores.append(None)
            continue
        low, high = np.quantile(drawn_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        scores.append(Score(value=total / n, low=low, high=high, n=int(n)))
    return scores


def scores_by_name(
    case_of: npt.NDArray[np.int64],
    measures: Sequence[tuple[str, npt.NDArray[np.float64], npt.NDArray[np.bool_]]],
    *,
    num_cases: int,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Score]:
    """Scores of named measures over questions; a measure to which no question counts is left out.

    Args:
        case_of: [Q], the case of each question.
        measures: name, values [Q], and which of the questions count [Q].
        num_cases: N.
        seed, num_resamples: as in `bootstrap`.
    """
    if not measures:
        return {}
    sums, counts = [], []
    for _, values_Q, counted_Q in measures:
        sums.append(np.bincount(case_of[counted_Q], values_Q[counted_Q], minlength=num_cases))
        counts.append(np.bincount(case_of[counted_Q], minlength=num_cases))
    found = bootstrap(np.stack(sums, 1), np.stack(counts, 1), seed=seed, num_resamples=num_resamples)
    return {name: score for (name, _, _), score in zip(measures, found, strict=True) if score is not None}
