"""Which lines of a dump become events of the table, decided from hashes and times alone."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from recipe_ray.store.dump import Scan, microseconds
from recipe_ray.store.order import EventOrder, Hashes, last_events
from recipe_ray.store.table import StandingEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestCounts:
    """What became of the lines of a dump; `read` is the sum of all the others.

    Attributes:
        read: lines that are not blank.
        new: facts that were not live before.
        changed: facts that say something else now.
        deleted: deletes written.
        unchanged: facts that the table tells already, word for word.
        superseded: events that lose to a later one of the same id, in the dump or in the table.
        quarantined: lines that are no facts.
    """

    read: int
    new: int
    changed: int
    deleted: int
    unchanged: int
    superseded: int
    quarantined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Rows of the scanned facts to write, in the order of the dump, and what became of the others."""

    rows: npt.NDArray[np.int64]
    counts: IngestCounts


def resolve(scan: Scan, standing: StandingEvents, *, ingested_at: datetime) -> Resolution:
    """Choose the events to write: the last of every id in the dump, where it is later than the table's and says other.

    A fact that the table tells already word for word is not written again, even with a later `updated_at`.
    """
    scanned = scan.facts
    num_scanned = len(scanned.line_N)
    ingested_us = np.full(num_scanned, microseconds(ingested_at), np.int64)
    events = EventOrder(
        identity_N2=scanned.identity_N2,
        updated_us_N=scanned.updated_us_N,
        ingested_us_N=ingested_us,
        content_N2=scanned.content_N2,
    )
    rows = last_events(events)
    last = events.take(rows)
    stored_row = _find(last.identity_N2, standing.order.identity_N2)
    known = np.flatnonzero(stored_row >= 0)
    ours, theirs = last.take(known), standing.order.take(stored_row[known])
    same, later, was_live = np.zeros(len(rows), np.bool_), np.ones(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
    same[known] = (ours.content_N2 == theirs.content_N2).all(axis=1)
    later[known] = _later(ours, theirs)
    was_live[known] = ~standing.is_delete_N[stored_row[known]]
    written = later & ~same
    is_delete = scanned.is_delete_N[rows]
    counts = IngestCounts(
        read=num_scanned + len(scan.bad_lines),
        new=int((written & ~is_delete & ~was_live).sum()),
        changed=int((written & ~is_delete & was_live).sum()),
        deleted=int((written & is_delete).sum()),
        unchanged=int(same.sum()),
        superseded=int(num_scanned - len(rows) + (~later & ~same).sum()),
        quarantined=len(scan.bad_lines),
    )
    return Resolution(rows=np.sort(rows[written]), counts=counts)


def _find(wanted_M2: Hashes, among_N2: Hashes) -> npt.NDArray[np.int64]:
    """Row of each wanted identity among distinct ones, -1 where it is absent."""
    both = np.concatenate([among_N2, wanted_M2])
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: of equals the one of among_N2 comes first
    begins = np.append(True, (both[order][1:] != both[order][:-1]).any(axis=1))[: len(order)]
    first_of_equals = order[begins][np.cumsum(begins) - 1]
    found = np.empty(len(both), np.int64)
    found[order] = np.where(first_of_equals < len(among_N2), first_of_equals, -1)
    return found[len(among_N2) :]


def _later(left: EventOrder, right: EventOrder) -> npt.NDArray[np.bool_]:
    """Whether each event of `left` stands against the one of `right`, by the order of `recipe_ray.store.order`."""
    later = np.zeros(len(left), np.bool_)
    undecided = np.ones(len(left), np.bool_)
    for ours, theirs in (
        (left.updated_us_N, right.updated_us_N),
        (left.ingested_us_N, right.ingested_us_N),
        (left.content_N2[:, 0], right.content_N2[:, 0]),
        (left.content_N2[:, 1], right.content_N2[:, 1]),
    ):
        later |= undecided & (ours > theirs)
        undecided &= ours == theirs
    return later
