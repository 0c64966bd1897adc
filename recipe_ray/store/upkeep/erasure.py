"""A person's data gone for good: from the table, from its older versions, and from all that lies beside it.

The end is a search through every byte that is left, for the texts of what was erased.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.facts import Fact
from recipe_ray.store.delta import open_delta, retrying
from recipe_ray.store.files import absolute, join, read_text, write_text
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.pointer import read_pointer
from recipe_ray.store.reading.commits import read_commits
from recipe_ray.store.schema import EVENT_SCHEMA, FILE_SCHEMA, shard_of
from recipe_ray.store.stored import (
    Progress,
    list_stored,
    purge_object_versions,
    relative,
    remove_files,
    silent,
)
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.quarantine_erasure import count_quarantined, erase_quarantined
from recipe_ray.store.upkeep.traces import MIN_RAW_BYTES, Traces
from recipe_ray.store.upkeep.vacuum import find_garbage, remove_garbage, unsettled

_QUIET = timedelta(hours=1)
_FILE_BYTES = 128 * 1024 * 1024
_MARKER = "_erasing.json"  # says that an erasure was begun; holds nothing of what is erased
_TEXTS = ["fact_id", "statement", "prompt", "target", "subject", "source"]
_REMOVED_FOLDERS = ("_index/", "_reencode/", "_staging/")
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReport:
    """What an erasure removed, or would remove.

    Attributes:
        table: absolute URI.
        version: the one version that is left.
        places: URIs of the tables that were gone through: this one, and those that it had moved from.
        num_facts: ids erased.
        num_events: their events in the last version.
        num_quarantined: quarantined rows removed.
        num_files: files removed: older versions, indexes, stagings, log.
        num_indexes: index artefacts among these; the index is to be built again.
        num_object_versions: older versions and deletion markers removed from a bucket with versioning.
        num_searched: files searched through in the end.
        dry_run: nothing was removed.
        seconds: wall time.
    """

    table: str
    version: int
    places: tuple[str, ...]
    num_facts: int
    num_events: int
    num_quarantined: int
    num_files: int
    num_indexes: int
    num_object_versions: int
    num_searched: int
    dry_run: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Whom to erase."""

    ids: frozenset[str]
    subject: str | None
    source: str | None
    namespace: str | None


@dataclass(slots=True, kw_only=True)
class _Found:
    """What is erased.

    Attributes:
        ids: by the folder of their namespace.
        namespaces: by folder.
        texts: what shall not be found afterwards: the given ones and the statements, each with what to call it.
        pairs: prompt and target of the facts, joined by a space.
    """

    ids: dict[str, set[str]] = field(default_factory=dict)
    namespaces: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    pairs: set[str] = field(default_factory=set)

    def num_facts(self) -> int:
        return sum(len(ids) for ids in self.ids.values())


@dataclass(slots=True, kw_only=True)
class _Removed:
    """Counts of what went."""

    quarantined: int = 0
    files: int = 0
    indexes: int = 0
    object_versions: int = 0
    searched: int = 0


def erase(
    uri: str,
    ids: Iterable[str] = (),
    *,
    subject: str | None = None,
    source: str | None = None,
    namespace: str | None = None,
    keep_tombstone: bool = False,
    force: bool = False,
    dry_run: bool = False,
    now: datetime | None = None,
    progress: Progress = silent,
) -> EraseReport:
    """Erase facts, with every event of their ids, from all versions and from all that lies below the table.

    Of the table only the version that this makes is left. Gone are the older ones with their log, quarantined rows that
    hold one of the texts or ids, what ingests had staged, indexes, and on S3 the older versions of all objects. What
    lies elsewhere is not gone: the dumps, downloads that servers keep, backups, the free blocks of a disk.

    Broken off, the same call goes on.

    Args:
        uri: of the table. Where it moved, all its places are gone through; those removed since are passed over.
        ids: of facts.
        subject: erases the facts of which an event has this subject.
        source: erases the facts of which an event has this source.
        namespace: of the facts; all if not given.
        keep_tombstone: leave a delete of each id, so that a late dump does not bring the fact back. The id itself,
            which may say something of a person, stays then.
        force: go on although an ingest seems to be running; it will fail.
        dry_run: count only.
        now: the clock's time if not given.
        progress: shows the steps.

    Raises:
        ConfigError: nothing was named.
        TableError: there is no such fact; an ingest seems to be running; other writers never pause; or a text was found
            in the end, with the file that holds it: then all else was done, and the facts that hold it are to be erased
            too.
        OutputError: a place cannot be read or written.
    """
    wanted = _Wanted(ids=frozenset(ids), subject=subject, source=source, namespace=namespace)
    if not wanted.ids and not subject and not source:
        raise ConfigError("nothing to erase was named; give ids, a subject or a source")
    started, now = time.monotonic(), now or datetime.now(UTC)
    moved = read_pointer(uri)
    before = () if moved is None else tuple(place for place in moved.previous if open_delta(place) is not None)
    places = (absolute(uri),) if moved is None else (moved.to, absolute(uri), *before)
    if not force:
        for place in places:
            _check_quiet(place, now)
    found = _Found()
    num_events, *_ = [_find(place, wanted, found, progress) for place in places]
    begun = any(read_text(join(place, _MARKER)) is not None for place in places)
    traces = _quarantine_traces(wanted, found)
    num_rows = sum(count_quarantined(place, traces) for place in places)
    if not found.num_facts() and not num_rows and not begun:
        raise TableError(f"{uri}: no version holds such a fact, and the quarantine no such row; nothing was done")
    removed = _Removed(quarantined=num_rows)
    if not dry_run:
        for place in places:
            write_text(join(place, _MARKER), "{}\n")
        for place in places:
            tombstones = keep_tombstone and place == places[0]
            retrying(_Rewriting(place, found, now if tombstones else None, progress))
        removed.quarantined = sum(erase_quarantined(place, traces) for place in places)
        for place in places:
            _remove_rest(place, removed, now, progress)
            removed.object_versions += purge_object_versions(place)
        for place in places:
            remove_files(place, [_MARKER])
            removed.object_versions += purge_object_versions(place)
        _search(places, wanted, found, removed, keep_tombstone=keep_tombstone, progress=progress)
    return EraseReport(
        table=places[0],
        version=FactTable.open(places[0], moved=False).version,
        places=places,
        num_facts=found.num_facts(),
        num_events=num_events,
        num_quarantined=removed.quarantined,
        num_files=removed.files,
        num_indexes=removed.indexes,
        num_object_versions=removed.object_versions,
        num_searched=removed.searched,
        dry_run=dry_run,
        seconds=time.monotonic() - started,
    )


def _check_quiet(place: str, now: datetime) -> None:
    if paths := unsettled(place, since=now - _QUIET):
        raise TableError(
            f"{place}/{paths[0]}: was written within the hour and is part of no version, so an ingest may be running, "
            "which would bring texts back; wait until it ends, or use --force"
        )


def _find(place: str, wanted: _Wanted, found: _Found, progress: Progress) -> int:
    """Look through all data files, those of older versions and of none too, for the facts and their texts.

    Returns:
        The number of their events in the last version.
    """
    num_events = 0
    table = FactTable.open(place, moved=False)
    current = {file.path for file in table.files()}
    found.namespaces |= _namespaces(table)
    paths = [path for file in list_stored(place) if _is_data(path := relative(file.uri, place))]
    paths = [path for path in paths if wanted.namespace in (None, found.namespaces.get(_folder(path)))]
    by_text = wanted.subject is not None or wanted.source is not None
    with progress("looking for the facts", (1 + by_text) * len(paths), unit="files") as advance:
        if by_text:
            for path in paths:
                for batch in _read(place, path, ["fact_id", "subject", "source"], current):
                    chosen: list[Any] = batch.filter(_said_by(batch, wanted)).column("fact_id").to_pylist()
                    found.ids.setdefault(_folder(path), set()).update(chosen)
                advance(1)
        for path in paths:
            sought = pa.array(sorted(wanted.ids | found.ids.get(_folder(path), set())), pa.string())
            for batch in _read(place, path, _TEXTS, current):
                rows = batch.filter(pc.is_in(batch.column("fact_id"), value_set=sought)).to_pylist()
                num_events += len(rows) if path in current else 0
                for row in rows:
                    _take(found, _folder(path), row)
            advance(1)
    found.ids = {folder: ids for folder, ids in found.ids.items() if ids}
    for text in (wanted.subject, wanted.source):
        if text:
            found.texts[text] = "the given text"
    return num_events


def _said_by(batch: pa.RecordBatch, wanted: _Wanted) -> Any:
    chosen = np.zeros(len(batch), np.bool_)
    for name, text in (("subject", wanted.subject), ("source", wanted.source)):
        if text is not None:
            chosen |= pc.equal(batch.column(name), pa.scalar(text)).to_numpy(zero_copy_only=False)
    return pa.array(chosen)


def _take(found: _Found, folder: str, row: dict[str, Any]) -> None:
    found.ids.setdefault(folder, set()).add(row["fact_id"])
    if row["statement"]:
        found.texts.setdefault(row["statement"], f"the statement of {row['fact_id']!r}")
    if row["prompt"] and row["target"]:
        found.pairs.add(f"{row['prompt']} {row['target']}")
        found.texts.setdefault(f"{row['prompt']} {row['target']}", f"prompt and target of {row['fact_id']!r}")


def _namespaces(table: FactTable) -> dict[str, str]:
    """Namespaces by the folder of their files, as far as the log knows them."""
    known = {_folder(path): values["namespace"] for commit in read_commits(table.uri) for values, path in commit.added}
    return known | {_folder(file.path): file.partition["namespace"] for file in table.files()}


def _read(place: str, path: str, columns: Sequence[str], current: set[str]) -> Iterable[pa.RecordBatch]:
    """Read a file; one that is part of no version may be broken, and goes in any case."""
    try:
        yield from read_batches(place, path, columns)
    except TableError:
        if path in current:
            raise


class _Rewriting:
    """Takes the facts out of the last version; files that were rewritten are kept for the next attempt."""

    def __init__(self, place: str, found: _Found, tombstones_at: datetime | None, progress: Progress) -> None:
        self._place, self._found, self._progress = place, found, progress
        self._tombstones_at = tombstones_at
        self._tombstones: list[DataFile] | None = None
        self._rewritten: dict[str, list[DataFile] | None] = {}  # by path; None where there is nothing to erase

    def __call__(self) -> None:
        """Rewrite and commit."""
        table = FactTable.open(self._place, moved=False)
        files = [file for file in table.files() if _folder(file.path) in self._found.ids]
        num_events = 0
        with self._progress("rewriting", len(files), unit="files") as advance:
            for file in files:
                if file.path not in self._rewritten:
                    self._rewritten[file.path] = self._rewrite(file)
                advance(1)
        if self._tombstones is None:
            self._tombstones = self._write_tombstones(table)
        remove = [file for file in files if self._rewritten[file.path] is not None]
        add = [new for file in remove for new in self._rewritten[file.path] or ()]
        num_events = sum(file.num_rows for file in remove) - sum(file.num_rows for file in add)
        if remove or self._tombstones:
            counts = {"erased_events": num_events}
            table.replace(remove, [*add, *self._tombstones], operation="erase", counts=counts, data_change=True)

    def _rewrite(self, file: DataFile) -> list[DataFile] | None:
        ids = pa.array(sorted(self._found.ids[_folder(file.path)]), pa.string())
        if not any(
            pc.any(pc.is_in(batch.column("fact_id"), value_set=ids)).as_py()
            for batch in read_batches(self._place, file.path, ["fact_id"])
        ):
            return None
        written: list[DataFile] = []
        held: list[pa.RecordBatch] = []
        for batch in read_batches(self._place, file.path, FILE_SCHEMA.names):
            held.append(batch.filter(pc.invert(pc.is_in(batch.column("fact_id"), value_set=ids))))
            if sum(part.nbytes for part in held) >= _FILE_BYTES:
                written += self._write(file, held)
                held = []
        return written + self._write(file, held)

    def _write(self, file: DataFile, batches: list[pa.RecordBatch]) -> list[DataFile]:
        rows = pa.Table.from_batches(batches, FILE_SCHEMA) if batches else FILE_SCHEMA.empty_table()
        if not len(rows):
            return []
        shard = pa.scalar(int(file.partition["shard"]), pa.int32())
        rows = rows.append_column("namespace", pa.repeat(file.partition["namespace"], len(rows)))
        return write_events(self._place, rows.append_column("shard", pa.repeat(shard, len(rows))))

    def _write_tombstones(self, table: FactTable) -> list[DataFile]:
        if self._tombstones_at is None:
            return []
        rows = []
        for folder, ids in self._found.ids.items():
            namespace = self._found.namespaces.get(folder)
            if namespace is None:  # of a file that never was part of a version
                continue
            for fact_id in sorted(ids):
                fact = Fact(fact_id=fact_id, statement="", namespace=namespace, op="delete")
                rows.append(
                    {
                        **{name: getattr(fact, name) for name in ("namespace", "op", *_TEXTS)},
                        "shard": shard_of(fact_id, table.num_shards),
                        "updated_at": self._tombstones_at,
                        "ingested_at": self._tombstones_at,
                        "content_hash": fact.content_hash(),
                        "statement_hash": fact.statement_hash(),
                        "encoded": False,
                    }
                )
        return write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA)) if rows else []


def _quarantine_traces(wanted: _Wanted, found: _Found) -> Traces:
    """What a quarantined row may hold of the facts; a short id counts where it stands in quotes."""
    ids = set(wanted.ids).union(*found.ids.values())
    return Traces({*found.texts, *(f'"{fact_id}"' for fact_id in ids)}, list(filter(_is_telling, ids)))


def _remove_rest(place: str, removed: _Removed, now: datetime, progress: Progress) -> None:
    """Remove all that the last version does not need."""
    far = now + timedelta(days=1)  # clocks of stores may be ahead
    garbage, version = find_garbage(place, cutoff=far, young=far)
    folders = [path for file in list_stored(place) if (path := relative(file.uri, place)).startswith(_REMOVED_FOLDERS)]
    remove_garbage(place, garbage, version, progress=progress)
    remove_files(place, folders)
    removed.files += len({file.path for file in garbage} | set(folders))
    removed.indexes += len({path.split("/")[1] for path in folders if path.startswith("_index/")})


def _search(
    places: Sequence[str],
    wanted: _Wanted,
    found: _Found,
    removed: _Removed,
    *,
    keep_tombstone: bool,
    progress: Progress,
) -> None:
    """Search all that is left.

    Raises:
        TableError: something was found.
    """
    ids = set(wanted.ids).union(*found.ids.values())
    stays = _ids_that_stay(places, found, ids)
    erased_ids = set() if keep_tombstone else ids - stays
    telling_ids = [fact_id for fact_id in erased_ids if _is_telling(fact_id)]
    names = dict.fromkeys(telling_ids, "an erased id") | found.texts
    traces = Traces(found.texts, telling_ids)
    complaints: list[str] = []
    stored = [(place, file) for place in places for file in list_stored(place)]
    with progress("searching", len(stored), unit="files") as advance:
        for place, file in stored:
            text = traces.find_in_file(file)
            path = relative(file.uri, place)
            complaint = None if text is None else f"{file.uri}: still holds {names[text]}"
            if _is_data(path):
                sought = Traces([text] if text in found.texts else [], [text] if text in telling_ids else [])
                complaint = _search_data(place, path, sought, found, keep_tombstone=keep_tombstone) or complaint
            if complaint is not None:
                complaints.append(complaint)
            removed.searched += 1
            advance(1)
    if complaints:
        more = f" (and {len(complaints) - 1} more files)" if len(complaints) > 1 else ""
        raise TableError(
            f"{complaints[0]}{more}; all else is erased: erase the facts that say it too, or remove the file"
        )


def _search_data(place: str, path: str, traces: Traces, found: _Found, *, keep_tombstone: bool) -> str | None:
    """Search the rows of a data file; what is found, with the ids of the facts that hold it."""
    ids = pa.array([] if keep_tombstone else sorted(found.ids.get(_folder(path), ())), pa.string())
    pairs = pa.array(sorted(found.pairs), pa.string())
    for batch in read_batches(place, path, _TEXTS):
        if pc.any(pc.is_in(batch.column("fact_id"), value_set=ids)).as_py():
            return f"{place}/{path}: still holds an erased id"
        said: Any = pc.binary_join_element_wise(batch["prompt"], batch["target"], pa.scalar(" "))  # type: ignore[call-overload]
        rows = pc.is_in(said, value_set=pairs).to_numpy(zero_copy_only=False)
        if not rows.any() and len(traces.texts):
            rows = np.array([traces.find("\0".join(row.values()).encode()) is not None for row in batch.to_pylist()])
        if rows.any():
            holders: list[Any] = batch.column("fact_id").filter(pa.array(rows)).to_pylist()
            shown = ", ".join(repr(fact_id) for fact_id in holders[:_MAX_NAMED])
            return f"{place}/{path}: still holds a text of the erased facts, in the facts {shown}"
    return None


def _ids_that_stay(places: Sequence[str], found: _Found, ids: set[str]) -> set[str]:
    """Ids that facts of other namespaces have too, so that they are no trace."""
    sought = pa.array(sorted(ids), pa.string())
    stays: set[str] = set()
    for place in places:
        for file in FactTable.open(place, moved=False).files():
            erased = found.ids.get(_folder(file.path), set())
            for batch in read_batches(place, file.path, ["fact_id"]):
                column = batch.column("fact_id")
                there: list[Any] = column.filter(pc.is_in(column, value_set=sought)).to_pylist()
                stays.update(set(there) - erased)
    return stays


def _is_telling(fact_id: str) -> bool:
    return len(fact_id.encode()) >= MIN_RAW_BYTES


def _is_data(path: str) -> bool:
    return path.startswith("namespace=") and path.endswith(".parquet")


def _folder(path: str) -> str:
    return path.partition("/")[0]
