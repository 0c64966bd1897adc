"""Filling a table of facts from a dump: Ray Data stages, and one atomic commit on the driver.

Two passes over the dump keep memory bounded and decide duplicates globally. The first validates and keeps hashes and
times; the driver resolves them against the table; the second reads only the lines that won, encodes them in an actor
pool and writes Parquet files. Nothing counts until the commit names the files: a crash leaves orphans that vacuum
removes.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import ray

from recipe_ray.config import EditorIdentity
from recipe_ray.distributed.stages import TASK_CPUS, Encoders, encode_and_write, scan_dump
from recipe_ray.errors import ConfigError, FactError
from recipe_ray.model.editor import read_identity
from recipe_ray.store.delta import CommitConflictError, open_delta
from recipe_ray.store.dump import Scan
from recipe_ray.store.files import SourceFile, absolute, check_writable, list_files, localize
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.quarantine import quarantine, quarantine_uri
from recipe_ray.store.resolve import IngestCounts, resolve
from recipe_ray.store.schema import VectorDtype
from recipe_ray.store.table import DEFAULT_NUM_SHARDS, FactTable, read_standing_events

MAX_COMMIT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """What to ingest, where to, and with which resources.

    Attributes:
        source: JSON Lines, plain or .gz: a file, a directory or a glob, local or s3://.
        table: the table of facts, local or s3://; made where there is none.
        editor: directory of the trained editor, local (on every node) or s3://.
        device: where encoders compute: auto takes GPUs where the cluster has some.
        num_encoders: encoder processes; None takes what the cluster has room for.
        cpus_per_encoder: CPUs of an encoder; None takes 1, or half of a cluster with a single one.
        gpus_per_encoder: GPUs of an encoder, fractions allowed; None takes 1 where GPUs are used.
        batch_size: facts that an encoder is given at a time.
        num_shards: shards of a namespace, for a new table; 4 serves a million facts, a small table is best off with 1.
        dtype: of stored vectors, for a new table.
    """

    source: str
    table: str
    editor: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_encoders: int | None = None
    cpus_per_encoder: float | None = None
    gpus_per_encoder: float | None = None
    batch_size: int = 256
    num_shards: int = DEFAULT_NUM_SHARDS
    dtype: VectorDtype = "float16"

    def __post_init__(self) -> None:
        for name in ("num_encoders", "batch_size", "num_shards", "cpus_per_encoder", "gpus_per_encoder"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; give a number above 0")
        if self.device == "cpu" and self.gpus_per_encoder is not None:
            raise ConfigError(f"device is cpu and gpus_per_encoder is {self.gpus_per_encoder}; give one of them only")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        table: absolute URI.
        version: of the table that now tells the dump.
        counts: what became of the lines.
        num_written: events added by this ingest.
        size_bytes: of the data files added.
        seconds: wall time, without the start of the cluster.
        facts_per_s: written events a second of that time.
        quarantine: URI of the bad lines' table; None where no line was bad.
    """

    table: str
    version: int
    counts: IngestCounts
    num_written: int
    size_bytes: int
    seconds: float
    facts_per_s: float
    quarantine: str | None


def ingest(config: IngestConfig) -> IngestReport:
    """Bring a table up to what a dump says, on the connected Ray cluster.

    Raises:
        FactError: the dump is missing, empty, all bad, or changes while it is read.
        EditorError: the editor cannot be read.
        TableError: the table cannot be read, was encoded by another editor, or other writers never pause.
        OutputError: the table cannot be written.
        ConfigError: the cluster lacks what was asked for.
    """
    started, ingested_at = time.monotonic(), datetime.now(UTC)
    identity = read_identity(localize(config.editor))
    check_writable(config.table)
    if open_delta(config.table) is not None:
        FactTable.open(config.table).check_editor(identity)
    encoders = _encoders(config)
    files = list_files(config.source)
    dump = _Dump(files=files, time=max(file.modified_at for file in files), ingested_at=ingested_at)
    scan = scan_dump(files, dump_time=dump.time, parallelism=_parallelism())
    _check_scan(scan, config.source)
    table, counts, written = _write_and_commit(config, dump, scan, identity, encoders)
    if scan.bad_lines:
        quarantine(config.table, scan.bad_lines, dump_hash=scan.dump_hash, ingested_at=ingested_at)
    seconds = time.monotonic() - started
    num_written = sum(file.num_rows for file in written)
    return IngestReport(
        table=table.uri,
        version=table.version,
        counts=counts,
        num_written=num_written,
        size_bytes=sum(file.size_bytes for file in written),
        seconds=seconds,
        facts_per_s=num_written / seconds,
        quarantine=quarantine_uri(config.table) if scan.bad_lines else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dump:
    files: Sequence[SourceFile]
    time: datetime
    ingested_at: datetime


def _encoders(config: IngestConfig) -> Encoders:
    """Fit the pool into the cluster, with room left for reading and writing."""
    have = ray.cluster_resources()
    have_cpus, have_gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    use_gpu = (
        config.device == "cuda" or config.gpus_per_encoder is not None or (config.device == "auto" and have_gpus > 0)
    )
    gpus = (config.gpus_per_encoder or 1.0) if use_gpu else 0.0
    cpus = config.cpus_per_encoder or (1.0 if have_cpus >= 2 else have_cpus / 2)
    if gpus > have_gpus:
        raise ConfigError(f"an encoder needs {gpus:g} GPUs, the cluster has {have_gpus:g}; add some or use device cpu")
    if cpus > have_cpus - TASK_CPUS:
        raise ConfigError(
            f"an encoder needs {cpus:g} CPUs and reading {TASK_CPUS:g}, the cluster has {have_cpus:g}; "
            "lower cpus_per_encoder or add CPUs"
        )
    room = int((have_cpus - TASK_CPUS) / cpus)
    if use_gpu:
        room = min(room, int(have_gpus / gpus))
    if config.num_encoders is not None and config.num_encoders > room:
        raise ConfigError(
            f"num_encoders is {config.num_encoders}, but the cluster has room for {room} of {cpus:g} CPUs and "
            f"{gpus:g} GPUs each; give fewer, or add nodes"
        )
    return Encoders(
        editor=absolute(config.editor),
        device="cuda" if use_gpu else "cpu",
        num_encoders=config.num_encoders or room,
        cpus=cpus,
        gpus=gpus,
        batch_size=config.batch_size,
    )


def _parallelism() -> int:
    return max(2, int(2 * ray.cluster_resources().get("CPU", 1)))


def _check_scan(scan: Scan, source: str) -> None:
    if len(scan.facts.line_N):
        return
    if not scan.bad_lines:
        raise FactError(f"{source}: holds no facts; give JSON Lines, one fact a line")
    first = scan.bad_lines[0]
    raise FactError(
        f"{first.file}:{first.line}: {first.reason} (none of the {len(scan.bad_lines)} lines of the dump is a fact, "
        "so nothing was written)"
    )


def _write_and_commit(
    config: IngestConfig, dump: _Dump, scan: Scan, identity: EditorIdentity, encoders: Encoders
) -> tuple[FactTable, IngestCounts, list[DataFile]]:
    """Write what the table lacks. Where another writer commits first, decide again against what it left."""
    table = FactTable.create_or_open(config.table, identity, num_shards=config.num_shards, dtype=config.dtype)
    rows: npt.NDArray[np.int64] | None = None
    files: list[DataFile] = []
    for attempt in itertools.count(1):
        resolution = resolve(scan, read_standing_events(table), ingested_at=dump.ingested_at)
        if not len(resolution.rows):
            return table, resolution.counts, []
        if rows is None or not np.array_equal(rows, resolution.rows):
            rows = resolution.rows
            files = encode_and_write(
                dump.files,
                scan,
                rows,
                table,
                encoders,
                dump_time=dump.time,
                ingested_at=dump.ingested_at,
                parallelism=_parallelism(),
            )
        try:
            table.commit(files, dump_hash=scan.dump_hash, counts=asdict(resolution.counts))
            break
        except CommitConflictError:
            if attempt == MAX_COMMIT_ATTEMPTS:
                raise
            table = FactTable.open(config.table)
    return table, resolution.counts, files
