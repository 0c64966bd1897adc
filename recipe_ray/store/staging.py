"""What an ingest keeps beside the table until it commits, so that memory stays bounded and a restart goes on.

The rows of a dump are staged once, as Parquet, in buckets: all events of an id fall into one bucket, and a bucket into
one shard of the table. A bucket is then resolved by itself. All of it lies in `TABLE/_staging/KEY`, where KEY tells the
dump, how it is read, and the editor.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe_ray.errors import OutputError
from recipe_ray.facts import Fact
from recipe_ray.store.dumps.rows import GoodRow, RepeatedHeader, Row, Split
from recipe_ray.store.files import (
    SourceFile,
    absolute,
    filesystem,
    join,
    list_below,
    read_text,
    remove_empty,
    remove_tree,
    write_text,
)
from recipe_ray.store.order import EVENT_COLUMNS, Events, Hashes, events_of, hashes_of
from recipe_ray.store.parquet import DataFile, write_bytes
from recipe_ray.store.quarantine import BadLine
from recipe_ray.store.schema import TIMESTAMP, identity_hash, microseconds, shard_of

ROWS_PER_BUCKET = 262_144
_PART_ROWS = 16_384  # Python objects of so many rows at a time
_CHUNK_ROWS = 524_288  # rows of a staged file: at some 250 bytes a row
_PART_CHARS, _CHUNK_BYTES = 16 * 1024**2, 256 * 1024**2  # the same for rows of long texts
_BYTES_PER_ROW, _BYTES_PER_PACKED_ROW = 100, 20  # of a dump, plain or compressed: a guess at the number of its rows
_PLAIN = (".jsonl", ".ndjson", ".json", ".csv")
_TEXTS = ("namespace", "fact_id", "op", "statement", "prompt", "target", "subject", "source")
_STAGED_FIELDS: list[Any] = [
    *[pa.field(name, pa.string()) for name in _TEXTS],
    pa.field("updated_at", TIMESTAMP),
    pa.field("expires_at", TIMESTAMP),
    *[pa.field(name, pa.binary()) for name in ("content_hash", "statement_hash", "identity")],
]
STAGED_SCHEMA = pa.schema(_STAGED_FIELDS)
_DECIDING = ["namespace", "fact_id", "op", "updated_at", "expires_at", "content_hash", "statement_hash", "identity"]
_BAD_SCHEMA = pa.schema(
    [pa.field(name, pa.int64() if name == "line" else pa.string()) for name in ("line", "reason", "raw")]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """How identities are dealt out: a bucket is one of `num_parts` parts of one of `num_shards` shards."""

    num_shards: int
    num_parts: int

    @classmethod
    def for_dump(cls, files: Sequence[SourceFile], *, num_shards: int) -> "Buckets":
        """So many that each is a modest number of rows."""
        rows = sum(
            file.size_bytes / (_BYTES_PER_ROW if file.uri.endswith(_PLAIN) else _BYTES_PER_PACKED_ROW) for file in files
        )
        return cls(num_shards=num_shards, num_parts=max(1, round(rows / ROWS_PER_BUCKET / num_shards)))

    def bucket_of(self, fact: Fact, identity: bytes) -> int:
        """The bucket of a fact, given its identity hash."""
        part = int.from_bytes(identity[:4], "little") % self.num_parts
        return part * self.num_shards + shard_of(fact.fact_id, self.num_shards)

    def shard(self, bucket: int) -> int:
        """The shard that a bucket lies in."""
        return bucket % self.num_shards


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Rows of one bucket in one staged file."""

    path: str
    number: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSplit:
    """A split of the dump, staged.

    Attributes:
        file, part: which.
        num_lines: lines (or records) it has, blank ones included.
        num_rows, num_bad: what they held.
        num_undated: rows without `updated_at`.
        row_groups: by bucket.
        bad_paths: files of bad rows.
        num_headers: headers in the middle of a CSV file, which are no rows.
    """

    file: int
    part: int
    num_lines: int
    num_rows: int
    num_undated: int
    num_bad: int
    row_groups: dict[int, list[RowGroup]]
    bad_paths: list[str]
    num_headers: int = 0  # what an older version staged says nothing of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The staged part of one ingest; `ingested_at` is when it was first started.

    Attributes:
        uri: the folder.
        buckets: how rows are dealt out.
        dump_time: stands for a missing `updated_at`.
        ingested_at: of every event it writes.
    """

    uri: str
    buckets: Buckets
    dump_time: datetime
    ingested_at: datetime

    @classmethod
    def begin(cls, table_uri: str, key: str, buckets: Buckets, *, dump_time: datetime, now: datetime) -> "Staging":
        """Find the staging of an ingest that broke off, or begin one.

        Raises:
            OutputError: the place cannot be written.
        """
        uri = join(staging_uri(table_uri), key)
        card = read_text(join(uri, "ingest.json"))
        if card is None:
            write_text(join(uri, "ingest.json"), json.dumps({"ingested_at": now.isoformat(), **asdict(buckets)}))
            return cls(uri=uri, buckets=buckets, dump_time=dump_time, ingested_at=now)
        write_text(join(uri, "ingest.json"), card)  # younger than what a vacuum removes
        found = json.loads(card)
        return cls(
            uri=uri,
            buckets=Buckets(num_shards=found["num_shards"], num_parts=found["num_parts"]),
            dump_time=dump_time,
            ingested_at=datetime.fromisoformat(found["ingested_at"]),
        )

    def stage(self, split: Split, rows: Iterator[Row], *, stored: Callable[[Fact], Fact] | None = None) -> StagedSplit:
        """Write the rows of a split, or tell what was written before.

        Args:
            split: of the dump.
            rows: of `read_split`: a generator that returns the number of lines.
            stored: gives a fact the id that it has in the table; None where all have their own.

        Raises:
            OutputError: the place cannot be written.
            FactError: the rows cannot be read to their end.
        """
        marker = join(self.uri, "splits", f"{split.file}-{split.part}.json")
        done = read_text(marker)
        if done:
            return _split_of(json.loads(done))
        staged = _Stager(self, split, stored).run(rows)
        write_text(marker, json.dumps(asdict(staged)))
        return staged

    def finished_units(self) -> dict[str, list[DataFile]]:
        """Files of the units that were written before, by digest.

        Raises:
            OutputError: the place cannot be read.
        """
        found = {}
        for uri in list_below(join(self.uri, "units")):
            text = read_text(uri) if uri.endswith(".json") else None  # no rest of a write that broke off
            if text:
                digest = uri.rpartition("/")[2].removesuffix(".json")
                found[digest] = [DataFile(**file) for file in json.loads(text)]
        return found

    def finish_unit(self, digest: str, files: Sequence[DataFile]) -> None:
        """Remember what a unit became."""
        write_text(join(self.uri, "units", f"{digest}.json"), json.dumps([asdict(file) for file in files]))

    def remove(self) -> None:
        """Remove all of it, and the folders that it leaves empty."""
        _remove(self.uri)


def remove_staging(table_uri: str, key: str) -> None:
    """Remove a staging by its key; nothing happens where there is none."""
    _remove(join(staging_uri(table_uri), key))


def _remove(uri: str) -> None:
    remove_tree(uri)
    remove_empty(uri.rpartition("/")[0], depth=2)


def staging_uri(table_uri: str) -> str:
    """Where ingests of a table keep what is not committed; Delta readers pass over names with an underscore."""
    return join(absolute(table_uri), "_staging")


def staged_rows(facts: Sequence[Fact], identities: Sequence[bytes], updated_us: Sequence[int]) -> pa.Table:
    """Facts as rows of STAGED_SCHEMA, given their identity hashes and as of when they are so (microseconds)."""
    columns: dict[str, Any] = {name: [getattr(fact, name) for fact in facts] for name in _TEXTS}
    columns["updated_at"] = pa.array(updated_us, pa.int64()).cast(TIMESTAMP)
    columns["expires_at"] = pa.array([fact.expires_at for fact in facts], TIMESTAMP)
    columns["content_hash"] = [fact.content_hash() for fact in facts]
    columns["statement_hash"] = [fact.statement_hash() for fact in facts]
    columns["identity"] = identities
    return pa.table(columns, schema=STAGED_SCHEMA)


class _Stager:
    """Stages one split."""

    def __init__(self, staging: Staging, split: Split, stored: Callable[[Fact], Fact] | None) -> None:
        self._staging, self._split, self._stored = staging, split, stored
        self._rows: list[tuple[int, bytes, Fact]] = []
        self._tables: list[pa.Table] = []
        self._bad: list[dict[str, Any]] = []
        self._num_staged = self._num_chars = 0
        self._num_undated = 0
        self._row_groups: dict[int, list[RowGroup]] = {}
        self._bad_paths: list[str] = []
        self._num_rows = self._num_bad = self._num_headers = 0

    def run(self, rows: Iterator[Row]) -> StagedSplit:
        num_lines = 0
        while True:
            try:
                row = next(rows)
            except StopIteration as end:
                num_lines = end.value
                break
            if isinstance(row, GoodRow):
                fact = row.fact if self._stored is None else self._stored(row.fact)
                identity = identity_hash(fact.namespace, fact.fact_id)
                self._rows.append((self._staging.buckets.bucket_of(fact, identity), identity, fact))
                self._num_chars += len(fact.statement) + len(fact.prompt) + len(fact.source)
                self._num_undated += fact.updated_at is None
                if len(self._rows) == _PART_ROWS or self._num_chars > _PART_CHARS:
                    self._compact()
            elif isinstance(row, RepeatedHeader):
                self._num_headers += 1
            else:
                self._bad.append({"line": row.line, "reason": row.reason, "raw": row.raw})
                if len(self._bad) == 1024:  # each may be long
                    self._write_bad()
        self._compact()
        self._write_chunk()
        self._write_bad()
        return StagedSplit(
            file=self._split.file,
            part=self._split.part,
            num_lines=num_lines,
            num_rows=self._num_rows,
            num_undated=self._num_undated,
            num_bad=self._num_bad,
            row_groups=self._row_groups,
            bad_paths=self._bad_paths,
            num_headers=self._num_headers,
        )

    def _compact(self) -> None:
        if not self._rows:
            return
        dump_time = self._staging.dump_time
        facts = [fact for _, _, fact in self._rows]
        updated_us = [microseconds(fact.updated_at or dump_time) for fact in facts]
        table = staged_rows(facts, [identity for _, identity, _ in self._rows], updated_us)
        self._tables.append(
            table.append_column("bucket", pa.array([bucket for bucket, _, _ in self._rows], pa.int32()))
        )
        self._num_rows += len(facts)
        self._num_staged += len(facts)
        self._rows, self._num_chars = [], 0
        if self._num_staged >= _CHUNK_ROWS or sum(table.nbytes for table in self._tables) > _CHUNK_BYTES:
            self._write_chunk()

    def _write_chunk(self) -> None:
        """Write one file, a row group for each bucket."""
        if not self._tables:
            return
        rows = pa.concat_tables(self._tables)
        number = len({group.path for groups in self._row_groups.values() for group in groups})
        path = f"rows/{self._split.file}-{self._split.part}-{number}.parquet"
        buckets = rows.column("bucket").to_numpy()
        order = np.argsort(buckets, kind="stable")
        names, begins = np.unique(buckets[order], return_index=True)
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, STAGED_SCHEMA, compression="zstd", write_statistics=False) as writer:
            for group, of_bucket in enumerate(np.split(order, begins[1:])):
                writer.write_table(rows.take(of_bucket).select(STAGED_SCHEMA.names), row_group_size=len(of_bucket))
                found = RowGroup(path=path, number=group, num_rows=len(of_bucket))
                self._row_groups.setdefault(int(names[group]), []).append(found)
        write_bytes(join(self._staging.uri, path), sink.getvalue())
        self._tables, self._num_staged = [], 0

    def _write_bad(self) -> None:
        if not self._bad:
            return
        path = f"bad/{self._split.file}-{self._split.part}-{len(self._bad_paths)}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._bad, _BAD_SCHEMA), sink, compression="zstd", write_statistics=False)
        write_bytes(join(self._staging.uri, path), sink.getvalue())
        self._num_bad += len(self._bad)
        self._bad_paths.append(path)
        self._bad = []


def _split_of(card: dict[str, Any]) -> StagedSplit:
    groups = {int(bucket): [RowGroup(**group) for group in groups] for bucket, groups in card["row_groups"].items()}
    return StagedSplit(**{**card, "row_groups": groups})


def row_groups_by_bucket(splits: Sequence[StagedSplit]) -> dict[int, list[RowGroup]]:
    """The row groups of each bucket, in the order of the dump."""
    found: dict[int, list[RowGroup]] = {}
    for split in sorted(splits, key=lambda split: (split.file, split.part)):
        for bucket, groups in split.row_groups.items():
            found.setdefault(bucket, []).extend(groups)
    return dict(sorted(found.items()))


def bad_lines(staging: Staging, splits: Sequence[StagedSplit], uris: Sequence[str]) -> Iterator[BadLine]:
    """The bad rows of the dump in its order, their lines counted from the beginning of the file."""
    file, lines_before = -1, 0
    for split in sorted(splits, key=lambda split: (split.file, split.part)):
        if split.file != file:
            file, lines_before = split.file, 0
        for path in split.bad_paths:
            for row in read_staged(staging.uri, path, None, _BAD_SCHEMA.names).to_pylist():
                yield BadLine(file=uris[file], **{**row, "line": row["line"] + lines_before})
        lines_before += split.num_lines


def read_bucket(staging: Staging, groups: Sequence[RowGroup]) -> tuple[Events, dict[str, Any]]:
    """What decides about the rows of a bucket: their events, and the distinct ids by namespace, as Arrow arrays.

    Raises:
        OutputError: a staged file is not there or damaged.
    """
    tables = [read_staged(staging.uri, group.path, group.number, _DECIDING) for group in groups]
    rows = pa.concat_tables(tables).combine_chunks()
    ingested_at = pa.repeat(pa.scalar(staging.ingested_at, TIMESTAMP), len(rows))
    events = staged_events(rows, ingested_at, place=staging.uri)
    namespaces: list[Any] = pc.unique(rows.column("namespace")).to_pylist()
    ids = {
        namespace: pc.unique(rows.filter(pc.field("namespace") == namespace).column("fact_id"))
        for namespace in namespaces
    }
    return events, ids


def staged_events(rows: pa.Table, ingested_at: Any, *, place: str) -> Events:
    """Rows of STAGED_SCHEMA as events, given an Arrow array of when each is ingested; none has vectors."""
    rows = rows.append_column("encoded", pa.repeat(pa.scalar(False), len(rows)))
    rows = rows.append_column("ingested_at", ingested_at)
    identity: Hashes = hashes_of(rows.column("identity"), place=place)
    return events_of(rows.select(EVENT_COLUMNS), identity, place=place)


def read_staged(uri: str, path: str, group: int | None, columns: Sequence[str]) -> pa.Table:
    """Some columns of a staged file, or of one row group of it.

    Raises:
        OutputError: it is not there or damaged.
    """
    place = join(uri, path)
    filesystem_, target = filesystem(place)
    try:
        with pq.ParquetFile(target, filesystem=filesystem_) as file:
            names = list(columns)
            return file.read(names) if group is None else file.read_row_group(group, names)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{place}: a staged file is gone or damaged ({str(error).splitlines()[0]}); remove {uri}, then run "
            "ingest again"
        ) from error
