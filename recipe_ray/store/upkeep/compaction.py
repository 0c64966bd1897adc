"""Folding a table: of every fact the event that stands, with its vectors, in few files sorted by id.

N events of a partition, M of them kept, B of a batch.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recipe_ray.store.delta import retrying
from recipe_ray.store.order import NEVER_US, Events, find_rows, last_events, latest_events, vector_rows
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.schema import FILE_SCHEMA, microseconds
from recipe_ray.store.snapshot import read_partition_events
from recipe_ray.store.stored import Progress, missing_files, remove_files, silent
from recipe_ray.store.table import FactTable, Partition

FILE_BYTES = 128 * 1024 * 1024  # of a file written; about four times as much is held at once
_CLOCK_MARGIN = timedelta(hours=1)  # a clock that is ahead shall not take the vectors of what is live by others
_VECTOR_COLUMNS = ["key", "prompt_embeddings"]
_OTHER_COLUMNS = [name for name in FILE_SCHEMA.names if name not in _VECTOR_COLUMNS]
_PLACE = "place"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        table: absolute URI.
        version: of the table that holds the folded files; the last one where nothing was to gain.
        num_partitions: partitions of the table.
        num_rewritten: those of them with something to gain.
        num_dropped: events that no longer stood.
        num_tombstones_dropped: deletes and expired facts that were old enough.
        num_files_before, num_files: data files of the table.
        size_bytes_before, size_bytes: of these files.
        seconds: wall time.
    """

    table: str
    version: int
    num_partitions: int
    num_rewritten: int
    num_dropped: int
    num_tombstones_dropped: int
    num_files_before: int
    num_files: int
    size_bytes_before: int
    size_bytes: int
    seconds: float


def compact(
    uri: str,
    *,
    drop_tombstones_older_than: timedelta | None = None,
    file_bytes: int = FILE_BYTES,
    now: datetime | None = None,
    progress: Progress = silent,
) -> CompactReport:
    """Fold the events of every partition that has something to gain; one commit, and none where nothing has.

    The live facts are the same before and after. Events that no longer stand go, but for those as late by `updated_at`
    as the one that stands: said again, they must be known to have lost. Of copies of an event the one that was ingested
    first stays. A fact that had taken the vectors of an older event gets them into its own row. What has been
    deleted or has expired stays as a row without vectors, since a late dump could bring the fact back otherwise.

    An ingest may run meanwhile: where it commits first, the partitions that it changed are folded again.

    Args:
        uri: of the table.
        drop_tombstones_older_than: deletes and expired facts that were so, and known to be so, before this time before
            now go as well; no older dump may come after that.
        file_bytes: of a file, about.
        now: the clock's time if not given; what expired within the hour before keeps its vectors.
        progress: shows the steps.

    Raises:
        CommitConflictError: other writers never pause.
        TableError: a file is missing or damaged.
        OutputError: the place cannot be written.
    """
    started = time.monotonic()
    now = now or datetime.now(UTC)
    rule = _Rule(
        expired_us=microseconds(now - _CLOCK_MARGIN),
        drop_before_us=None if drop_tombstones_older_than is None else microseconds(now - drop_tombstones_older_than),
        file_bytes=file_bytes,
    )
    folded: dict[Partition, _Folded] = {}

    def attempt() -> CompactReport:
        table = FactTable.open(uri)
        _discard_stale(table, folded)
        return _fold_and_commit(table, rule, folded, started=started, progress=progress)

    return retrying(attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What stays: `expired_us` is the time by which facts have expired; tombstones before `drop_before_us` go."""

    expired_us: int
    drop_before_us: int | None
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What becomes of a partition's N events.

    Attributes:
        row_place_N: place in the result, which is sorted by id, of the row that an event's columns become; -1 for none.
        vector_place_N: place of the row that gets the event's vectors; -1 for none.
        begins: place of the first row of each file.
        num_kept: rows of the result.
        num_tombstones_dropped: of the rows that go.
        is_gain: whether the result is better than what is there.
    """

    row_place_N: npt.NDArray[np.int64]
    vector_place_N: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    num_kept: int
    num_tombstones_dropped: int
    is_gain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folded:
    """A partition folded: its files, None where it stays as it is."""

    files: list[DataFile] | None
    num_dropped: int = 0
    num_tombstones_dropped: int = 0


def _discard_stale(table: FactTable, folded: dict[Partition, _Folded]) -> None:
    """Forget what was folded from files that are not the table's any more, or was removed by somebody."""
    there = set(table.partitions())
    for partition, result in list(folded.items()):
        paths = [file.path for file in result.files or ()]
        if partition not in there or missing_files(table.uri, paths):
            remove_files(table.uri, paths)
            del folded[partition]


def _fold_and_commit(
    table: FactTable, rule: _Rule, folded: dict[Partition, _Folded], *, started: float, progress: Progress
) -> CompactReport:
    before = {file.path: file for file in table.files()}
    partitions = table.partitions()
    with progress("folding", sum(len(partition.paths) for partition in partitions), unit="files") as advance:
        for partition in partitions:
            if partition not in folded:
                folded[partition] = _fold(table, partition, [before[path] for path in partition.paths], rule)
            advance(len(partition.paths))
    rewritten = [partition for partition in partitions if folded[partition].files is not None]
    remove = [before[path] for partition in rewritten for path in partition.paths]
    add = [file for partition in rewritten for file in folded[partition].files or ()]
    num_dropped = sum(folded[partition].num_dropped for partition in rewritten)
    num_tombstones = sum(folded[partition].num_tombstones_dropped for partition in rewritten)
    if rewritten:
        counts = {
            "dropped": num_dropped,
            "tombstones_dropped": num_tombstones,  # a re-encoding under way looks for it
            "removed_files": len(remove),
            "added_files": len(add),
        }
        table.replace(remove, add, operation="compact", counts=counts, data_change=False)
    size_bytes = sum(file.size_bytes for file in before.values())
    return CompactReport(
        table=table.uri,
        version=table.version,
        num_partitions=len(partitions),
        num_rewritten=len(rewritten),
        num_dropped=num_dropped,
        num_tombstones_dropped=num_tombstones,
        num_files_before=len(before),
        num_files=len(before) - len(remove) + len(add),
        size_bytes_before=size_bytes,
        size_bytes=size_bytes + sum(file.size_bytes for file in add) - sum(file.size_bytes for file in remove),
        seconds=time.monotonic() - started,
    )


def _fold(table: FactTable, partition: Partition, files: Sequence[DataFile], rule: _Rule) -> _Folded:
    events = read_partition_events(table, partition)
    plan = _plan(table, events, files, rule)
    if not plan.is_gain:
        return _Folded(files=None)
    return _Folded(
        files=_write(table, partition, plan) if plan.num_kept else [],
        num_dropped=len(events) - plan.num_kept - plan.num_tombstones_dropped,
        num_tombstones_dropped=plan.num_tombstones_dropped,
    )


def _plan(table: FactTable, events: Events, files: Sequence[DataFile], rule: _Rule) -> _Plan:
    standing, latest = last_events(events), latest_events(events)  # both sorted by the rank of the id
    is_dropped = ~events.take(standing).is_live(rule.expired_us) & _is_old(events.take(standing), rule)
    # With a tombstone go the events that tie with it, or one of them would stand.
    goes = is_dropped[find_rows(events.identity_N2[latest], events.identity_N2[standing])]
    rows = latest[~goes]
    vector_place_N = _place_vectors(events, rows, np.isin(rows, standing), rule)
    has_vectors = np.zeros(len(rows), np.bool_)
    has_vectors[vector_place_N[vector_place_N >= 0]] = True
    row_place_N = np.full(len(events), -1, np.int64)
    row_place_N[rows] = np.arange(len(rows))
    begins = _cut(table, events, has_vectors, files, rule.file_bytes)
    moves_vectors = (events.encoded_N[rows] != has_vectors).any()
    return _Plan(
        row_place_N=row_place_N,
        vector_place_N=vector_place_N,
        begins=begins,
        num_kept=len(rows),
        num_tombstones_dropped=int(is_dropped.sum()),
        # Half as many files again are borne: sizes are estimates, and a partition shall not be rewritten at every run.
        is_gain=bool(len(rows) < len(events) or moves_vectors or len(files) > max(1.0, 1.5 * len(begins))),
    )


def _place_vectors(
    events: Events, rows_M: npt.NDArray[np.int64], stands_M: npt.NDArray[np.bool_], rule: _Rule
) -> npt.NDArray[np.int64]:
    """Place among the kept rows of each event's vectors, -1 for none: what ties may stand yet, so it keeps its own.

    Where kept rows share the vectors of one statement, the row that stands has them, or the one that had them before:
    a table that was folded shall have nothing to gain.
    """
    place_N = np.full(len(events), -1, np.int64)
    vectors_M = np.where(events.take(rows_M).is_live(rule.expired_us), vector_rows(events, rows_M), -1)
    order_M = np.lexsort((vectors_M == rows_M, stands_M))  # the last to be written has them
    order_M = order_M[vectors_M[order_M] >= 0]
    place_N[vectors_M[order_M]] = order_M
    return place_N


def _is_old(events: Events, rule: _Rule) -> npt.NDArray[np.bool_]:
    """Of events that make no fact: whether that was so, and known, long enough ago."""
    if rule.drop_before_us is None:
        return np.zeros(len(events), np.bool_)
    expired_us_N = np.where(events.is_delete_N | (events.expires_us_N == NEVER_US), 0, events.expires_us_N)
    since_us_N = np.maximum(np.maximum(events.updated_us_N, events.ingested_us_N), expired_us_N)
    return since_us_N < rule.drop_before_us


def _cut(
    table: FactTable,
    events: Events,
    has_vectors: npt.NDArray[np.bool_],
    files: Sequence[DataFile],
    file_bytes: int,
) -> npt.NDArray[np.int64]:
    """Cut the rows of the result, of which some have vectors, into files of like size; the first row of each."""
    if not len(has_vectors):
        return np.empty(0, np.int64)
    identity = table.identity
    vector_bytes = (identity.key_width + identity.num_virtual_tokens * identity.llm_width) * table.dtype.itemsize
    size_bytes = sum(file.size_bytes for file in files)
    text_bytes = max(1.0, (size_bytes - vector_bytes * int(events.encoded_N.sum())) / len(events))
    until_bytes = np.cumsum(text_bytes + vector_bytes * has_vectors)
    num_files = max(1, math.ceil(until_bytes[-1] / file_bytes))
    ends = until_bytes[-1] / num_files * np.arange(num_files)
    return np.unique(np.searchsorted(until_bytes, ends, side="right"))


def _write(table: FactTable, partition: Partition, plan: _Plan) -> list[DataFile]:
    """Write the rows of the result: dealt out to local files first, one set for each file of the result."""
    files: list[DataFile] = []
    with TemporaryDirectory(prefix="compact-") as folder:
        heaps = [_Heap(Path(folder), number) for number in range(len(plan.begins))]
        try:
            start = 0
            for path in partition.paths:
                for batch in read_batches(table.uri, path, FILE_SCHEMA.names):
                    of_batch = slice(start, start + len(batch))
                    start += len(batch)
                    _deal(batch, _OTHER_COLUMNS, plan.row_place_N[of_batch], plan.begins, heaps, _Heap.add_rows)
                    _deal(batch, _VECTOR_COLUMNS, plan.vector_place_N[of_batch], plan.begins, heaps, _Heap.add_vectors)
        finally:
            for heap in heaps:
                heap.close()
        for heap in heaps:
            rows = heap.sorted_rows()
            rows = rows.append_column("namespace", pa.repeat(partition.namespace, len(rows)))
            rows = rows.append_column("shard", pa.repeat(pa.scalar(partition.shard, pa.int32()), len(rows)))
            files += write_events(table.uri, rows)
            heap.remove()
    return files


def _deal(
    batch: pa.RecordBatch,
    columns: list[str],
    place_B: npt.NDArray[np.int64],
    begins: npt.NDArray[np.int64],
    heaps: "Sequence[_Heap]",
    add: "Callable[[_Heap, pa.RecordBatch], None]",
) -> None:
    """Give each heap those columns of the rows that have a place in it."""
    heap_B = np.where(place_B < 0, -1, np.searchsorted(begins, place_B, side="right") - 1)
    for number in np.unique(heap_B[heap_B >= 0]):
        rows = np.flatnonzero(heap_B == number)
        chosen = batch.select(columns).take(rows)
        add(heaps[number], chosen.append_column(_PLACE, pa.array(place_B[rows])))


class _Heap:
    """Rows and vectors of one file to be, on the local disk in the order in which they came."""

    def __init__(self, folder: Path, number: int) -> None:
        self._paths = (folder / f"{number}.rows", folder / f"{number}.vectors")
        self._writers: list[Any] = [None, None]

    def add_rows(self, batch: pa.RecordBatch) -> None:
        """Take rows without their vectors, and their places."""
        self._add(0, batch)

    def add_vectors(self, batch: pa.RecordBatch) -> None:
        """Take vectors, and the places of the rows that they belong to."""
        self._add(1, batch)

    def close(self) -> None:
        """End the local files."""
        for writer in self._writers:
            if writer is not None:
                writer.close()

    def sorted_rows(self) -> pa.Table:
        """Rows with their vectors, sorted by place, without it."""
        rows = self._read(0)
        places = rows.column(_PLACE).to_numpy()
        vectors = self._read(1) if self._writers[1] is not None else None
        has_vectors = np.zeros(len(rows), np.bool_)
        if vectors is not None:
            has_vectors = np.isin(places, vectors.column(_PLACE).to_numpy())
        encoded = rows.schema.get_field_index("encoded")
        rows = rows.set_column(encoded, "encoded", pa.array(has_vectors)).drop_columns([_PLACE])
        vector_of_row = pa.array(np.cumsum(has_vectors) - 1, mask=~has_vectors)
        for name in _VECTOR_COLUMNS:
            cells = (
                pa.nulls(len(rows), pa.binary())
                if vectors is None
                else vectors.column(name).combine_chunks().take(vector_of_row)
            )
            rows = rows.append_column(name, cells)
        return rows

    def remove(self) -> None:
        """Give the disk back."""
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _add(self, kind: int, batch: pa.RecordBatch) -> None:
        if self._writers[kind] is None:
            self._writers[kind] = pa.ipc.new_stream(str(self._paths[kind]), batch.schema)
        self._writers[kind].write_batch(batch)

    def _read(self, kind: int) -> pa.Table:
        with pa.memory_map(str(self._paths[kind])) as source, pa.ipc.open_stream(source) as stream:
            rows = stream.read_all()
            return rows.take(np.argsort(rows.column(_PLACE).to_numpy()))
