"""The retrieval rule, KS(q) of the paper (arXiv 2405.03279, section 4), over scores from any index."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NO_FACT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """What was found for a batch of B queries.

    Attributes:
        row_B: int64, the row of the fact to apply, NO_FACT where none is.
        nearest_B: int64, the row of the best fact whether applied or not, NO_FACT in an empty table.
        score_B: float32, similarity of query and best fact, -inf in an empty table.
        sentinel_B: float32, similarity of query and sentinel: the threshold of this query.
    """

    row_B: npt.NDArray[np.int64]
    nearest_B: npt.NDArray[np.int64]
    score_B: npt.NDArray[np.float32]
    sentinel_B: npt.NDArray[np.float32]


def decide(
    nearest_B: npt.NDArray[np.int64], score_B: npt.NDArray[np.float32], sentinel_B: npt.NDArray[np.float32]
) -> Retrieval:
    """Apply the sentinel: a fact is used only where it is strictly nearer than the sentinel, so a tie uses none.

    Where there is no nearest fact, `nearest_B` is NO_FACT already.
    """
    applied = score_B > sentinel_B
    return Retrieval(
        row_B=np.where(applied, nearest_B, NO_FACT), nearest_B=nearest_B, score_B=score_B, sentinel_B=sentinel_B
    )
