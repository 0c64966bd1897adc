"""The table of facts: a Delta table of events, opened at a version, grown by whole commits, read as a snapshot.

F facts, N events, B events of a batch, K key width, P virtual tokens, D LLM width, W = P * D.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.delta import append_files, create_delta, open_delta
from recipe_ray.store.files import absolute
from recipe_ray.store.order import EventOrder, concatenate, hashes_of, last_events
from recipe_ray.store.parquet import DataFile, read_batches
from recipe_ray.store.schema import (
    EVENT_SCHEMA,
    FACT_COLUMNS,
    PARTITION_COLUMNS,
    VectorDtype,
    cells_to_vectors,
    dtype_of,
    identity_hash,
    identity_of,
    num_shards_of,
    properties,
)

DEFAULT_NUM_SHARDS = 4
_ORDER_SCHEMA = pa.schema(
    [EVENT_SCHEMA.field(name) for name in ("fact_id", "updated_at", "ingested_at", "content_hash", "op")]
)
_FACT_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in FACT_COLUMNS])
_TEXT_COLUMNS = [name for name in FACT_COLUMNS if name != "namespace"]
_VECTOR_COLUMNS = ["key", "prompt_embeddings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The data files of one namespace and shard; `paths` are below the table, sorted."""

    namespace: str
    shard: int
    paths: tuple[str, ...]


class FactTable:
    """A table of facts at one version.

    Attributes:
        uri: absolute.
        version: the one this object reads, and the one a commit expects to be the last.
        identity: the editor that encoded it.
        num_shards: shards of a namespace.
        dtype: of stored vectors, little-endian.
    """

    def __init__(self, delta: DeltaTable, uri: str) -> None:
        self._delta = delta
        self.uri = uri
        self.version = delta.version()
        configuration = delta.metadata().configuration
        self.identity = identity_of(configuration, place=uri)
        self.num_shards = num_shards_of(configuration)
        self.dtype = dtype_of(configuration)
        if features := delta.protocol().reader_features:
            raise TableError(f"{uri}: uses the Delta features {features}, which are not read here; rewrite it plainly")

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "FactTable":
        """Open the last version, or an older one.

        Raises:
            TableError: there is no table or no such version, it is damaged, or not a table of facts.
        """
        delta = open_delta(uri, version)
        if delta is None:
            raise TableError(f"{uri}: there is no table; run ingest first, or check the path")
        return cls(delta, absolute(uri))

    @classmethod
    def create_or_open(
        cls,
        uri: str,
        identity: EditorIdentity,
        *,
        num_shards: int = DEFAULT_NUM_SHARDS,
        dtype: VectorDtype = "float16",
    ) -> "FactTable":
        """Open the table, or create it empty; `num_shards` and `dtype` hold for a new one only.

        Raises:
            TableError: another editor encoded it, or it cannot be read.
            OutputError: it cannot be created.
        """
        if open_delta(uri) is None:
            create_delta(uri, EVENT_SCHEMA, PARTITION_COLUMNS, properties(identity, num_shards=num_shards, dtype=dtype))
        table = cls.open(uri)
        table.check_editor(identity)
        return table

    def check_editor(self, identity: EditorIdentity) -> None:
        """Refuse an editor whose trained modules are not those that encoded the table.

        Raises:
            TableError: with both fingerprints.
        """
        if identity.fingerprint != self.identity.fingerprint:
            raise TableError(
                f"{self.uri}: was encoded by the editor with fingerprint {self.identity.fingerprint} "
                f"(for {self.identity.llm}), the given one has {identity.fingerprint} (for {identity.llm}); "
                "use the editor of the table, or ingest into a new table"
            )

    def partitions(self) -> list[Partition]:
        """List the data files of this version, sorted by namespace and shard."""
        paths: dict[tuple[str, int], list[str]] = {}
        for row in pa.table(self._delta.get_add_actions(flatten=True)).to_pylist():
            key = (row["partition.namespace"], int(row["partition.shard"]))
            paths.setdefault(key, []).append(unquote(row["path"]))
        return [
            Partition(namespace=namespace, shard=shard, paths=tuple(sorted(paths[namespace, shard])))
            for namespace, shard in sorted(paths)
        ]

    def commit(self, files: Sequence[DataFile], *, dump_hash: str, counts: Mapping[str, int]) -> int:
        """Make written files part of the table in one atomic step and return the new version.

        Only row counts go into the log beside the paths: no text of a fact.

        Raises:
            CommitConflictError: the table is no longer at `self.version`.
            TableError: the log cannot be written.
        """
        append_files(
            self._delta, files, EVENT_SCHEMA, PARTITION_COLUMNS, dump_hash=dump_hash, metadata={"recipe": dict(counts)}
        )
        self.version += 1
        self._delta.load_as_version(self.version)
        return self.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The live facts of one version, sorted by namespace, shard and id whatever the order of the commits.

    Attributes:
        version: of the table.
        identity: the editor that encoded it.
        facts: one row a fact: fact_id, namespace, statement, prompt, target, subject, source, updated_at.
        keys_FK, prompts_FPD: float16 or float32, as stored.
    """

    version: int
    identity: EditorIdentity
    facts: pa.Table
    keys_FK: npt.NDArray[Any]
    prompts_FPD: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingEvents:
    """The event that stands of every fact, deletes included.

    Attributes:
        order: sorted by identity within a shard.
        is_delete_N: bool.
    """

    order: EventOrder
    is_delete_N: npt.NDArray[np.bool_]


def read_snapshot(uri: str, version: int | None = None) -> Snapshot:
    """Read the live facts of the last or of an older version; memory stays near what the result itself takes.

    Raises:
        TableError: there is no such table or version, or a file of it is missing or damaged.
    """
    table = FactTable.open(uri, version)
    partitions = table.partitions()
    places = [_live_places(table.uri, partition) for partition in partitions]
    num_facts = sum(int((place_N >= 0).sum()) for place_N in places)
    identity = table.identity
    keys_FK = np.empty((num_facts, identity.key_width), table.dtype)
    prompts_FW = np.empty((num_facts, identity.num_virtual_tokens * identity.llm_width), table.dtype)
    texts, rows_in_order, first = [_FACT_SCHEMA.empty_table()], [np.empty(0, np.int64)], 0
    for partition, place_N in zip(partitions, places, strict=True):
        for path, batch, place_B in _located_batches(table.uri, partition, place_N):
            live = np.flatnonzero(place_B >= 0)
            rows = first + place_B[live]
            for vectors, name in ((keys_FK, "key"), (prompts_FW, "prompt_embeddings")):
                try:
                    vectors[rows] = cells_to_vectors(batch.column(name).take(live), vectors.shape[1], table.dtype)
                except ValueError as error:
                    raise TableError(f"{table.uri}/{path}: column {name!r}: {error}; restore the file") from error
            texts.append(_fact_rows(batch.take(live), partition.namespace))
            rows_in_order.append(rows)
        first += int((place_N >= 0).sum())
    return Snapshot(
        version=table.version,
        identity=identity,
        facts=pa.concat_tables(texts).take(np.argsort(np.concatenate(rows_in_order))).combine_chunks(),
        keys_FK=keys_FK,
        prompts_FPD=prompts_FW.reshape(num_facts, identity.num_virtual_tokens, identity.llm_width),
    )


def read_standing_events(table: FactTable) -> StandingEvents:
    """Read which event of every fact stands at the table's version, without texts and vectors.

    Raises:
        TableError: a file is missing or damaged.
    """
    orders, deletes = [], [np.empty(0, np.bool_)]
    for partition in table.partitions():
        order, columns = _partition_events(table.uri, partition)
        standing = last_events(order)
        ids: list[Any] = columns.column("fact_id").take(standing).to_pylist()
        hashes = hashes_of(b"".join(identity_hash(partition.namespace, fact_id) for fact_id in ids), place=table.uri)
        orders.append(order.take(standing).with_identity(hashes))
        deletes.append(_is_delete(columns)[standing])
    return StandingEvents(order=concatenate(orders), is_delete_N=np.concatenate(deletes))


def _partition_events(uri: str, partition: Partition) -> tuple[EventOrder, pa.Table]:
    """Read the events of a partition in the order of its files, known by the rank of their id, and the columns read."""
    batches = [batch for path in partition.paths for batch in read_batches(uri, path, _ORDER_SCHEMA.names)]
    columns = pa.Table.from_batches(batches, _ORDER_SCHEMA)
    contents: list[Any] = columns.column("content_hash").to_pylist()
    rank_N2 = np.zeros((len(columns), 2), np.uint64)
    if len(columns):
        rank_N2[:, 1] = pc.rank(columns.column("fact_id").combine_chunks(), tiebreaker="dense").to_numpy()
    order = EventOrder(
        identity_N2=rank_N2,
        updated_us_N=_microseconds(columns.column("updated_at")),
        ingested_us_N=_microseconds(columns.column("ingested_at")),
        content_N2=hashes_of(b"".join(contents), place=uri),
    )
    return order, columns


def _live_places(uri: str, partition: Partition) -> npt.NDArray[np.int64]:
    """For each event of a partition its place among the partition's live facts, -1 where it is none."""
    order, columns = _partition_events(uri, partition)
    standing = last_events(order)
    live = standing[~_is_delete(columns)[standing]]
    place_N = np.full(len(order), -1, np.int64)
    place_N[live] = np.arange(len(live))
    return place_N


def _located_batches(
    uri: str, partition: Partition, place_N: npt.NDArray[np.int64]
) -> Iterator[tuple[str, pa.RecordBatch, npt.NDArray[np.int64]]]:
    start = 0
    for path in partition.paths:
        for batch in read_batches(uri, path, [*_TEXT_COLUMNS, *_VECTOR_COLUMNS]):
            yield path, batch, place_N[start : start + len(batch)]
            start += len(batch)


def _fact_rows(batch: pa.RecordBatch, namespace: str) -> pa.Table:
    columns = {name: batch.column(name) for name in _TEXT_COLUMNS}
    columns["namespace"] = pa.repeat(namespace, len(batch))
    return pa.table({name: columns[name] for name in FACT_COLUMNS}).cast(_FACT_SCHEMA)


def _microseconds(column: Any) -> npt.NDArray[np.int64]:
    return column.cast(pa.int64()).to_numpy()


def _is_delete(columns: pa.Table) -> npt.NDArray[np.bool_]:
    return pc.equal(columns.column("op"), pa.scalar("delete")).to_numpy()
