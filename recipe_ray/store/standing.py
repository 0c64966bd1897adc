"""The events that stand in a partition, and the texts of chosen ones: deciding columns first, then what is asked for.

Memory holds the ids, times and hashes of one partition, and the rows that are chosen; vectors are not read.

N events of a partition, in the order of its files and their rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
_ID_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in _ID_COLUMNS])


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionEvents:
    """All events of a partition, without texts and vectors.

    Attributes:
        table_uri: absolute.
        partition: which.
        fact_ids: Arrow array [N].
        events: their identity is the rank of the id.
        first_row: of each file; with N as the last entry.
    """

    table_uri: str
    partition: Partition
    fact_ids: pa.Array
    events: Events
    first_row: Rows

    def standing(self, rows: Rows | None = None) -> Rows:
        """Rows that stand, of all events or of these, sorted by id."""
        if rows is None:
            return last_events(self.events)
        return rows[last_events(self.events.take(rows))]

    def live(self, at_us: int) -> Rows:
        """Rows of the facts that are live at a time (microseconds since the Unix epoch), sorted by id."""
        standing = self.standing()
        return standing[self.events.take(standing).is_live(at_us)]

    def path_of(self, row: int) -> str:
        """The file of a row, below the table."""
        return self.partition.paths[int(np.searchsorted(self.first_row, row, side="right")) - 1]

    def batches(self, rows: Rows, columns: Sequence[str]) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """Read some columns of some rows, in the order of the files; which rows they are, with each batch.

        `namespace` may be among the columns. Files without any of the rows are not opened.

        Raises:
            TableError: a file is missing or damaged.
        """
        chosen_N = np.zeros(len(self.events), np.bool_)
        chosen_N[rows] = True
        stored = [name for name in columns if name != "namespace"]
        for path, start, stop in zip(self.partition.paths, self.first_row, self.first_row[1:], strict=False):
            if not chosen_N[start:stop].any():
                continue
            row = int(start)
            for batch in read_batches(self.table_uri, path, stored):
                among = np.flatnonzero(chosen_N[row : row + len(batch)])
                if len(among):
                    yield row + among, self._named(batch.take(pa.array(among)), columns)
                row += len(batch)

    def read(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Some columns of some rows, in the order asked for; see `batches`."""
        schema = pa.schema([EVENT_SCHEMA.field(name) for name in columns])
        found, batches = [np.empty(0, np.int64)], []
        for places, batch in self.batches(rows, columns):
            found.append(places)
            batches.append(batch)
        read = pa.Table.from_batches(batches, schema)
        return read.take(pa.array(np.searchsorted(np.concatenate(found), rows)))

    def _named(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        schema = pa.schema([EVENT_SCHEMA.field(name) for name in columns])
        namespace = pa.repeat(self.partition.namespace, len(batch))
        arrays = [namespace if name == "namespace" else batch.column(name) for name in columns]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def read_ids(table: FactTable, partition: Partition) -> PartitionEvents:
    """Read what decides of a partition.

    Raises:
        TableError: a file is missing or damaged.
    """
    batches: list[pa.RecordBatch] = []
    first_row = [0]
    for path in partition.paths:
        batches += read_batches(table.uri, path, _ID_COLUMNS)
        first_row.append(sum(len(batch) for batch in batches))
    columns = pa.Table.from_batches(batches, _ID_SCHEMA)
    fact_ids = columns.column("fact_id").combine_chunks()
    rank_N2 = np.zeros((len(columns), 2), np.uint64)
    if len(columns):
        rank_N2[:, 1] = pc.rank(fact_ids, tiebreaker="dense").to_numpy()
    return PartitionEvents(
        table_uri=table.uri,
        partition=partition,
        fact_ids=fact_ids,
        events=events_of(columns, rank_N2, place=table.uri),
        first_row=np.array(first_row, np.int64),
    )


def partitions_of(table: FactTable, namespace: str | None, *, shard: int | None = None) -> list[Partition]:
    """Partitions of a version, of one namespace or of all."""
    return [
        partition
        for partition in table.partitions()
        if namespace in (None, partition.namespace) and shard in (None, partition.shard)
    ]
