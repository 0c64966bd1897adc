"""Which of an id's events stands, from times and hashes alone, whatever the order of commits.

An event is what was said of a fact (its content) as of a time (`updated_at`); saying it again changes nothing, so it is
known since it was first ingested. Of an id's events the last stands: by `updated_at`, then `ingested_at`, then content
hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import TableError

HASH_BYTES = 16
NEVER_US = np.iinfo(np.int64).max
Hashes = npt.NDArray[np.uint64]  # [N, 2], the two big-endian halves of 16 bytes: compares as the bytes do

EVENT_COLUMNS = [
    "op",
    "updated_at",
    "expires_at",
    "ingested_at",
    "content_hash",
    "statement_hash",
    "encoded",
]
"""What `events_of` reads, beside what tells the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """N events of any number of facts, without their texts and vectors.

    Attributes:
        identity_N2: uint64, 16 bytes that stand for namespace and id.
        updated_us_N, ingested_us_N: int64, microseconds since the Unix epoch.
        expires_us_N: int64, likewise; NEVER_US where the fact does not expire.
        content_N2: uint64, hash of what the event says.
        statement_N2: uint64, hash of the statement, which is what the encoder reads.
        is_delete_N: bool.
        encoded_N: bool, whether the row holds vectors.
    """

    identity_N2: Hashes
    updated_us_N: npt.NDArray[np.int64]
    ingested_us_N: npt.NDArray[np.int64]
    expires_us_N: npt.NDArray[np.int64]
    content_N2: Hashes
    statement_N2: Hashes
    is_delete_N: npt.NDArray[np.bool_]
    encoded_N: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.updated_us_N)

    def take(self, rows: npt.NDArray[Any]) -> "Events":
        """Select events by row or by mask."""
        return Events(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def is_live(self, at_us: int) -> npt.NDArray[np.bool_]:
        """Whether each event, where it stands, makes a fact at that time."""
        return ~self.is_delete_N & (self.expires_us_N > at_us)


def events_of(columns: pa.Table, identity_N2: Hashes, *, place: str) -> Events:
    """Take the deciding columns of events (EVENT_COLUMNS).

    Raises:
        TableError: a hash has another length.
    """
    expires: Any = pc.fill_null(columns.column("expires_at").cast(pa.int64()), pa.scalar(int(NEVER_US)))
    return Events(
        identity_N2=identity_N2,
        updated_us_N=_microseconds(columns.column("updated_at")),
        ingested_us_N=_microseconds(columns.column("ingested_at")),
        expires_us_N=expires.to_numpy(),
        content_N2=hashes_of(columns.column("content_hash"), place=place),
        statement_N2=hashes_of(columns.column("statement_hash"), place=place),
        is_delete_N=_is_delete(columns.column("op")),
        encoded_N=columns.column("encoded").to_numpy(),
    )


def concatenate(parts: Sequence[Events]) -> Events:
    """All events of the parts, at least one, in their order."""
    return Events(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Events)}
    )


def last_events(events: Events) -> npt.NDArray[np.int64]:
    """Rows of the events that stand, one a fact, sorted by identity.

    Of rows that are the same event, the one that was ingested first speaks for it.
    """
    first = _first_copies(events)
    copies = events.take(first)
    order = np.lexsort(
        (
            copies.content_N2[:, 1],
            copies.content_N2[:, 0],
            copies.ingested_us_N,
            copies.updated_us_N,
            copies.identity_N2[:, 1],
            copies.identity_N2[:, 0],
        )
    )
    identity = copies.identity_N2[order]
    is_last = np.append((identity[1:] != identity[:-1]).any(axis=1), True)[: len(order)]
    return first[order[is_last]]


def latest_events(events: Events) -> npt.NDArray[np.int64]:
    """Rows of the events that stand and of those as late by `updated_at`, first copies, sorted by identity.

    Without a loser of such a tie, which would be new where it is said again, the winner could change.
    """
    first = _first_copies(events)
    copies = events.take(first)
    begins = np.append(True, (copies.identity_N2[1:] != copies.identity_N2[:-1]).any(axis=1))[: len(first)]
    last_of_fact = np.append(np.flatnonzero(begins)[1:], len(first)) - 1
    return first[copies.updated_us_N == copies.updated_us_N[last_of_fact[np.cumsum(begins) - 1]]]


def _first_copies(events: Events) -> npt.NDArray[np.int64]:
    """Of the rows that are one event, the one ingested first; of those ingested together, the first row."""
    order = np.lexsort(
        (
            events.ingested_us_N,
            events.content_N2[:, 1],
            events.content_N2[:, 0],
            events.updated_us_N,
            events.identity_N2[:, 1],
            events.identity_N2[:, 0],
        )
    )
    said = events.take(order)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (
        (said.identity_N2[1:] != said.identity_N2[:-1]).any(axis=1)
        | (said.updated_us_N[1:] != said.updated_us_N[:-1])
        | (said.content_N2[1:] != said.content_N2[:-1]).any(axis=1)
    )
    return order[is_first]


def vector_rows(events: Events, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rows with the vectors of the events in `rows`: their own, or those of the same id and statement; -1 for none."""
    encoded = np.flatnonzero(events.encoded_N)
    found = find_rows(statement_keys(events.take(rows)), statement_keys(events.take(encoded)))
    elsewhere = np.where(found >= 0, encoded[found] if len(encoded) else -1, -1)
    return np.where(events.encoded_N[rows], rows, elsewhere)


def statement_keys(events: Events) -> npt.NDArray[np.uint64]:
    """Rows of `find_rows` that are equal where id and statement are, [N, 4]."""
    return np.concatenate([events.identity_N2, events.statement_N2], axis=1)


def find_rows(wanted_MC: npt.NDArray[np.uint64], among_NC: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Row of each wanted tuple of C numbers among others, the first where there are several, -1 where there is none."""
    both = np.concatenate([among_NC, wanted_MC])
    order = np.lexsort(tuple(both.T[::-1]))  # stable: of equals the first of among_NC comes first
    begins = np.append(True, (both[order][1:] != both[order][:-1]).any(axis=1))[: len(order)]
    first_of_equals = order[begins][np.cumsum(begins) - 1]
    found = np.empty(len(both), np.int64)
    found[order] = np.where(first_of_equals < len(among_NC), first_of_equals, -1)
    return found[len(among_NC) :]


def hashes_of(cells: Any, *, place: str) -> Hashes:
    """A chunked Arrow column of 16-byte hashes as comparable numbers.

    Raises:
        TableError: one has another length, or is missing.
    """
    try:
        fixed = cells.combine_chunks().cast(pa.binary(HASH_BYTES))
        if fixed.null_count:
            raise pa.ArrowInvalid("null")
    except pa.ArrowInvalid as error:
        raise TableError(f"{place}: a hash has not {HASH_BYTES} bytes; restore the table or ingest anew") from error
    if not len(fixed):
        return np.empty((0, 2), np.uint64)
    numbers = np.frombuffer(fixed.buffers()[1], dtype=">u8", count=2 * len(fixed), offset=HASH_BYTES * fixed.offset)
    return numbers.astype(np.uint64).reshape(-1, 2)


def _is_delete(column: Any) -> npt.NDArray[np.bool_]:
    is_delete: Any = pc.equal(column, pa.scalar("delete"))
    return is_delete.to_numpy()


def _microseconds(column: Any) -> npt.NDArray[np.int64]:
    return column.cast(pa.int64()).to_numpy()
