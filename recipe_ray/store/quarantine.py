"""Rows of dumps that are no facts, kept where a person can read and repair them: a Delta table beside the facts."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from pyarrow import fs

from recipe_ray.errors import OutputError, TableError
from recipe_ray.store.delta import CommitConflictError, append_files, create_delta, open_delta
from recipe_ray.store.files import absolute, filesystem, is_s3, join
from recipe_ray.store.parquet import DataFile, read_batches, write_parquet
from recipe_ray.store.schema import TIMESTAMP

_FIELDS: list[Any] = [
    pa.field("file", pa.string(), nullable=False),
    pa.field("line", pa.int64(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("raw", pa.string(), nullable=False),
    pa.field("dump_hash", pa.string(), nullable=False),
    pa.field("ingested_at", TIMESTAMP, nullable=False),
]
QUARANTINE_SCHEMA = pa.schema(_FIELDS)
_PROPERTIES: Mapping[str, str] = {
    # What is cleared shall be gone: no version before it is kept.
    "delta.logRetentionDuration": "interval 0 days",
    "delta.deletedFileRetentionDuration": "interval 0 days",
    "delta.dataSkippingStatsColumns": "line",  # and no text of a row gets into the log
}
_FILE_ROWS = 65536
_FILE_BYTES = 16 * 1024 * 1024
_CLOCK_TICK_S = 0.002  # a vacuum leaves what was deleted in its own millisecond
_MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A row that is no fact.

    Attributes:
        file: URI of its file.
        line: where it stands in the file, counted from 1.
        reason: why it was refused.
        raw: its text (shortened), one line that can be repaired and ingested as JSON Lines; empty or None where there
            is none to show.
    """

    file: str
    line: int
    reason: str
    raw: str | None


def quarantine_uri(table_uri: str) -> str:
    """Where the quarantine of a table lies; Delta readers pass over names with an underscore."""
    return join(absolute(table_uri), "_quarantine")


def quarantine(table_uri: str, rows: Iterable[BadLine], *, dump_hash: str, ingested_at: datetime) -> bool:
    """Add the bad rows of a dump, once for each dump; False where they are there already, or there are none.

    Rows are taken as they come and held until a file is full; all files count from one commit on.

    Raises:
        OutputError: the place cannot be written.
        TableError: the quarantine cannot be read or committed to.
    """
    uri = quarantine_uri(table_uri)
    delta = open_delta(uri)
    if delta is not None and delta.transaction_version(dump_hash) is not None:
        return False
    files = _write_files(uri, rows, dump_hash, ingested_at)
    if not files:
        return False
    if delta is None:
        create_delta(uri, QUARANTINE_SCHEMA, [], _PROPERTIES)
    for attempt in count(1):
        delta = open_delta(uri)
        assert delta is not None
        if delta.transaction_version(dump_hash) is not None:
            return False
        try:
            append_files(delta, files, QUARANTINE_SCHEMA, [], dump_hash=dump_hash, metadata={})
            break
        except CommitConflictError:
            if attempt == _MAX_ATTEMPTS:
                raise
    return True


def read_quarantine(table_uri: str) -> pa.Table:
    """All quarantined rows of a table (QUARANTINE_SCHEMA), sorted by dump, file and line; none where there are none.

    Raises:
        TableError: it cannot be read.
    """
    delta = open_delta(quarantine_uri(table_uri))
    if delta is None:
        return QUARANTINE_SCHEMA.empty_table()
    rows = pa.Table.from_batches(_batches(delta, quarantine_uri(table_uri), None), QUARANTINE_SCHEMA)
    return rows.sort_by([("dump_hash", "ascending"), ("file", "ascending"), ("line", "ascending")])


def export_quarantine(table_uri: str, path_or_uri: str, *, dump_hash: str | None = None) -> int:
    """Write the texts of quarantined rows as JSON Lines, to be repaired and given to ingest; the number written.

    Rows of one dump keep the order in which they were quarantined. Rows without a text are left out. The names of
    fields are the dump's own, so the repaired file wants the same columns named as the dump did.

    Args:
        table_uri: of the table of facts.
        path_or_uri: a file that does not exist yet; compressed where its name ends in `.gz`.
        dump_hash: of the dump whose rows are wanted; None for all.

    Raises:
        OutputError: the file exists, or cannot be written.
        TableError: the quarantine cannot be read.
    """
    uri = quarantine_uri(table_uri)
    filesystem_, path = filesystem(path_or_uri)
    delta = open_delta(uri)
    num_rows = 0
    try:
        if filesystem_.get_file_info(path).type != fs.FileType.NotFound:
            raise OutputError(f"{path_or_uri}: exists already, perhaps half repaired; give a new name")
        if not is_s3(path_or_uri):
            filesystem_.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            with filesystem_.open_output_stream(path) as sink:
                for batch in _batches(delta, uri, dump_hash) if delta is not None else ():
                    texts = [text.replace("\n", " ") for text in batch.column("raw").to_pylist() if text]
                    sink.write("".join(f"{text}\n" for text in texts).encode())
                    num_rows += len(texts)
        except (TableError, OSError):
            with suppress(OSError):  # a part is not left to be taken for the whole
                filesystem_.delete_file(path)
            raise
    except OSError as error:
        raise OutputError(f"{path_or_uri}: cannot be written ({error}); give a place you may write to") from error
    return num_rows


def clear_quarantine(table_uri: str, *, dump_hash: str | None) -> int:
    """Remove quarantined rows for good, with every older version of the quarantine; the number of rows.

    A dump whose rows were cleared counts as quarantined: it is not added again. No ingest into the table may run
    meanwhile, since files that it has not committed yet are removed too: a killed one leaves such files.

    Args:
        table_uri: of the table of facts.
        dump_hash: of the dump whose rows go; None for all.

    Raises:
        TableError: the quarantine cannot be read or written.
    """
    uri = quarantine_uri(table_uri)
    delta = open_delta(uri)
    if delta is None:
        return 0
    num_rows = sum(batch.num_rows for batch in _batches(delta, uri, dump_hash, columns=["dump_hash"]))
    try:
        if missing := {name: value for name, value in _PROPERTIES.items() if _property(delta, name) != value}:
            delta.alter.set_table_properties(missing)
        # A file holds the rows of one dump, so that files go as they are and none is written anew.
        delta.delete(None if dump_hash is None else f"dump_hash = '{_quoted(dump_hash)}'")
        time.sleep(_CLOCK_TICK_S)
        delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        delta.create_checkpoint()
        delta.cleanup_metadata()
    except CommitFailedError as error:
        raise CommitConflictError(f"{uri}: another writer committed first; run it again") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"{uri}: cannot be cleared ({str(error).splitlines()[0][:300]}); run it again") from error
    return num_rows


def _batches(
    delta: DeltaTable, uri: str, dump_hash: str | None, columns: Sequence[str] = QUARANTINE_SCHEMA.names
) -> Iterator[pa.RecordBatch]:
    """Rows of a dump, or of all, file by file as they were written."""
    paths: list[Any] = pa.table(delta.get_add_actions(flatten=True)).column("path").to_pylist()
    for path in sorted(paths):
        for batch in read_batches(uri, path, columns):
            if dump_hash is None:
                yield batch
            elif (chosen := batch.filter(pc.field("dump_hash") == dump_hash)).num_rows:
                yield chosen


def _write_files(uri: str, rows: Iterable[BadLine], dump_hash: str, ingested_at: datetime) -> list[DataFile]:
    """Write rows into files whose names sort as they were written."""
    name = f"part-{ingested_at:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}"
    files: list[DataFile] = []
    held: list[BadLine] = []
    num_bytes = 0

    def write() -> None:
        path = f"{name}-{len(files):05d}.parquet"
        size_bytes = write_parquet(uri, path, _table(held, dump_hash, ingested_at))
        files.append(DataFile(path=path, size_bytes=size_bytes, num_rows=len(held), partition={}))

    for row in rows:
        held.append(row)
        num_bytes += len(row.raw or "") + len(row.reason)
        if len(held) == _FILE_ROWS or num_bytes >= _FILE_BYTES:
            write()
            held.clear()
            num_bytes = 0
    if held:
        write()
    return files


def _table(rows: Sequence[BadLine], dump_hash: str, ingested_at: datetime) -> pa.Table:
    columns = {
        "file": [row.file for row in rows],
        "line": [row.line for row in rows],
        "reason": [row.reason for row in rows],
        "raw": [row.raw or "" for row in rows],
        "dump_hash": [dump_hash] * len(rows),
        "ingested_at": [ingested_at] * len(rows),
    }
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def _property(delta: DeltaTable, name: str) -> str | None:
    value: str | None = delta.metadata().configuration.get(name)
    return value


def _quoted(text: str) -> str:
    return text.replace("'", "''")
