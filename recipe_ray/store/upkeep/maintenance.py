"""Going back to an older version of a table, and looking whether a version is whole."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import TableError
from recipe_ray.store.delta import log_versions, read_commit, retrying
from recipe_ray.store.order import last_events, vector_rows
from recipe_ray.store.parquet import DataFile, check_file, read_batches
from recipe_ray.store.schema import FILE_SCHEMA, cells_to_vectors, microseconds, shard_of
from recipe_ray.store.snapshot import read_partition_events
from recipe_ray.store.stored import Progress, missing_files, silent
from recipe_ray.store.table import WRITER_PREFIX, FactTable, Partition

_MAX_NAMED = 3  # ids in one complaint


class VersionGoneError(TableError):
    """Files of an older version were removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneDump:
    """A dump whose commit a rollback undid; `committed_at` is UTC."""

    version: int
    dump_hash: str
    committed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """What a rollback did.

    Attributes:
        table: absolute URI.
        version: the new one, or the last one where it tells the same already.
        to: the version whose content it has.
        num_files_restored, num_files_removed: data files.
        undone: dumps committed after `to`. The log knows them still, so that only `ingest --again` brings them back.
        seconds: wall time.
    """

    table: str
    version: int
    to: int
    num_files_restored: int
    num_files_removed: int
    undone: tuple[UndoneDump, ...]
    seconds: float


def rollback(uri: str, to: int) -> RollbackReport:
    """Commit a version whose content is that of an older one; the versions between stay readable.

    Raises:
        CommitConflictError: other writers never pause.
        VersionGoneError: files of that version are gone.
        TableError: there is no such version, or another editor encoded it.
        OutputError: the place cannot be read.
    """
    started = time.monotonic()

    def attempt() -> RollbackReport:
        table = FactTable.open(uri)
        if to >= table.version:
            raise TableError(
                f"{table.uri}: is at version {table.version}, version {to} is not before it; give an older"
            )
        old = FactTable.open(table.uri, to)
        table.check_editor(old.identity)
        before = {file.path: file for file in table.files()}
        after = {file.path: file for file in old.files()}
        if missing := missing_files(table.uri, list(after)):
            raise VersionGoneError(
                f"{table.uri}/{missing[0]}: is gone, as {len(missing)} of the {len(after)} files of version {to}: they "
                "were vacuumed; roll back to a later version, or ingest the facts anew"
            )
        remove = [file for path, file in before.items() if path not in after]
        restore = [file for path, file in after.items() if path not in before]
        undone = _dumps_after(table, to)
        if remove or restore:
            table.replace(remove, restore, operation="rollback", counts={"to": to}, data_change=True)
        return RollbackReport(
            table=table.uri,
            version=table.version,
            to=to,
            num_files_restored=len(restore),
            num_files_removed=len(remove),
            undone=undone,
            seconds=time.monotonic() - started,
        )

    return retrying(attempt)


def _dumps_after(table: FactTable, version: int) -> tuple[UndoneDump, ...]:
    """Dumps committed after a version, up to the table's own, once each."""
    found: dict[str, UndoneDump] = {}
    for number in log_versions(table.uri):
        if not version < number <= table.version:
            continue
        actions = list(read_commit(table.uri, number))
        time_ms = next((action["commitInfo"].get("timestamp") for action in actions if "commitInfo" in action), None)
        for action in actions:
            if "txn" in action and not action["txn"]["appId"].startswith(WRITER_PREFIX):
                found[action["txn"]["appId"]] = UndoneDump(
                    version=number,
                    dump_hash=action["txn"]["appId"],
                    committed_at=None if time_ms is None else datetime.fromtimestamp(time_ms / 1000, tz=UTC),
                )
    return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a look at every byte of a version found.

    Attributes:
        table: absolute URI.
        version: that was looked at.
        num_files, num_events, num_facts: data files, their rows, and the live facts among these.
        size_bytes: of the files as the log tells.
        problems: what is wrong, each with its file or shard; none where the version is whole.
        seconds: wall time.
    """

    table: str
    version: int
    num_files: int
    num_events: int
    num_facts: int
    size_bytes: int
    problems: tuple[str, ...]
    seconds: float


def verify(
    uri: str, version: int | None = None, *, at: datetime | None = None, progress: Progress = silent
) -> VerifyReport:
    """Read every file of a version whole and compare what it holds with its name, with the log and with the layout.

    Args:
        uri: of the table.
        version: the last if not given.
        at: facts that have expired by then need no vectors; now if not given.
        progress: shows the steps.

    Raises:
        TableError: the table cannot be opened; what is wrong with its files is in the report.
    """
    started = time.monotonic()
    table = FactTable.open(uri, version)
    files = {file.path: file for file in table.files()}
    at_us = microseconds(at or datetime.now(UTC))
    problems: list[str] = []
    num_events = num_facts = 0
    with progress("reading", len(files), unit="files") as advance:
        for partition in table.partitions():
            is_readable = True
            for path in partition.paths:
                found = _File(table, partition, files[path])
                found.check()
                problems += found.problems
                num_events += found.num_rows
                is_readable &= found.is_readable
                advance(1)
            if is_readable:
                try:
                    num_live, complaints = _check_facts(table, partition, at_us)
                    num_facts += num_live
                    problems += complaints
                except TableError as error:
                    problems.append(str(error))
    return VerifyReport(
        table=table.uri,
        version=table.version,
        num_files=len(files),
        num_events=num_events,
        num_facts=num_facts,
        size_bytes=sum(file.size_bytes for file in files.values()),
        problems=tuple(problems),
        seconds=time.monotonic() - started,
    )


class _File:
    """One data file under examination."""

    def __init__(self, table: FactTable, partition: Partition, file: DataFile) -> None:
        self._table, self._partition, self._file = table, partition, file
        self._place = f"{table.uri}/{file.path}"
        self.problems: list[str] = []
        self.num_rows = 0
        self.is_readable = True

    def check(self) -> None:
        """Look at all of it; complaints are in `problems`, each kind once."""
        try:
            check_file(self._table.uri, self._file.path)
        except TableError as error:
            self.problems.append(str(error))
        try:
            for batch in read_batches(self._table.uri, self._file.path, FILE_SCHEMA.names):
                self.num_rows += len(batch)
                self._check_batch(batch)
        except TableError as error:
            self.is_readable = False
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return
        if self.num_rows != self._file.num_rows:
            self._complain(f"has {self.num_rows} rows, the log says {self._file.num_rows}")

    def _check_batch(self, batch: pa.RecordBatch) -> None:
        identity, dtype = self._table.identity, self._table.dtype
        encoded = batch.column("encoded").to_numpy(zero_copy_only=False)
        ids: list[Any] = batch.column("fact_id").to_pylist()
        strays = [fact_id for fact_id in ids if shard_of(fact_id, self._table.num_shards) != self._partition.shard]
        if strays:
            self._complain(f"holds facts of another shard, {_named(strays)}")
        for name, width in (("key", identity.key_width), ("prompt_embeddings", _prompt_width(self._table))):
            cells = batch.column(name)
            if (pc.is_valid(cells).to_numpy(zero_copy_only=False) != encoded).any():
                self._complain(f"column {name!r}: vectors are not where 'encoded' says")
                continue
            rows = np.flatnonzero(encoded)
            try:
                vectors = cells_to_vectors(cells.filter(pa.array(encoded)), width, dtype)
            except ValueError as error:
                self._complain(f"column {name!r}: {error}")
                continue
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                self._complain(f"column {name!r}: not finite for {_named([ids[row] for row in rows[~finite]])}")

    def _complain(self, what: str) -> None:
        complaint = f"{self._place}: {what}; restore the file or an older version of the table"
        if complaint not in self.problems:
            self.problems.append(complaint)


def _check_facts(table: FactTable, partition: Partition, at_us: int) -> tuple[int, list[str]]:
    """Number of live facts, and a complaint where some have no vectors."""
    events = read_partition_events(table, partition)
    standing = last_events(events)
    live = standing[events.take(standing).is_live(at_us)]
    bare = live[vector_rows(events, live) < 0]
    if not len(bare):
        return len(live), []
    place = f"namespace {partition.namespace!r}, shard {partition.shard}"
    return len(live), [
        f"{table.uri}: {place}: {len(bare)} facts have no vectors, {_named(_ids_at(table, partition, bare))}; ingest "
        "them again, or reencode the table"
    ]


def _ids_at(table: FactTable, partition: Partition, rows: npt.NDArray[np.int64]) -> list[str]:
    batches = [batch for path in partition.paths for batch in read_batches(table.uri, path, ["fact_id"])]
    ids: list[Any] = pa.Table.from_batches(batches).column("fact_id").take(rows[: _MAX_NAMED + 1]).to_pylist()
    return ids


def _prompt_width(table: FactTable) -> int:
    return table.identity.num_virtual_tokens * table.identity.llm_width


def _named(ids: list[str]) -> str:
    more = ", …" if len(ids) > _MAX_NAMED else ""
    return "id " + ", ".join(repr(fact_id) for fact_id in ids[:_MAX_NAMED]) + more
