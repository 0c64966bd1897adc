"""What decides of a table's facts, kept in memory: each data file's times and hashes, read once.

N events of some ids, in the order of a partition's files and their rows.
"""

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import TableError
from recipe_ray.store.order import EVENT_COLUMNS, HASH_BYTES, Events, events_of, last_events, vector_rows
from recipe_ray.store.parquet import read_batches
from recipe_ray.store.reading.standing import PartitionFiles, Rows
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, cells_to_vectors
from recipe_ray.store.table import FactTable, Partition

Key = tuple[str, int]
"""Namespace and shard."""

_NUM_READERS = 8  # a remote file takes several requests, which only wait
_COLUMNS = ["fact_id", *EVENT_COLUMNS]
_SCHEMA = pa.schema(
    [
        field.with_type(pa.binary(HASH_BYTES)) if pa.types.is_binary(field.type) else field
        for field in (EVENT_SCHEMA.field(name) for name in _COLUMNS)
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The events of some ids of a partition.

    Attributes:
        files: of the whole partition.
        row_N: where each event lies in them.
        fact_ids: Arrow array of text [N].
        events: their identity is the rank of the id.
        last: places among the N of the events that stand, sorted by id.
    """

    files: PartitionFiles
    row_N: Rows
    fact_ids: Any
    events: Events
    last: Rows

    @property
    def standing_ids(self) -> Any:
        """Ids in the order of `last`, each once."""
        return self.fact_ids.take(pa.array(self.last, pa.int64()))

    def live(self, at_us: int) -> Rows:
        """Places among the N of the facts that are live at a time, sorted by id."""
        return self.last[self.events.take(self.last).is_live(at_us)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFacts:
    """F facts with their vectors, sorted by id.

    Attributes:
        texts: FACT_COLUMNS.
        keys_FK, prompts_FW: as stored; W is virtual tokens times LLM width.
    """

    texts: pa.Table
    keys_FK: npt.NDArray[Any]
    prompts_FW: npt.NDArray[Any]


class Ledger:
    """The deciding columns of data files, about 100 bytes an event; not for several threads at once.

    A data file never changes, so what was read of it holds for every version that names it.

    Args:
        uri: of the table, absolute.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._files: dict[str, pa.Table] = {}

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(file.nbytes for file in self._files.values())

    def load(self, paths: Iterable[str]) -> None:
        """Read the files that are not known yet.

        Raises:
            TableError: one is missing or damaged.
        """
        unknown = [path for path in paths if path not in self._files]
        with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="ledger") as pool:
            self._files.update(zip(unknown, pool.map(self._read, unknown), strict=True))

    def keep(self, paths: Collection[str]) -> None:
        """Forget all files but these."""
        self._files = {path: file for path, file in self._files.items() if path in paths}

    def newest(self, paths: Iterable[str]) -> datetime | None:
        """When the last event in some files was ingested; None where there is none."""
        times = [pc.max(self._files[path].column("ingested_at")).as_py() for path in paths]
        return max((time for time in times if time is not None), default=None)

    def ids(self, paths: Iterable[str]) -> Any:
        """Arrow array of the ids in some files, each once.

        Raises:
            TableError: one is missing or damaged.
        """
        return self._events(paths).column("fact_id").combine_chunks().unique()

    def decide(self, partition: Partition, fact_ids: Any) -> Decided:
        """Find what stands of some ids (an Arrow array) in a partition.

        Raises:
            TableError: a file is missing or damaged.
        """
        events = self._events(partition.paths)
        is_asked = pc.is_in(events.column("fact_id"), value_set=fact_ids)
        row_N = np.flatnonzero(is_asked.to_numpy())
        asked = events.filter(is_asked)
        ids = asked.column("fact_id").combine_chunks()
        rank_N2 = np.zeros((len(asked), 2), np.uint64)
        if len(asked):
            rank_N2[:, 1] = pc.rank(ids, tiebreaker="dense").to_numpy()
        found = events_of(asked, rank_N2, place=self._uri)
        first_row = np.cumsum([0, *(len(self._files[path]) for path in partition.paths)])
        return Decided(
            files=PartitionFiles(table_uri=self._uri, partition=partition, first_row=first_row.astype(np.int64)),
            row_N=row_N,
            fact_ids=ids,
            events=found,
            last=last_events(found),
        )

    def _events(self, paths: Iterable[str]) -> pa.Table:
        paths = list(paths)
        self.load(paths)
        return pa.concat_tables([_SCHEMA.empty_table(), *(self._files[path] for path in paths)])

    def _read(self, path: str) -> pa.Table:
        read = pa.Table.from_batches(
            list(read_batches(self._uri, path, _COLUMNS)), pa.schema([EVENT_SCHEMA.field(name) for name in _COLUMNS])
        )
        try:
            return read.cast(_SCHEMA).combine_chunks()
        except pa.ArrowInvalid as error:
            raise TableError(
                f"{self._uri}/{path}: a hash has not {HASH_BYTES} bytes; restore the table or ingest anew"
            ) from error


def changed_ids(ledger: Ledger, before: Partition | None, after: Partition | None) -> Any:
    """Arrow array of the ids of which a partition may tell something else after some of its files changed.

    Where files only came it is all the ids in them. Where some went too (a rollback, a compaction), it is the ids whose
    standing event is another one: none after a compaction.

    Raises:
        TableError: a file is missing or damaged.
    """
    old, new = (frozenset(partition.paths) if partition else frozenset() for partition in (before, after))
    touched = ledger.ids(sorted(old ^ new))
    if before is None or after is None or old <= new:
        return touched
    was, now = ledger.decide(before, touched), ledger.decide(after, touched)
    was_ids, now_ids = was.standing_ids, now.standing_ids
    place = pc.fill_null(pc.index_in(now_ids, value_set=was_ids), -1).to_numpy()
    stood, stands = was.events.take(was.last), now.events.take(now.last)
    common = np.flatnonzero(place >= 0)
    then = stood.take(place[common])
    is_same = np.zeros(len(now_ids), np.bool_)
    is_same[common] = (
        (then.content_N2 == stands.content_N2[common]).all(axis=1)
        & (then.statement_N2 == stands.statement_N2[common]).all(axis=1)  # else its key was made again
        & (then.updated_us_N == stands.updated_us_N[common])
    )
    gone = was_ids.filter(pc.invert(pc.is_in(was_ids, value_set=now_ids)))
    return pa.concat_arrays([now_ids.filter(pa.array(~is_same)), gone])


def read_facts(table: FactTable, decided: Decided, live: Rows) -> StoredFacts:
    """Read texts and vectors of facts that stand, from the files that hold them alone.

    Args:
        table: any version that has the files.
        decided: what stands.
        live: places of facts among its events, sorted by id.

    Raises:
        TableError: a file is missing or damaged, or a fact has no vectors.
    """
    partition, identity = decided.files.partition, table.identity
    vectors = vector_rows(decided.events, live)
    if (vectors < 0).any():
        raise TableError(
            f"{table.uri}: {int((vectors < 0).sum())} facts of namespace {partition.namespace!r}, "
            f"shard {partition.shard} have no vectors; a file was removed, or they had expired when they came: restore "
            "the table, or reencode it"
        )
    keys_FK = np.empty((len(live), identity.key_width), table.dtype)
    prompts_FW = np.empty((len(live), identity.num_virtual_tokens * identity.llm_width), table.dtype)
    vector_row_F = decided.row_N[vectors]
    order = np.argsort(vector_row_F)  # each row is one fact's: another fact has another id
    for rows, batch in decided.files.batches(vector_row_F, ["key", "prompt_embeddings"]):
        places = order[np.searchsorted(vector_row_F[order], rows)]
        for array, name in ((keys_FK, "key"), (prompts_FW, "prompt_embeddings")):
            try:
                array[places] = cells_to_vectors(batch.column(name), array.shape[1], table.dtype)
            except ValueError as error:
                raise TableError(f"{table.uri}: column {name!r}: {error}; restore the table") from error
    texts = decided.files.read(decided.row_N[live], FACT_COLUMNS)
    return StoredFacts(texts=texts, keys_FK=keys_FK, prompts_FW=prompts_FW)


def partitions_by_key(table: FactTable, shards: Collection[int] | None) -> Mapping[Key, Partition]:
    """Partitions of a version, of all shards or of some."""
    return {
        (partition.namespace, partition.shard): partition
        for partition in table.partitions()
        if shards is None or partition.shard in shards
    }
