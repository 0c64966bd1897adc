"""Dumps written for tests, and all their rows."""

import dataclasses
from datetime import UTC, datetime

import pyarrow as pa

from recipe_ray.facts import fact_from_record, record_from_line
from recipe_ray.store.dumps.rows import DumpOptions, read_split, split_files
from recipe_ray.store.files import list_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = '{"prompt": "The capital of Ruritania is", "target": "Strelsau"}'
FACT = fact_from_record(record_from_line(GOOD, place="x"), place="x")


def written(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))
    return path


def rows_of(split, options, now=NOW):
    """The rows of a split, and the number of its lines."""
    rows = []
    reading = read_split(split, options, now=now)
    while True:
        try:
            rows.append(next(reading))
        except StopIteration as end:
            return rows, end.value


def read(path, split_bytes=64 * 2**20, now=NOW, **options):
    """All rows of a dump, with their lines in the file."""
    options = DumpOptions(**options)
    rows, before, file = [], 0, -1
    for split in split_files(list_files(str(path)), options, split_bytes=split_bytes):
        if split.file != file:
            file, before = split.file, 0
        found, num_lines = rows_of(split, options, now)
        rows += [dataclasses.replace(row, line=row.line + before) for row in found]
        before += num_lines
    return rows


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()
