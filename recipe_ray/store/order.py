"""Which of an id's events stands: the last by `updated_at`, then `ingested_at`, then content hash.

The rule looks at nothing else, so the order in which events were committed or read does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import TableError

HASH_BYTES = 16
Hashes = npt.NDArray[np.uint64]  # [N, 2], the two big-endian halves of 16 bytes: compares as the bytes do


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOrder:
    """What decides between N events of any number of facts.

    Attributes:
        identity_N2: uint64, 16 bytes that stand for namespace and id.
        updated_us_N, ingested_us_N: int64, microseconds since the Unix epoch.
        content_N2: uint64, content hash.
    """

    identity_N2: Hashes
    updated_us_N: npt.NDArray[np.int64]
    ingested_us_N: npt.NDArray[np.int64]
    content_N2: Hashes

    def __len__(self) -> int:
        return len(self.updated_us_N)

    def take(self, rows: npt.NDArray[np.int64]) -> "EventOrder":
        """Select events, in the order of the rows."""
        return EventOrder(
            identity_N2=self.identity_N2[rows],
            updated_us_N=self.updated_us_N[rows],
            ingested_us_N=self.ingested_us_N[rows],
            content_N2=self.content_N2[rows],
        )

    def with_identity(self, identity_N2: Hashes) -> "EventOrder":
        """Give the same events other identities."""
        return replace(self, identity_N2=identity_N2)


def concatenate(parts: Sequence[EventOrder]) -> EventOrder:
    """All events of the parts, in their order."""
    return EventOrder(
        identity_N2=np.concatenate([np.empty((0, 2), np.uint64), *(part.identity_N2 for part in parts)]),
        updated_us_N=np.concatenate([np.empty(0, np.int64), *(part.updated_us_N for part in parts)]),
        ingested_us_N=np.concatenate([np.empty(0, np.int64), *(part.ingested_us_N for part in parts)]),
        content_N2=np.concatenate([np.empty((0, 2), np.uint64), *(part.content_N2 for part in parts)]),
    )


def last_events(events: EventOrder) -> npt.NDArray[np.int64]:
    """Rows of the events that stand, one a fact, sorted by identity.

    Events that agree in everything say the same, so the first of them stands for all.
    """
    if not len(events):
        return np.empty(0, np.int64)
    order = np.lexsort(
        (
            -np.arange(len(events)),
            events.content_N2[:, 1],
            events.content_N2[:, 0],
            events.ingested_us_N,
            events.updated_us_N,
            events.identity_N2[:, 1],
            events.identity_N2[:, 0],
        )
    )
    sorted_identity = events.identity_N2[order]
    is_last = np.append((sorted_identity[1:] != sorted_identity[:-1]).any(axis=1), True)
    return order[is_last]


def hashes_of(cells: bytes, *, place: str) -> Hashes:
    """Concatenated 16-byte hashes as comparable numbers.

    Raises:
        TableError: their length is not a multiple of 16.
    """
    if len(cells) % HASH_BYTES:
        raise TableError(f"{place}: a content hash has not {HASH_BYTES} bytes; restore the table or ingest anew")
    return np.frombuffer(cells, dtype=">u8").astype(np.uint64).reshape(-1, 2)
