"""Data files of the table: written by whichever process encodes, read back a row group at a time."""

import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe_ray.errors import OutputError, TableError
from recipe_ray.store.files import filesystem, is_s3, join
from recipe_ray.store.schema import FILE_SCHEMA

ROW_GROUP_BYTES = 32 * 1024 * 1024
_READ_ROWS = 4096
_VECTOR_COLUMNS = ("key", "prompt_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A written Parquet file, not yet part of any version.

    Attributes:
        path: below the table, with `/` between segments.
        size_bytes: of the file.
        num_rows: events in it.
        partition: the values of the partition columns, as the log writes them; empty in an unpartitioned table.
    """

    path: str
    size_bytes: int
    num_rows: int
    partition: Mapping[str, str]


def write_events(table_uri: str, events: pa.Table) -> list[DataFile]:
    """Write events (the columns of EVENT_SCHEMA) into their partitions, under names that nothing else uses.

    Raises:
        OutputError: the place cannot be written.
    """
    pairs = events.select(["namespace", "shard"]).group_by(["namespace", "shard"]).aggregate([])
    return [
        _write_partition(
            table_uri,
            events.filter((pc.field("namespace") == pair["namespace"]) & (pc.field("shard") == pair["shard"])),
            pair["namespace"],
            pair["shard"],
        )
        for pair in pairs.to_pylist()
    ]


def write_parquet(table_uri: str, path: str, rows: pa.Table) -> int:
    """Write one file below the table and return its size in bytes.

    Raises:
        OutputError: the place cannot be written.
    """
    uri = join(table_uri, path)
    filesystem_, target = filesystem(uri)
    try:
        if not is_s3(uri):
            filesystem_.create_dir(target.rpartition("/")[0], recursive=True)
        pq.write_table(rows, target, filesystem=filesystem_, **_write_options(rows))
        return int(filesystem_.get_file_info(target).size)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({error}); free some space or check the permissions") from error


def read_batches(table_uri: str, path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read some columns of a data file, in the file's order, in batches that hold little memory.

    Raises:
        TableError: the file is missing, damaged, or lacks a column.
    """
    uri = join(table_uri, path)
    filesystem_, target = filesystem(uri)
    try:
        with pq.ParquetFile(target, filesystem=filesystem_) as file:
            if missing := sorted(set(columns) - set(file.schema_arrow.names)):
                raise TableError(f"{uri}: column {missing[0]!r} is missing; restore an older version or ingest anew")
            yield from file.iter_batches(batch_size=_READ_ROWS, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise TableError(
            f"{uri}: cannot be read ({str(error).splitlines()[0]}); restore the file or an older version of the table"
        ) from error


def _write_partition(table_uri: str, events: pa.Table, namespace: str, shard: int) -> DataFile:
    path = f"namespace={_directory(namespace)}/shard={shard}/part-{uuid.uuid4().hex}.parquet"
    partition = {"namespace": namespace, "shard": str(shard)}
    rows = events.select(FILE_SCHEMA.names).cast(FILE_SCHEMA)
    size_bytes = write_parquet(table_uri, path, rows)
    return DataFile(path=path, size_bytes=size_bytes, num_rows=len(rows), partition=partition)


def _write_options(rows: pa.Table) -> dict[str, Any]:
    row_bytes = max(1, rows.nbytes // max(1, len(rows)))
    return {
        "compression": {name: "none" if name in _VECTOR_COLUMNS else "zstd" for name in rows.column_names},
        "use_dictionary": [name for name in ("op", "source", "subject") if name in rows.column_names],
        "write_statistics": [name for name in ("updated_at", "ingested_at") if name in rows.column_names],
        "row_group_size": max(1, ROW_GROUP_BYTES // row_bytes),
    }


def _directory(namespace: str) -> str:
    """Name a directory for a namespace. Readers take the namespace from the log, so no name need lead back to it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", namespace):
        return namespace
    return "ns_" + hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
