"""Kinds of FAISS index over the keys of one part of a snapshot: how they are built and searched.

Whatever the kind, what an index gives are candidates: they are scored again from the stored keys, in one fixed order,
so a score is the exact one and the same alone and in a batch. Of facts with equal scores the lowest row is found.

Inner products of keys of unequal length are no distance: a graph or an inverted file that treats them as one may miss
the best fact. Two remedies are here. `l2` adds a coordinate √(M² - |k|²), M the largest norm, which makes all keys
equally long: the nearest by distance is then the best by inner product (Bachrach et al. 2014, section 3). `spherical`
clusters directions: unit centroids, inner products within the lists. The third is more probes, and did most of what was
measured (see `tuning`). What is indexed may be narrower than a key (see `reduction`).

Shapes: B queries, F facts, K key width, C candidates of a query, N facts found for a query, W width of what is indexed.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.exact import inner_products, load_faiss
from recipe_ray.store.indexes.reduction import directions, reduced, reduced_alike, taken_apart, transformed

Kind = Literal["exact", "ivf", "hnsw", "sq8"]
Remedy = Literal["none", "l2", "spherical"]
Storage = Literal["float16", "float32"]
Keys = npt.NDArray[np.floating[Any]]

BLOCK_ROWS = 65_536  # rows held as float32 at once
_SCAN_ROWS = 16_384  # likewise, beside their scores for every query
_CANDIDATES = 8
MORE_CANDIDATES = 32  # where eight bits, or fewer numbers than a key has, misplace near neighbours
_WIDER = 8  # times as many candidates where all of them tie
_POINTS_PER_LIST = 64  # that train a list's centroid; FAISS's own 256 takes four times as long
_CLUSTERING_STEPS = 10
_LANES = 16  # of the fastest scalar quantiser: an added coordinate comes with zeros up to a multiple
_NUM_CONSTRUCTION = 80  # entries kept while a fact is put into the graph


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """How the facts of one part are indexed.

    Attributes:
        kind: exact scans all keys; ivf visits the lists of the nearest centroids; hnsw walks a graph; sq8 holds the
            keys in 8 bits a number, in one list or in several.
        remedy: against keys of unequal norm, see the module.
        storage: of the vectors of ivf and hnsw, and of exact; sq8 has its own.
        num_lists: of ivf and sq8; 0 scans everything (exact, and sq8 without lists) or walks a graph (hnsw).
        num_probes: lists that a query visits, or, of hnsw, entries kept on the way; 0 without either.
        num_links: of a fact in the graph; 0 without one.
        max_norm: M, the largest norm of a key.
        num_dimensions: numbers a key that are indexed, along the directions that hold most; 0 for all.
    """

    kind: Kind
    remedy: Remedy = "none"
    storage: Storage = "float16"
    num_lists: int = 0
    num_probes: int = 0
    num_links: int = 0
    max_norm: float = 1.0
    num_dimensions: int = 0

    def __post_init__(self) -> None:
        if self.kind == "ivf" and not self.num_lists:
            raise ConfigError("kind is ivf and num_lists is 0; give the number of lists")
        if self.num_lists and self.kind not in ("ivf", "sq8"):
            raise ConfigError(f"num_lists is {self.num_lists} and kind is {self.kind}, which has no lists; drop one")
        if self.kind == "hnsw" and not self.num_links:
            raise ConfigError("kind is hnsw and num_links is 0; give the links of a fact")
        if self.num_links and self.kind != "hnsw":
            raise ConfigError(f"num_links is {self.num_links} and kind is {self.kind}, which has no graph; drop one")
        if self.num_dimensions and (self.kind == "exact" or self.remedy == "l2"):
            raise ConfigError(
                f"num_dimensions is {self.num_dimensions}, but kind is {self.kind} and remedy is {self.remedy}; "
                "exact and l2 index whole keys, drop one"
            )

    @property
    def approximate(self) -> bool:
        """Whether the best fact may be missed."""
        return self.kind != "exact"

    @property
    def num_candidates(self) -> int:
        """C, facts that are scored again for the best one."""
        return MORE_CANDIDATES if self.kind == "sq8" or self.num_dimensions else _CANDIDATES


class PartIndex:
    """The facts of one part, searched.

    Args:
        index: what `build` gave, in memory or mapped.
        keys_FK: as stored, in memory or mapped; candidates are scored by them.
        spec: what the index was built by.
    """

    def __init__(self, index: Any, keys_FK: Keys, spec: PartSpec) -> None:
        assert index.ntotal == len(keys_FK), (index.ntotal, keys_FK.shape)
        self.index = index
        self.keys_FK = keys_FK
        self.spec = spec
        self._searched = index
        self._directions_WK: npt.NDArray[np.float32] | None = None
        if spec.num_dimensions:
            self._searched, self._directions_WK = taken_apart(index)

    def search(
        self, queries_BK: npt.NDArray[np.float32], *, visible: Any = None, num_probes: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the best fact of each query; see `nearest`.

        Returns:
            nearest_B, int64 rows, NO_FACT where none is found; score_B, float32, -inf there.
        """
        rows_B1, scores_B1 = self.nearest(queries_BK, 1, visible=visible, num_probes=num_probes)
        return rows_B1[:, 0], scores_B1[:, 0]

    def nearest(
        self,
        queries_BK: npt.NDArray[np.float32],
        num_nearest: int,
        *,
        visible: Any = None,
        num_probes: int | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the best facts of each query.

        Args:
            queries_BK: float32.
            num_nearest: N, at least 1.
            visible: a FAISS selector of the rows that count; None for all.
            num_probes: instead of the spec's.

        Returns:
            rows_BN, int64, best first and of equal scores the lower row first, NO_FACT where no more are found;
            scores_BN, float32, -inf there.
        """
        num_facts, shape = len(self.keys_FK), (len(queries_BK), num_nearest)
        rows_BN, scores_BN = np.full(shape, NO_FACT, np.int64), np.full(shape, -np.inf, np.float32)
        if not num_facts or not len(queries_BK):
            return rows_BN, scores_BN
        targets_BW = space_queries(queries_BK, self.spec)
        if self._directions_WK is not None:
            targets_BW = reduced_alike(targets_BW, self._directions_WK)
        num_candidates = min(self.spec.num_candidates + num_nearest - 1, num_facts)
        open_B = np.arange(len(queries_BK))
        while len(open_B):
            params = self._params(visible, num_probes or self.spec.num_probes, num_candidates)
            _, candidates_BC = self._searched.search(targets_BW[open_B], num_candidates, params=params)
            found, scores = rescored(self.keys_FK, queries_BK[open_B], candidates_BC)
            rows, best = _best(found, scores, num_nearest)
            rows_BN[open_B, : rows.shape[1]], scores_BN[open_B, : rows.shape[1]] = rows, best
            # Only where the last one taken ties with the worst candidate can a lower row have been left out.
            tied_B = (scores.min(axis=1) == best[:, -1]) & (found >= 0).all(axis=1)
            open_B = open_B[tied_B] if num_candidates < num_facts else open_B[:0]
            num_candidates = min(num_candidates * _WIDER, num_facts)
        return rows_BN, scores_BN

    def _params(self, visible: Any, num_probes: int, num_candidates: int) -> Any:
        faiss = load_faiss()
        chosen = {} if visible is None else {"sel": visible}
        if self.spec.num_lists:
            return faiss.SearchParametersIVF(nprobe=num_probes, **chosen)
        if self.spec.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(num_probes, num_candidates), **chosen)
        return faiss.SearchParameters(**chosen) if chosen else None


def rescored(
    keys_FK: Keys, queries_BK: npt.NDArray[np.float32], candidates_BC: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Score candidates exactly; returns them in ascending order and their scores, -inf for NO_FACT."""
    candidates_BC = np.sort(candidates_BC, axis=1)
    keys_BCK = keys_FK[np.maximum(candidates_BC, 0)].astype(np.float32)
    scores_BC = inner_products(queries_BK[:, None, :], keys_BCK)
    return candidates_BC, np.where(candidates_BC >= 0, scores_BC, np.float32(-np.inf))


def exact_nearest(
    keys_FK: Keys, queries_BK: npt.NDArray[np.float32], *, left_out_B: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the best fact of each query by scanning all keys, a block at a time: what indexes are held against.

    Args:
        keys_FK: any float type.
        queries_BK: float32.
        left_out_B: a row that does not count for a query, NO_FACT for none.

    Returns:
        As `PartIndex.search`.
    """
    num_queries, num_candidates = len(queries_BK), min(_CANDIDATES, max(1, len(keys_FK)))
    queries_KB = np.ascontiguousarray(queries_BK.T)
    best_BC = np.full((num_queries, num_candidates), NO_FACT, np.int64)
    scores_BC = np.full((num_queries, num_candidates), -np.inf, np.float32)
    for start in range(0, len(keys_FK), _SCAN_ROWS):
        scores_FB = keys_FK[start : start + _SCAN_ROWS].astype(np.float32) @ queries_KB
        if left_out_B is not None:
            among = np.flatnonzero((left_out_B >= start) & (left_out_B < start + len(scores_FB)))
            scores_FB[left_out_B[among] - start, among] = -np.inf
        last = max(0, len(scores_FB) - num_candidates)
        block_BC = np.argpartition(scores_FB.T, last, axis=1)[:, last:]
        all_scores = np.concatenate([scores_BC, np.take_along_axis(scores_FB.T, block_BC, axis=1)], axis=1)
        all_rows = np.concatenate([best_BC, start + block_BC], axis=1)
        kept_BC = np.argsort(-all_scores, axis=1)[:, :num_candidates]
        best_BC = np.take_along_axis(all_rows, kept_BC, axis=1)
        scores_BC = np.take_along_axis(all_scores, kept_BC, axis=1)
    best_BC[np.isneginf(scores_BC)] = NO_FACT
    if len(keys_FK):
        best_BC, scores_BC = _best(*rescored(keys_FK, queries_BK, best_BC), 1)
    return best_BC[:, 0], scores_BC[:, 0]


def build(keys_FK: Keys, spec: PartSpec) -> Any:
    """Build the FAISS index of one part; centroids and assignments on GPUs where FAISS finds some, the rest on the CPU.

    Beside the keys and the index itself, memory holds BLOCK_ROWS keys and the training sample as float32. The same keys
    and spec give the same index (a graph only if it is built by one thread).

    Raises:
        ServiceError: FAISS is not installed.
    """
    faiss = load_faiss()
    if spec.num_dimensions:
        directions_WK = directions(keys_FK, spec.num_dimensions)
        narrow = build(reduced(keys_FK, directions_WK), replace(spec, num_dimensions=0))
        return transformed(narrow, directions_WK)
    width = space_width(keys_FK.shape[1], spec)
    metric = faiss.METRIC_L2 if spec.remedy == "l2" else faiss.METRIC_INNER_PRODUCT
    codes = {"float16": faiss.ScalarQuantizer.QT_fp16, "float32": None}[spec.storage]
    if spec.kind == "sq8":
        codes = faiss.ScalarQuantizer.QT_8bit
    sample_FW = _sample(keys_FK, spec)
    if spec.num_lists:
        return _build_lists(faiss, keys_FK, spec, sample_FW, metric, codes)
    if spec.kind == "hnsw":
        if codes is None:
            index = faiss.IndexHNSWFlat(width, spec.num_links, metric)
        else:
            index = faiss.IndexHNSWSQ(width, codes, spec.num_links, metric)
        index.hnsw.efConstruction = _NUM_CONSTRUCTION
    elif codes is None:
        index = faiss.IndexFlat(width, metric)
    else:
        index = faiss.IndexScalarQuantizer(width, codes, metric)
    if len(sample_FW):
        index.train(sample_FW)
    for start in range(0, len(keys_FK), BLOCK_ROWS):
        index.add(space_keys(keys_FK[start : start + BLOCK_ROWS], spec))
    return index


def visible_rows(num_facts: int, *, hidden: npt.NDArray[np.int64]) -> Any:
    """A FAISS selector of all rows but these, for `PartIndex.search`."""
    faiss = load_faiss()
    visible_F = np.ones(num_facts, np.bool_)
    visible_F[hidden] = False
    return faiss.IDSelectorBitmap(np.packbits(visible_F, bitorder="little"))


def space_width(key_width: int, spec: PartSpec) -> int:
    """W: what is indexed may be wider than a key."""
    return (key_width // _LANES + 1) * _LANES if spec.remedy == "l2" else key_width


def space_keys(keys_FK: Keys, spec: PartSpec) -> npt.NDArray[np.float32]:
    """Keys as they are indexed, [F, W]; for `l2` all of norm 1, divided by M so that float16 holds them."""
    if spec.remedy != "l2":
        return np.ascontiguousarray(keys_FK, dtype=np.float32)
    num_facts, key_width = keys_FK.shape
    wide_FW = np.zeros((num_facts, space_width(key_width, spec)), np.float32)
    wide_FW[:, :key_width] = keys_FK.astype(np.float32) / np.float32(spec.max_norm or 1.0)
    squares_F = np.square(wide_FW[:, :key_width]).sum(axis=1)
    wide_FW[:, key_width] = np.sqrt(np.maximum(0, 1 - squares_F))
    return wide_FW


def space_queries(queries_BK: npt.NDArray[np.float32], spec: PartSpec) -> npt.NDArray[np.float32]:
    """Queries as they are searched, [B, W]; for `l2` of norm 1: centroids lie within the sphere, so length matters."""
    if spec.remedy != "l2":
        return np.ascontiguousarray(queries_BK, dtype=np.float32)
    num_queries, key_width = queries_BK.shape
    wide_BW = np.zeros((num_queries, space_width(key_width, spec)), np.float32)
    wide_BW[:, :key_width] = _directions(queries_BK)
    return wide_BW


def _build_lists(
    faiss: Any, keys_FK: Keys, spec: PartSpec, sample_FW: npt.NDArray[np.float32], metric: int, codes: int | None
) -> Any:
    width = sample_FW.shape[1]
    # A flat quantiser multiplies matrices in batches and sums in another order alone, and a query near a border would
    # visit other lists. This one scans each query by itself.
    centroids = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, metric)
    points_FW = _directions(sample_FW) if spec.remedy == "spherical" else sample_FW
    centroids_LW = _cluster(faiss, points_FW, spec, metric)
    centroids.train(centroids_LW)
    centroids.add(centroids_LW)
    if codes is None:
        index = faiss.IndexIVFFlat(centroids, width, spec.num_lists, metric)
    else:
        index = faiss.IndexIVFScalarQuantizer(centroids, width, spec.num_lists, codes, metric, False)
    index.train(sample_FW)  # the ranges of 8 bits; lists are given
    nearest = _accelerated(faiss, faiss.IndexFlat(width, metric))
    nearest.add(centroids_LW)
    for start in range(0, len(keys_FK), BLOCK_ROWS):
        block_FW = space_keys(keys_FK[start : start + BLOCK_ROWS], spec)
        rows_F = np.arange(start, start + len(block_FW), dtype=np.int64)
        lists_F = np.ascontiguousarray(nearest.search(block_FW, 1)[1][:, 0])
        index.add_core(len(block_FW), *map(faiss.swig_ptr, (block_FW, rows_F, lists_F)))
    return index


def _cluster(faiss: Any, points_FW: npt.NDArray[np.float32], spec: PartSpec, metric: int) -> npt.NDArray[np.float32]:
    """Centroids [num_lists, W]."""
    parameters = faiss.ClusteringParameters()
    parameters.niter = _CLUSTERING_STEPS
    parameters.spherical = spec.remedy == "spherical"
    parameters.min_points_per_centroid = 1  # or FAISS writes a warning to standard error
    parameters.max_points_per_centroid = _POINTS_PER_LIST
    width = points_FW.shape[1]
    clustering = faiss.Clustering(width, spec.num_lists, parameters)
    clustering.train(points_FW, _accelerated(faiss, faiss.IndexFlat(width, metric)))
    centroids: npt.NDArray[np.float32] = faiss.vector_to_array(clustering.centroids).reshape(-1, width)
    return centroids


def _accelerated(faiss: Any, index: Any) -> Any:
    """The index on all GPUs, where this FAISS has any; as it is elsewhere."""
    return faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() else index


def _sample(keys_FK: Keys, spec: PartSpec) -> npt.NDArray[np.float32]:
    """Rows for training, spread evenly: as many as the lists need, or enough for the ranges of 8 bits."""
    wanted = _POINTS_PER_LIST * spec.num_lists if spec.num_lists else 1024
    rows = np.unique(np.linspace(0, max(0, len(keys_FK) - 1), min(wanted, len(keys_FK))).astype(np.int64))
    return space_keys(keys_FK[rows], spec)


def _directions(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms_B1: npt.NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    norms_B1[norms_B1 == 0] = 1
    unit: npt.NDArray[np.float32] = np.divide(vectors, norms_B1, dtype=np.float32)
    return unit


def _best(
    candidates_BC: npt.NDArray[np.int64], scores_BC: npt.NDArray[np.float32], num_nearest: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The best of candidates that come in ascending order, as `PartIndex.nearest` gives them; fewer where C is less."""
    order_BN = np.argsort(-scores_BC, axis=1, kind="stable")[:, :num_nearest]  # of equals the lowest row first
    scores_BN = np.take_along_axis(scores_BC, order_BN, axis=1)
    rows_BN = np.take_along_axis(candidates_BC, order_BN, axis=1)
    return np.where(np.isneginf(scores_BN), NO_FACT, rows_BN), scores_BN
