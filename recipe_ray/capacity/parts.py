"""What a plan consists of, part by part.

Bytes are bytes, seconds seconds; `core_s` are seconds of one CPU core.
"""

from dataclasses import dataclass

from recipe_ray.capacity.engines import EnginePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class FactBytes:
    """What one fact takes.

    Attributes:
        key, prompt: its vectors, wherever they lie.
        event: in the table: vectors, compressed texts, hashes and times.
        index: in the FAISS file.
        row: in the index's Arrow file: prompt and texts.
    """

    key: int
    prompt: int
    event: float
    index: float
    row: int

    @property
    def searched(self) -> float:
        """What a search reads: index and keys."""
        return self.index + self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragePlan:
    """Bytes in the bucket.

    Attributes:
        table: the events that stand.
        history: events of the nights between compactions, and what a compaction replaced until it is vacuumed.
        indexes: those that vacuum keeps.
        editor: encoder, heads and prompt encoder.
    """

    table: float
    history: float
    indexes: float
    editor: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.table + self.history + self.indexes + self.editor


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """Index shards, each a deployment that several replicas hold.

    Attributes:
        kind: exact or hnsw.
        num_dimensions: of a key that the index holds.
        num_shards: deployments, each on a machine of its own where it fills one.
        parts_per_shard: shards of the table that one holds: as many as keep the building of one within a machine.
        facts_per_part: at most.
        memory_per_replica: bytes: a process, the versions in memory, a night's changes, what decides of the events.
        disk_per_replica: bytes of mapped files.
        search_core_s: of a query in one index shard.
        shard_replicas: of each.
        cpus_per_replica: cores.
    """

    kind: str
    num_dimensions: int
    num_shards: int
    parts_per_shard: int
    facts_per_part: int
    memory_per_replica: float
    disk_per_replica: float
    search_core_s: float
    shard_replicas: int
    cpus_per_replica: int

    @property
    def table_shards(self) -> int:
        """Of the table: `--num-shards` of the first ingest."""
        return self.num_shards * self.parts_per_shard

    @property
    def num_replicas(self) -> int:
        """All of them."""
        return self.num_shards * self.shard_replicas

    @property
    def total_memory(self) -> float:
        """Of all replicas, bytes."""
        return self.num_replicas * self.memory_per_replica

    @property
    def total_cpus(self) -> int:
        """Of all replicas, cores."""
        return self.num_replicas * self.cpus_per_replica


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalPlan:
    """Query encoders and ingresses, of one core each.

    Attributes:
        encode_core_s: of a query.
        seconds: of a retrieval that waits for nothing else.
        num_retrievers, num_ingresses: replicas.
        memory_per_retriever, memory_per_ingress: bytes.
    """

    encode_core_s: float
    seconds: float
    num_retrievers: int
    num_ingresses: int
    memory_per_retriever: float
    memory_per_ingress: float

    @property
    def total_cpus(self) -> int:
        """Cores."""
        return self.num_retrievers + self.num_ingresses

    @property
    def total_memory(self) -> float:
        """Bytes."""
        return self.num_retrievers * self.memory_per_retriever + self.num_ingresses * self.memory_per_ingress


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlyPlan:
    """Hours.

    Attributes:
        full_ingest: of all facts, into a new table.
        delta_ingest: of a night's changes.
        index: of a whole new index, by one process on one machine, with its upload.
    """

    full_ingest: float
    delta_ingest: float
    index: float

    @property
    def first_night(self) -> float:
        """All facts, and the index."""
        return self.full_ingest + self.index

    @property
    def every_night(self) -> float:
        """What changed, and the index."""
        return self.delta_ingest + self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartPlan:
    """What replicas fetch when all start at once.

    Attributes:
        engines, shards, retrievers: bytes of all replicas of each.
        seconds: of the slowest replica, its machine's network to itself.
    """

    engines: float
    shards: float
    retrievers: float
    seconds: float

    @property
    def total(self) -> float:
        """Bytes over the network."""
        return self.engines + self.shards + self.retrievers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes, part by part, and what a reader should know of it."""

    fact: FactBytes
    storage: StoragePlan
    index: IndexPlan
    retrieval: RetrievalPlan
    engines: EnginePlan
    nightly: NightlyPlan
    warm_start: WarmStartPlan
    notes: tuple[str, ...]

    @property
    def total_cpus(self) -> int:
        """Cores that answer: index, retrieval, engines."""
        return self.index.total_cpus + self.retrieval.total_cpus + self.engines.total_cpus

    @property
    def total_memory(self) -> float:
        """Bytes of main memory of what retrieves: index and query encoders."""
        return self.index.total_memory + self.retrieval.total_memory
