"""A table of layout 1 becomes one of this layout: its vectors are copied, nothing is encoded.

Layout 1 knew no expiry and no hash of the statement, and had vectors in every row but deletes; its content hash left
the source out. Of an id's events the last stood by `updated_at`, `ingested_at` and that hash: so they are folded here.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from recipe_ray.errors import TableError
from recipe_ray.facts import Fact, text_hash
from recipe_ray.store.delta import files_of, open_delta, replace_all, retrying, set_properties
from recipe_ray.store.files import filesystem, join
from recipe_ray.store.order import hashes_of
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.pointer import follow
from recipe_ray.store.schema import (
    EVENT_SCHEMA,
    FILE_SCHEMA,
    PARTITION_COLUMNS,
    SCHEMA_VERSION,
    layout_of,
    layout_property,
)
from recipe_ray.store.stored import Progress, remove_files, silent

_NEW_COLUMNS = ("expires_at", "statement_hash", "encoded")
_OLD_COLUMNS = [name for name in FILE_SCHEMA.names if name not in _NEW_COLUMNS]
_DECIDING_COLUMNS = ["fact_id", "updated_at", "ingested_at", "content_hash"]
_FILE_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateReport:
    """What a migration did.

    Attributes:
        table: absolute URI.
        version: of this layout.
        was_there: the table was of this layout already, and nothing was done.
        num_events: rows that it has now.
        num_dropped: events that no longer stood.
        num_files: data files written.
        seconds: wall time.
    """

    table: str
    version: int
    was_there: bool
    num_events: int
    num_dropped: int
    num_files: int
    seconds: float


def migrate(uri: str, *, progress: Progress = silent) -> MigrateReport:
    """Bring a table of layout 1 to this layout; its live facts and their vectors are the same before and after.

    The new files and their schema come with one commit, the word that they are of this layout with the next: from that
    moment on the table can be opened, and until then it is one of layout 1 to everybody. Broken off between, the same
    call goes on. The versions before stay readable by releases of their layout.

    Raises:
        CommitConflictError: other writers never pause.
        TableError: there is no table of layout 1, or a file of it is missing or damaged.
        OutputError: the place cannot be written.
    """
    started, place = time.monotonic(), follow(uri)

    def attempt() -> MigrateReport:
        delta = open_delta(place)
        if delta is None:
            raise TableError(f"{uri}: there is no table; check the path")
        layout = layout_of(delta.metadata().configuration)
        if layout not in ("1", SCHEMA_VERSION):
            raise TableError(f"{uri}: is not a table of facts of layout 1 (found {layout}); give one that ingest wrote")
        files = files_of(delta)
        num_before = sum(file.num_rows for file in files)
        was_there = layout == SCHEMA_VERSION
        written: list[DataFile] = []
        if not was_there:
            if not _has_schema(delta) or not all(_is_converted(place, file) for file in files):
                written = _convert_all(place, files, progress)
                try:
                    counts = {"events": sum(file.num_rows for file in written)}
                    metadata = {"recipe": {"operation": "migrate", **counts}}
                    replace_all(delta, written, EVENT_SCHEMA, PARTITION_COLUMNS, metadata=metadata)
                except TableError:
                    remove_files(place, [file.path for file in written])
                    raise
                delta = _at(place, delta.version() + 1)
                files = written
            set_properties(delta, layout_property(), metadata={"recipe": {"operation": "migrate"}})
        num_events = sum(file.num_rows for file in files)
        return MigrateReport(
            table=place,
            version=delta.version(),
            was_there=was_there,
            num_events=num_events,
            num_dropped=num_before - num_events,
            num_files=len(written),
            seconds=time.monotonic() - started,
        )

    return retrying(attempt)


def _at(place: str, version: int) -> DeltaTable:
    delta = open_delta(place, version)
    assert delta is not None
    return delta


def _has_schema(delta: DeltaTable) -> bool:
    return {field.name for field in delta.schema().fields} == set(EVENT_SCHEMA.names)


def _is_converted(uri: str, file: DataFile) -> bool:
    place = join(uri, file.path)
    filesystem_, path = filesystem(place)
    try:
        return set(FILE_SCHEMA.names) <= set(pq.read_schema(path, filesystem=filesystem_).names)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{place}: cannot be read ({error}); restore the file or an older version") from error


def _convert_all(uri: str, files: Sequence[DataFile], progress: Progress) -> list[DataFile]:
    by_partition: dict[tuple[str, int], list[DataFile]] = {}
    for file in files:
        by_partition.setdefault((file.partition["namespace"], int(file.partition["shard"])), []).append(file)
    written: list[DataFile] = []
    with progress("converting", len(files), unit="files") as advance:
        for (namespace, shard), of_partition in sorted(by_partition.items()):
            paths = [file.path for file in of_partition]
            for rows in _chunks(_standing_batches(uri, paths, namespace)):
                rows = rows.append_column("namespace", pa.repeat(namespace, len(rows)))
                rows = rows.append_column("shard", pa.repeat(pa.scalar(shard, pa.int32()), len(rows)))
                written += write_events(uri, rows)
            advance(len(paths))
    return written


def _standing_batches(uri: str, paths: Sequence[str], namespace: str) -> Iterator[pa.RecordBatch]:
    """Events of a partition that stand, in the columns of FILE_SCHEMA."""
    deciding = [batch for path in paths for batch in read_batches(uri, path, _DECIDING_COLUMNS)]
    stands_N = _stands(pa.Table.from_batches(deciding), place=uri) if deciding else np.empty(0, np.bool_)
    start = 0
    for path in paths:
        for batch in read_batches(uri, path, _OLD_COLUMNS):
            chosen = batch.filter(pa.array(stands_N[start : start + len(batch)]))
            start += len(batch)
            if len(chosen):
                yield _convert(chosen, namespace)


def _stands(columns: pa.Table, *, place: str) -> npt.NDArray[np.bool_]:
    """Which rows stand by the rule of layout 1."""
    rank_N = pc.rank(columns.column("fact_id").combine_chunks(), tiebreaker="dense").to_numpy()
    content_N2 = hashes_of(columns.column("content_hash"), place=place)
    updated_N, ingested_N = (columns.column(name).cast(pa.int64()).to_numpy() for name in ("updated_at", "ingested_at"))
    order = np.lexsort((content_N2[:, 1], content_N2[:, 0], ingested_N, updated_N, rank_N))
    is_last = np.append(rank_N[order][1:] != rank_N[order][:-1], True)
    stands_N = np.zeros(len(columns), np.bool_)
    stands_N[order[is_last]] = True
    return stands_N


def _convert(batch: pa.RecordBatch, namespace: str) -> pa.RecordBatch:
    names = ("fact_id", "op", "statement", "prompt", "target", "subject", "source")
    texts: list[list[Any]] = [batch.column(name).to_pylist() for name in names]
    facts = [Fact(namespace=namespace, **dict(zip(names, row, strict=True))) for row in zip(*texts, strict=True)]
    columns = {name: batch.column(name) for name in _OLD_COLUMNS}
    columns["expires_at"] = pa.nulls(len(batch), FILE_SCHEMA.field("expires_at").type)
    columns["content_hash"] = pa.array([fact.content_hash() for fact in facts], pa.binary())
    columns["statement_hash"] = pa.array([text_hash(fact.statement) for fact in facts], pa.binary())  # as encoded
    columns["encoded"] = batch.column("key").is_valid()
    return pa.RecordBatch.from_arrays(
        [columns[name].cast(FILE_SCHEMA.field(name).type) for name in FILE_SCHEMA.names], schema=FILE_SCHEMA
    )


def _chunks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather batches into tables of about the size of a file."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.nbytes for part in held) >= _FILE_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
