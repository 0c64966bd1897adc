"""Merging the small files that writes of single facts leave: the same events, in fewer files.

Compaction rewrites whole partitions, to drop what no longer stands; this touches the small files alone, so that it may
run often beside a large table.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pyarrow as pa

from recipe_ray.store.delta import retrying
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.schema import FILE_SCHEMA
from recipe_ray.store.stored import missing_files, remove_files
from recipe_ray.store.table import FactTable, Partition

SMALL_BYTES = 16 * 1024 * 1024
MERGED_BYTES = 128 * 1024 * 1024  # of a merged file, at most; some three times as much is held at once
MIN_FILES = 8  # of a partition: to merge fewer saves little


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did.

    Attributes:
        version: the one committed; the last where there was nothing to merge.
        num_files_removed, num_files_added: data files.
    """

    version: int
    num_files_removed: int
    num_files_added: int


def merge_small_files(uri: str, *, small_bytes: int = SMALL_BYTES, min_files: int = MIN_FILES) -> MergeReport:
    """Merge the small files of each partition that has many; one commit, and none where there is nothing to merge.

    All events stay, and nothing else decides what stands, so the table tells the same before and after. Others may
    write meanwhile: files that are still there are not merged again.

    Args:
        uri: of the table.
        small_bytes: files below this are small.
        min_files: a partition with fewer small files is left alone.

    Raises:
        CommitConflictError: other writers never pause.
        TableError: a file is missing or damaged.
        OutputError: the place cannot be written.
    """
    merged: dict[Partition, list[DataFile]] = {}  # of each partition the small files alone

    def attempt() -> MergeReport:
        table = FactTable.open(uri)
        files = {file.path: file for file in table.files()}
        _discard_stale(table, files.keys(), merged)
        for partition in table.partitions():
            if any(_place(done) == _place(partition) for done in merged):
                continue
            paths = _choose([files[path] for path in partition.paths], small_bytes)
            if len(paths) >= min_files:
                small = Partition(namespace=partition.namespace, shard=partition.shard, paths=paths)
                merged[small] = _merge(table, small)
        remove = [files[path] for small in merged for path in small.paths]
        add = [file for written in merged.values() for file in written]
        if remove:
            counts = {"removed_files": len(remove), "added_files": len(add)}
            table.replace(remove, add, operation="merge", counts=counts, data_change=False)
        return MergeReport(version=table.version, num_files_removed=len(remove), num_files_added=len(add))

    return retrying(attempt)


def _place(partition: Partition) -> tuple[str, int]:
    return partition.namespace, partition.shard


def _discard_stale(table: FactTable, there: AbstractSet[str], merged: dict[Partition, list[DataFile]]) -> None:
    """Forget what was merged from files that are not the table's any more, or was removed by somebody."""
    for small, written in list(merged.items()):
        paths = [file.path for file in written]
        if not there >= set(small.paths) or missing_files(table.uri, paths):
            remove_files(table.uri, paths)
            del merged[small]


def _choose(files: Sequence[DataFile], small_bytes: int) -> tuple[str, ...]:
    """Paths of small files, the smallest first, as many as go into one."""
    paths: list[str] = []
    size_bytes = 0
    for file in sorted(files, key=lambda file: (file.size_bytes, file.path)):
        size_bytes += file.size_bytes
        if file.size_bytes >= small_bytes or size_bytes > MERGED_BYTES:
            break
        paths.append(file.path)
    return tuple(paths)


def _merge(table: FactTable, small: Partition) -> list[DataFile]:
    batches = [batch for path in small.paths for batch in read_batches(table.uri, path, FILE_SCHEMA.names)]
    rows = pa.Table.from_batches(batches).sort_by([("fact_id", "ascending")])
    rows = rows.append_column("namespace", pa.repeat(small.namespace, len(rows)))
    rows = rows.append_column("shard", pa.repeat(pa.scalar(small.shard, pa.int32()), len(rows)))
    return write_events(table.uri, rows)
