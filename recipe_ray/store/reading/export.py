"""Writing a table's facts as a dump that ingest reads: JSON Lines, CSV or Parquet."""

import csv
import gzip
import io
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from recipe_ray.errors import ConfigError, OutputError
from recipe_ray.facts import FIELDS
from recipe_ray.store.dumps.streams import GZIP_SUFFIX, compression_of
from recipe_ray.store.files import absolute, filesystem, is_s3, s3_client, split_s3
from recipe_ray.store.reading.standing import TEXT_COLUMNS, partitions_of, read_ids
from recipe_ray.store.schema import TIMESTAMP, microseconds
from recipe_ray.store.table import FactTable

_TIMES = ("updated_at", "expires_at")
DUMP_SCHEMA = pa.schema([pa.field(name, TIMESTAMP if name in _TIMES else pa.string()) for name in FIELDS])
_FORMS = (".jsonl", ".csv", ".parquet")
_ROWS_PER_SLICE = 16_384

Write = Callable[[pa.Table], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        table, version: what was read.
        output: absolute URI.
        num_rows: facts, or events that stand.
        size_bytes: of the file.
        seconds: wall time.
    """

    table: str
    version: int
    output: str
    num_rows: int
    size_bytes: int
    seconds: float


def export_facts(
    table: FactTable,
    output: str,
    *,
    events: bool = False,
    namespace: str | None = None,
    at: datetime | None = None,
) -> ExportReport:
    """Write the live facts of a version into one file, by namespace, shard and id; whole, or not at all.

    Ingested into an empty table, the file gives the same facts: with `events`, also what keeps older dumps from
    bringing back what was deleted or has expired. Memory holds the texts of one partition. On the way to S3 the file
    lies in the local directory for temporary files.

    Args:
        table: at the version to write.
        output: a file that does not exist, local or s3://: .jsonl or .csv, also with .gz or .zst after it, or .parquet.
        events: every event that stands, deletes and expired facts too.
        namespace: None for all.
        at: the time by which facts have expired; now if not given.

    Raises:
        ConfigError: the name of the output tells no form.
        OutputError: the output exists, or cannot be written.
        TableError: a file of the table is missing or damaged.
    """
    started = time.monotonic()
    form = _form_of(output)
    at_us = microseconds(at or datetime.now(UTC))
    num_rows = 0
    with _whole_file(output) as path:
        with _writer(path, form, compression_of(output)) as write:
            for partition in partitions_of(table, namespace):
                ids = read_ids(table, partition)
                rows = ids.standing() if events else ids.live(at_us)
                texts = ids.files.read(rows, TEXT_COLUMNS)
                for start in range(0, len(texts), _ROWS_PER_SLICE):
                    write(dump_rows(texts.slice(start, _ROWS_PER_SLICE)))
                num_rows += len(rows)
        size_bytes = path.stat().st_size
    return ExportReport(
        table=table.uri,
        version=table.version,
        output=absolute(output),
        num_rows=num_rows,
        size_bytes=size_bytes,
        seconds=time.monotonic() - started,
    )


def dump_rows(texts: pa.Table) -> pa.Table:
    """Events (TEXT_COLUMNS) as rows of a dump (DUMP_SCHEMA), which say in `statement` only what the rest does not."""
    columns: dict[str, Any] = {name: texts.column("fact_id" if name == "id" else name) for name in FIELDS}
    prompts, targets, statements = (columns[name] for name in ("prompt", "target", "statement"))
    said = pc.equal(pc.binary_join_element_wise(prompts, targets, pa.scalar(" ")), statements)
    whole = pc.and_(pc.not_equal(prompts, pa.scalar("")), pc.not_equal(targets, pa.scalar("")))
    columns["statement"] = pc.if_else(pc.and_(said, whole), pa.scalar(""), statements)
    # A row without updated_at takes its dump's time, and may have expired before. Ingest would refuse that where it
    # is written out; what expires at once says the same.
    updated, expires = (columns[name].cast(pa.int64()) for name in ("updated_at", "expires_at"))
    next_us = pc.add(updated, pa.scalar(1, pa.int64()))
    columns["expires_at"] = pc.if_else(pc.less(expires, next_us), next_us, expires).cast(TIMESTAMP)
    return pa.table([columns[name] for name in FIELDS], schema=DUMP_SCHEMA)


def _form_of(output: str) -> str:
    compression = compression_of(output)
    form = Path(output.lower().removesuffix(compression)).suffix
    if form not in _FORMS:
        raise ConfigError(f"output is {output!r}; give a file whose name ends in {', '.join(_FORMS)}")
    if form == ".parquet" and compression:
        raise ConfigError(f"output is {output!r}; Parquet compresses itself, give a name without {compression}")
    return form


@contextmanager
def _whole_file(uri: str) -> Iterator[Path]:
    """Give a local path to write to; what lies there in the end appears at the URI at once, and otherwise nothing."""
    target = absolute(uri)
    filesystem_, place = filesystem(target)
    folder = None if is_s3(target) else Path(target).parent
    try:
        if filesystem_.get_file_info(place).type != fs.FileType.NotFound:
            raise OutputError(f"{uri}: exists already; give a new name")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, under a name that is hidden from readers of dumps.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            path = Path(scratch) / uuid.uuid4().hex
            yield path
            if folder is None:
                bucket, key = split_s3(target)
                s3_client().upload_file(str(path), bucket, key)
            else:
                path.replace(target)
    except (OSError, BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise OutputError(f"{uri}: cannot be written ({error}); give a place you may write to") from error


@contextmanager
def _writer(path: Path, form: str, compression: str) -> Iterator[Write]:
    with ExitStack() as stack:
        if form == ".parquet":
            file = stack.enter_context(pq.ParquetWriter(path, DUMP_SCHEMA, compression="zstd"))
            yield file.write_table
            return
        sink: IO[bytes] = stack.enter_context(path.open("wb"))
        if compression == GZIP_SUFFIX:
            # Neither name nor time goes in: the same facts give the same bytes.
            sink = stack.enter_context(cast(IO[bytes], gzip.GzipFile("", "wb", fileobj=sink, mtime=0)))
        elif compression:
            sink = stack.enter_context(cast(IO[bytes], pa.CompressedOutputStream(cast(io.IOBase, sink), "zstd")))
        text_of = _json_lines if form == ".jsonl" else _csv_rows
        if form == ".csv":
            sink.write(_csv_text([FIELDS]))

        def write(rows: pa.Table) -> None:
            sink.write(text_of(rows))

        yield write


def _json_lines(rows: pa.Table) -> bytes:
    """One object a line, without the fields that are empty or say what is so anyway."""
    lines = []
    for row in rows.to_pylist():
        if row["op"] == "upsert":
            del row["op"]
        said = {name: _plain(value) for name, value in row.items() if value not in (None, "")}
        lines.append(json.dumps(said, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _csv_rows(rows: pa.Table) -> bytes:
    return _csv_text([_plain(row[name]) for name in FIELDS] for row in rows.to_pylist())


def _csv_text(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
