"""What a table tells at a version: its live facts with their vectors, and the events behind them.

F facts, N events, B events of a batch, K key width, P virtual tokens, D LLM width, W = P * D.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.order import EVENT_COLUMNS, Events, Hashes, concatenate, events_of, last_events, vector_rows
from recipe_ray.store.parquet import read_batches
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, cells_to_vectors, identity_hash, microseconds
from recipe_ray.store.table import FactTable, Partition

_FACT_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in FACT_COLUMNS])
_TEXT_COLUMNS = [name for name in FACT_COLUMNS if name != "namespace"]
_VECTOR_COLUMNS = ["key", "prompt_embeddings"]
DECIDING_COLUMNS = ["fact_id", *EVENT_COLUMNS]
"""What tells which event of a fact stands."""
DECIDING_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in DECIDING_COLUMNS])
ReadBatches = Callable[[str, str, Sequence[str]], Iterable[pa.RecordBatch]]
"""Reads some columns of a data file, given the table's URI and its path; see `read_batches`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The live facts of one version, sorted by namespace, shard and id whatever the order of the commits.

    Attributes:
        version: of the table.
        identity: the editor that encoded it.
        facts: one row a fact: FACT_COLUMNS.
        keys_FK, prompts_FPD: float16 or float32, as stored.
    """

    version: int
    identity: EditorIdentity
    facts: pa.Table
    keys_FK: npt.NDArray[Any]
    prompts_FPD: npt.NDArray[Any]


def read_snapshot(uri: str, version: int | None = None, *, at: datetime | None = None) -> Snapshot:
    """Read the live facts of the last or of an older version; memory stays near what the result itself takes.

    Args:
        uri: of the table.
        version: the last if not given.
        at: facts that have expired by then are left out; now if not given.

    Raises:
        TableError: there is no such table or version, or a file of it is missing or damaged.
    """
    table = FactTable.open(uri, version)
    parts = [(partition, _find_live(table, partition, at)) for partition in table.partitions()]
    num_facts = sum(live.num_facts for _, live in parts)
    keys_FK, prompts_FW = _empty_vectors(table, num_facts)
    texts, first = [_FACT_SCHEMA.empty_table()], 0
    for partition, live in parts:
        rows = slice(first, first + live.num_facts)
        texts.append(_fill(table, partition, live, keys_FK[rows], prompts_FW[rows]))
        first += live.num_facts
    return _snapshot(table, pa.concat_tables(texts), keys_FK, prompts_FW)


def read_partition(table: FactTable, partition: Partition, *, at: datetime | None = None) -> Snapshot:
    """Read the live facts of one namespace and shard, sorted by id; see `read_snapshot`.

    Raises:
        TableError: a file of it is missing or damaged.
    """
    live = _find_live(table, partition, at)
    keys_FK, prompts_FW = _empty_vectors(table, live.num_facts)
    return _snapshot(table, _fill(table, partition, live, keys_FK, prompts_FW), keys_FK, prompts_FW)


def read_events(
    table: FactTable, shard: int, ids_by_namespace: Mapping[str, Any], *, read: ReadBatches = read_batches
) -> Events:
    """Read every event of some facts of a shard, without texts and vectors; memory is of their number, not the table's.

    Args:
        table: at the version to read.
        shard: the one all the ids belong to.
        ids_by_namespace: Arrow arrays of fact ids, each once.
        read: reads a file; such as one that remembers files.

    Raises:
        TableError: a file is missing or damaged.
    """
    parts = [_no_events()]
    for partition in table.partitions():
        wanted = ids_by_namespace.get(partition.namespace)
        if partition.shard != shard or wanted is None:
            continue
        for path in partition.paths:
            for batch in read(table.uri, path, DECIDING_COLUMNS):
                touched = batch.filter(pc.is_in(batch.column("fact_id"), value_set=wanted))
                if len(touched):
                    parts.append(_events(table.uri, partition.namespace, pa.Table.from_batches([touched])))
    return concatenate(parts)


def read_partition_events(table: FactTable, partition: Partition) -> Events:
    """Read all events of a partition in the order of its files and their rows, without texts and vectors.

    Identities are the ranks of the ids here: hashing every id would take longer than the reading.

    Raises:
        TableError: a file is missing or damaged.
    """
    batches = [batch for path in partition.paths for batch in read_batches(table.uri, path, DECIDING_COLUMNS)]
    columns = pa.Table.from_batches(batches, DECIDING_SCHEMA)
    rank_N2 = np.zeros((len(columns), 2), np.uint64)
    if len(columns):
        rank_N2[:, 1] = pc.rank(columns.column("fact_id").combine_chunks(), tiebreaker="dense").to_numpy()
    return events_of(columns, rank_N2, place=table.uri)


@dataclass(frozen=True, slots=True)
class _Live:
    """Where the live facts of a partition stand among its N events.

    Attributes:
        num_facts: F.
        text_place_N: place among the facts, by id, of the fact whose texts an event holds; -1 for none.
        vector_places: pairs of event and place: an event's vectors may be those of a fact that a later event tells.
    """

    num_facts: int
    text_place_N: npt.NDArray[np.int64]
    vector_place_N: npt.NDArray[np.int64]


def _find_live(table: FactTable, partition: Partition, at: datetime | None) -> _Live:
    events = read_partition_events(table, partition)
    standing = last_events(events)
    live = standing[events.take(standing).is_live(microseconds(at or datetime.now(UTC)))]
    vectors = vector_rows(events, live)
    if (vectors < 0).any():
        raise TableError(
            f"{table.uri}: {int((vectors < 0).sum())} facts of namespace {partition.namespace!r}, "
            f"shard {partition.shard} have no vectors; a file was removed, or they had expired when they came: restore "
            "the table, or reencode it"
        )
    text_place_N, vector_place_N = np.full(len(events), -1, np.int64), np.full(len(events), -1, np.int64)
    text_place_N[live] = np.arange(len(live))
    vector_place_N[vectors] = np.arange(len(live))
    return _Live(len(live), text_place_N, vector_place_N)


def _fill(
    table: FactTable,
    partition: Partition,
    live: _Live,
    keys_FK: npt.NDArray[Any],
    prompts_FW: npt.NDArray[Any],
) -> pa.Table:
    """Read a partition's files once more: vectors into their places, texts into the table returned."""
    texts, places, start = [_FACT_SCHEMA.empty_table()], [np.empty(0, np.int64)], 0
    for path, batch in _batches(table, partition):
        of_batch = slice(start, start + len(batch))
        start += len(batch)
        place_B = live.vector_place_N[of_batch]
        rows = np.flatnonzero(place_B >= 0)
        for vectors, name in ((keys_FK, "key"), (prompts_FW, "prompt_embeddings")):
            try:
                vectors[place_B[rows]] = cells_to_vectors(batch.column(name).take(rows), vectors.shape[1], table.dtype)
            except ValueError as error:
                raise TableError(f"{table.uri}/{path}: column {name!r}: {error}; restore the file") from error
        place_B = live.text_place_N[of_batch]
        rows = np.flatnonzero(place_B >= 0)
        texts.append(_fact_rows(batch.take(rows), partition.namespace))
        places.append(place_B[rows])
    return pa.concat_tables(texts).take(np.argsort(np.concatenate(places))).combine_chunks()


def _batches(table: FactTable, partition: Partition) -> Iterator[tuple[str, pa.RecordBatch]]:
    for path in partition.paths:
        for batch in read_batches(table.uri, path, [*_TEXT_COLUMNS, *_VECTOR_COLUMNS]):
            yield path, batch


def _empty_vectors(table: FactTable, num_facts: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    identity = table.identity
    return (
        np.empty((num_facts, identity.key_width), table.dtype),
        np.empty((num_facts, identity.num_virtual_tokens * identity.llm_width), table.dtype),
    )


def _snapshot(table: FactTable, facts: pa.Table, keys_FK: npt.NDArray[Any], prompts_FW: npt.NDArray[Any]) -> Snapshot:
    identity = table.identity
    return Snapshot(
        version=table.version,
        identity=identity,
        facts=facts.combine_chunks(),
        keys_FK=keys_FK,
        prompts_FPD=prompts_FW.reshape(len(facts), identity.num_virtual_tokens, identity.llm_width),
    )


def _fact_rows(batch: pa.RecordBatch, namespace: str) -> pa.Table:
    columns = {name: batch.column(name) for name in _TEXT_COLUMNS}
    columns["namespace"] = pa.repeat(namespace, len(batch))
    return pa.table({name: columns[name] for name in FACT_COLUMNS}).cast(_FACT_SCHEMA)


def _events(uri: str, namespace: str, columns: pa.Table) -> Events:
    ids: list[Any] = columns.column("fact_id").to_pylist()
    return events_of(columns, identities(namespace, ids), place=uri)


def identities(namespace: str, fact_ids: list[str]) -> Hashes:
    """Identity hashes of ids of one namespace, [N, 2]."""
    cells = b"".join(identity_hash(namespace, fact_id) for fact_id in fact_ids)
    return np.frombuffer(cells, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _no_events() -> Events:
    return events_of(DECIDING_SCHEMA.empty_table(), np.empty((0, 2), np.uint64), place="")
