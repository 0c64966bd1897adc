import sys

import numpy as np
import pytest

from recipe_ray.errors import ServiceError
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.exact import FactIndex, inner_products

K = 32


def random_keys(num, seed=0):
    return np.random.default_rng(seed).standard_normal((num, K)).astype(np.float32)


def index_of(keys_FK):
    return FactIndex(keys_FK, ["default"] * len(keys_FK))


def test_search_equals_exact_numpy_search_over_float16_keys():
    keys_FK, queries_BK = random_keys(500).astype(np.float16), random_keys(70, seed=1)
    nearest_B, score_B = index_of(keys_FK).search(queries_BK, ["default"] * 70)
    scores_BF = queries_BK.astype(np.float64) @ keys_FK.astype(np.float64).T
    np.testing.assert_array_equal(nearest_B, scores_BF.argmax(axis=1))
    np.testing.assert_allclose(score_B, scores_BF.max(axis=1), rtol=1e-5)
    assert nearest_B.dtype == np.int64
    assert score_B.dtype == np.float32


def test_a_query_scores_the_same_alone_and_in_a_batch():
    index, queries_BK, sentinel_K = index_of(random_keys(300)), random_keys(64, seed=2), random_keys(1, seed=3)[0]
    together = index.retrieve(queries_BK, sentinel_K, ["default"] * 64)
    for b in range(64):
        alone = index.retrieve(queries_BK[b : b + 1], sentinel_K, ["default"])
        assert (alone.row_B[0], alone.score_B[0], alone.sentinel_B[0]) == (
            together.row_B[b],
            together.score_B[b],
            together.sentinel_B[b],
        )


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("num_equal", [3, 20])
def test_of_equal_facts_the_lowest_row_is_found(batch, num_equal):
    keys_FK = random_keys(60)
    keys_FK[7 : 7 + 2 * num_equal : 2] = 3 * keys_FK[7]
    nearest_B, _ = index_of(keys_FK).search(np.repeat(keys_FK[7:8], batch, axis=0), ["default"] * batch)
    assert set(nearest_B) == {7}


def test_a_tie_with_the_sentinel_uses_no_fact():
    keys_FK, queries_BK = random_keys(10), random_keys(33, seed=4)
    nearest_B, _ = index_of(keys_FK).search(queries_BK, ["default"] * 33)
    for b in range(33):
        found = index_of(keys_FK).retrieve(queries_BK, keys_FK[nearest_B[b]], ["default"] * 33)
        assert found.row_B[b] == NO_FACT
        assert found.nearest_B[b] == nearest_B[b]
        assert found.score_B[b] == found.sentinel_B[b]


def test_a_fact_just_above_the_sentinel_is_used():
    keys_FK = np.eye(K, dtype=np.float32)[:3]
    below_K = keys_FK[1] * np.nextafter(np.float32(1), np.float32(0))
    assert index_of(keys_FK).retrieve(keys_FK[1:2], below_K, ["default"]).row_B[0] == 1


def test_an_empty_table_gives_no_fact():
    index = FactIndex(np.empty((0, K), dtype=np.float16), [])
    found = index.retrieve(random_keys(3), random_keys(1)[0], ["default"] * 3)
    assert found.row_B.tolist() == found.nearest_B.tolist() == [NO_FACT] * 3
    assert np.isneginf(found.score_B).all()
    assert np.isfinite(found.sentinel_B).all()


def test_a_query_sees_the_facts_of_its_namespace_only():
    keys_FK = np.eye(K, dtype=np.float32)[[0, 0, 1, 1]]
    index = FactIndex(keys_FK, ["a", "b", "a", "b"])
    queries_BK = keys_FK[[0, 0, 2, 2, 0]]
    nearest_B, score_B = index.search(queries_BK, ["a", "b", "a", "b", "unheard"])
    assert nearest_B.tolist() == [0, 1, 2, 3, NO_FACT]
    assert score_B.tolist() == [1, 1, 1, 1, -np.inf]
    assert "a" in index
    assert "unheard" not in index


def test_no_queries_give_no_answers():
    nearest_B, score_B = index_of(random_keys(4)).search(np.empty((0, K), dtype=np.float32), [])
    assert nearest_B.shape == score_B.shape == (0,)


def test_inner_products_broadcast_a_sentinel_over_queries():
    queries_BK, sentinel_K = random_keys(5), random_keys(1, seed=1)[0]
    np.testing.assert_allclose(inner_products(queries_BK, sentinel_K), queries_BK @ sentinel_K, rtol=1e-4, atol=1e-5)


def test_a_machine_without_faiss_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ServiceError, match=r"recipe-ray\[cpu\]"):
        index_of(random_keys(2))
