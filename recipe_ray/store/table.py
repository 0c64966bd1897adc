"""The table of facts: a Delta table of events, opened at a version, grown by whole commits."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deltalake import DeltaTable

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.delta import append_files, create_delta, files_of, open_delta, replace_files
from recipe_ray.store.files import absolute
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.pointer import follow
from recipe_ray.store.schema import (
    EVENT_SCHEMA,
    PARTITION_COLUMNS,
    VectorDtype,
    dtype_of,
    identity_of,
    is_canonical,
    microseconds,
    num_shards_of,
    properties,
)

DEFAULT_NUM_SHARDS = 4
ALWAYS = 2**62
"""As of which a dump is known whose rows all tell their own time."""
WRITER_PREFIX = "writer-"
"""Begins the name of an application transaction that tells a group of facts, not a dump."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupId:
    """By what a group of facts is known that was written at once.

    Attributes:
        writer: one that lives as long as a process, since the log remembers each for ever.
        number: of the group, ascending.
    """

    writer: str
    number: int

    @property
    def application(self) -> str:
        """What the log calls the writer."""
        return WRITER_PREFIX + self.writer


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
        is_canonical: whether it was made by a release that reads texts in canonical form; others see `upkeep.renewal`.
    """

    def __init__(self, delta: DeltaTable, uri: str) -> None:
        self._delta = delta
        self._pending: tuple[DataFile, ...] = ()
        self.uri = uri
        self.version = delta.version()
        configuration = delta.metadata().configuration
        self.identity = identity_of(configuration, place=uri)
        self.num_shards = num_shards_of(configuration)
        self.dtype = dtype_of(configuration)
        self.is_canonical = is_canonical(configuration)
        if features := delta.protocol().reader_features:
            raise TableError(f"{uri}: uses the Delta features {features}, which are not read here; rewrite it plainly")

    @classmethod
    def open(cls, uri: str, version: int | None = None, *, moved: bool = True) -> "FactTable":
        """Open the last version, or an older one.

        Args:
            uri: of the table.
            version: an older one, of the table that lies there; None for the last, of the table that it moved to.
            moved: whether to go where the table moved to; see `pointer`.

        Raises:
            TableError: there is no table or no such version, it is damaged, or not a table of facts.
        """
        if version is None and moved:
            uri = follow(uri)
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
        is_canonical: bool = True,
    ) -> "FactTable":
        """Open the table, or create it empty; `num_shards`, `dtype` and `is_canonical` hold for a new one only.

        Raises:
            TableError: another editor encoded it, or it cannot be read.
            OutputError: it cannot be created.
        """
        uri = follow(uri)
        if open_delta(uri) is None:
            said = properties(identity, num_shards=num_shards, dtype=dtype, is_canonical=is_canonical)
            create_delta(uri, EVENT_SCHEMA, PARTITION_COLUMNS, said)
        table = cls.open(uri, moved=False)
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
        for file in self.files():
            paths.setdefault((file.partition["namespace"], int(file.partition["shard"])), []).append(file.path)
        return [
            Partition(namespace=namespace, shard=shard, paths=tuple(sorted(paths[namespace, shard])))
            for namespace, shard in sorted(paths)
        ]

    def files(self) -> list[DataFile]:
        """List the data files of this version as the log tells them, sorted by path."""
        return sorted([*files_of(self._delta), *self._pending], key=lambda file: file.path)

    def with_pending(self, files: Sequence[DataFile]) -> "FactTable":
        """What the table would tell if written files were committed now; to be read, never to commit to."""
        table = copy.copy(self)
        table._pending = (*self._pending, *files)
        return table

    def has_dump(self, dump_hash: str, *, as_of: datetime | None = None) -> bool:
        """Whether a commit of this dump is in the log, undone since or not, as of this time or a later one if given."""
        told_as_of_us = self._delta.transaction_version(dump_hash)
        return told_as_of_us is not None and (as_of is None or told_as_of_us >= microseconds(as_of))

    def has_group(self, group: GroupId) -> bool:
        """Whether a commit of this group, or of a later one of its writer, is in the log."""
        number = self._delta.transaction_version(group.application)
        return number is not None and number >= group.number

    def commit_group(
        self, files: Sequence[DataFile], group: GroupId, *, operation: str, counts: Mapping[str, int]
    ) -> int:
        """Make the written files of a group part of the table in one atomic step and return the new version.

        Raises:
            CommitConflictError: the table is no longer at `self.version`.
            TableError: the log cannot be written.
        """
        append_files(
            self._delta,
            files,
            EVENT_SCHEMA,
            PARTITION_COLUMNS,
            dump_hash=group.application,
            dump_version=group.number,
            metadata={"recipe": {"operation": operation, **counts}},
        )
        return self._advance()

    def commit(
        self,
        files: Sequence[DataFile],
        *,
        dump_hash: str,
        counts: Mapping[str, int],
        as_of: datetime | None = None,
    ) -> int:
        """Make written files part of the table in one atomic step and return the new version.

        Only row counts go into the log beside the paths: no text of a fact.

        Args:
            files: written below the table.
            dump_hash: of the dump that they tell.
            counts: for the log.
            as_of: the time that its rows without one were given; None where every row has its own.

        Raises:
            CommitConflictError: the table is no longer at `self.version`.
            TableError: the log cannot be written.
        """
        append_files(
            self._delta,
            files,
            EVENT_SCHEMA,
            PARTITION_COLUMNS,
            dump_hash=dump_hash,
            dump_version=ALWAYS if as_of is None else microseconds(as_of),
            metadata={"recipe": dict(counts)},
        )
        return self._advance()

    def _advance(self) -> int:
        delta = open_delta(self.uri, self.version + 1)
        if delta is None:
            raise TableError(f"{self.uri}: version {self.version + 1} was committed and is gone; check the storage")
        self._delta, self.version = delta, self.version + 1
        return self.version

    def replace(
        self,
        remove: Sequence[DataFile],
        add: Sequence[DataFile],
        *,
        operation: str,
        counts: Mapping[str, int],
        data_change: bool,
    ) -> int:
        """Exchange files in one atomic step and return the new version.

        Args:
            remove: files of this version.
            add: written files.
            operation: what the log calls it.
            counts: for the log; no text of a fact.
            data_change: whether the table tells something else afterwards.

        Raises:
            CommitConflictError: the table is no longer at `self.version`.
            TableError: the log cannot be written.
        """
        metadata: dict[str, Any] = {"recipe": {"operation": operation, **counts}}
        replace_files(
            self._delta, remove, add, EVENT_SCHEMA, PARTITION_COLUMNS, data_change=data_change, metadata=metadata
        )
        return self._advance()
