"""The table of facts: a Delta table of events, opened at a version, grown by whole commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.delta import append_files, create_delta, open_delta
from recipe_ray.store.files import absolute
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.schema import (
    EVENT_SCHEMA,
    PARTITION_COLUMNS,
    VectorDtype,
    dtype_of,
    identity_of,
    num_shards_of,
    properties,
)

DEFAULT_NUM_SHARDS = 4


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

    def has_dump(self, dump_hash: str) -> bool:
        """Whether a commit of this dump is in the log, undone since or not."""
        return self._delta.transaction_version(dump_hash) is not None

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
