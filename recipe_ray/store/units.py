"""Units of an ingest: written rows of a bucket that one task encodes and one file of each namespace holds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recipe_ray.store.order import Events
from recipe_ray.store.resolve import Resolution
from recipe_ray.store.schema import FILE_SCHEMA, TIMESTAMP, shard_of, vectors_to_cells
from recipe_ray.store.staging import STAGED_SCHEMA, RowGroup, Staging, read_staged

UNIT_COLUMN, ENCODE_COLUMN = "unit", "encode"
_WORK_WITHOUT_VECTORS = 0.05  # of a row that is written and not encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Which rows of a bucket it is, and what becomes of them.

    Attributes:
        digest: of what is written: equal digests give equal files.
        bucket: which.
        start, stop: the rows of the bucket among which they are.
        written, encoded: packed bits over these rows.
        num_rows, num_encoded: set bits.
    """

    digest: str
    bucket: int
    start: int
    stop: int
    written: bytes
    encoded: bytes
    num_rows: int
    num_encoded: int


def cut_units(bucket: int, dump: Events, resolution: Resolution, *, rows_per_unit: int) -> list[Unit]:
    """Cut what is written of a bucket into units of like work of at most about that many encoded rows."""
    rows = np.flatnonzero(resolution.written_N)
    if not len(rows):
        return []
    work = np.cumsum(np.where(resolution.encoded_N[rows], 1.0, _WORK_WITHOUT_VECTORS))
    num_units = int(np.ceil(work[-1] / rows_per_unit))
    unit_of_row = np.minimum((work * num_units / work[-1]).astype(np.int64), num_units - 1)
    return [_unit(bucket, dump, resolution, rows[unit_of_row == number]) for number in np.unique(unit_of_row)]


def _unit(bucket: int, dump: Events, resolution: Resolution, rows: npt.NDArray[np.int64]) -> Unit:
    start, stop = int(rows[0]), int(rows[-1]) + 1
    written, encoded = resolution.written_N[start:stop], resolution.encoded_N[start:stop]
    digest = hashlib.blake2b(digest_size=16)
    for part in (rows, resolution.encoded_N[rows], dump.identity_N2[rows], dump.content_N2[rows]):
        digest.update(np.ascontiguousarray(part).tobytes())
    return Unit(
        digest=f"{bucket}-{digest.hexdigest()}",
        bucket=bucket,
        start=start,
        stop=stop,
        written=np.packbits(written).tobytes(),
        encoded=np.packbits(encoded).tobytes(),
        num_rows=len(rows),
        num_encoded=int(encoded.sum()),
    )


def groups_of(unit: Unit, groups: Sequence[RowGroup]) -> tuple[int, list[RowGroup]]:
    """Those of a bucket's row groups in which rows of a unit stand, and the row of the bucket with which they begin."""
    begin, first = 0, 0
    found: list[RowGroup] = []
    for group in groups:
        if begin < unit.stop and begin + group.num_rows > unit.start:
            first = first if found else begin
            found.append(group)
        begin += group.num_rows
    return first, found


def read_unit(staging: Staging, groups: Sequence[RowGroup], unit: Unit, *, begin: int = 0) -> pa.Table:
    """The rows of a unit, in the order of the dump: STAGED_SCHEMA, `unit` and `encode`.

    Args:
        staging: of the ingest.
        groups: row groups of the bucket, all or those of `groups_of`.
        unit: the one.
        begin: the row of the bucket with which the groups begin.

    Raises:
        OutputError: a staged file is not there or damaged.
    """
    size = unit.stop - unit.start
    written, encoded = (_unpack(bits, size) for bits in (unit.written, unit.encoded))
    parts = []
    for group in groups:
        start, stop = max(unit.start, begin), min(unit.stop, begin + group.num_rows)
        if start < stop:
            rows = read_staged(staging.uri, group.path, group.number, STAGED_SCHEMA.names)
            rows = rows.slice(start - begin, stop - start)
            of_unit = slice(start - unit.start, stop - unit.start)
            rows = rows.append_column(ENCODE_COLUMN, pa.array(encoded[of_unit]))
            parts.append(rows.filter(pa.array(written[of_unit])))
        begin += group.num_rows
    table = pa.concat_tables(parts).combine_chunks()
    return table.append_column(UNIT_COLUMN, pa.repeat(pa.scalar(unit.digest), len(table)))


def _unpack(bits: bytes, size: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(np.bool_)


def append_vectors(
    rows: pa.Table, keys_FK: npt.NDArray[Any], prompts_FPD: npt.NDArray[Any], dtype: np.dtype[Any]
) -> pa.Table:
    """Add `key` and `prompt_embeddings`: those of the F rows whose `encode` is true, in their order; null in others.

    Raises:
        TableError: a vector does not fit the dtype.
    """
    is_encoded = rows.column(ENCODE_COLUMN).to_numpy()
    vector_of_row = pa.array(np.cumsum(is_encoded) - 1, mask=~is_encoded)
    for name, vectors in (("key", keys_FK), ("prompt_embeddings", prompts_FPD)):
        rows = rows.append_column(name, vectors_to_cells(vectors, dtype).take(vector_of_row))
    return rows


def to_events(rows: pa.Table, *, ingested_at: Any, num_shards: int) -> pa.Table:
    """Encoded rows of a unit as events, in the columns of the table's schema.

    Args:
        rows: STAGED_SCHEMA, `encode`, `key` and `prompt_embeddings`.
        ingested_at: a datetime for all rows, or an Arrow array with that of each.
        num_shards: of the table.
    """
    ids: list[Any] = rows.column("fact_id").to_pylist()
    columns: dict[str, Any] = {name: rows.column(name) for name in rows.column_names}
    columns["shard"] = pa.array([shard_of(fact_id, num_shards) for fact_id in ids], pa.int32())
    if isinstance(ingested_at, datetime):
        ingested_at = pa.repeat(pa.scalar(ingested_at, TIMESTAMP), len(rows))
    columns["ingested_at"] = ingested_at
    columns["encoded"] = rows.column(ENCODE_COLUMN)
    names = ["namespace", "shard", *FILE_SCHEMA.names]
    return pa.table({name: columns[name] for name in names})
