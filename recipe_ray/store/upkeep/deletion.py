"""Deleting facts without an encoder: a delete is one more event of each."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.facts import MAX_FUTURE_S, Fact
from recipe_ray.store.delta import CommitConflictError, retrying
from recipe_ray.store.parquet import DataFile, write_events
from recipe_ray.store.probe import check_conditional_writes
from recipe_ray.store.reading.queries import find_fact
from recipe_ray.store.reading.standing import PartitionEvents, Rows, partitions_of, read_ids
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, TIMESTAMP, microseconds, shard_of
from recipe_ray.store.stored import remove_files
from recipe_ray.store.table import FactTable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUM_NAMED = 5
_MAX_FUTURE_US = int(MAX_FUTURE_S * 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which live facts are meant: some ids, or all that match.

    Attributes:
        fact_ids: ids.
        namespace: of the ids; may be left out where each is live in one namespace only.
        where_namespace: every fact of it.
        source: every fact from it; with `where_namespace`, those of both.

    Raises:
        ConfigError: nothing is named, or ids and conditions together.
    """

    fact_ids: tuple[str, ...] = ()
    namespace: str | None = None
    where_namespace: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        conditions = [name for name in ("where_namespace", "source") if getattr(self, name) is not None]
        if self.fact_ids and conditions:
            raise ConfigError(f"ids and {conditions[0]} are given; give one of them only")
        if not self.fact_ids and not conditions:
            raise ConfigError("no facts are named; give ids, where_namespace or source")
        if conditions and self.namespace is not None:
            raise ConfigError(f"namespace and {conditions[0]} are given; namespace is of ids, give where_namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteReport:
    """What a deletion did, or would do.

    Attributes:
        table: absolute URI.
        version: the new one; the one looked at where nothing was written.
        num_deleted: facts.
        first: the first of them: FACT_COLUMNS.
        missing: ids that are not live.
        seconds: wall time.
    """

    table: str
    version: int
    num_deleted: int
    first: pa.Table
    missing: tuple[str, ...]
    seconds: float


def delete_facts(
    uri: str,
    selection: Selection,
    *,
    updated_at: datetime | None = None,
    never_so: bool = False,
    missing_ok: bool = False,
    dry_run: bool = False,
    num_first: int = 50,
) -> DeleteReport:
    """Commit a delete for each fact selected, all or none.

    Args:
        uri: of the table.
        selection: which facts.
        updated_at: as of when they are not so any more, UTC; now if not given, or as of when the fact is so where that
            lies later.
        never_so: each is deleted as of when it is so itself, which hides nothing that was said of it later.
        missing_ok: pass over ids that are not live.
        dry_run: write nothing.
        num_first: facts that the report names.

    Raises:
        FactError: an id is not live, or live in several namespaces; or `updated_at` is older than what stands, or lies
            in the future.
        CommitConflictError: other writers never pause.
        TableError: a file is missing or damaged.
        OutputError: the place cannot be written, or does not keep two writers apart.
    """
    started, now = time.monotonic(), datetime.now(UTC)
    if updated_at is not None and microseconds(updated_at) > microseconds(now) + _MAX_FUTURE_US:
        raise FactError(
            f"updated_at is {updated_at.isoformat()}, more than {MAX_FUTURE_S:g} s after the present; give a time past"
        )
    if not dry_run:
        check_conditional_writes(FactTable.open(uri).uri)

    def attempt() -> DeleteReport:
        table = FactTable.open(uri)
        files: list[DataFile] = []
        first = pa.schema([EVENT_SCHEMA.field(name) for name in FACT_COLUMNS]).empty_table()
        num_deleted = 0
        live_in: dict[str, list[str]] = {fact_id: [] for fact_id in selection.fact_ids}
        try:
            for ids, rows in _selected(table, selection, at=now):
                deletes = _deletes(ids, rows, updated_at, now, never_so=never_so)
                first = pa.concat_tables([first, ids.files.read(rows[: num_first - len(first)], FACT_COLUMNS)])
                num_deleted += len(rows)
                if selection.fact_ids:
                    _note(live_in, deletes)
                if not dry_run:
                    files += write_events(table.uri, deletes)
            missing = _check_ids(table, selection, live_in, missing_ok=missing_ok)
            if files:
                table.replace([], files, operation="delete", counts={"deleted": num_deleted}, data_change=True)
        except (CommitConflictError, FactError):  # after other faults of a commit the files may be part of the table
            remove_files(table.uri, [file.path for file in files])
            raise
        return DeleteReport(
            table=table.uri,
            version=table.version,
            num_deleted=num_deleted,
            first=first,
            missing=missing,
            seconds=time.monotonic() - started,
        )

    return retrying(attempt)


def _note(live_in: dict[str, list[str]], deletes: pa.Table) -> None:
    """Note the namespaces in which ids are live."""
    for row in deletes.select(["namespace", "fact_id"]).to_pylist():
        live_in[row["fact_id"]].append(row["namespace"])


def _check_ids(
    table: FactTable, selection: Selection, live_in: dict[str, list[str]], *, missing_ok: bool
) -> tuple[str, ...]:
    """The ids that are live in none of their namespaces.

    Raises:
        FactError: naming them, or those that are live in several namespaces.
    """
    for fact_id, namespaces in live_in.items():
        if len(namespaces) > 1:
            several = ", ".join(map(repr, namespaces))
            raise FactError(f"{table.uri}: {fact_id!r} is live in the namespaces {several}; give --namespace")
    missing = tuple(fact_id for fact_id, namespaces in live_in.items() if not namespaces)
    if missing and not missing_ok:
        reasons = [_reason(table, fact_id, selection.namespace) for fact_id in missing[:_NUM_NAMED]]
        more = f" and {len(missing) - _NUM_NAMED} more" if len(missing) > _NUM_NAMED else ""
        raise FactError(f"{table.uri}: not live: {', '.join(reasons)}{more}; correct the ids, or give --missing-ok")
    return missing


def _reason(table: FactTable, fact_id: str, namespace: str | None) -> str:
    states = find_fact(table, fact_id, namespace=namespace)
    return f"{fact_id!r} ({states[0].status if states else 'never there'})"


def _selected(table: FactTable, selection: Selection, *, at: datetime) -> Iterator[tuple[PartitionEvents, Rows]]:
    """Rows of the live facts that are meant, by partition."""
    namespace = selection.namespace if selection.fact_ids else selection.where_namespace
    shards = {shard_of(fact_id, table.num_shards) for fact_id in selection.fact_ids}
    wanted = pa.array(selection.fact_ids, pa.string())
    for partition in partitions_of(table, namespace):
        if selection.fact_ids and partition.shard not in shards:
            continue
        ids = read_ids(table, partition)
        rows = ids.live(microseconds(at))
        if selection.fact_ids:
            is_wanted = pc.is_in(ids.fact_ids.take(pa.array(rows, pa.int64())), value_set=wanted)
            rows = rows[is_wanted.to_numpy(zero_copy_only=False)]
        elif selection.source is not None:
            is_wanted = pc.equal(ids.files.read(rows, ["source"]).column("source"), pa.scalar(selection.source))
            rows = rows[is_wanted.to_numpy()]
        if len(rows):
            yield ids, rows


def _deletes(
    ids: PartitionEvents, rows: Rows, updated_at: datetime | None, now: datetime, *, never_so: bool = False
) -> pa.Table:
    """Events that delete the facts in `rows`, later than what stands.

    Raises:
        FactError: `updated_at` is not.
    """
    namespace, shard = ids.files.partition.namespace, ids.files.partition.shard
    fact_ids: list[Any] = ids.fact_ids.take(pa.array(rows, pa.int64())).to_pylist()
    stands = ids.events.take(rows)
    now_us = microseconds(now)
    if updated_at is None:
        # An equal time is decided by that of ingestion; where a clock was ahead, by a microsecond.
        ahead = stands.ingested_us_N >= now_us
        if never_so:
            updated_us = stands.updated_us_N + ahead
        else:
            updated_us = np.maximum(now_us, stands.updated_us_N + (ahead & (stands.updated_us_N >= now_us)))
    else:
        updated_us = np.full(len(rows), microseconds(updated_at))
        late = (stands.updated_us_N > updated_us) | (
            (stands.updated_us_N == updated_us) & (stands.ingested_us_N >= now_us)
        )
        if late.any():
            row = int(late.argmax())
            stands_at = _EPOCH + timedelta(microseconds=int(stands.updated_us_N[row]))
            raise FactError(
                f"updated_at is {updated_at.isoformat()}, but {int(late.sum())} facts are so as of later, such as "
                f"{fact_ids[row]!r} ({stands_at.isoformat()}), and would not be deleted; give a later time, or none"
            )
    deletes = [Fact(fact_id=fact_id, statement="", namespace=namespace, op="delete") for fact_id in fact_ids]
    empty = pa.repeat("", len(rows))
    columns: dict[str, Any] = {
        "namespace": pa.repeat(namespace, len(rows)),
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), len(rows)),
        "fact_id": pa.array(fact_ids, pa.string()),
        "op": pa.repeat("delete", len(rows)),
        **dict.fromkeys(("statement", "prompt", "target", "subject", "source"), empty),
        "updated_at": pa.array(updated_us, pa.int64()).cast(TIMESTAMP),
        "expires_at": pa.nulls(len(rows), TIMESTAMP),
        "ingested_at": pa.repeat(pa.scalar(now, TIMESTAMP), len(rows)),
        "content_hash": pa.array([delete.content_hash() for delete in deletes], pa.binary()),
        "statement_hash": pa.array([delete.statement_hash() for delete in deletes], pa.binary()),
        "encoded": pa.repeat(False, len(rows)),
        "key": pa.nulls(len(rows), pa.binary()),
        "prompt_embeddings": pa.nulls(len(rows), pa.binary()),
    }
    return pa.table({name: columns[name] for name in EVENT_SCHEMA.names})
