"""What the log of a table tells of its commits: when, what, from which dump, which files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from recipe_ray.store.delta import log_versions, read_commit
from recipe_ray.store.table import WRITER_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One version of a table and what made it.

    Attributes:
        version: the one that it made.
        at: when, UTC, by the clock of its writer.
        operation: ingest, put, create, or what maintenance called it; of another writer its own word.
        dump_hash: of the dump that was ingested; None for others.
        counts: what the writer counted.
        added: partition values and path, below the table, of each file that it added.
        num_removed: files that it removed.
        is_rewrite: whether its files only hold in another way what the table told before.
    """

    version: int
    at: datetime
    operation: str
    dump_hash: str | None
    counts: Mapping[str, int]
    added: tuple[tuple[Mapping[str, str], str], ...]
    num_removed: int
    is_rewrite: bool


def read_commits(table_uri: str, *, until: int | None = None) -> Iterator[Commit]:
    """Commits that are in the log, oldest first, up to a version; those before a clean-up of the log are gone.

    Raises:
        TableError: one is damaged.
        OutputError: the log cannot be read.
    """
    for version in log_versions(table_uri):
        if until is None or version <= until:
            yield commit_of(table_uri, version)


def commit_of(table_uri: str, version: int) -> Commit:
    """One commit.

    Raises:
        TableError: it is not in the log, or damaged.
    """
    added: list[tuple[Mapping[str, str], str]] = []
    changes: list[bool] = []
    info: dict[str, Any] = {}
    dump_hash, num_removed = None, 0
    for action in read_commit(table_uri, version):
        if file := action.get("add"):
            added.append((file.get("partitionValues") or {}, unquote(file["path"])))
            changes.append(bool(file.get("dataChange", True)))
        elif "remove" in action:
            num_removed += 1
        elif (transaction := action.get("txn")) and not str(transaction["appId"]).startswith(WRITER_PREFIX):
            dump_hash = str(transaction["appId"])
        elif "commitInfo" in action:
            info = action["commitInfo"]
    said = dict(info.get("recipe") or {})
    return Commit(
        version=version,
        at=datetime.fromtimestamp(info.get("timestamp", 0) / 1000, tz=UTC),
        operation=_operation(said.pop("operation", None), dump_hash, str(info.get("operation", "unknown"))),
        dump_hash=dump_hash,
        counts={name: value for name, value in said.items() if isinstance(value, int)},
        added=tuple(added),
        num_removed=num_removed,
        is_rewrite=bool(changes) and not any(changes),
    )


def _operation(said: object, dump_hash: str | None, by_delta: str) -> str:
    if said is not None:
        return str(said)
    if dump_hash is not None:
        return "ingest"
    return {"CREATE TABLE": "create"}.get(by_delta, by_delta.lower())
