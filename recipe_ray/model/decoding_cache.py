"""Keys and values of the rows that are being decoded: rows join and leave in place, the others are not copied.

`DynamicCache` concatenates every layer's whole cache for every token. Here each layer has one buffer with columns to
spare: a step writes one column.

Shape letters: B running rows, N joining rows, S slots (S ≥ B), T columns of the joining rows, C columns (room beyond
the last included), H key-value heads, E head width.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from recipe_ray.errors import ModelError

# Of layers that read another layer's cache; transformers before 5.20 has none.
_DUMMY: Any = getattr(cache_utils, "DummyLayer", None)
MIN_ROOM = 64  # columns: rows are laid anew at most once in so many tokens


class KVSlots:
    """One row a slot, all rows ending in the same column; a row of L tokens fills the L columns before `end`.

    What stands left of a row within its slot is padding of its own or zero, never what another left there: attention
    gives it no weight, but no weight times a NaN is a NaN.

    Args:
        max_rows: slots are never more.
    """

    def __init__(self, *, max_rows: int) -> None:
        self.max_rows = max_rows
        self.lengths_B = np.zeros(0, dtype=np.int64)
        self.end = 0
        self.keys: list[Tensor] = []  # a layer each, [S, H, C, E]
        self.values: list[Tensor] = []

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.lengths_B)

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return int(self.lengths_B.max()) if len(self.lengths_B) else 0

    def insert(self, layers: Sequence["PrefillLayer"], lengths: Sequence[int]) -> None:
        """Add rows behind the others.

        Args:
            layers: their keys and values, aligned at their ends.
            lengths: of each, the longest being T.
        """
        first, last, columns = self.num_rows, self.num_rows + len(lengths), max(lengths)
        if first == 0:
            self.end = 0
        if not self.keys or last > self.keys[0].shape[0] or columns > self.end:
            self._lay(layers, num_slots=last, end=max(self.width, columns))
        begin = self.end - columns
        for buffers, part in ((self.keys, "keys"), (self.values, "values")):
            for buffer, layer in zip(buffers, layers, strict=True):
                buffer[first:last, :, begin : self.end] = getattr(layer, part)
                buffer[first:last, :, :begin] = 0
        self.lengths_B = np.concatenate([self.lengths_B, np.asarray(lengths, dtype=np.int64)])

    def remove(self, gone: Collection[int]) -> list[int]:
        """Take rows out; rows from the end fill their slots.

        Returns:
            The old slot of each row that stays, in the new order.
        """
        num_left = self.num_rows - len(gone)
        order = list(range(num_left))
        holes = [slot for slot in order if slot in gone]
        movers = [slot for slot in range(num_left, self.num_rows) if slot not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if num_left == 0:
            self.keys, self.values = [], []
        elif holes:
            to, source = (torch.tensor(slots, device=self.keys[0].device) for slots in (holes, movers))
            for buffer in (*self.keys, *self.values):
                buffer[to, :, : self.end] = buffer[source, :, : self.end]
        self.lengths_B = self.lengths_B[order]
        return order

    def make_room(self) -> None:
        """Have a column for the next token of every row."""
        if self.end == self.keys[0].shape[2]:
            self._lay([], num_slots=self.num_rows, end=self.width)

    def write(self, layer: int, keys_BH1E: Tensor, values_BH1E: Tensor) -> tuple[Tensor, Tensor]:
        """Put the next token's keys and values there; all of that layer, [B, H, width + 1, E], in place."""
        rows, start, end = self.num_rows, self.end - self.width, self.end
        keys, values = self.keys[layer], self.values[layer]
        keys[:rows, :, end : end + 1] = keys_BH1E
        values[:rows, :, end : end + 1] = values_BH1E
        return keys[:rows, :, start : end + 1], values[:rows, :, start : end + 1]

    def advance(self) -> None:
        """The token that was written is part of every row."""
        self.lengths_B += 1
        self.end += 1

    def _lay(self, like: Sequence["PrefillLayer"], *, num_slots: int, end: int) -> None:
        """Move the rows so that they end in column `end`, into new buffers where these are too small or far too large.

        Args:
            like: layers of the shapes to make, where there are no buffers yet.
            num_slots: at least so many.
            end: of the rows, at least their width.
        """
        rows, width, start = self.num_rows, self.width, self.end - self.width
        slots = min(self.max_rows, 1 << (num_slots - 1).bit_length())
        if self.keys and slots <= self.keys[0].shape[0] <= 4 * slots:
            slots = self.keys[0].shape[0]
        columns = end + max(MIN_ROOM, end // 4)
        for buffers, part in ((self.keys, "keys"), (self.values, "values")):
            if not buffers:
                shapes = [getattr(layer, part) for layer in like]
                buffers.extend(one.new_empty(slots, one.shape[1], columns, one.shape[3]) for one in shapes)
                continue
            for place, old in enumerate(buffers):
                rows_left = old[:rows, :, start : start + width]
                if end == width <= start and old.shape[0] == slots and columns <= old.shape[2] <= 2 * columns:
                    old[:rows, :, :width] = rows_left
                    continue
                new = old.new_empty(slots, old.shape[1], columns, old.shape[3])
                new[:rows, :, end - width : end] = rows_left
                new[:rows, :, : end - width] = 0
                buffers[place] = new  # one layer at a time: never two whole caches
        self.end = end


class PrefillLayer(DynamicLayer):
    """Keys and values of rows that are being read in, column by column from the left."""

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; the first time, hold what is given without copying it."""
        if self.keys is not None:
            appended: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return appended
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states, value_states
        return key_states, value_states


class SlotLayer(CacheLayerMixin):
    """One layer of `KVSlots` as transformers wants to see it: full attention over the window of the rows."""

    is_sliding = False

    def __init__(self, slots: KVSlots, layer: int) -> None:
        super().__init__()
        self.slots = slots
        self.layer = layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are made when rows join."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See `KVSlots.write`."""
        return self.slots.write(self.layer, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the next tokens see, and the first of them."""
        return self.slots.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.slots.width

    def get_max_length(self) -> int:
        """None that is fixed."""
        return -1


class CacheFactory:
    """Makes caches for an LM whose layers all keep every key: masks, not evictions, narrow a sliding window.

    Raises:
        ModelError: an LM that keeps something else than keys and values of tokens.
    """

    def __init__(self, config: Any, *, name: str) -> None:
        self._kinds = [type(layer) for layer in DynamicCache(config=config).layers]
        unknown = {kind for kind in self._kinds if kind not in (DynamicLayer, DynamicSlidingWindowLayer, _DUMMY)}
        if unknown:
            raise ModelError(
                f"LLM {name}: keeps {', '.join(sorted(kind.__name__ for kind in unknown))} where keys and values of "
                "tokens are expected, so its requests cannot share a batch; serve a transformer with plain attention"
            )

    def prefill(self) -> Cache:
        """An empty cache for rows that are read in together."""
        return Cache(layers=[_DUMMY() if kind is _DUMMY else PrefillLayer() for kind in self._kinds])

    def running(self, slots: KVSlots) -> Cache:
        """A cache that stands for `slots`."""
        number, layers = 0, []
        for kind in self._kinds:
            layers.append(_DUMMY() if kind is _DUMMY else SlotLayer(slots, number))
            number += kind is not _DUMMY
        return Cache(layers=layers)


def prefilled(cache: Cache) -> list[PrefillLayer]:
    """The layers that hold something."""
    return [layer for layer in cache.layers if isinstance(layer, PrefillLayer)]
