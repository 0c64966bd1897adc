"""Lines of dumps that could not be used, kept where a person can read them: a Delta table beside the facts."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

import pyarrow as pa

from recipe_ray.store.delta import CommitConflictError, append_files, create_delta, open_delta
from recipe_ray.store.files import absolute, join
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
_MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that is no fact: where it stands (lines count from 1), why it was refused, and its text (shortened)."""

    file: str
    line: int
    reason: str
    raw: str


def quarantine_uri(table_uri: str) -> str:
    """Where the quarantine of a table lies; Delta readers pass over names with an underscore."""
    return join(absolute(table_uri), "_quarantine")


def quarantine(table_uri: str, lines: list[BadLine], *, dump_hash: str, ingested_at: datetime) -> bool:
    """Add the bad lines of a dump, once for each dump; False where they are there already.

    Raises:
        OutputError: the place cannot be written.
        TableError: the quarantine cannot be read or committed to.
    """
    uri = quarantine_uri(table_uri)
    if open_delta(uri) is None:
        create_delta(uri, QUARANTINE_SCHEMA, [], {})
    file: DataFile | None = None
    for attempt in count(1):
        delta = open_delta(uri)
        assert delta is not None
        if delta.transaction_version(dump_hash) is not None:
            return False
        file = file or _write(uri, _rows(lines, dump_hash, ingested_at))
        try:
            append_files(delta, [file], QUARANTINE_SCHEMA, [], dump_hash=dump_hash, metadata={})
            break
        except CommitConflictError:
            if attempt == _MAX_ATTEMPTS:
                raise
    return True


def read_quarantine(table_uri: str) -> pa.Table:
    """All quarantined lines of a table (QUARANTINE_SCHEMA), sorted by dump, file and line; none where there are none.

    Raises:
        TableError: it cannot be read.
    """
    uri = quarantine_uri(table_uri)
    delta = open_delta(uri)
    if delta is None:
        return QUARANTINE_SCHEMA.empty_table()
    paths: list[Any] = pa.table(delta.get_add_actions(flatten=True)).column("path").to_pylist()
    batches = [batch for path in paths for batch in read_batches(uri, path, QUARANTINE_SCHEMA.names)]
    rows = pa.Table.from_batches(batches, QUARANTINE_SCHEMA)
    return rows.sort_by([("dump_hash", "ascending"), ("file", "ascending"), ("line", "ascending")])


def _write(uri: str, rows: pa.Table) -> DataFile:
    path = f"part-{uuid.uuid4().hex}.parquet"
    return DataFile(path=path, size_bytes=write_parquet(uri, path, rows), num_rows=len(rows), partition={})


def _rows(lines: list[BadLine], dump_hash: str, ingested_at: datetime) -> pa.Table:
    columns = {
        "file": [line.file for line in lines],
        "line": [line.line for line in lines],
        "reason": [line.reason for line in lines],
        "raw": [line.raw for line in lines],
        "dump_hash": [dump_hash] * len(lines),
        "ingested_at": [ingested_at] * len(lines),
    }
    return pa.table(columns, schema=QUARANTINE_SCHEMA)
