"""What decides of the events in data files, kept in memory: a file never changes, and a writer asks again and again."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from recipe_ray.store.parquet import read_batches
from recipe_ray.store.snapshot import DECIDING_COLUMNS, DECIDING_SCHEMA
from recipe_ray.store.table import FactTable, Partition

CACHE_BYTES = 512 * 1024 * 1024
"""About a hundred bytes an event."""
_NUM_READERS = 8  # a remote file takes several requests, which only wait


class FileCache:
    """Ids, times and hashes of data files; for one thread.

    Args:
        max_bytes: where it is reached, the largest files go: to open a file takes its time, however little it holds.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._files: dict[tuple[str, str], pa.Table] = {}

    def __len__(self) -> int:
        return len(self._files)

    def load(self, table: FactTable, partitions: Iterable[Partition]) -> None:
        """Read what is not there yet of some partitions, several files at once; forget what is in the table no more.

        Raises:
            TableError: a file is missing or damaged.
        """
        there = {(table.uri, file.path) for file in table.files()}
        for key in self._files.keys() - there:
            self._size_bytes -= self._files.pop(key).nbytes
        paths = [path for partition in partitions for path in partition.paths if (table.uri, path) not in self._files]
        with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="file-cache") as pool:
            for path, rows in zip(paths, pool.map(lambda path: _read(table.uri, path), paths), strict=True):
                self._keep((table.uri, path), rows)

    def read(self, table_uri: str, path: str, columns: Sequence[str]) -> list[pa.RecordBatch]:
        """Some columns of a file; see `read_batches`.

        Raises:
            TableError: the file is missing or damaged.
        """
        rows = self._files.get((table_uri, path))
        if rows is None:
            rows = _read(table_uri, path)
            self._keep((table_uri, path), rows)
        return rows.select(list(columns)).to_batches()

    def _keep(self, key: tuple[str, str], rows: pa.Table) -> None:
        self._files[key] = rows
        self._size_bytes += rows.nbytes
        while self._size_bytes > self._max_bytes:
            largest = max(self._files, key=lambda key: self._files[key].nbytes)
            self._size_bytes -= self._files.pop(largest).nbytes


def _read(table_uri: str, path: str) -> pa.Table:
    return pa.Table.from_batches(read_batches(table_uri, path, DECIDING_COLUMNS), DECIDING_SCHEMA).combine_chunks()
