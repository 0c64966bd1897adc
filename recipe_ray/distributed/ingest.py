"""Filling a table of facts from a dump: Ray Data stages, and one atomic commit on the driver.

The dump is read once and staged in buckets beside the table. The buckets are resolved against the table; what it lacks
is cut into units, encoded in an actor pool and written as Parquet files. Nothing counts until the commit names the
files: a crash leaves the table as it was, and the same command goes on from the splits and units that were finished.
"""

import dataclasses
import hashlib
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from recipe_ray.config import EditorIdentity
from recipe_ray.distributed.encoders import Encoders, fit_encoders
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.progress import progress
from recipe_ray.distributed.stages import (
    ResolvedBucket,
    count_contradictions,
    encode_and_write,
    hash_dump,
    resolve_buckets,
    stage_dump,
)
from recipe_ray.errors import FactError, OutputError
from recipe_ray.model.editor import read_identity
from recipe_ray.store.delta import CommitConflictError, open_delta
from recipe_ray.store.dumps.rows import DumpOptions, form_of, split_files
from recipe_ray.store.files import SourceFile, check_writable, list_files, localize
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.pointer import follow
from recipe_ray.store.probe import check_conditional_writes
from recipe_ray.store.quarantine import quarantine, quarantine_uri
from recipe_ray.store.resolve import IngestCounts
from recipe_ray.store.staging import Buckets, RowGroup, StagedSplit, Staging, bad_lines, row_groups_by_bucket
from recipe_ray.store.table import FactTable, Partition
from recipe_ray.store.units import Unit

MAX_COMMIT_ATTEMPTS = 20
MAX_COMPARED = 5_000_000  # facts whose prompts are compared with the table's, in the memory of one task


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        table: absolute URI.
        version: of the table that now tells the dump.
        dump_hash: what the dump is known by in the table's log.
        repeated: the dump had been ingested before, and nothing was done.
        counts: what became of the rows.
        num_written: events added by this ingest.
        num_encoded: those of them that needed the encoder.
        size_bytes: of the data files added.
        seconds: wall time, without the start of the cluster.
        facts_per_s: rows read a second of that time.
        quarantine: URI of the bad rows' table; None where no row was bad.
        contradictions: groups of facts with one prompt and different targets that this dump's facts are part of; None
            where it is too large to look for them (MAX_COMPARED).
    """

    table: str
    version: int
    dump_hash: str
    repeated: bool
    counts: IngestCounts
    num_written: int
    num_encoded: int
    size_bytes: int
    seconds: float
    facts_per_s: float
    quarantine: str | None
    contradictions: int | None


def ingest(config: IngestConfig) -> IngestReport:
    """Bring a table up to what a dump says, on the connected Ray cluster.

    Raises:
        FactError: the dump is missing, empty, all bad, or changes while it is read.
        EditorError: the editor cannot be read.
        TableError: the table cannot be read, was encoded by another editor, or other writers never pause.
        OutputError: the table cannot be written, or its store does not keep two writers apart.
        ConfigError: the cluster lacks what was asked for.
    """
    started, now = time.monotonic(), datetime.now(UTC)
    config = dataclasses.replace(config, table=follow(config.table))
    identity = read_identity(localize(config.editor))
    check_writable(config.table)
    check_conditional_writes(config.table)
    table = None
    if open_delta(config.table) is not None:
        table = FactTable.open(config.table)
        table.check_editor(identity)
    encoders = fit_encoders(config)
    files = list_files(config.source)
    dump_hash = _dump_hash(files, hash_dump(files), config.options())
    if table is not None and table.has_dump(dump_hash) and not config.again:
        done = _Done(table=table, counts=IngestCounts(), files=[], num_encoded=0)
        return _report(done, dump_hash, seconds=time.monotonic() - started, repeated=True)
    job = _Job(
        config=config,
        files=files,
        dump_hash=dump_hash,
        identity=identity,
        encoders=encoders,
        num_shards=config.num_shards if table is None else table.num_shards,
        now=now,
    )
    try:
        return _report(job.run(), dump_hash, seconds=time.monotonic() - started)
    except OutputError:
        # Another ingest of the same dump shares the staging, and takes it away once it has committed.
        table = FactTable.open(config.table) if open_delta(config.table) else None
        if table is None or config.again or not table.has_dump(dump_hash):
            raise
        done = _Done(table=table, counts=IngestCounts(), files=[], num_encoded=0)
        return _report(done, dump_hash, seconds=time.monotonic() - started, repeated=True)


def _dump_hash(files: Sequence[SourceFile], hashes: Sequence[bytes], options: DumpOptions) -> str:
    """What a dump is known by: the content of its files, wherever they lie, and how they are read."""
    contents = [content + form_of(file.uri, options).encode() for content, file in zip(hashes, files, strict=True)]
    return hashlib.blake2b(b"".join([options.digest(), *sorted(contents)]), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """How an ingest ended: the table at its new version, and the files that it added."""

    table: FactTable
    counts: IngestCounts
    files: Sequence[DataFile]
    num_encoded: int
    contradictions: int | None = 0


def _report(done: _Done, dump_hash: str, *, seconds: float, repeated: bool = False) -> IngestReport:
    return IngestReport(
        table=done.table.uri,
        version=done.table.version,
        dump_hash=dump_hash,
        repeated=repeated,
        counts=done.counts,
        num_written=sum(file.num_rows for file in done.files),
        num_encoded=done.num_encoded,
        size_bytes=sum(file.size_bytes for file in done.files),
        seconds=seconds,
        facts_per_s=done.counts.read / seconds,
        quarantine=quarantine_uri(done.table.uri) if done.counts.quarantined else None,
        contradictions=done.contradictions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One ingest, from listed files to the commit."""

    config: IngestConfig
    files: Sequence[SourceFile]
    dump_hash: str
    identity: EditorIdentity
    encoders: Encoders
    num_shards: int
    now: datetime

    def run(self) -> _Done:
        staging = self._staging()
        splits = self._stage(staging)
        self._check(staging, splits)
        table = FactTable.create_or_open(
            self.config.table, self.identity, num_shards=self.num_shards, dtype=self.config.dtype
        )
        if table.num_shards != self.num_shards:
            raise CommitConflictError(f"{table.uri}: was made meanwhile with other shards; run ingest again")
        done = self._write_and_commit(table, staging, splits)
        staging.remove()
        return done

    def _staging(self) -> Staging:
        dump_time = min(self.now, max(file.modified_at for file in self.files))  # a clock may be ahead of ours
        key = f"{self.dump_hash} {dump_time.isoformat()} {self.identity.fingerprint} {self.num_shards}"
        return Staging.begin(
            self.config.table,
            hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
            Buckets.for_dump(self.files, num_shards=self.num_shards),
            dump_time=dump_time,
            now=self.now,
        )

    def _stage(self, staging: Staging) -> list[StagedSplit]:
        options = self.config.options()
        splits = split_files(self.files, options)
        with progress("reading the dump", len(splits), unit="splits") as advance:
            staged = stage_dump(splits, options, staging, now=self.now, progress=advance)
        if list_files(self.config.source) != tuple(self.files):
            staging.remove()
            raise FactError(
                f"{self.config.source}: changed while it was read; let its writer finish, then run ingest again"
            )
        return staged

    def _check(self, staging: Staging, splits: Sequence[StagedSplit]) -> None:
        """Refuse a dump without a fact; put the bad rows of another where they can be read."""
        uris = [file.uri for file in self.files]
        num_bad = sum(split.num_bad for split in splits)
        if not any(split.num_rows for split in splits):
            first = next(bad_lines(staging, splits, uris), None)
            staging.remove()
            if first is None:
                raise FactError(f"{self.config.source}: holds no facts; give one fact a row")
            raise FactError(
                f"{first.file}:{first.line}: {first.reason} (none of the {num_bad} rows of the dump is a fact, so "
                "nothing was written)"
            )
        if num_bad:  # before the commit: a dump that is committed is never looked at again
            rows = bad_lines(staging, splits, uris)
            quarantine(self.config.table, rows, dump_hash=self.dump_hash, ingested_at=staging.ingested_at)

    def _write_and_commit(self, table: FactTable, staging: Staging, splits: Sequence[StagedSplit]) -> _Done:
        """Write what the table lacks. Where another writer commits first, decide again against what it left."""
        groups = row_groups_by_bucket(splits)
        num_bad = sum(split.num_bad for split in splits)
        resolved: dict[int, ResolvedBucket] = {}
        stale = list(groups)
        for attempt in itertools.count(1):
            resolved |= resolve_buckets({bucket: groups[bucket] for bucket in stale}, staging, table, now=self.now)
            units = [unit for bucket in resolved.values() for unit in bucket.units]
            counts = sum(
                (bucket.counts for bucket in resolved.values()), IngestCounts(read=num_bad, quarantined=num_bad)
            )
            if not units:
                break
            files = self._files(table, staging, groups, units)
            try:
                table.commit(files, dump_hash=self.dump_hash, counts=asdict(counts))
                break
            except CommitConflictError:
                if attempt == MAX_COMMIT_ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))  # so that many writers do not keep step
            before, table = table, FactTable.open(self.config.table)
            stale = [bucket for bucket in groups if _has_moved(before, table, staging.buckets.shard(bucket))]
        written = files if units else []
        is_comparable = sum(file.num_rows for file in written) <= MAX_COMPARED
        return _Done(
            table=table,
            counts=counts,
            files=written,
            num_encoded=sum(unit.num_encoded for unit in units),
            contradictions=count_contradictions(table, written) if is_comparable else None,
        )

    def _files(
        self, table: FactTable, staging: Staging, groups: Mapping[int, Sequence[RowGroup]], units: Sequence[Unit]
    ) -> list[DataFile]:
        """Files of the units; those that were written before are taken as they are."""
        files = staging.finished_units()
        todo = [unit for unit in units if unit.digest not in files]
        with progress("encoding", sum(unit.num_rows for unit in units), unit="facts") as advance:
            advance(sum(unit.num_rows for unit in units if unit.digest in files))
            if todo:
                files |= encode_and_write(todo, groups, staging, table, self.encoders, progress=advance)
        return [file for unit in units for file in files[unit.digest]]


def _has_moved(before: FactTable, after: FactTable, shard: int) -> bool:
    """Whether a shard holds other files than it did."""

    def files(table: FactTable) -> list[Partition]:
        return [partition for partition in table.partitions() if partition.shard == shard]

    return files(before) != files(after)
