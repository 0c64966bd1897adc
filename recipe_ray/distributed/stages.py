"""The Ray Data stages of an ingest: scan a dump, then encode and write the lines that won.

P virtual tokens, D LLM width.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from recipe_ray.distributed.faults import user_faults
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.store.dump import Scan, collect_scan, read_facts, scan_file
from recipe_ray.store.files import SourceFile, localize
from recipe_ray.store.parquet import DataFile, write_events
from recipe_ray.store.schema import EVENT_SCHEMA, TIMESTAMP, shard_of, vectors_to_cells
from recipe_ray.store.table import FactTable

FILE_BYTES = 64 * 1024 * 1024  # of vectors in a written file: few files, and a task that holds two of them still fits
TASK_CPUS = 0.5  # two cores must hold a reader, a writer and an encoder at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The pool that encodes.

    Attributes:
        editor: URI of the editor's directory.
        device: cpu or cuda.
        num_encoders: largest size of the pool.
        cpus, gpus: what one encoder reserves.
        batch_size: facts given to it at a time.
    """

    editor: str
    device: str
    num_encoders: int
    cpus: float
    gpus: float
    batch_size: int


def scan_dump(dump: Sequence[SourceFile], *, dump_time: datetime, parallelism: int) -> Scan:
    """Validate every line of a dump.

    Raises:
        FactError: a file cannot be read to its end.
    """
    files = [{"file": number, "uri": file.uri} for number, file in enumerate(dump)]
    with _quiet_data(), user_faults():
        scanned = ray.data.from_items(files, override_num_blocks=min(len(files), parallelism)).map_batches(
            scan_files, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS
        )
        batches = scanned.iter_batches(batch_size=None, batch_format="pyarrow")
        return collect_scan(batches, [file.uri for file in dump], dump_time=dump_time)


def encode_and_write(
    dump: Sequence[SourceFile],
    scan: Scan,
    rows: npt.NDArray[np.int64],
    table: FactTable,
    encoders: Encoders,
    *,
    dump_time: datetime,
    ingested_at: datetime,
    parallelism: int,
) -> list[DataFile]:
    """Read some of the scanned facts again, encode them, and write them into the partitions of a table.

    The files belong to no version until they are committed.

    Raises:
        FactError: the dump is not what was scanned.
        EditorError: the editor cannot be loaded.
        OutputError: the table cannot be written.
        TableError: a vector does not fit the dtype of the table.
    """
    wanted = wanted_lines(dump, scan, rows)
    with _quiet_data(), user_faults():
        facts = ray.data.from_items(wanted, override_num_blocks=min(len(wanted), parallelism)).map_batches(
            read_wanted,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            fn_kwargs={"dump_time": dump_time, "block_rows": encoders.batch_size},
        )
        # Without the repartition a file would stay one block, and one encoder would work while the others wait.
        events = facts.repartition(target_num_rows_per_block=encoders.batch_size).map_batches(
            Encoder,
            batch_size=encoders.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=encoders.num_encoders),
            num_cpus=encoders.cpus,
            num_gpus=encoders.gpus,
            fn_constructor_kwargs={"editor": encoders.editor, "device": encoders.device, "dtype": table.dtype},
        )
        written = events.map_batches(
            write_files,
            batch_size=_rows_per_file(table),
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
            fn_kwargs={"table_uri": table.uri, "num_shards": table.num_shards, "ingested_at": ingested_at},
        )
        return [data_file(row) for row in written.iter_rows()]


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    context = DataContext.get_current()
    shown = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = shown


def scan_files(files: pa.Table) -> Iterator[pa.Table]:
    """Scan files, given as rows of file (its number) and uri; see `scan_file`."""
    for file in files.to_pylist():
        yield from scan_file(file["uri"], file["file"])


def wanted_lines(dump: Sequence[SourceFile], scan: Scan, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Give for each file with wanted rows its URI, its digest, and the line numbers as little-endian int64 bytes."""
    files, lines = scan.facts.file_N[rows], scan.facts.line_N[rows]
    return [
        {
            "uri": dump[number].uri,
            "digest": scan.digests[number],
            "lines": lines[files == number].astype("<i8").tobytes(),
        }
        for number in np.unique(files).tolist()
    ]


def read_wanted(wanted: pa.Table, *, dump_time: datetime, block_rows: int) -> Iterator[pa.Table]:
    """Read the facts that `wanted_lines` names; see `read_facts`."""
    for file in wanted.to_pylist():
        lines = np.frombuffer(file["lines"], dtype="<i8")
        yield from read_facts(file["uri"], lines, digest=file["digest"], dump_time=dump_time, block_rows=block_rows)


class Encoder:
    """Holds an editor and adds `key` and `prompt_embeddings` to facts; both are null for a delete."""

    def __init__(self, *, editor: str, device: str, dtype: np.dtype[Any]) -> None:
        self._path, self._device, self._dtype = editor, device, dtype

    @functools.cached_property
    def _editor(self) -> Editor:
        # Loaded with the first batch: an error in the constructor would reach the driver as a dead actor, without its
        # type and message.
        return load_editor(localize(self._path), self._device)

    def __call__(self, facts: pa.Table) -> pa.Table:
        """Encode the statements of one batch."""
        is_upsert = np.array([op == "upsert" for op in facts.column("op").to_pylist()], np.bool_)
        statements: list[Any] = facts.filter(pa.array(is_upsert)).column("statement").to_pylist()
        keys_FK, prompts_FPD = self._editor.encode_facts(statements) if statements else (np.empty(0), np.empty(0))
        row_of_upsert = pa.array(np.cumsum(is_upsert) - 1, mask=~is_upsert)
        cells = {"key": keys_FK, "prompt_embeddings": prompts_FPD}
        for name, vectors in cells.items():
            facts = facts.append_column(name, vectors_to_cells(vectors, self._dtype).take(row_of_upsert))
        return facts


def _rows_per_file(table: FactTable) -> int:
    identity = table.identity
    row_bytes = (identity.key_width + identity.num_virtual_tokens * identity.llm_width) * table.dtype.itemsize
    return max(1, FILE_BYTES // row_bytes)


def write_files(facts: pa.Table, *, table_uri: str, num_shards: int, ingested_at: datetime) -> pa.Table:
    """Write encoded facts as events into their partitions; one row a file, for `data_file`."""
    ids: list[Any] = facts.column("fact_id").to_pylist()
    columns: dict[str, Any] = {name: facts.column(name) for name in facts.column_names}
    columns["shard"] = pa.array([shard_of(fact_id, num_shards) for fact_id in ids], pa.int32())
    columns["ingested_at"] = pa.repeat(pa.scalar(ingested_at, TIMESTAMP), len(facts))
    events = pa.table({name: columns[name] for name in EVENT_SCHEMA.names}).cast(EVENT_SCHEMA)
    return pa.Table.from_pylist(
        [
            {"path": file.path, "size_bytes": file.size_bytes, "num_rows": file.num_rows, **file.partition}
            for file in write_events(table_uri, events)
        ]
    )


def data_file(row: dict[str, Any]) -> DataFile:
    """Rebuild what a row of `write_files` describes."""
    return DataFile(
        path=row["path"],
        size_bytes=row["size_bytes"],
        num_rows=row["num_rows"],
        partition={"namespace": row["namespace"], "shard": row["shard"]},
    )
