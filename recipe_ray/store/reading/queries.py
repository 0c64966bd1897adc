"""What a table tells a person: its live facts, one of them, what an id went through."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.store.order import EVENT_COLUMNS, Events, events_of, last_events, vector_rows
from recipe_ray.store.parquet import read_batches
from recipe_ray.store.reading.commits import Commit, read_commits
from recipe_ray.store.reading.standing import TEXT_COLUMNS, PartitionEvents, Rows, partitions_of, read_ids
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, microseconds, shard_of
from recipe_ray.store.stored import missing_files
from recipe_ray.store.table import FactTable, Partition

_PATH = "path"
_SEARCHED = ("statement", "prompt", "target", "subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactList:
    """Live facts that were asked for.

    Attributes:
        facts: the first of them by namespace and id: FACT_COLUMNS.
        num_facts: how many there are in all.
    """

    facts: pa.Table
    num_facts: int


def list_facts(
    table: FactTable,
    *,
    limit: int,
    namespace: str | None = None,
    prefix: str = "",
    contains: str = "",
    at: datetime | None = None,
) -> FactList:
    """Find live facts, sorted by namespace and id.

    Args:
        table: at the version to read.
        limit: facts returned; all are counted.
        namespace: None for all.
        prefix: of the id.
        contains: in statement, prompt, target or subject, whatever the case.
        at: facts that have expired by then are left out; now if not given.

    Raises:
        TableError: a file is missing or damaged.
    """
    at_us = microseconds(at or datetime.now(UTC))
    found = pa.schema([EVENT_SCHEMA.field(name) for name in FACT_COLUMNS]).empty_table()
    num_facts = 0
    for partition in partitions_of(table, namespace):
        ids = read_ids(table, partition)
        rows = ids.live(at_us)
        if prefix:
            rows = rows[
                pc.starts_with(ids.fact_ids.take(pa.array(rows, pa.int64())), prefix).to_numpy(zero_copy_only=False)
            ]
        if contains:
            rows = rows[_containing(ids, rows, contains)]
        num_facts += len(rows)
        found = _lowest(pa.concat_tables([found, ids.files.read(rows[:limit], FACT_COLUMNS)]), limit)
    return FactList(facts=found, num_facts=num_facts)


Status = Literal["live", "deleted", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactState:
    """The event of a fact that stands.

    Attributes:
        status: whether that makes a live fact, and why not.
        event: its columns: `op`, FACT_COLUMNS and `ingested_at` (when it was first ingested).
        path: its file, below the table.
        vectors_path: the file with its key and prompt, which an older event of the same statement may have brought;
            None where it has none.
    """

    status: Status
    event: Mapping[str, Any]
    path: str
    vectors_path: str | None


def find_fact(
    table: FactTable, fact_id: str, *, namespace: str | None = None, at: datetime | None = None
) -> list[FactState]:
    """Find what stands of an id, in one namespace or in each that has heard of it.

    Raises:
        TableError: a file is missing or damaged.
    """
    at_us = microseconds(at or datetime.now(UTC))
    states = []
    for partition in partitions_of(table, namespace, shard=shard_of(fact_id, table.num_shards)):
        found = _events_of(table, partition, fact_id)
        if not len(found):
            continue
        events = _deciding(found, place=table.uri)
        (row,) = last_events(events)
        vectors = int(vector_rows(events, np.array([row]))[0])
        event = found.select([*TEXT_COLUMNS, "ingested_at"]).slice(row, 1).to_pylist()[0]
        paths: list[Any] = found.column(_PATH).to_pylist()
        status: Status = "live" if events.is_live(at_us)[row] else "expired"
        states.append(
            FactState(
                status="deleted" if events.is_delete_N[row] else status,
                event=event,
                path=paths[row],
                vectors_path=paths[vectors] if vectors >= 0 else None,
            )
        )
    return states


@dataclass(frozen=True, slots=True, kw_only=True)
class PastEvent:
    """An event of an id.

    Attributes:
        event: its columns: `op`, FACT_COLUMNS and `ingested_at` (when it was first ingested).
        commit: what brought it; None where the log was cut off after that.
        is_held: whether the version that was asked for holds it. What was folded away or rolled back is known as long
            as its file is there.
        stands: whether it decides in that version.
    """

    event: Mapping[str, Any]
    commit: Commit | None
    is_held: bool
    stands: bool


def read_history(table: FactTable, fact_id: str, *, namespace: str | None = None) -> list[PastEvent]:
    """Tell every event of an id, by namespace and in the order in which they decide.

    Raises:
        TableError: a file of this version is missing or damaged, or the log is damaged.
    """
    shard = shard_of(fact_id, table.num_shards)
    brought_by: dict[str, Commit] = {}
    namespaces: dict[str, str] = {}
    for commit in read_commits(table.uri, until=table.version):
        for values, path in commit.added:
            if values.get("shard") == str(shard):
                brought_by.setdefault(path, commit)
                namespaces[path] = values["namespace"]
    held = {path: part.namespace for part in partitions_of(table, None, shard=shard) for path in part.paths}
    past = sorted(namespaces.keys() - held.keys())
    gone = set(missing_files(table.uri, past)) if past else set()
    by_namespace: dict[str, list[str]] = {}
    for path, of_path in {**namespaces, **held}.items():
        if path not in gone and namespace in (None, of_path):
            by_namespace.setdefault(of_path, []).append(path)
    return [
        event
        for of_paths, paths in sorted(by_namespace.items())
        for event in _history_of(
            _events_of(table, Partition(namespace=of_paths, shard=shard, paths=tuple(sorted(paths))), fact_id),
            brought_by,
            held.keys(),
            place=table.uri,
        )
    ]


def _history_of(
    found: pa.Table, brought_by: Mapping[str, Commit], held: Collection[str], *, place: str
) -> list[PastEvent]:
    events = _deciding(found, place=place)
    paths: list[Any] = found.column(_PATH).to_pylist()
    contents: list[Any] = found.column("content_hash").to_pylist()
    is_held_N = np.array([path in held for path in paths], np.bool_)
    held_rows = np.flatnonzero(is_held_N)
    standing = held_rows[last_events(events.take(held_rows))]
    rows_of_event: dict[tuple[int, bytes], list[int]] = {}
    for row, said in enumerate(zip(events.updated_us_N.tolist(), contents, strict=True)):
        rows_of_event.setdefault(said, []).append(row)
    told = []
    for (updated_us, content), rows in rows_of_event.items():
        first = min(rows, key=lambda row: events.ingested_us_N[row])
        commits = [brought_by[paths[row]] for row in rows if paths[row] in brought_by]
        event = PastEvent(
            event=found.select([*TEXT_COLUMNS, "ingested_at"]).slice(first, 1).to_pylist()[0],
            # A rewrite brings nothing that was not there, but may be all that is left of what did.
            commit=min(commits, key=lambda commit: (commit.is_rewrite, commit.version), default=None),
            is_held=bool(is_held_N[rows].any()),
            stands=bool(np.isin(standing, rows).any()),
        )
        told.append(((updated_us, int(events.ingested_us_N[first]), content), event))
    return [event for _, event in sorted(told, key=lambda pair: pair[0])]


def _containing(ids: PartitionEvents, rows: Rows, text: str) -> npt.NDArray[np.bool_]:
    """Which of the rows hold a text, in any of the columns that are searched."""
    holds_N = np.zeros(len(ids.events), np.bool_)
    for places, batch in ids.files.batches(rows, _SEARCHED):
        for column in batch.columns:
            holds_N[places] |= pc.match_substring(column, text, ignore_case=True).to_numpy(zero_copy_only=False)
    return holds_N[rows]


def _lowest(facts: pa.Table, limit: int) -> pa.Table:
    return facts.sort_by([("namespace", "ascending"), ("fact_id", "ascending")]).slice(0, limit)


def _events_of(table: FactTable, partition: Partition, fact_id: str) -> pa.Table:
    """Every event of an id in the files of a partition: texts, what decides, and the file."""
    columns = list(dict.fromkeys([*TEXT_COLUMNS, *EVENT_COLUMNS]))
    fields = [*(EVENT_SCHEMA.field(name) for name in columns), pa.field(_PATH, pa.string())]
    parts = [pa.schema(fields).empty_table()]
    stored = [name for name in columns if name != "namespace"]
    for path in partition.paths:
        for batch in read_batches(table.uri, path, stored):
            chosen = batch.filter(pc.equal(batch.column("fact_id"), pa.scalar(fact_id)))
            if len(chosen):
                constant = {"namespace": partition.namespace, _PATH: path}
                arrays = [
                    pa.repeat(constant[field.name], len(chosen))
                    if field.name in constant
                    else chosen.column(field.name)
                    for field in fields
                ]
                parts.append(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))
    return pa.concat_tables(parts)


def _deciding(found: pa.Table, *, place: str) -> Events:
    """Events of one id."""
    return events_of(found, np.zeros((len(found), 2), np.uint64), place=place)
