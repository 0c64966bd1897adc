"""Fewer numbers a key in the index: those along the directions that keys and queries have most of.

What a graph costs is the memory that it reads, so a quarter of the numbers is a quarter of the time. The candidates
that it finds are scored again from whole keys (see `ann`), so scores stay exact; what can be lost is a best fact that
is not among the candidates, and that is measured before an index is built.

Shapes: Q sample queries, F facts, K key width, W numbers that are kept.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.exact import inner_products, load_faiss

_ROWS_PER_DIMENSION = 16  # of keys that directions are taken from, spread evenly
_SCAN_ROWS = 16_384  # held as float32 at once
_STEP = 32  # of W: what vector instructions like
_ROUNDING = 1e-5  # of a score's summands: equal facts are not ahead of each other


def directions(keys_FK: npt.NDArray[np.floating[Any]], num_dimensions: int) -> npt.NDArray[np.float32]:
    """The W orthonormal directions [W, K] that hold most of the keys' squared length, most first.

    Eigenvectors of the second moment Σ k kᵀ: not centred, as an inner product is not.
    """
    num_rows = min(_ROWS_PER_DIMENSION * keys_FK.shape[1], len(keys_FK))
    rows = np.unique(np.linspace(0, max(0, len(keys_FK) - 1), num_rows).astype(np.int64))
    moment_KK = np.zeros((keys_FK.shape[1], keys_FK.shape[1]))
    for start in range(0, len(rows), _SCAN_ROWS):
        block_FK = keys_FK[rows[start : start + _SCAN_ROWS]].astype(np.float32)
        moment_KK += block_FK.T @ block_FK
    _, vectors_KK = np.linalg.eigh(moment_KK)
    return np.ascontiguousarray(vectors_KK[:, ::-1][:, :num_dimensions].T, dtype=np.float32)


def reduced(vectors: npt.NDArray[np.floating[Any]], directions_WK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors [F, K] along directions [W, K]: [F, W]."""
    return np.concatenate(
        [
            vectors[start : start + _SCAN_ROWS].astype(np.float32) @ directions_WK.T
            for start in range(0, max(1, len(vectors)), _SCAN_ROWS)
        ]
    )


def reduced_alike(
    queries_BK: npt.NDArray[np.float32], directions_WK: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """As `reduced`, each query summed in the same order alone and in a batch."""
    return inner_products(queries_BK[:, None, :], directions_WK[None])


def fewest_dimensions(
    keys_FK: npt.NDArray[np.floating[Any]],
    queries_QK: npt.NDArray[np.float32],
    best_Q: npt.NDArray[np.int64],
    left_out_Q: npt.NDArray[np.int64],
    *,
    num_candidates: int,
    min_recall: float,
) -> int:
    """The smallest W, in steps, with which a scan ranks the best facts of sample queries among its candidates.

    Args:
        keys_FK: of a part.
        queries_QK: the sample.
        best_Q: row of the best fact of each, NO_FACT where there is none.
        left_out_Q: a row that does not count for a query, NO_FACT for none.
        num_candidates: that are scored again.
        min_recall: share of queries whose best fact must be among them.

    Returns:
        W; K where half of K is not enough.
    """
    key_width = keys_FK.shape[1]
    widths = range(_STEP, key_width // 2 + 1, _STEP)
    if not widths or num_candidates >= len(keys_FK) or not len(queries_QK):
        return key_width
    directions_WK = directions(keys_FK, widths[-1])
    queries_QW = reduced(queries_QK, directions_WK)
    best_QW, left_out_QW = (
        queries_QW * reduced(keys_FK[np.maximum(rows_Q, 0)], directions_WK) for rows_Q in (best_Q, left_out_Q)
    )
    bars_WQ = [best_QW[:, :width].sum(axis=1) + _ROUNDING * np.abs(best_QW[:, :width]).sum(axis=1) for width in widths]
    # Of each W, how many facts come before the best one.
    ahead = np.zeros((len(widths), len(queries_QK)), np.int64)
    for start in range(0, len(keys_FK), _SCAN_ROWS):
        block_FW = reduced(keys_FK[start : start + _SCAN_ROWS], directions_WK)
        scores_QF = np.zeros((len(queries_QK), len(block_FW)), np.float32)
        for number, width in enumerate(widths):
            step = slice(width - _STEP, width)
            scores_QF += queries_QW[:, step] @ block_FW[:, step].T
            ahead[number] += (scores_QF > bars_WQ[number][:, None]).sum(axis=1)
    for number, width in enumerate(widths):
        above = left_out_QW[:, :width].sum(axis=1) > bars_WQ[number]
        ahead[number] -= above & (left_out_Q != NO_FACT)
        if ((ahead[number] < num_candidates) | (best_Q == NO_FACT)).mean() >= min_recall:
            return width
    return key_width


def transformed(index: Any, directions_WK: npt.NDArray[np.float32]) -> Any:
    """An index over W numbers as one that FAISS keeps in one file together with the directions."""
    faiss = load_faiss()
    transform = faiss.LinearTransform(directions_WK.shape[1], directions_WK.shape[0], False)
    faiss.copy_array_to_vector(directions_WK.ravel(), transform.A)
    transform.is_trained = True
    return faiss.IndexPreTransform(transform, index)


def taken_apart(index: Any) -> tuple[Any, npt.NDArray[np.float32]]:
    """What `transformed` put together: the index over W numbers and the directions [W, K]."""
    faiss = load_faiss()
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    flat: npt.NDArray[np.float32] = faiss.vector_to_array(transform.A)
    return faiss.downcast_index(index.index), flat.reshape(transform.d_out, transform.d_in)
