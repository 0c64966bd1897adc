"""The stages of an ingest: stage the dump, resolve its buckets, encode and write its units.

Encoding streams through Ray Data. What it has no part in are plain tasks, whose workers need not import it: they are
few, give little back, and a pipeline of Ray Data's costs more to set up than they take.

P virtual tokens, D LLM width.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from recipe_ray.datasets.dump import read_any
from recipe_ray.distributed import workers
from recipe_ray.distributed.encoders import TASK_CPUS, Encoders
from recipe_ray.distributed.faults import user_faults
from recipe_ray.errors import TableError
from recipe_ray.store.dumps.rows import DumpOptions, Split, hash_file
from recipe_ray.store.files import SourceFile, localize_editor
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.reading.contradictions import find_contradictions
from recipe_ray.store.resolve import IngestCounts, resolve
from recipe_ray.store.schema import microseconds
from recipe_ray.store.snapshot import read_events
from recipe_ray.store.staging import RowGroup, StagedSplit, Staging, read_bucket
from recipe_ray.store.table import FactTable
from recipe_ray.store.units import (
    ENCODE_COLUMN,
    UNIT_COLUMN,
    Unit,
    append_vectors,
    cut_units,
    groups_of,
    read_unit,
    to_events,
)
from recipe_ray.store.upkeep.renewal import Renewal, renew

if TYPE_CHECKING:
    from recipe_ray.model.editor import Editor

UNIT_BYTES = 64 * 1024 * 1024  # of vectors in a written file: few files, and a task that holds two of them still fits
UNIT_ROWS = 16_384  # so that a restart loses little and progress shows
TASKS_PER_CPU = 4  # queued, so that none waits for the driver, and not all of a large dump at once
Progress = Callable[[int], None]
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBucket:
    """What is to be written of one bucket, and what became of its rows."""

    counts: IngestCounts
    units: list[Unit]


def hash_dump(files: Sequence[SourceFile]) -> list[bytes]:
    """Hashes of the files' bytes, in their order.

    Raises:
        FactError: a file cannot be read.
    """
    return [content for _, content in sorted(results(enumerate(files), _hash))]


def renew_table(uri: str, encoders: Encoders) -> Renewal:
    """Bring a table of an older release to the texts' canonical form, one encoder at a time; see `renew`.

    Raises:
        EditorError: the editor cannot be loaded.
        TableError, OutputError: as `renew`.
    """

    def encode(statements: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return workers.on_worker(
            _encode, num_cpus=encoders.cpus, num_gpus=encoders.gpus, statements=statements, encoders=encoders
        )

    return renew(uri, encode)


def stage_dump(
    splits: Sequence[Split],
    options: DumpOptions,
    staging: Staging,
    *,
    now: datetime,
    renewal: Renewal,
    progress: Progress,
) -> list[StagedSplit]:
    """Validate every row of a dump and stage it; what was staged before is taken as it is.

    Args:
        splits, options: of the dump.
        staging: of the ingest.
        now: the present, in UTC.
        renewal: tells under which ids facts stand that were given none.
        progress: is told of splits.

    Raises:
        FactError: a file cannot be read to its end.
        OutputError: the table's place cannot be written.
    """
    staged = []
    for split in results(splits, _stage, options=options, staging=staging, now=now, renewal=renewal):
        staged.append(split)
        progress(1)
    return staged


def resolve_buckets(
    groups: Mapping[int, Sequence[RowGroup]], staging: Staging, table: FactTable, *, now: datetime
) -> dict[int, ResolvedBucket]:
    """Decide against a version of the table what to write of every bucket.

    Raises:
        TableError: a file of the table is missing or damaged.
    """
    settings = {"staging": staging, "table_uri": table.uri, "version": table.version, "now": now}
    return dict(results(groups.items(), _resolve, **settings))


def encode_and_write(
    units: Sequence[Unit],
    groups: Mapping[int, Sequence[RowGroup]],
    staging: Staging,
    table: FactTable,
    encoders: Encoders,
    *,
    progress: Progress,
) -> dict[str, list[DataFile]]:
    """Encode units and write them into the partitions of a table; gives the files of each unit, by its digest.

    The files belong to no version until they are committed.

    Raises:
        EditorError: the editor cannot be loaded.
        OutputError: the table cannot be written.
        TableError: a vector does not fit the dtype of the table.
    """
    items = []
    for unit in units:
        begin, of_unit = groups_of(unit, groups[unit.bucket])
        items.append({"unit": asdict(unit), "begin": begin, "groups": _groups_to_json(of_unit)})
    files: dict[str, list[DataFile]] = {unit.digest: [] for unit in units}
    rows_left = {unit.digest: unit.num_rows for unit in units}
    for row in written_units(items, staging, table, encoders):
        unit, num_rows = row["unit"], 0
        for file in json.loads(row["files"]):
            files[unit].append(DataFile(**file))
            num_rows += file["num_rows"]
        rows_left[unit] -= num_rows
        progress(num_rows)
        if not rows_left[unit]:
            staging.finish_unit(unit, files[unit])
    if missing := sum(rows_left.values()):
        raise TableError(f"{table.uri}: {missing} encoded rows were lost on their way; run ingest again")
    return files


def results(items: Iterable[Item], function: Callable[..., Value], **settings: Any) -> Iterator[Value]:
    """Give what a function makes of each item, in a task, in the order in which they end."""
    # One task for all functions: a worker goes from one to the next at once, where it would stay with its own for some
    # time, new ones being started for another.
    task = ray.remote(num_cpus=TASK_CPUS)(_call)
    left = iter(items)
    room = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(function, item, settings) for item in itertools.islice(left, room)]
    try:
        with user_faults():
            while running:
                (done,), running = ray.wait(running)
                running += [task.remote(function, item, settings) for item in itertools.islice(left, 1)]
                yield ray.get(done)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)


def written_units(
    items: list[dict[str, Any]], staging: Staging, table: FactTable, encoders: Encoders
) -> Iterator[dict[str, Any]]:
    """Read, encode and write units, three stages at once; gives the rows of `write_unit`."""
    from ray.data import ActorPoolStrategy, from_items  # a second and more, which the workers of the tasks do not spend

    with _quiet_data(), user_faults():
        written = (
            # One block an item: the items are few and each is much work.
            from_items(items, override_num_blocks=len(items))
            .map_batches(
                read_units,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                fn_kwargs={"staging": staging},
            )
            .map_batches(
                Encoder,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=min(len(items), encoders.num_encoders), max_size=encoders.num_encoders
                ),
                num_cpus=encoders.cpus,
                num_gpus=encoders.gpus,
                fn_constructor_kwargs={"editor": encoders.editor, "device": encoders.device, "dtype": table.dtype},
            )
            .map_batches(
                write_unit,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                fn_kwargs={"table_uri": table.uri, "num_shards": table.num_shards, "ingested_at": staging.ingested_at},
            )
        )
        yield from written.iter_rows()


def count_contradictions(table: FactTable, files: Sequence[DataFile]) -> int:
    """Count the contradictions that facts in these files are part of; see `find_contradictions`.

    Raises:
        TableError: a file of the table is missing or damaged.
    """
    paths: dict[str, list[str]] = {}
    for file in files:
        paths.setdefault(file.partition["namespace"], []).append(file.path)
    return sum(results(paths.items(), _count_contradictions, table_uri=table.uri, version=table.version))


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    from ray.data import DataContext

    context = DataContext.get_current()
    shown = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = shown


def _call(function: Callable[..., Value], item: Any, settings: Mapping[str, Any]) -> Value:
    return function(item, **settings)


def _hash(file: tuple[int, SourceFile]) -> tuple[int, bytes]:
    number, source = file
    return number, hash_file(source.uri)


def _stage(split: Split, *, options: DumpOptions, staging: Staging, now: datetime, renewal: Renewal) -> StagedSplit:
    stored = functools.partial(renewal.under_its_id, dated=staging.dump_time) if renewal.since_us else None
    return staging.stage(split, read_any(split, options, now=now), stored=stored)


def _encode(statements: Sequence[str], encoders: Encoders) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from recipe_ray.model.editor import load_editor  # seconds, which tasks that only read and write do not spend

    return load_editor(localize_editor(encoders.editor), encoders.device).encode_facts(statements)


def _resolve(
    bucket: tuple[int, Sequence[RowGroup]], *, staging: Staging, table_uri: str, version: int, now: datetime
) -> tuple[int, ResolvedBucket]:
    number, groups = bucket
    table = FactTable.open(table_uri, version)
    dump, ids = read_bucket(staging, groups)
    stored = read_events(table, staging.buckets.shard(number), ids)
    resolution = resolve(dump, stored, now_us=microseconds(now))
    units = cut_units(number, dump, resolution, rows_per_unit=_rows_per_unit(table))
    return number, ResolvedBucket(counts=resolution.counts, units=units)


def _count_contradictions(written: tuple[str, Sequence[str]], *, table_uri: str, version: int) -> int:
    """Of the facts in some files of one namespace."""
    namespace, paths = written
    table = FactTable.open(table_uri, version)
    ids: set[str] = set()
    for path in paths:
        for batch in read_batches(table.uri, path, ["fact_id"]):
            found: list[Any] = batch.column("fact_id").to_pylist()
            ids.update(found)
    return sum(1 for _ in find_contradictions(table, fact_ids={namespace: ids}))


# What Ray Data runs are generators: what goes wrong in a plain function reaches the driver wrapped, without its type.
def read_units(units: pa.Table, *, staging: Staging) -> Iterator[pa.Table]:
    """Read the rows of units, one table each; see `read_unit`."""
    for row in units.to_pylist():
        yield read_unit(staging, _groups_from_json(row["groups"]), Unit(**row["unit"]), begin=row["begin"])


class Encoder:
    """Holds an editor and adds `key` and `prompt_embeddings` to rows; both are null where `encode` is false."""

    def __init__(self, *, editor: str, device: str, dtype: np.dtype[Any]) -> None:
        self._path, self._device, self._dtype = editor, device, dtype

    @functools.cached_property
    def _editor(self) -> "Editor":
        from recipe_ray.model.editor import load_editor  # seconds, which tasks that only read and write do not spend

        # Loaded with the first batch: an error in the constructor would reach the driver as a dead actor, without its
        # type and message.
        return load_editor(localize_editor(self._path), self._device)

    def __call__(self, facts: pa.Table) -> Iterator[pa.Table]:
        """Encode the statements of one unit."""
        is_encoded = facts.column(ENCODE_COLUMN).to_numpy()
        statements: list[Any] = facts.filter(pa.array(is_encoded)).column("statement").to_pylist()
        keys_FK, prompts_FPD = (
            self._editor.encode_facts(statements, self._dtype) if statements else (np.empty(0), np.empty(0))
        )
        yield append_vectors(facts, keys_FK, prompts_FPD, self._dtype)


def write_unit(rows: pa.Table, *, table_uri: str, num_shards: int, ingested_at: datetime) -> Iterator[pa.Table]:
    """Write the encoded rows of one unit as events into their partitions; one row: the unit and its files as JSON."""
    (unit,) = rows.column(UNIT_COLUMN).unique().to_pylist()
    files = write_events(table_uri, to_events(rows, ingested_at=ingested_at, num_shards=num_shards))
    yield pa.table({"unit": [unit], "files": [json.dumps([asdict(file) for file in files])]})


def _rows_per_unit(table: FactTable) -> int:
    identity = table.identity
    row_bytes = (identity.key_width + identity.num_virtual_tokens * identity.llm_width) * table.dtype.itemsize
    return max(1, min(UNIT_ROWS, UNIT_BYTES // row_bytes))


def _groups_to_json(groups: Sequence[RowGroup]) -> str:
    return json.dumps([asdict(group) for group in groups])


def _groups_from_json(text: str) -> list[RowGroup]:
    return [RowGroup(**group) for group in json.loads(text)]
