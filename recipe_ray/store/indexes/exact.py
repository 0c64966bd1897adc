"""Exact search over the keys of a snapshot, one FAISS index for each namespace.

Shapes: B queries, F facts, K key width, C candidates of a query.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ServiceError
from recipe_ray.retrieval import NO_FACT, Retrieval, decide

# FAISS sums in another order in large batches than in small ones, so equal or nearly equal facts may swap places with
# the size of the batch. A few candidates are therefore scored again in one fixed order.
_NUM_CANDIDATES = 8


class FactIndex:
    """The facts of one snapshot, searched by inner product within a namespace.

    Results do not depend on the batch: the score of a query is the same alone and among others. Of facts with equal
    scores the one in the lowest row is found.

    Args:
        keys_FK: keys in the order of the snapshot's rows, any float type; kept as float32.
        namespaces: the namespace of each row, length F.

    Raises:
        ServiceError: FAISS is not installed.
    """

    def __init__(self, keys_FK: npt.NDArray[np.floating[Any]], namespaces: Sequence[str]) -> None:
        assert keys_FK.ndim == 2 and len(keys_FK) == len(namespaces), (keys_FK.shape, len(namespaces))
        self.num_facts, self.key_width = keys_FK.shape
        faiss = load_faiss()
        rows_by_namespace: dict[str, list[int]] = {}
        for row, namespace in enumerate(namespaces):
            rows_by_namespace.setdefault(namespace, []).append(row)
        self._parts: dict[str, tuple[npt.NDArray[np.int64], Any]] = {}
        for namespace, rows in rows_by_namespace.items():
            row_ids = np.asarray(rows, dtype=np.int64)
            index = faiss.IndexFlatIP(self.key_width)
            index.add(np.ascontiguousarray(keys_FK[row_ids], dtype=np.float32))
            self._parts[namespace] = (row_ids, index)

    def __contains__(self, namespace: object) -> bool:
        return namespace in self._parts

    def search(
        self, queries_BK: npt.NDArray[np.float32], namespaces: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the best fact of each query within the query's namespace.

        Returns:
            nearest_B, int64 rows of the snapshot, NO_FACT where the namespace holds no facts; score_B, float32, -inf
            there.
        """
        assert queries_BK.shape == (len(namespaces), self.key_width), (queries_BK.shape, len(namespaces))
        nearest_B = np.full(len(namespaces), NO_FACT, dtype=np.int64)
        score_B = np.full(len(namespaces), -np.inf, dtype=np.float32)
        of_query = np.asarray(namespaces, dtype=object)
        for namespace in set(namespaces) & self._parts.keys():
            among = np.flatnonzero(of_query == namespace)
            row_ids, index = self._parts[namespace]
            nearest, score_B[among] = _best(index, np.ascontiguousarray(queries_BK[among], dtype=np.float32))
            nearest_B[among] = row_ids[nearest]
        return nearest_B, score_B

    def retrieve(
        self, queries_BK: npt.NDArray[np.float32], sentinel_K: npt.NDArray[np.float32], namespaces: Sequence[str]
    ) -> Retrieval:
        """Search and let the sentinel decide. A fact whose key equals the sentinel ties with it and is not used."""
        nearest_B, score_B = self.search(queries_BK, namespaces)
        return decide(nearest_B, score_B, inner_products(queries_BK, sentinel_K))


def inner_products(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Inner product over the last axis, other axes broadcast, each summed in one order whatever the batch."""
    product: npt.NDArray[np.float32] = np.sum(left * right, axis=-1, dtype=np.float32)
    return product


def _best(index: Any, queries_BK: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    num_candidates = min(_NUM_CANDIDATES, index.ntotal)
    _, candidates_BC = index.search(queries_BK, num_candidates)
    candidates_BC = np.sort(candidates_BC, axis=1)  # so that argmax, which takes the first, takes the lowest row
    keys_BCK = index.reconstruct_batch(candidates_BC.ravel()).reshape(*candidates_BC.shape, -1)
    scores_BC = inner_products(queries_BK[:, None, :], keys_BCK)
    best_B1 = scores_BC.argmax(axis=1)[:, None]
    return (
        np.take_along_axis(candidates_BC, best_B1, axis=1)[:, 0],
        np.take_along_axis(scores_BC, best_B1, axis=1)[:, 0],
    )


def load_faiss() -> Any:
    """The module `faiss`, of either package.

    Raises:
        ServiceError: FAISS is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ServiceError(
            "searching facts needs the module faiss, which is not installed; install recipe-ray[cpu], or "
            "recipe-ray[gpu] on a machine with CUDA (not both)"
        ) from error
