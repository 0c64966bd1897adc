"""What a table keeps and nobody needs: files of old versions, of ingests that broke off, of superseded indexes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from recipe_ray.errors import ConfigError
from recipe_ray.store.delta import log_before, log_versions, read_commit, trim_log
from recipe_ray.store.files import SourceFile, join, read_text
from recipe_ray.store.schema import microseconds
from recipe_ray.store.stored import Progress, list_stored, relative, remove_files, silent
from recipe_ray.store.table import FactTable

RETENTION = timedelta(days=7)
YOUNG = timedelta(hours=1)  # what was written in this time and belongs to nothing may belong to a commit to come
_KEPT_INDEXES = 2
_REMOVED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """A file that nobody needs: its path below the table, its size, and what it was."""

    path: str
    size_bytes: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VacuumReport:
    """What a vacuum removed, or would remove.

    Attributes:
        table: absolute URI.
        oldest_version: that can be read afterwards.
        garbage: the files.
        size_bytes: of them.
        dry_run: nothing was removed.
        seconds: wall time.
    """

    table: str
    oldest_version: int
    garbage: tuple[Garbage, ...]
    size_bytes: int
    dry_run: bool
    seconds: float


def vacuum(
    uri: str,
    *,
    retention: timedelta = RETENTION,
    dry_run: bool = False,
    now: datetime | None = None,
    progress: Progress = silent,
) -> VacuumReport:
    """Remove what no version needs that was the last one within the retention, and the log of the versions before.

    That is: data files that have left the table since longer, and files that never came to be part of it, with the
    staged parts of ingests that broke off; index artefacts but the newest two; entries of the log.

    What is younger than an hour and not in the log stays, whatever the retention: a commit may be about to name it.
    Nothing can be read at the versions before, nor rolled back to.

    Args:
        uri: of the table.
        retention: how long a version stays readable after another took its place.
        dry_run: list only.
        now: the clock's time if not given.
        progress: shows the steps.

    Raises:
        ConfigError: the retention is negative.
        TableError: the log cannot be read, or no checkpoint written.
        OutputError: a file cannot be listed or removed.
    """
    if retention < timedelta(0):
        raise ConfigError(f"retention is {retention}; give 0 or more")
    started, now = time.monotonic(), now or datetime.now(UTC)
    uri = FactTable.open(uri).uri
    garbage, oldest = find_garbage(uri, cutoff=now - retention, young=now - YOUNG)
    if not dry_run:
        remove_garbage(uri, garbage, oldest, progress=progress)
    return VacuumReport(
        table=uri,
        oldest_version=oldest,
        garbage=tuple(garbage),
        size_bytes=sum(file.size_bytes for file in garbage),
        dry_run=dry_run,
        seconds=time.monotonic() - started,
    )


def find_garbage(uri: str, *, cutoff: datetime, young: datetime) -> tuple[list[Garbage], int]:
    """List what nobody needs, and give the oldest version that stays readable.

    Args:
        uri: of the table itself, wherever it moved.
        cutoff: versions that were the last one after this time are kept.
        young: files written after this time that never were part of the table are kept.

    Raises:
        TableError: the log cannot be read.
        OutputError: the files cannot be listed.
    """
    stored = list_stored(uri)  # before the log is read: what a commit names meanwhile is then known to be needed
    by_path = {relative(file.uri, uri): file for file in stored}
    table = FactTable.open(uri, moved=False)
    history = _read_history(table, cutoff=cutoff, young=young)
    staged_garbage, staged_needed = _look_at_staging(uri, by_path, cutoff=min(cutoff, young))
    needed = {file.path for file in table.files()} | history.removed_since | staged_needed
    found = []
    for path, file in by_path.items():
        if path.startswith("namespace=") and path.endswith(".parquet") and path not in needed:
            if path in history.added_lately or file.modified_at <= min(cutoff, young):
                found.append(_garbage(path, file, "data"))
        elif path in staged_garbage:
            found.append(_garbage(path, file, "staging"))
    superseded = _superseded_indexes(by_path, young=young)
    found += [_garbage(path, by_path[path], "index") for path in superseded]
    old_log = log_before(uri, history.oldest_version)
    found += [_garbage(path, by_path[path], "log") for path in old_log if path in by_path]
    return found, history.oldest_version


def unsettled(uri: str, *, since: datetime) -> list[str]:
    """Paths of what was written after a time and is part of no version: an ingest or a compaction may be running.

    Raises:
        TableError: the log cannot be read.
        OutputError: the files cannot be listed.
    """
    stored = [(relative(file.uri, uri), file) for file in list_stored(uri)]
    table = FactTable.open(uri, moved=False)
    history = _read_history(table, cutoff=since, young=since)
    known = {file.path for file in table.files()} | history.added_lately
    return [
        path
        for path, file in stored
        if file.modified_at > since and path.startswith(("namespace=", "_staging/", "_reencode/")) and path not in known
    ]


def remove_garbage(uri: str, garbage: Sequence[Garbage], oldest_version: int, *, progress: Progress = silent) -> None:
    """Remove what `find_garbage` found.

    Raises:
        TableError: no checkpoint can be written.
        OutputError: a file cannot be removed.
    """
    paths = [file.path for file in garbage if file.kind != "log"]
    with progress("removing", len(paths), unit="files") as advance:
        for start in range(0, len(paths), _REMOVED_AT_ONCE):
            chunk = paths[start : start + _REMOVED_AT_ONCE]
            remove_files(uri, chunk)
            advance(len(chunk))
    if any(file.kind == "log" for file in garbage):
        trim_log(uri, oldest_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    """What the latest commits did.

    Attributes:
        oldest_version: that was the last one at the cutoff or after it.
        removed_since: paths that left the table after the cutoff.
        added_lately: paths that came into the table after `young` or the cutoff.
    """

    oldest_version: int
    removed_since: set[str]
    added_lately: set[str]


def _read_history(table: FactTable, *, cutoff: datetime, young: datetime) -> _History:
    removed: set[str] = set()
    added: set[str] = set()
    oldest = table.version
    # Whole milliseconds, as the log has them.
    cutoff_ms, earlier_ms = (microseconds(time_) // 1000 for time_ in (cutoff, min(cutoff, young)))
    is_within = True
    for version in sorted(log_versions(table.uri), reverse=True):
        if version > table.version:
            continue
        actions = list(read_commit(table.uri, version))
        if is_within:
            oldest = version
        committed_ms = next((action["commitInfo"]["timestamp"] for action in actions if "commitInfo" in action), None)
        if committed_ms is not None and committed_ms <= cutoff_ms:
            is_within = False  # this version was the last one at the cutoff; those before were not
        if is_within:
            removed |= {action["remove"]["path"] for action in actions if "remove" in action}
        if committed_ms is not None and committed_ms <= earlier_ms:
            break
        added |= {action["add"]["path"] for action in actions if "add" in action}
    return _History(oldest_version=oldest, removed_since=removed, added_lately=added)


def _look_at_staging(uri: str, by_path: dict[str, SourceFile], *, cutoff: datetime) -> tuple[set[str], set[str]]:
    """Paths of staged parts that are older than the cutoff, and data files that younger ones will commit."""
    folders: dict[str, list[str]] = {}
    for path in by_path:
        if path.startswith("_staging/"):
            folders.setdefault("/".join(path.split("/")[:2]), []).append(path)
    old: set[str] = set()
    needed: set[str] = set()
    for folder, paths in folders.items():
        if max(by_path[path].modified_at for path in paths) <= cutoff:
            old.update(paths)
            continue
        for path in paths:
            if path.startswith(f"{folder}/units/") and path.endswith(".json"):
                text = read_text(join(uri, path))
                needed.update(file["path"] for file in json.loads(text or "[]"))
    return old, needed


def _superseded_indexes(by_path: dict[str, SourceFile], *, young: datetime) -> list[str]:
    """Files of index artefacts, `_index/VERSION-…/`, but those of the newest two, and of one that is being built."""
    folders: dict[str, list[str]] = {}
    for path in by_path:
        if path.startswith("_index/") and path.count("/") >= 2:
            folders.setdefault(path.split("/")[1], []).append(path)
    complete = [name for name, paths in folders.items() if f"_index/{name}/manifest.json" in paths]
    kept = set(sorted(complete, key=_index_version, reverse=True)[:_KEPT_INDEXES])
    return [
        path
        for name, paths in folders.items()
        for path in paths
        if name not in kept and (name in complete or max(by_path[other].modified_at for other in paths) <= young)
    ]


def _index_version(name: str) -> tuple[int, str]:
    number = name.partition("-")[0]
    return (int(number) if number.isdigit() else -1, name)


def _garbage(path: str, file: SourceFile, kind: str) -> Garbage:
    return Garbage(path=path, size_bytes=file.size_bytes, kind=kind)
