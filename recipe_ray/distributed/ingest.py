"""Filling a table of facts from a dump: Ray Data stages, and one atomic commit on the driver.

The dump is read once and staged in buckets beside the table. The buckets are resolved against the table; what it lacks
is cut into units, encoded in an actor pool and written as Parquet files. Nothing counts until the commit names the
files: a crash leaves the table as it was, and the same command goes on from the splits and units that were finished.
"""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
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
    renew_table,
    resolve_buckets,
    stage_dump,
)
from recipe_ray.errors import FactError, OutputError, RecipeError
from recipe_ray.model.editor import read_identity
from recipe_ray.store.delta import CommitConflictError, log_versions, open_delta, retrying
from recipe_ray.store.dumps.rows import SPLIT_BYTES, DumpOptions, form_of, split_files, values_of
from recipe_ray.store.dumps.values import FolderValues
from recipe_ray.store.files import SourceFile, check_writable, list_files, localize_editor
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.pointer import follow
from recipe_ray.store.probe import check_conditional_writes
from recipe_ray.store.quarantine import quarantine, quarantine_uri
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.resolve import IngestCounts
from recipe_ray.store.schema import CANONICAL
from recipe_ray.store.staging import (
    Buckets,
    RowGroup,
    StagedSplit,
    Staging,
    bad_lines,
    remove_staging,
    row_groups_by_bucket,
)
from recipe_ray.store.stored import Progress, missing_files
from recipe_ray.store.table import FactTable, Partition
from recipe_ray.store.units import Unit
from recipe_ray.store.upkeep.renewal import Renewal

MAX_COMPARED = 5_000_000  # facts whose prompts are compared with the table's, in the memory of one task
BeforeCommit = Callable[[FactTable, Sequence[DataFile]], None]
"""Told the table and the files that it lacks, all written and none committed; whatever it raises leaves the table as it
is, and what is staged for the next start. Told again, of other files perhaps, where another writer commits first."""


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
        num_renewed, num_joined: what an older release left in the table, see `upkeep.renewal`: events encoded again
            in their canonical form, and facts that a later one of the same prompt replaced.
        size_bytes: of the data files added.
        seconds: wall time, without the start of the cluster.
        facts_per_s: rows read a second of that time.
        quarantine: URI of the bad rows' table; None where no row was bad.
        contradictions: groups of facts with one prompt and different targets that this dump's facts are part of; None
            where they were not looked for: the dump is too large (MAX_COMPARED), or the table damaged.
        num_headers: headers in the middle of CSV files, as joining files leaves them, which are no rows.
    """

    table: str
    version: int
    dump_hash: str
    repeated: bool
    counts: IngestCounts
    num_written: int
    num_encoded: int
    num_renewed: int
    num_joined: int
    size_bytes: int
    seconds: float
    facts_per_s: float
    quarantine: str | None
    contradictions: int | None
    num_headers: int = 0


def ingest(
    config: IngestConfig, *, before_commit: BeforeCommit | None = None, show: Progress = progress
) -> IngestReport:
    """Bring a table up to what a dump says, on the connected Ray cluster.

    Args:
        config: what, where to and with which resources.
        before_commit: see `BeforeCommit`; not told of a dump that was ingested before.
        show: shows how far it is.

    Raises:
        FactError: the dump is missing, empty, all bad, or changes while it is read.
        EditorError: the editor cannot be read.
        TableError: the table cannot be read, was encoded by another editor, or other writers never pause.
        OutputError: the table cannot be written, or its store does not keep two writers apart.
        ConfigError: the cluster lacks what was asked for.
    """
    started, now = time.monotonic(), datetime.now(UTC)
    config = dataclasses.replace(config, table=follow(config.table))
    identity = read_identity(localize_editor(config.editor))
    check_writable(config.table)
    check_conditional_writes(config.table)
    table = None
    if open_delta(config.table) is not None:
        table = FactTable.open(config.table)
        table.check_editor(identity)
    encoders = fit_encoders(config)
    renewal = Renewal(version=0) if table is None else renew_table(config.table, encoders)
    if table is not None and renewal.version != table.version:
        table = FactTable.open(config.table)
    files = list_files(config.source)
    contents = _contents(files, hash_dump(files), config.options())
    dump_hash = _digest(*sorted(contents))
    job = _Job(
        config=config,
        files=files,
        contents=contents,
        dump_hash=dump_hash,
        identity=identity,
        encoders=encoders,
        num_shards=config.num_shards if table is None else table.num_shards,
        now=now,
        before_commit=before_commit,
        renewal=renewal,
        show=show,
    )
    if table is None or config.again or not table.has_dump(dump_hash, as_of=job.dump_time):
        done = job.run()
    else:
        done = _ingested_before(table, dump_hash)
        remove_staging(config.table, job.staging_key())  # of an ingest that was killed behind its commit
    return _report(done, renewal, dump_hash, seconds=time.monotonic() - started)


def _contents(files: Sequence[SourceFile], hashes: Sequence[bytes], options: DumpOptions) -> list[bytes]:
    """What each file holds, by its bytes, how they are read and what its folders say, wherever else it lies."""
    return [
        content + form_of(file.uri, options).encode() + options.digest() + _said(values_of(file, options))
        for content, file in zip(hashes, files, strict=True)
    ]


def _said(values: FolderValues) -> bytes:
    """Empty where folders give nothing: tables know the dumps of before by the rest alone."""
    return json.dumps(values).encode() if values else b""


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """How an ingest ended: the table at its new version, and the files that it added."""

    table: FactTable
    counts: IngestCounts
    files: Sequence[DataFile]
    num_encoded: int
    contradictions: int | None = 0
    num_headers: int = 0
    repeated: bool = False


def _ingested_before(table: FactTable, dump_hash: str) -> _Done:
    """What an earlier ingest of the dump counted, where the log still tells; it may have been killed before it said."""
    for version in reversed(log_versions(table.uri)):
        commit = commit_of(table.uri, version)
        if commit.dump_hash == dump_hash:
            names = {field.name for field in dataclasses.fields(IngestCounts)} & commit.counts.keys()
            counts = IngestCounts(**{name: commit.counts[name] for name in names})
            return _Done(table=table, counts=counts, files=[], num_encoded=0, repeated=True)
    return _Done(table=table, counts=IngestCounts(), files=[], num_encoded=0, repeated=True)


def _report(done: _Done, renewal: Renewal, dump_hash: str, *, seconds: float) -> IngestReport:
    return IngestReport(
        table=done.table.uri,
        version=done.table.version,
        dump_hash=dump_hash,
        repeated=done.repeated,
        counts=done.counts,
        num_written=sum(file.num_rows for file in done.files),
        num_encoded=done.num_encoded,
        num_renewed=renewal.num_encoded,
        num_joined=renewal.num_joined,
        size_bytes=sum(file.size_bytes for file in done.files),
        seconds=seconds,
        facts_per_s=done.counts.read / seconds,
        quarantine=quarantine_uri(done.table.uri) if done.counts.quarantined else None,
        contradictions=done.contradictions,
        num_headers=done.num_headers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One ingest, from listed files to the commit."""

    config: IngestConfig
    files: Sequence[SourceFile]
    contents: Sequence[bytes]
    dump_hash: str
    identity: EditorIdentity
    encoders: Encoders
    num_shards: int
    now: datetime
    before_commit: BeforeCommit | None
    renewal: Renewal
    show: Progress

    def run(self) -> _Done:
        """Ingest, or find that another ingest of the same dump, which shares the staging, has done it meanwhile."""
        try:
            return self._run()
        except OutputError:  # the other one takes the staging away once it has committed
            table = FactTable.open(self.config.table) if open_delta(self.config.table) else None
            if table is None or self.config.again or not table.has_dump(self.dump_hash, as_of=self.dump_time):
                raise
            return _ingested_before(table, self.dump_hash)

    def _run(self) -> _Done:
        staging = self._staging()
        splits = self._stage(staging)
        self._check(staging, splits)
        table = FactTable.create_or_open(
            self.config.table, self.identity, num_shards=self.num_shards, dtype=self.config.dtype
        )
        if table.num_shards != self.num_shards:
            raise CommitConflictError(f"{table.uri}: was made meanwhile with other shards; run ingest again")
        done = self._write_and_commit(staging, splits)
        staging.remove()
        num_headers = sum(split.num_headers for split in splits)
        return dataclasses.replace(done, contradictions=self._contradictions(done), num_headers=num_headers)

    def _contradictions(self, done: _Done) -> int | None:
        if sum(file.num_rows for file in done.files) > MAX_COMPARED:
            return None
        try:
            return count_contradictions(done.table, done.files)
        except RecipeError as error:  # the dump is in: what another file of the table suffers from is told, no more
            logging.getLogger(__name__).warning("contradictions were not looked for: %s", error)
            return None

    @property
    def dump_time(self) -> datetime:
        """When the dump was written; not in the future, where another machine's clock is ahead."""
        return min(self.now, max(file.modified_at for file in self.files))

    def staging_key(self) -> str:
        """What the staging is known by: the files in their order, and what its rows and units depend on."""
        said = (self.dump_time.isoformat(), self.identity.fingerprint, self.num_shards, SPLIT_BYTES, self.config.again)
        former = sorted(self.renewal.going_on.items())
        return _digest(repr((*said, CANONICAL, former)).encode(), *self.contents)

    def _staging(self) -> Staging:
        buckets = Buckets.for_dump(self.files, num_shards=self.num_shards)
        return Staging.begin(self.config.table, self.staging_key(), buckets, dump_time=self.dump_time, now=self.now)

    def _stage(self, staging: Staging) -> list[StagedSplit]:
        options = self.config.options()
        splits = split_files(self.files, options)
        with self.show("reading the dump", len(splits), unit="splits") as advance:
            staged = stage_dump(splits, options, staging, now=self.now, renewal=self.renewal, progress=advance)
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

    def _write_and_commit(self, staging: Staging, splits: Sequence[StagedSplit]) -> _Done:
        """Write what the table lacks. Where another writer commits first, decide again against what it left."""
        groups = row_groups_by_bucket(splits)
        num_bad = sum(split.num_bad for split in splits)
        resolved: dict[int, ResolvedBucket] = {}
        looked_at: list[FactTable] = []

        def attempt() -> _Done:
            table = FactTable.open(self.config.table)
            stale = [bucket for bucket in groups if _has_moved(looked_at, table, staging.buckets.shard(bucket))]
            resolved.update(resolve_buckets({bucket: groups[bucket] for bucket in stale}, staging, table, now=self.now))
            looked_at.append(table)
            units = [unit for bucket in resolved.values() for unit in bucket.units]
            counts = sum(
                (bucket.counts for bucket in resolved.values()), IngestCounts(read=num_bad, quarantined=num_bad)
            )
            files = self._files(table, staging, groups, units)
            if self.before_commit is not None:
                self.before_commit(table, files)
            if files:
                as_of = self.dump_time if any(split.num_undated for split in splits) else None
                table.commit(files, dump_hash=self.dump_hash, counts=asdict(counts), as_of=as_of)
            return _Done(table=table, counts=counts, files=files, num_encoded=sum(unit.num_encoded for unit in units))

        return retrying(attempt)

    def _files(
        self, table: FactTable, staging: Staging, groups: Mapping[int, Sequence[RowGroup]], units: Sequence[Unit]
    ) -> list[DataFile]:
        """Files of the units; those that were written before are taken as they are."""
        files = _still_there(table, staging.finished_units())
        todo = [unit for unit in units if unit.digest not in files]
        with self.show("encoding", sum(unit.num_rows for unit in units), unit="facts") as advance:
            advance(sum(unit.num_rows for unit in units if unit.digest in files))
            if todo:
                files |= encode_and_write(todo, groups, staging, table, self.encoders, progress=advance)
        return [file for unit in units for file in files[unit.digest]]


def _still_there(table: FactTable, units: Mapping[str, list[DataFile]]) -> dict[str, list[DataFile]]:
    """Units of which no file was removed since, as a vacuum or an erasure may do."""
    gone = set(missing_files(table.uri, [file.path for files in units.values() for file in files]))
    return {unit: files for unit, files in units.items() if not any(file.path in gone for file in files)}


def _has_moved(before: Sequence[FactTable], after: FactTable, shard: int) -> bool:
    """Whether a shard holds other files than it did when the table was last looked at, if it was."""

    def files(table: FactTable) -> list[Partition]:
        return [partition for partition in table.partitions() if partition.shard == shard]

    return not before or files(before[-1]) != files(after)
