"""The facts of one partition in layers: a big base below, small exact ones above; each id is visible in one of them.

New facts come as a layer of their own, and the rows that they replace are hidden in the layers below. Of neighbouring
layers the upper one is much the smaller, so there are few of them, and two versions share all but the topmost.

Shapes: B queries, F facts, K key width, N facts found for a query, W virtual tokens times LLM width.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.store.indexes.ann import PartIndex, PartSpec, build, visible_rows
from recipe_ray.store.indexes.artefacts import OpenPart
from recipe_ray.store.live.ledger import StoredFacts
from recipe_ray.store.reading.standing import Rows

_STEEP = 8  # a layer is folded into the one below it unless that one has more than so many times its facts
_WINDOW_ROWS = 256  # looked at together in a listing
_NONE_HIDDEN: Rows = np.empty(0, np.int64)


def memory_part(namespace: str, shard: int, facts: StoredFacts) -> OpenPart:
    """A part in memory, searched exactly. The facts are sorted by id; their vectors are taken over, not copied."""
    keys_FK, prompts_FW = facts.keys_FK, np.ascontiguousarray(facts.prompts_FW)
    prompt_type = pa.binary(prompts_FW.shape[1] * prompts_FW.itemsize)
    cells = pa.Array.from_buffers(prompt_type, len(prompts_FW), [None, pa.py_buffer(prompts_FW.data)])
    spec = PartSpec(kind="exact", storage="float16" if keys_FK.dtype.itemsize == 2 else "float32")
    return OpenPart(
        namespace,
        shard,
        PartIndex(build(keys_FK, spec), keys_FK, spec),
        facts.texts.append_column(pa.field("prompt_embeddings", prompt_type, nullable=False), cells),
        index_bytes=2 * keys_FK.nbytes,
    )


class Layer:
    """A part, with rows hidden that a later layer replaces or that are no more.

    Args:
        part: shared by the views of several versions.
        hidden: rows of it, ascending.
    """

    def __init__(self, part: OpenPart, hidden: Rows = _NONE_HIDDEN) -> None:
        self.part = part
        self.hidden = hidden
        self._lock = threading.Lock()
        self._visible: tuple[int, Any, int] = (-1, None, 0)  # how many have expired, then selector and count of others

    @property
    def is_exact(self) -> bool:
        """Whether its index scans all keys."""
        return not self.part.index.spec.approximate

    def num_visible(self, now_us: int) -> int:
        """Facts that are neither hidden nor expired at a time."""
        return self._at(now_us)[1]

    def search(
        self, queries_BK: npt.NDArray[np.float32], num_nearest: int, now_us: int
    ) -> tuple[Rows, npt.NDArray[np.float32]]:
        """See `PartIndex.nearest`."""
        visible, _ = self._at(now_us)
        return self.part.index.nearest(queries_BK, num_nearest, visible=visible)

    def without(self, fact_ids: Any) -> "Layer":
        """The layer with some more ids hidden (an Arrow array), those that it has."""
        found: Any = pc.is_in(self.part.facts.column("fact_id"), value_set=fact_ids)
        rows = np.flatnonzero(found.to_numpy())
        return Layer(self.part, np.union1d(self.hidden, rows)) if len(rows) else self

    def find(self, fact_id: str) -> int | None:
        """Row of an id, expired or not; None where it is not here or hidden."""
        row = self.first_row(fact_id)
        if row == self.part.num_facts or self.fact_id(row) != fact_id or self._is_hidden(row):
            return None
        return row

    def first_row(self, fact_id: str) -> int:
        """First row whose id is not lower."""
        low, high = 0, self.part.num_facts
        while low < high:
            middle = (low + high) // 2
            if self.fact_id(middle) < fact_id:
                low = middle + 1
            else:
                high = middle
        return low

    def rows_from(self, row: int, now_us: int) -> Iterator[int]:
        """Visible rows from one on, in the order of the ids."""
        gone = np.union1d(self.hidden, self.part.expired(now_us))
        for start in range(row, self.part.num_facts, _WINDOW_ROWS):
            window = np.arange(start, min(start + _WINDOW_ROWS, self.part.num_facts))
            yield from window[~np.isin(window, gone)].tolist()

    def fact_id(self, row: int) -> str:
        """Id of a row."""
        fact_id: str = self.part.facts.column("fact_id")[row].as_py()
        return fact_id

    def visible_rows(self, now_us: int) -> Rows:
        """All visible rows, ascending."""
        is_visible_F = np.ones(self.part.num_facts, np.bool_)
        is_visible_F[self.hidden] = False
        is_visible_F[self.part.expired(now_us)] = False
        return np.flatnonzero(is_visible_F)

    def _is_hidden(self, row: int) -> bool:
        place = int(np.searchsorted(self.hidden, row))
        return place < len(self.hidden) and int(self.hidden[place]) == row

    def _at(self, now_us: int) -> tuple[Any, int]:
        """The selector of what is visible at a time (None for all), and how many that are."""
        expired = self.part.expired(now_us)
        with self._lock:
            num_expired, selector, num_visible = self._visible
            if num_expired != len(expired):
                hidden = np.union1d(self.hidden, expired)
                num_visible = self.part.num_facts - len(hidden)
                selector = visible_rows(self.part.num_facts, hidden=hidden) if len(hidden) else None
                self._visible = (len(expired), selector, num_visible)
        return selector, num_visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A partition: its layers from the base up, at least one."""

    layers: tuple[Layer, ...]

    @property
    def base(self) -> Layer:
        """The lowest."""
        return self.layers[0]

    @property
    def num_above(self) -> int:
        """Facts above the base and rows hidden in it: what a new base would take in."""
        return len(self.base.hidden) + sum(layer.part.num_facts for layer in self.layers[1:])

    @property
    def index_bytes(self) -> int:
        """Of indexes and keys."""
        return sum(layer.part.index_bytes for layer in self.layers)

    def changed(self, fact_ids: Any, new: OpenPart | None, now_us: int) -> "Layers":
        """What the partition tells once some ids (an Arrow array) are what `new` says of them, or no more."""
        layers = [layer.without(fact_ids) for layer in self.layers]
        # A layer of which nothing is left goes, the base too where another takes its place.
        kept = [layer for layer in layers if len(layer.hidden) < layer.part.num_facts]
        if new is not None:
            kept.append(Layer(new))
        kept = kept or layers[:1]
        while len(kept) > 2 and len(kept[-2].visible_rows(now_us)) <= _STEEP * kept[-1].part.num_facts:
            kept[-2:] = [Layer(fold(kept[-2:], now_us))]
        return Layers(layers=tuple(kept))

    def folded(self, now_us: int) -> "Layers":
        """The same facts as one exact layer."""
        return Layers(layers=(Layer(fold(self.layers, now_us)),))


def fold(layers: "tuple[Layer, ...] | list[Layer]", now_us: int) -> OpenPart:
    """One part in memory of what is visible in several layers; facts that have expired are left out."""
    part = layers[0].part
    rows = [layer.visible_rows(now_us) for layer in layers]
    facts = pa.concat_tables(
        [layer.part.facts.take(pa.array(of_layer, pa.int64())) for layer, of_layer in zip(layers, rows, strict=True)]
    )
    keys_FK = np.concatenate([layer.part.index.keys_FK[of_layer] for layer, of_layer in zip(layers, rows, strict=True)])
    order: Any = pc.sort_indices(facts.column("fact_id"))
    facts = facts.take(order).combine_chunks()
    width = facts.schema.field("prompt_embeddings").type.byte_width // keys_FK.itemsize
    return memory_part(
        part.namespace,
        part.shard,
        StoredFacts(
            texts=facts.drop_columns(["prompt_embeddings"]),
            keys_FK=keys_FK[order.to_numpy()],
            prompts_FW=_prompts(facts.column("prompt_embeddings"), width, keys_FK.dtype),
        ),
    )


def prompt_of(part: OpenPart, row: int, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The continuous prompt of a row, read-only and as stored."""
    cell = part.facts.column("prompt_embeddings")[row].as_buffer()
    return np.frombuffer(cell, part.index.keys_FK.dtype).reshape(shape)


def _prompts(column: Any, width: int, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    cells = column.combine_chunks()
    if not len(cells):
        return np.empty((0, width), dtype)
    offset = cells.offset * width * dtype.itemsize
    return np.frombuffer(cells.buffers()[1], dtype, count=len(cells) * width, offset=offset).reshape(-1, width)
