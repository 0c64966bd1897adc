"""Data files of the table: written by whichever process encodes, read back a row group at a time.

The name of an event file ends in the checksum of its bytes: so the log, which names the file, tells what it must hold.
"""

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
_CHECK_BYTES = 8 * 1024 * 1024
_CHECKSUM = re.compile(r"-([0-9a-f]{32})\.parquet$")
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
    return write_bytes(join(table_uri, path), parquet_bytes(rows))


def parquet_bytes(rows: pa.Table) -> pa.Buffer:
    """A Parquet file in memory, every page with a checksum."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, write_page_checksum=True, **_write_options(rows))
    return sink.getvalue()


def write_bytes(uri: str, content: pa.Buffer) -> int:
    """Write a file, see that all of it is there, and return its size in bytes.

    Raises:
        OutputError: the place cannot be written, or holds something else afterwards.
    """
    filesystem_, target = filesystem(uri)
    try:
        if not is_s3(uri):
            filesystem_.create_dir(target.rpartition("/")[0], recursive=True)
        with filesystem_.open_output_stream(target) as sink:
            sink.write(content)
        size_bytes = int(filesystem_.get_file_info(target).size or 0)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({error}); free some space or check the permissions") from error
    if size_bytes != content.size:
        raise OutputError(
            f"{uri}: {content.size} bytes were written, {size_bytes} are there; check the storage, run again"
        )
    return size_bytes


def check_file(table_uri: str, path: str) -> None:
    """Read a file of events whole and compare it with the checksum in its name; a name without one tells nothing.

    Raises:
        TableError: it is missing, cannot be read, or holds other bytes.
    """
    uri = join(table_uri, path)
    expected = _CHECKSUM.search(path)
    digest = hashlib.blake2b(digest_size=16)
    filesystem_, target = filesystem(uri)
    try:
        with filesystem_.open_input_stream(target) as stream:
            while part := stream.read(_CHECK_BYTES):
                digest.update(part)
    except OSError as error:
        raise _unreadable(uri, error) from error
    if expected and digest.hexdigest() != expected[1]:
        raise TableError(
            f"{uri}: its bytes are not those that were written (checksum {digest.hexdigest()}, its name says "
            f"{expected[1]}); restore the file or an older version of the table"
        )


def read_batches(table_uri: str, path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read some columns of a data file, in the file's order, in batches that hold little memory.

    Raises:
        TableError: the file is missing, damaged, or lacks a column.
    """
    uri = join(table_uri, path)
    filesystem_, target = filesystem(uri)
    try:
        with pq.ParquetFile(target, filesystem=filesystem_, page_checksum_verification=True) as file:
            if missing := sorted(set(columns) - set(file.schema_arrow.names)):
                raise TableError(f"{uri}: column {missing[0]!r} is missing; restore an older version or ingest anew")
            yield from file.iter_batches(batch_size=_READ_ROWS, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(uri, error) from error


def _unreadable(uri: str, error: Exception) -> TableError:
    return TableError(
        f"{uri}: cannot be read ({str(error).splitlines()[0]}); restore the file or an older version of the table"
    )


def _write_partition(table_uri: str, events: pa.Table, namespace: str, shard: int) -> DataFile:
    content = parquet_bytes(events.select(FILE_SCHEMA.names).cast(FILE_SCHEMA))
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    path = f"namespace={_directory(namespace)}/shard={shard}/part-{uuid.uuid4().hex}-{checksum}.parquet"
    partition = {"namespace": namespace, "shard": str(shard)}
    size_bytes = write_bytes(join(table_uri, path), content)
    return DataFile(path=path, size_bytes=size_bytes, num_rows=len(events), partition=partition)


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
