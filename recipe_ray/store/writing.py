"""Facts written in groups, without a dump: one atomic commit for all that a group says.

N events of a group, F of them to encode, K key width, P virtual tokens, D LLM width.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import FactError, TableError
from recipe_ray.facts import Fact
from recipe_ray.store.delta import CommitConflictError, log_versions, read_commit, retrying
from recipe_ray.store.file_cache import FileCache
from recipe_ray.store.order import Events, concatenate, last_events
from recipe_ray.store.parquet import write_events
from recipe_ray.store.pointer import read_pointer
from recipe_ray.store.resolve import Resolution, RowOutcome, resolve
from recipe_ray.store.schema import TIMESTAMP, identity_hash, microseconds, shard_of
from recipe_ray.store.snapshot import read_events
from recipe_ray.store.staging import staged_events, staged_rows
from recipe_ray.store.stored import remove_files
from recipe_ray.store.table import FactTable, GroupId
from recipe_ray.store.units import ENCODE_COLUMN, append_vectors, to_events

Vectors = npt.NDArray[np.floating[Any]]
Encode = Callable[[Sequence[str]], tuple[Vectors, Vectors]]
"""Keys [F, K] and continuous prompts [F, P, D] of statements."""


class UnfitFactsError(FactError):
    """Facts whose vectors the table cannot hold; nothing was written.

    Args:
        faults: what is wrong, by place in the group.
    """

    def __init__(self, faults: Mapping[int, str]) -> None:
        super().__init__("; ".join(faults[place] for place in sorted(faults)))
        self.faults = dict(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of a group.

    Attributes:
        version: of the table that tells it: the one committed, or the last where nothing was to be written.
        outcomes: of each fact; a delete is `absent` where no fact was live, whether or not that was known.
        num_written: events added.
        num_encoded: those of them that needed the encoder.
    """

    version: int
    outcomes: tuple[RowOutcome, ...]
    num_written: int
    num_encoded: int


def write_facts(
    table_uri: str,
    facts: Sequence[Fact],
    encode: Encode,
    *,
    identity: EditorIdentity,
    group: GroupId,
    now: datetime | None = None,
    cache: FileCache | None = None,
) -> Written:
    """Bring a table up to what facts say, as an ingest of them would: all in one commit, or none where none is news.

    Facts of one time are so in the order given. One without a time is so from now on, and later than all that is known
    of it: where the table, or the group, has an event of the near future, from then on.

    A group whose commit is in the log already is told from there, and nothing is written.

    Args:
        table_uri: of the table, where it lies: versions of another place are counted anew, so nobody is led on.
        facts: events, of one id several if need be.
        encode: encodes statements; is asked of each at most once.
        identity: of the editor that encodes.
        group: no other group has this.
        now: the clock's time if not given; a group that is tried again must give the same.
        cache: remembers data files from group to group.

    Raises:
        UnfitFactsError: vectors are not finite in the table's dtype.
        CommitConflictError: other writers never pause.
        TableError: the table is not there, moved, was encoded by another editor, is damaged, or the log cannot be
            written. Of a group that failed in its commit only the same group tells whether it was written.
        OutputError: the place cannot be written.
    """
    writing = _Writing(
        table_uri=table_uri,
        facts=tuple(facts),
        encode=encode,
        identity=identity,
        group=group,
        now_us=microseconds(now or datetime.now(UTC)),
        cache=FileCache() if cache is None else cache,
    )
    return retrying(writing.attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to write against a version of the table.

    Attributes:
        rows: STAGED_SCHEMA, all N.
        ingested_at: Arrow array [N].
        resolution: which of them are written and encoded.
        outcomes: of each.
    """

    rows: pa.Table
    ingested_at: Any
    resolution: Resolution
    outcomes: tuple[RowOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """One group, from its facts to the commit; `vectors` are those of statements encoded so far."""

    table_uri: str
    facts: tuple[Fact, ...]
    encode: Encode
    identity: EditorIdentity
    group: GroupId
    now_us: int
    cache: FileCache
    vectors: dict[str, tuple[Vectors, Vectors]] = field(default_factory=dict)

    def attempt(self) -> Written:
        """Write against the last version.

        Raises:
            CommitConflictError: it was not the last any more.
        """
        if moved := read_pointer(self.table_uri):
            raise TableError(f"{self.table_uri}: moved to {moved.to}; write there, with the editor of that table")
        table = FactTable.open(self.table_uri, moved=False)
        table.check_editor(self.identity)
        if table.has_group(self.group):
            return self._told(table)
        plan = self._plan(table)
        written_N, encoded_N = plan.resolution.written_N, plan.resolution.encoded_N
        if written_N.any():
            self._commit(table, plan)
        return Written(
            version=table.version,
            outcomes=plan.outcomes,
            num_written=int(written_N.sum()),
            num_encoded=int(encoded_N.sum()),
        )

    def _told(self, table: FactTable) -> Written:
        """What an earlier attempt committed and could not tell: decided again against the version before it."""
        version = _version_of(self.group, table)
        plan = self._plan(table if version is None else FactTable.open(table.uri, version - 1))
        return Written(version=version or table.version, outcomes=plan.outcomes, num_written=0, num_encoded=0)

    def _plan(self, table: FactTable) -> _Plan:
        stored = self._stored(table)
        identities = [identity_hash(fact.namespace, fact.fact_id) for fact in self.facts]
        updated_us, ingested_us = stamp(self.facts, identities, stored, now_us=self.now_us)
        rows = staged_rows(self.facts, identities, updated_us)
        ingested_at = pa.array(ingested_us, pa.int64()).cast(TIMESTAMP)
        dump = staged_events(rows, ingested_at, place=table.uri)
        resolution = resolve(dump, stored, now_us=self.now_us)
        outcomes: list[RowOutcome] = [
            "absent" if fact.op == "delete" and outcome == "unchanged" else outcome
            for fact, outcome in zip(self.facts, resolution.outcomes(), strict=True)
        ]
        return _Plan(rows=rows, ingested_at=ingested_at, resolution=resolution, outcomes=tuple(outcomes))

    def _stored(self, table: FactTable) -> Events:
        """All events of the group's ids that the table holds."""
        ids: dict[int, dict[str, dict[str, None]]] = {}
        for fact in self.facts:
            of_shard = ids.setdefault(shard_of(fact.fact_id, table.num_shards), {})
            of_shard.setdefault(fact.namespace, {})[fact.fact_id] = None
        touched = [partition for partition in table.partitions() if partition.namespace in ids.get(partition.shard, {})]
        self.cache.load(table, touched)
        parts = [
            read_events(
                table,
                shard,
                {namespace: pa.array(list(wanted), pa.string()) for namespace, wanted in of_shard.items()},
                read=self.cache.read,
            )
            for shard, of_shard in ids.items()
        ]
        return concatenate(parts)

    def _commit(self, table: FactTable, plan: _Plan) -> None:
        events = self._events(table, plan)
        files = write_events(table.uri, events)
        operation = "delete" if set(events.column("op").to_pylist()) == {"delete"} else "put"
        counts: dict[str, int] = dict(Counter(plan.outcomes))
        counts |= {"written": len(events), "encoded": int(plan.resolution.encoded_N.sum())}
        try:
            table.commit_group(files, self.group, operation=operation, counts=counts)
        except CommitConflictError:  # after other faults of a commit the files may be part of the table
            remove_files(table.uri, [file.path for file in files])
            raise

    def _events(self, table: FactTable, plan: _Plan) -> pa.Table:
        """The rows to write with their vectors, in the columns of the table's schema."""
        keys_FK, prompts_FPD = self._encode(table, np.flatnonzero(plan.resolution.encoded_N))
        written = pa.array(plan.resolution.written_N)
        rows = plan.rows.append_column(ENCODE_COLUMN, pa.array(plan.resolution.encoded_N)).filter(written)
        rows = append_vectors(rows.combine_chunks(), keys_FK, prompts_FPD, table.dtype)
        return to_events(rows, ingested_at=plan.ingested_at.filter(written), num_shards=table.num_shards)

    def _encode(self, table: FactTable, places_F: npt.NDArray[np.int64]) -> tuple[Vectors, Vectors]:
        """Vectors of facts of the group, in the table's dtype.

        Raises:
            UnfitFactsError: naming all whose vectors are not finite in it.
        """
        statements = [self.facts[place].statement for place in places_F]
        new = [statement for statement in dict.fromkeys(statements) if statement not in self.vectors]
        if new:
            self.vectors.update(zip(new, zip(*self.encode(new), strict=True), strict=True))
        identity = self.identity
        keys_FK = np.empty((len(statements), identity.key_width), table.dtype)
        prompts_FPD = np.empty((len(statements), identity.num_virtual_tokens, identity.llm_width), table.dtype)
        faults = {}
        with np.errstate(over="ignore"):  # an overflow shows as an infinity below
            for row, statement in enumerate(statements):
                keys_FK[row], prompts_FPD[row] = self.vectors[statement]
        is_fit_F = np.isfinite(keys_FK).all(axis=1) & np.isfinite(prompts_FPD).all(axis=(1, 2))
        for place in places_F[~is_fit_F].tolist():
            faults[place] = (
                f"fact {self.facts[place].fact_id!r}: its vectors are not finite in {table.dtype.name}; word its "
                "statement otherwise, or use a table of float32"
            )
        if faults:
            raise UnfitFactsError(faults)
        return keys_FK, prompts_FPD


def stamp(
    facts: Sequence[Fact], identities: Sequence[bytes], stored: Events, *, now_us: int
) -> tuple[list[int], list[int]]:
    """As of when each event of a group is so, and when it is ingested, both in microseconds.

    Of the events of an id each is ingested a microsecond after the one before it, so that of one time the last stands.
    """
    latest = _latest(stored)
    num_before: Counter[bytes] = Counter()
    updated_us, ingested_us = [], []
    for fact, identity in zip(facts, identities, strict=True):
        ingested = now_us + num_before[identity]
        num_before[identity] += 1
        last = latest.get(identity, (ingested - 1, ingested - 1))
        if fact.updated_at is not None:
            updated = microseconds(fact.updated_at)
        else:  # of one time the event that was ingested later stands; where a clock was ahead, a microsecond later
            updated = max(ingested, last[0] + (last[1] >= ingested))
        latest[identity] = max(last, (updated, ingested))
        updated_us.append(updated)
        ingested_us.append(ingested)
    return updated_us, ingested_us


def _latest(stored: Events) -> dict[bytes, tuple[int, int]]:
    """When what stands of each id is so and was ingested, by the identity's hash."""
    standing = stored.take(last_events(stored))
    hashes = standing.identity_N2.astype(">u8").tobytes()
    width = len(hashes) // max(1, len(standing))
    return {
        hashes[row * width : (row + 1) * width]: (int(updated), int(ingested))
        for row, (updated, ingested) in enumerate(zip(standing.updated_us_N, standing.ingested_us_N, strict=True))
    }


def _version_of(group: GroupId, table: FactTable) -> int | None:
    """The version that a group's commit made; None where the log does not tell any more."""
    for version in reversed(log_versions(table.uri)):
        for action in read_commit(table.uri, version):
            said = action.get("txn", {})
            if said.get("appId") == group.application and said.get("version") == group.number:
                return version
    return None
