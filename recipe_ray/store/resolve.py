"""Which rows of a dump become events of the table, and which of those need the encoder, from hashes and times alone."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from recipe_ray.store.order import Events, concatenate, find_rows, last_events, statement_keys

EXPIRY_MARGIN_US = 3600 * 10**6
"""For so long an expired fact still gets its vectors: a reader whose clock is behind may hold it for live."""

RowOutcome = Literal["new", "changed", "deleted", "absent", "expired", "unchanged", "superseded"]
"""What becomes of a row; see IngestCounts. `absent` is a delete that stands where no fact was live."""
ROW_OUTCOMES: tuple[RowOutcome, ...] = get_args(RowOutcome)
_CODES: dict[str, int] = {name: code for code, name in enumerate(ROW_OUTCOMES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestCounts:
    """What became of the rows of a dump; `read` is the sum of all the others.

    Attributes:
        read: rows that are not blank.
        new: facts that were not live before.
        changed: facts that say something else now.
        deleted: deletes that stand now.
        expired: facts that stand now and were past their `expires_at` when they came.
        unchanged: facts that the table told already.
        superseded: events that lose to a later one of the same id, in the dump or in the table.
        quarantined: rows that are no facts.
    """

    read: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    expired: int = 0
    unchanged: int = 0
    superseded: int = 0
    quarantined: int = 0

    def __add__(self, other: "IngestCounts") -> "IngestCounts":
        return IngestCounts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What to do with the N rows of a dump.

    Attributes:
        written_N: bool, rows that become events.
        encoded_N: bool, those of them whose vectors the table lacks.
        outcome_N: uint8, places in ROW_OUTCOMES.
    """

    written_N: npt.NDArray[np.bool_]
    encoded_N: npt.NDArray[np.bool_]
    outcome_N: npt.NDArray[np.uint8]

    @property
    def counts(self) -> IngestCounts:
        """How many rows there are of each outcome."""
        numbers = np.bincount(self.outcome_N, minlength=len(ROW_OUTCOMES)).tolist()
        counted = dict(zip(ROW_OUTCOMES, numbers, strict=True))
        deleted = counted.pop("deleted") + counted.pop("absent")
        return IngestCounts(read=len(self.outcome_N), deleted=deleted, **counted)

    def outcomes(self) -> list[RowOutcome]:
        """What became of each row."""
        return [ROW_OUTCOMES[code] for code in self.outcome_N]


def resolve(dump: Events, stored: Events, *, now_us: int) -> Resolution:
    """Choose what to write: of every id the events that are later than all that is known, or as late and different.

    An event that the table holds is not written again, and one that is earlier than another of its id never stands, so
    it is not written either. What is written together with what was there tells the same as if everything were,
    whoever commits first: two events of one time and different content are both kept, since an older copy of one of
    them, still on its way, may yet decide between them by its `ingested_at`.

    Args:
        dump: the rows of a dump; `encoded_N` is false.
        stored: every event of the same ids in the table.
        now_us: the time by which a fact has expired, microseconds since the Unix epoch; an hour later its vectors are
            left out too.
    """
    num_stored, num_rows = len(stored), len(dump)
    both = concatenate([stored, dump])
    identities, of_row = _number(both.identity_N2)
    newest_us = np.full(identities, np.iinfo(np.int64).min)
    np.maximum.at(newest_us, of_row, both.updated_us_N)
    is_newest = dump.updated_us_N == newest_us[of_row[num_stored:]]
    first_like_it = find_rows(_event_keys(dump), _event_keys(dump))
    is_first = first_like_it == np.arange(num_rows)
    known_row = find_rows(_event_keys(dump), _event_keys(stored))
    is_known = known_row >= 0
    known_since = np.full(num_rows, np.iinfo(np.int64).max)
    known_since[is_known] = _first_ingested(stored)[known_row[is_known]]
    written = is_newest & is_first & (known_since > dump.ingested_us_N)
    reused = find_rows(statement_keys(dump), statement_keys(stored.take(stored.encoded_N))) >= 0
    expired = dump.expires_us_N <= now_us - EXPIRY_MARGIN_US
    encoded = written & ~dump.is_delete_N & ~reused & ~expired
    return Resolution(
        written_N=written,
        encoded_N=encoded,
        outcome_N=_classify(
            dump, stored, both, written=written, is_known=is_known & is_newest & is_first, now_us=now_us
        ),
    )


def _classify(
    dump: Events,
    stored: Events,
    both: Events,
    *,
    written: npt.NDArray[np.bool_],
    is_known: npt.NDArray[np.bool_],
    now_us: int,
) -> npt.NDArray[np.uint8]:
    num_rows, num_stored = len(dump), len(stored)
    before = stored.take(last_events(stored))
    row_before = find_rows(dump.identity_N2, before.identity_N2)
    was_there = row_before >= 0
    was_live, says_the_same = np.zeros(num_rows, np.bool_), np.zeros(num_rows, np.bool_)
    was_live[was_there] = before.is_live(now_us)[row_before[was_there]]
    says_the_same[was_there] = (dump.content_N2[was_there] == before.content_N2[row_before[was_there]]).all(axis=1)
    stands = np.zeros(len(both), np.bool_)
    stands[last_events(both)] = True
    stands_now = written & stands[num_stored:]
    unchanged = is_known | (stands_now & says_the_same)
    told = stands_now & ~unchanged
    expired = told & ~dump.is_delete_N & (dump.expires_us_N <= now_us)
    live = told & ~dump.is_delete_N & ~expired
    outcome_N = np.full(num_rows, _CODES["superseded"], np.uint8)
    for rows, name in (
        (unchanged, "unchanged"),
        (expired, "expired"),
        (live & was_live, "changed"),
        (live & ~was_live, "new"),
        (told & dump.is_delete_N & was_live, "deleted"),
        (told & dump.is_delete_N & ~was_live, "absent"),
    ):
        outcome_N[rows] = _CODES[name]
    return outcome_N


def _number(identity_N2: npt.NDArray[np.uint64]) -> tuple[int, npt.NDArray[np.int64]]:
    """How many distinct identities there are, and the number of each row's."""
    first = find_rows(identity_N2, identity_N2)
    distinct = np.unique(first)
    return len(distinct), np.searchsorted(distinct, first)


def _event_keys(events: Events) -> npt.NDArray[np.uint64]:
    updated = events.updated_us_N.astype(np.uint64)[:, None]  # equal exactly where the signed numbers are
    return np.concatenate([events.identity_N2, updated, events.content_N2], axis=1)


def _first_ingested(events: Events) -> npt.NDArray[np.int64]:
    """When each row's event was first ingested, by whichever of its copies; right for the first copy of each."""
    first = find_rows(_event_keys(events), _event_keys(events))
    earliest = events.ingested_us_N.copy()
    np.minimum.at(earliest, first, events.ingested_us_N)
    return earliest[first]
