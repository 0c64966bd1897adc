"""What became of the facts between two versions of a table, from the events that stand in each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.delta import log_versions
from recipe_ray.store.order import Events
from recipe_ray.store.parquet import read_batches
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.reading.standing import PartitionEvents, PartitionFiles, Rows, partitions_of, read_ids
from recipe_ray.store.schema import FACT_COLUMNS, TIMESTAMP, microseconds
from recipe_ray.store.table import FactTable, Partition

Kind = Literal["new", "changed", "deleted", "expired", "gone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SLICE_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A fact that one version tells otherwise than another.

    Attributes:
        kind: new: live now and not before; changed: it says something else; deleted; expired; gone: live before, and
            now the table has never heard of it (a rollback, or erased).
        namespace, fact_id: which.
        before: what said it: FACT_COLUMNS; None for a new one.
        after: what says it; None where none does.
    """

    kind: Kind
    namespace: str
    fact_id: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def read_changes(uri: str, before: int, after: int, *, namespace: str | None = None) -> Iterator[Change]:
    """Compare two versions, each as of its commit: by namespace, shard, kind and id.

    Expiry counts where it falls between the two commits. An unchanged fact that was merely said again is no change.
    Memory holds what decides of one partition, and the texts of its changed facts.

    Args:
        uri: of the table; versions are those of the table that lies there, wherever it moved.
        before, after: versions; `after` may be the older one.
        namespace: None for all.

    Raises:
        ConfigError: the versions are one.
        TableError: there is no such version, or a file is missing or damaged.
    """
    if before == after:
        raise ConfigError(f"both versions are {after}; give two")
    old, new = FactTable.open(uri, before), FactTable.open(uri, after)
    if old.num_shards != new.num_shards:
        raise TableError(
            f"{uri}: has {old.num_shards} shards at version {before} and {new.num_shards} at version {after}, so "
            "the two cannot be compared; export both"
        )
    old_us, new_us = _committed_us(old), _committed_us(new)
    old_paths, new_paths = _paths(old, namespace), _paths(new, namespace)
    for key in sorted(old_paths.keys() | new_paths.keys()):
        yield from _changes(new, key, (old_paths.get(key, ()), new_paths.get(key, ())), (old_us, new_us))


def _paths(table: FactTable, namespace: str | None) -> dict[tuple[str, int], tuple[str, ...]]:
    return {(part.namespace, part.shard): part.paths for part in partitions_of(table, namespace)}


def _committed_us(table: FactTable) -> int:
    if table.version in log_versions(table.uri):
        return microseconds(commit_of(table.uri, table.version).at)
    # The log was cut off after it: its newest event is as near as can be told.
    newest = datetime.min.replace(tzinfo=UTC)
    for partition in table.partitions():
        for path in partition.paths:
            for batch in read_batches(table.uri, path, ["ingested_at"]):
                newest = max(newest, pc.max(batch.column("ingested_at")).as_py() or newest)
    return microseconds(newest)


def _changes(
    table: FactTable, key: tuple[str, int], paths: tuple[tuple[str, ...], tuple[str, ...]], at_us: tuple[int, int]
) -> Iterator[Change]:
    namespace, shard = key
    partition = Partition(namespace=namespace, shard=shard, paths=tuple(sorted({*paths[0], *paths[1]})))
    if paths[0] == paths[1] and not _any_expires(table, partition, *at_us):
        return
    found = read_ids(table, partition)
    if not len(found.events):
        return
    old_R, new_R = (_standing_by_rank(found, of_version) for of_version in paths)
    kind_R = _kinds(found.events, old_R, new_R, *at_us)
    for number, kind in enumerate(KINDS):
        ranks = np.flatnonzero(kind_R == number)
        if len(ranks):
            yield from _told(found.files, kind, old_R[ranks], new_R[ranks])


def _any_expires(table: FactTable, partition: Partition, old_us: int, new_us: int) -> bool:
    """Whether an event of a partition expires between two times: all that can change where no file did."""
    first, last = (pa.scalar(at_us, pa.int64()).cast(TIMESTAMP) for at_us in sorted((old_us, new_us)))
    for path in partition.paths:
        for batch in read_batches(table.uri, path, ["expires_at"]):
            expires = batch.column("expires_at")
            between = pc.and_(pc.greater(expires, first), pc.less_equal(expires, last))
            if pc.any(between).as_py():
                return True
    return False


def _standing_by_rank(found: PartitionEvents, paths: tuple[str, ...]) -> Rows:
    """For each rank of an id, the row that stands among those of some files; -1 where there is none."""
    ranks_N = found.events.identity_N2[:, 1].astype(np.int64)
    row_R = np.full(int(ranks_N.max(initial=0)) + 1, -1, np.int64)
    standing = found.standing(found.files.rows_in(paths))
    row_R[ranks_N[standing]] = standing
    return row_R


def _kinds(events: Events, old_R: Rows, new_R: Rows, old_us: int, new_us: int) -> npt.NDArray[np.int64]:
    """Number in KINDS of what became of each id; -1 for nothing."""
    was_live_R = (old_R >= 0) & events.is_live(old_us)[old_R]
    is_live_R = (new_R >= 0) & events.is_live(new_us)[new_R]
    says_otherwise_R = (events.content_N2[old_R] != events.content_N2[new_R]).any(axis=1)
    ended_R = was_live_R & ~is_live_R
    is_kind_R = {
        "new": is_live_R & ~was_live_R,
        "changed": is_live_R & was_live_R & says_otherwise_R,
        "deleted": ended_R & (new_R >= 0) & events.is_delete_N[new_R],
        "expired": ended_R & (new_R >= 0) & ~events.is_delete_N[new_R],
        "gone": ended_R & (new_R < 0),
    }
    return np.select([is_kind_R[kind] for kind in KINDS], np.arange(len(KINDS)), -1)


def _told(files: PartitionFiles, kind: Kind, before: Rows, after: Rows) -> Iterator[Change]:
    olds = files.read(before, FACT_COLUMNS) if kind != "new" else None
    news = files.read(after, FACT_COLUMNS) if kind in ("new", "changed") else None
    for start in range(0, len(before), _SLICE_ROWS):
        old = olds.slice(start, _SLICE_ROWS).to_pylist() if olds is not None else None
        new = news.slice(start, _SLICE_ROWS).to_pylist() if news is not None else None
        for number, said in enumerate(new or old or ()):
            yield Change(
                kind=kind,
                namespace=said["namespace"],
                fact_id=said["fact_id"],
                before=old[number] if old is not None else None,
                after=new[number] if new is not None else None,
            )
