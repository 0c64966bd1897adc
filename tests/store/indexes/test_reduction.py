"""Keys of fewer numbers: which directions, how many, and an index that keeps them in its file."""

import numpy as np
import pytest

from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.exact import load_faiss
from recipe_ray.store.indexes.reduction import (
    directions,
    fewest_dimensions,
    reduced,
    reduced_alike,
    taken_apart,
    transformed,
)

K = 128


def keys_of_rank(rank, num=500, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).standard_normal((rank, K))
    return (rng.standard_normal((num, rank)) @ basis + noise * rng.standard_normal((num, K))).astype(np.float32)


def test_directions_are_orthonormal_and_hold_what_there_is():
    keys_FK = keys_of_rank(20)
    directions_WK = directions(keys_FK, 20)
    np.testing.assert_allclose(directions_WK @ directions_WK.T, np.eye(20), atol=1e-5)
    queries_BK = keys_of_rank(20, num=10, seed=1)
    np.testing.assert_allclose(
        reduced(queries_BK, directions_WK) @ reduced(keys_FK, directions_WK).T,
        queries_BK @ keys_FK.T,
        rtol=1e-3,
        atol=1e-2,
    )


def test_a_query_is_reduced_the_same_alone_and_in_a_batch():
    queries_BK, directions_WK = keys_of_rank(90, num=33, seed=2), directions(keys_of_rank(90), 48)
    together = reduced_alike(queries_BK, directions_WK)
    np.testing.assert_allclose(together, reduced(queries_BK, directions_WK), rtol=1e-4, atol=1e-3)
    for row in range(33):
        np.testing.assert_array_equal(reduced_alike(queries_BK[row : row + 1], directions_WK)[0], together[row])


@pytest.mark.parametrize("scan_rows", [64, 10_000])
@pytest.mark.parametrize("left_out", [False, True])
def test_the_fewest_dimensions_are_those_of_a_ranking_written_out(monkeypatch, scan_rows, left_out):
    monkeypatch.setattr("recipe_ray.store.indexes.reduction._SCAN_ROWS", scan_rows)
    keys_FK, queries_QK = keys_of_rank(100, noise=2.0), keys_of_rank(100, num=60, seed=3)
    scores_QF = queries_QK @ keys_FK.T
    left_out_Q = scores_QF.argmax(axis=1) if left_out else np.full(60, NO_FACT)
    if left_out:
        scores_QF[np.arange(60), left_out_Q] = -np.inf
    best_Q = scores_QF.argmax(axis=1)
    shares = {}
    for width in (32, 64):
        directions_WK = directions(keys_FK, width)
        ranked_QF = reduced(queries_QK, directions_WK) @ reduced(keys_FK, directions_WK).T
        if left_out:
            ranked_QF[np.arange(60), left_out_Q] = -np.inf
        nearest = np.argsort(-ranked_QF, axis=1)[:, :2]
        shares[width] = float(np.mean([best in found for best, found in zip(best_Q, nearest, strict=True)]))
    assert shares[32] < shares[64] < 1
    for share, expected in ((shares[32], 32), (shares[64], 64), (shares[64] + 0.01, K)):
        found = fewest_dimensions(keys_FK, queries_QK, best_Q, left_out_Q, num_candidates=2, min_recall=share)
        assert found == expected


def test_an_index_keeps_its_directions_in_its_file(tmp_path):
    faiss = load_faiss()
    keys_FK = keys_of_rank(50)
    directions_WK = directions(keys_FK, 50)
    flat = faiss.IndexFlatIP(50)
    flat.add(reduced(keys_FK, directions_WK))
    faiss.write_index(transformed(flat, directions_WK), str(tmp_path / "index"))
    index, read_WK = taken_apart(whole := faiss.read_index(str(tmp_path / "index"), faiss.IO_FLAG_MMAP_IFC))
    np.testing.assert_array_equal(read_WK, directions_WK)
    assert (index.ntotal, whole.ntotal) == (500, 500)
    queries_BK = keys_of_rank(50, num=20, seed=4)
    np.testing.assert_array_equal(
        index.search(reduced_alike(queries_BK, read_WK), 1)[1][:, 0], (queries_BK @ keys_FK.T).argmax(axis=1)
    )
