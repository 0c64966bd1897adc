"""Whatever the kind of index: exact scores, the same alone and in a batch, and of equals the lowest row."""

import numpy as np
import pytest

from recipe_ray.errors import ConfigError
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.ann import (
    PartIndex,
    PartSpec,
    build,
    exact_nearest,
    space_keys,
    space_queries,
    visible_rows,
)
from recipe_ray.store.indexes.exact import load_faiss
from recipe_ray.store.indexes.tuning import IndexSettings, Sample, build_tuned, choose, norm_range, sample_rows

K = 32
NUM_FACTS = 3000


def random_keys(num, seed=0, *, uneven=False):
    """Clustered directions; uneven norms lie between 0.2 and 8."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, K))
    keys = centres[rng.integers(40, size=num)] + 0.7 * rng.standard_normal((num, K))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return (keys * rng.uniform(0.2, 8, (num, 1)) if uneven else keys).astype(np.float32)


def spec_of(kind, *, remedy="none", storage="float16", lists=True, keys=None, num_dimensions=0):
    return PartSpec(
        kind=kind,
        remedy=remedy,
        storage=storage,
        num_lists=40 if kind == "ivf" or (kind == "sq8" and lists) else 0,
        num_probes=40 if kind in ("ivf", "sq8") and lists else 128 if kind == "hnsw" else 0,
        num_links=16 if kind == "hnsw" else 0,
        max_norm=1.0 if keys is None else norm_range(keys)[1],
        num_dimensions=num_dimensions,
    )


SPECS = [
    spec_of("exact"),
    spec_of("exact", storage="float32"),
    spec_of("ivf"),
    spec_of("ivf", storage="float32", remedy="spherical"),
    spec_of("ivf", remedy="l2"),
    spec_of("hnsw"),
    spec_of("hnsw", storage="float32"),
    spec_of("hnsw", remedy="l2"),
    spec_of("sq8", lists=False),
    spec_of("sq8", remedy="spherical"),
    spec_of("hnsw", num_dimensions=24),
    spec_of("ivf", num_dimensions=24, remedy="spherical"),
    spec_of("sq8", num_dimensions=24, lists=False),
]
every_spec = pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.remedy}-{spec.storage}-{spec.num_dimensions}"
)


def part_of(keys_FK, spec):
    return PartIndex(build(keys_FK, spec), keys_FK, spec)


def numpy_search(keys_FK, queries_BK):
    scores_BF = queries_BK.astype(np.float64) @ keys_FK.astype(np.float64).T
    return scores_BF.argmax(axis=1), scores_BF.max(axis=1)


@every_spec
def test_with_probes_enough_the_best_fact_is_found_and_its_score_is_exact(spec):
    keys_FK, queries_BK = random_keys(NUM_FACTS).astype(np.float16), 20 * random_keys(200, seed=1)
    nearest_B, score_B = part_of(keys_FK, spec).search(queries_BK)
    best_B, best_score_B = numpy_search(keys_FK, queries_BK)
    assert (nearest_B == best_B).mean() >= (0.99 if spec.num_dimensions or spec.kind == "hnsw" else 1.0)
    right = nearest_B == best_B
    np.testing.assert_allclose(score_B[right], best_score_B[right], rtol=1e-5)
    assert (nearest_B.dtype, score_B.dtype) == (np.int64, np.float32)


@every_spec
def test_a_query_finds_the_same_alone_and_in_a_batch(spec):
    keys_FK, queries_BK = random_keys(NUM_FACTS).astype(np.float16), random_keys(70, seed=2)
    part = part_of(keys_FK, spec)
    few = 3 if spec.num_lists else 20  # few probes: a list more or less would show
    together = part.search(queries_BK, num_probes=few)
    alone = [part.search(queries_BK[b : b + 1], num_probes=few) for b in range(70)]
    np.testing.assert_array_equal(together[0], [nearest[0] for nearest, _ in alone])
    np.testing.assert_array_equal(together[1], [score[0] for _, score in alone])


@every_spec
@pytest.mark.parametrize("num_equal", [3, 60])
def test_of_equal_facts_the_lowest_row_is_found(spec, num_equal):
    keys_FK = random_keys(400).astype(np.float16)
    rows = np.random.default_rng(3).permutation(400)[:num_equal]
    keys_FK[rows] = np.float16(1.5) * keys_FK[rows[0]]
    spec = PartSpec(**{**{name: getattr(spec, name) for name in spec.__slots__}, "max_norm": norm_range(keys_FK)[1]})
    part = part_of(keys_FK, spec)
    for batch in (1, 40):
        nearest_B, _ = part.search(np.repeat(keys_FK[rows[:1]].astype(np.float32), batch, axis=0))
        assert set(nearest_B) == {rows.min()}


@every_spec
@pytest.mark.parametrize("num_equal", [1, 6, 60])
def test_the_best_facts_come_in_the_order_of_their_scores_and_of_their_rows(spec, num_equal):
    keys_FK = random_keys(400).astype(np.float16)
    rows = np.random.default_rng(3).permutation(400)[:num_equal]
    keys_FK[rows] = keys_FK[rows[0]]
    spec = PartSpec(**{**{name: getattr(spec, name) for name in spec.__slots__}, "max_norm": norm_range(keys_FK)[1]})
    part, queries_BK = part_of(keys_FK, spec), keys_FK[[rows[0], 7]].astype(np.float32)
    rows_BN, scores_BN = part.nearest(queries_BK, 5)
    exact_BF = (queries_BK[:, None].astype(np.float32) * keys_FK.astype(np.float32)).sum(axis=2, dtype=np.float32)
    expected_BN = np.argsort(-exact_BF, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(rows_BN, expected_BN)
    np.testing.assert_allclose(scores_BN, np.take_along_axis(exact_BF, expected_BN, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(rows_BN[:, 0], part.search(queries_BK)[0])
    many_BN, many_scores_BN = part.nearest(queries_BK, 405)
    assert (many_BN[:, 400:] == NO_FACT).all()
    assert np.isneginf(many_scores_BN[:, 400:]).all()


@every_spec
def test_hidden_rows_are_not_found(spec):
    keys_FK = random_keys(500).astype(np.float16)
    part = part_of(keys_FK, spec)
    hidden = np.arange(0, 500, 2)
    queries_BK = keys_FK[hidden].astype(np.float32)
    nearest_B, score_B = part.search(queries_BK, visible=visible_rows(500, hidden=hidden))
    assert (nearest_B % 2 == 1).all()
    shown = np.where(nearest_B[:, None] == NO_FACT, 0, keys_FK[nearest_B]).astype(np.float32)
    np.testing.assert_allclose(score_B, (queries_BK * shown).sum(axis=1), rtol=1e-4, atol=1e-5)
    none, minus_infinity = part.search(queries_BK[:2], visible=visible_rows(500, hidden=np.arange(500)))
    assert set(none) == {NO_FACT}
    assert np.isneginf(minus_infinity).all()


@pytest.mark.parametrize("kind", ["exact", "hnsw", "sq8"])
def test_an_empty_part_gives_no_fact(kind):
    spec = spec_of(kind, lists=False)
    nearest_B, score_B = part_of(np.empty((0, K), np.float16), spec).search(random_keys(3))
    assert nearest_B.tolist() == [NO_FACT] * 3
    assert np.isneginf(score_B).all()


def test_l2_makes_keys_equally_long_and_ranks_by_inner_product():
    keys_FK, queries_BK = random_keys(300, uneven=True), 5 * random_keys(50, seed=4)
    spec = spec_of("ivf", remedy="l2", keys=keys_FK)
    wide_FW, wide_BW = space_keys(keys_FK, spec), space_queries(queries_BK, spec)
    np.testing.assert_allclose(np.linalg.norm(wide_FW, axis=1), 1, rtol=1e-5)
    distances_BF = np.linalg.norm(wide_BW[:, None] - wide_FW[None], axis=2)
    np.testing.assert_array_equal(distances_BF.argmin(axis=1), (queries_BK @ keys_FK.T).argmax(axis=1))


@pytest.mark.parametrize(("kind", "remedy"), [("ivf", "spherical"), ("ivf", "l2"), ("hnsw", "l2")])
def test_keys_of_uneven_norm_are_found_with_a_remedy(kind, remedy):
    keys_FK, queries_BK = random_keys(NUM_FACTS, uneven=True).astype(np.float16), random_keys(200, seed=5)
    spec = spec_of(kind, remedy=remedy, keys=keys_FK)
    nearest_B, _ = part_of(keys_FK, spec).search(queries_BK)
    assert (nearest_B == numpy_search(keys_FK, queries_BK)[0]).mean() > 0.98


def test_exact_nearest_over_several_blocks_leaves_out_what_it_is_told(monkeypatch):
    monkeypatch.setattr("recipe_ray.store.indexes.ann._SCAN_ROWS", 64)
    keys_FK, queries_BK = random_keys(301).astype(np.float16), random_keys(40, seed=6)
    best_B, best_score_B = numpy_search(keys_FK, queries_BK)
    nearest_B, score_B = exact_nearest(keys_FK, queries_BK)
    np.testing.assert_array_equal(nearest_B, best_B)
    np.testing.assert_allclose(score_B, best_score_B, rtol=1e-5)
    second_B, _ = exact_nearest(keys_FK, queries_BK, left_out_B=np.where(np.arange(40) % 2, best_B, NO_FACT))
    scores_BF = queries_BK.astype(np.float64) @ keys_FK.astype(np.float64).T
    scores_BF[np.arange(1, 40, 2), best_B[1::2]] = -np.inf
    np.testing.assert_array_equal(second_B, scores_BF.argmax(axis=1))


def low_rank_keys(num, rank, seed=0):
    """Keys of 256 numbers that lie in a space of few dimensions, but for a little noise."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((rank, 256))
    return (rng.standard_normal((num, rank)) @ basis + 0.05 * rng.standard_normal((num, 256))).astype(np.float32)


def tuned(keys_FK, **settings):
    rows = sample_rows(len(keys_FK), 100)
    sample = Sample(queries_QK=keys_FK[rows].astype(np.float32), left_out_Q=rows)
    return build_tuned(keys_FK, IndexSettings(**settings), np.full(keys_FK.shape[1], 0.01, np.float32), sample)


def test_probes_are_raised_until_the_recall_is_met_and_it_is_the_measured_one():
    keys_FK = random_keys(NUM_FACTS).astype(np.float16)
    found = tuned(keys_FK, kind="ivf", num_probes=1, min_recall=0.9)
    assert 1 < found.part.spec.num_probes < found.part.spec.num_lists
    rows = sample_rows(NUM_FACTS, 100)
    scores_QF = keys_FK[rows].astype(np.float32) @ keys_FK.astype(np.float32).T
    scores_QF[np.arange(100), rows] = -np.inf
    nearest = [
        part_nearest[0]
        for row in rows
        for part_nearest, _ in [
            found.part.search(
                keys_FK[row : row + 1].astype(np.float32), visible=visible_rows(NUM_FACTS, hidden=np.array([row]))
            )
        ]
    ]
    assert found.recall == pytest.approx((np.array(nearest) == scores_QF.argmax(axis=1)).mean(), abs=0.011)
    assert 0.9 <= found.recall <= 1
    assert f"{found.part.spec.num_probes} probes" in found.reason
    assert tuned(keys_FK, kind="ivf", num_probes=1, min_recall=0.0).part.spec.num_probes == 1


def test_where_probes_do_not_help_exact_is_taken_and_the_reason_says_so():
    keys_FK = np.random.default_rng(0).standard_normal((2000, K)).astype(np.float16)  # no clusters to speak of
    found = tuned(keys_FK, kind="ivf", num_lists=2, min_recall=1.0)
    assert found.part.spec.kind == "exact"
    assert found.recall == 1
    assert "below 1.0: exact" in found.reason


def test_auto_tries_lists_where_the_graph_misses_facts(monkeypatch):
    monkeypatch.setattr("recipe_ray.store.indexes.tuning._MOST_ENTRIES", 1)
    keys_FK = random_keys(NUM_FACTS).astype(np.float16)
    found = tuned(keys_FK, exact_below=1, num_links=2, num_probes=1, min_recall=0.97)
    assert found.part.spec.kind == "ivf"
    assert found.recall >= 0.97
    assert "below 0.97: ivf" in found.reason


def test_a_graph_is_built_over_fewer_numbers_where_they_are_enough():
    low = low_rank_keys(3000, rank=40)
    found = tuned(low.astype(np.float16), exact_below=1)
    num_dimensions = found.part.spec.num_dimensions
    assert 0 < num_dimensions <= 64
    assert f"over {num_dimensions} of 256 numbers a key" in found.reason
    assert tuned(low.astype(np.float16), exact_below=1, num_dimensions=256).part.spec.num_dimensions == 0


def test_where_fewer_numbers_miss_facts_whole_keys_are_tried(monkeypatch):
    monkeypatch.setattr("recipe_ray.store.indexes.tuning.fewest_dimensions", lambda *_, **__: 32)
    spread = np.random.default_rng(0).standard_normal((1000, 256)).astype(np.float16)
    found = tuned(spread, exact_below=1)
    assert (found.part.spec.kind, found.part.spec.num_dimensions) == ("hnsw", 0)
    assert "below 0.99: whole keys" in found.reason


def test_auto_goes_by_the_number_of_facts_and_the_norms():
    even, uneven = random_keys(600).astype(np.float16), random_keys(600, uneven=True).astype(np.float16)
    assert choose(even, IndexSettings(exact_below=601))[0].kind == "exact"
    assert choose(even, IndexSettings(exact_below=600))[0].kind == "hnsw"
    assert choose(even, IndexSettings(kind="ivf"))[0].remedy == "spherical"
    assert choose(uneven, IndexSettings(kind="ivf"))[0].remedy == "none"
    assert choose(uneven, IndexSettings(kind="hnsw"))[0].remedy == "none"
    assert choose(uneven, IndexSettings(kind="hnsw", remedy="l2"))[0].remedy == "l2"
    assert choose(even.astype(np.float32), IndexSettings())[0].storage == "float32"


def test_training_and_assignment_run_on_gpus_where_there_are_some(monkeypatch):
    faiss, moved = load_faiss(), []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: moved.append(index.ntotal) or index)
    index = build(random_keys(500), spec_of("ivf"))
    assert len(moved) == 2
    assert type(index).__name__ == "IndexIVFScalarQuantizer"


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "flat"},
        {"remedy": "l3"},
        {"num_lists": 0},
        {"min_recall": 1.5},
        {"kind": "exact", "num_probes": 3},
        {"kind": "hnsw", "num_lists": 3},
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(reversed(settings)))):
        IndexSettings(**settings)
