"""The events that stand in a partition, and the texts of chosen ones: deciding columns first, then what is asked for.

Memory holds the ids, times and hashes of one partition, and the rows that are chosen; vectors are not read.

N events of a partition, in the order of its files and their rows.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.store.order import EVENT_COLUMNS, Events, events_of, last_events
from recipe_ray.store.parquet import read_batches
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS
from recipe_ray.store.table import FactTable, Partition

Rows = npt.NDArray[np.int64]

TEXT_COLUMNS = ["op", *FACT_COLUMNS]
"""What tells a person of an event."""
_ID_COLUMNS = ["fact_id", *EVENT_COLUMNS]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionFiles:
    """Files of a partition whose rows are numbered through.

    Attributes:
        table_uri: absolute.
        partition: which.
        first_row: of each file; with N as the last entry.
    """

    table_uri: str
    partition: Partition
    first_row: Rows

    def path_of(self, row: int) -> str:
        """The file of a row, below the table."""
        return self.partition.paths[int(np.searchsorted(self.first_row, row, side="right")) - 1]

    def rows_in(self, paths: Collection[str]) -> Rows:
        """Rows of some of the files."""
        bounds = zip(self.partition.paths, self.first_row, self.first_row[1:], strict=False)
        parts = [np.arange(start, stop) for path, start, stop in bounds if path in paths]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def batches(self, rows: Rows, columns: Sequence[str]) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """Read some columns of some rows, in the order of the files; with each batch, which rows they are.

        `namespace` may be among the columns. Files without any of the rows are not opened.

        Raises:
            TableError: a file is missing or damaged.
        """
        is_chosen_N = np.zeros(self.first_row[-1], np.bool_)
        is_chosen_N[rows] = True
        stored = [name for name in columns if name != "namespace"]
        for path, start, stop in zip(self.partition.paths, self.first_row, self.first_row[1:], strict=False):
            if not is_chosen_N[start:stop].any():
                continue
            row = int(start)
            for batch in read_batches(self.table_uri, path, stored):
                among = np.flatnonzero(is_chosen_N[row : row + len(batch)])
                if len(among):
                    yield row + among, self._named(batch.take(among), columns)
                row += len(batch)

    def read(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Some columns of some rows, in the order asked for; see `batches`."""
        found, batches = [np.empty(0, np.int64)], []
        for places, batch in self.batches(rows, columns):
            found.append(places)
            batches.append(batch)
        read = pa.Table.from_batches(batches, _schema(columns))
        return read.take(np.searchsorted(np.concatenate(found), rows)).combine_chunks()

    def _named(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        namespace = pa.repeat(self.partition.namespace, len(batch))
        arrays = [namespace if name == "namespace" else batch.column(name) for name in columns]
        return pa.RecordBatch.from_arrays(arrays, schema=_schema(columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionEvents:
    """All events of a partition, without texts and vectors.

    Attributes:
        files: where they lie.
        fact_ids: Arrow array of text [N].
        events: their identity is the rank of the id.
    """

    files: PartitionFiles
    fact_ids: Any
    events: Events

    def standing(self, among: Rows | None = None) -> Rows:
        """Rows that stand, of all events or of these rows, sorted by id."""
        if among is None:
            return last_events(self.events)
        return among[last_events(self.events.take(among))]

    def live(self, at_us: int) -> Rows:
        """Rows of the facts that are live at a time (microseconds since the Unix epoch), sorted by id."""
        standing = self.standing()
        return standing[self.events.take(standing).is_live(at_us)]


def read_ids(table: FactTable, partition: Partition) -> PartitionEvents:
    """Read what decides of a partition.

    Raises:
        TableError: a file is missing or damaged.
    """
    batches: list[pa.RecordBatch] = []
    first_row = [0]
    for path in partition.paths:
        of_file = list(read_batches(table.uri, path, _ID_COLUMNS))
        batches += of_file
        first_row.append(first_row[-1] + sum(len(batch) for batch in of_file))
    columns = pa.Table.from_batches(batches, _schema(_ID_COLUMNS))
    fact_ids = columns.column("fact_id").combine_chunks()
    rank_N2 = np.zeros((len(columns), 2), np.uint64)
    if len(columns):
        rank_N2[:, 1] = pc.rank(fact_ids, tiebreaker="dense").to_numpy()
    return PartitionEvents(
        files=PartitionFiles(table_uri=table.uri, partition=partition, first_row=np.array(first_row, np.int64)),
        fact_ids=fact_ids,
        events=events_of(columns, rank_N2, place=table.uri),
    )


def partitions_of(table: FactTable, namespace: str | None, *, shard: int | None = None) -> list[Partition]:
    """Partitions of a version, of one namespace or of all."""
    return [
        partition
        for partition in table.partitions()
        if namespace in (None, partition.namespace) and shard in (None, partition.shard)
    ]


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([EVENT_SCHEMA.field(name) for name in columns])
