"""Edits in force with the keys they are found by.

Shape letters: B queries, F facts, K key width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.methods.base import Edit
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.indexes.ann import PartIndex, exact_nearest
from recipe_ray.store.indexes.tuning import DEFAULT_EXACT_BELOW, IndexSettings, Sample, build_tuned, sample_rows

Vectors = npt.NDArray[np.float32]


class HeldFacts:
    """Edits in rows, searched by inner product: exactly, from `exact_below` facts on through a FAISS index.

    Args:
        exact_below: facts.

    Attributes:
        edits: in the order of their rows; a later edit of one fact takes the row of the earlier.
    """

    def __init__(self, *, exact_below: int = DEFAULT_EXACT_BELOW) -> None:
        self.edits: list[Edit] = []
        self._exact_below = exact_below
        self._row_of: dict[str, int] = {}
        self._buffer = np.zeros((0, 0), np.float32)
        self._index: PartIndex | None = None

    def hold(self, edits: Sequence[Edit], keys_FK: Vectors) -> None:
        """Add edits to those in force."""
        self._index = None
        for edit, key_K in zip(edits, keys_FK, strict=True):
            row = self._row_of.setdefault(edit.fact_id, len(self.edits))
            if row == len(self.edits):
                self.edits.append(edit)
            else:
                self.edits[row] = edit
            if row >= len(self._buffer):
                grown = np.empty((max(64, 2 * row), len(key_K)), np.float32)
                if row:
                    grown[:row] = self._buffer[:row]
                self._buffer = grown
            self._buffer[row] = key_K

    def clear(self) -> None:
        """Hold nothing."""
        self.edits.clear()
        self._row_of.clear()
        self._buffer = np.zeros((0, 0), np.float32)
        self._index = None

    def row(self, fact_id: str) -> int | None:
        """Of a fact, None where it is not held."""
        return self._row_of.get(fact_id)

    def key_bytes(self) -> int:
        """Of the keys in force."""
        return self._keys_FK.nbytes

    def nearest(self, queries_BK: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
        """The best row of each query and its score; NO_FACT and -inf where nothing is held."""
        if not self.edits:
            return np.full(len(queries_BK), NO_FACT, np.int64), np.full(len(queries_BK), -np.inf, np.float32)
        if len(self.edits) < self._exact_below:
            return exact_nearest(self._keys_FK, queries_BK)
        if self._index is None:
            rows = sample_rows(len(self.edits), IndexSettings().num_queries)
            sample = Sample(queries_QK=self._keys_FK[rows], left_out_Q=rows)
            # The sentinel only counts in what the builder reports, which nobody reads here.
            nothing_K = np.zeros(self._keys_FK.shape[1], np.float32)
            self._index = build_tuned(self._keys_FK, IndexSettings(exact_below=0), nothing_K, sample).part
        return self._index.search(queries_BK)

    @property
    def _keys_FK(self) -> Vectors:
        return self._buffer[: len(self.edits)]
