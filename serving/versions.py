"""Versions of one table of facts as the writer sees them: found, told, gone back to. All of it waits for storage."""

import time

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.delta import newest_version, open_delta
from recipe_ray.store.pointer import read_pointer
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.stored import missing_files
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.maintenance import VersionGoneError, rollback
from serving.messages import Refusal, SnapshotInfo

_LOOK_ANEW_S = 30.0


class Versions:
    """The versions of a table.

    Args:
        table_uri: where it lies; it is not followed elsewhere, since versions of another place are counted anew.
        identity: of the editor that encoded it; None where nothing is written.
    """

    def __init__(self, table_uri: str, identity: EditorIdentity | None) -> None:
        self.table_uri = table_uri
        self._identity = identity
        self._infos: dict[int, SnapshotInfo] = {}  # what is in the log stays
        self._looked_anew = time.monotonic()

    def find(self, version: int | None = None) -> int:
        """Open a version, the last if not given, and say which it is.

        Raises:
            TableError: there is none, the table moved, or another editor encoded it.
        """
        if version is None and (moved := read_pointer(self.table_uri)):
            raise TableError(f"{self.table_uri}: {_moved(moved.to)}")
        table = FactTable.open(self.table_uri, version, moved=False)
        if self._identity is not None:
            table.check_editor(self._identity)
        return table.version

    def look(self, known: int) -> tuple[int, str | None]:
        """The newest version that can be served, and why nothing later can be, if so.

        Looks for the commit behind the known one, and now and then at the whole log, a part of which may be cut off.

        Raises:
            TableError: the table cannot be read.
            OutputError: the log cannot be read.
        """
        if moved := read_pointer(self.table_uri):
            return known, f"{self.table_uri}: {_moved(moved.to)}"
        newest = newest_version(self.table_uri, known)
        if newest == known and time.monotonic() < self._looked_anew + _LOOK_ANEW_S:
            return known, None
        self._looked_anew = time.monotonic()
        if open_delta(self.table_uri) is None:
            return known, f"{self.table_uri}: the table is gone; restore it, or deploy with another"
        table = FactTable.open(self.table_uri, moved=False)
        if table.version < known:
            return known, (
                f"{self.table_uri}: is at version {table.version} and was at {known}, so it was made anew; deploy again"
            )
        if self._identity is not None and table.identity.fingerprint != self._identity.fingerprint:
            return known, (
                f"{self.table_uri}: is of the editor with fingerprint {table.identity.fingerprint} now and was of "
                f"{self._identity.fingerprint}; deploy again with the editor of the table"
            )
        return table.version, None

    def newest(self, limit: int, *, until: int) -> list[SnapshotInfo]:
        """Tell of the last versions up to one, newest first, as far as the log goes back.

        Raises:
            TableError: a commit is damaged.
            OutputError: the log cannot be read.
        """
        versions = range(until, max(-1, until - limit), -1)
        unknown = [version for version in versions if version not in self._infos]
        paths = {f"_delta_log/{version:020}.json": version for version in unknown}
        gone = {paths[path] for path in missing_files(self.table_uri, list(paths))}
        return [self.info(version) for version in versions if version not in gone]

    def info(self, version: int) -> SnapshotInfo:
        """Tell of one version.

        Raises:
            TableError: it is not in the log.
        """
        if version not in self._infos:
            commit = commit_of(self.table_uri, version)
            self._infos[version] = SnapshotInfo(
                version=version, committed_at=commit.at, operation=commit.operation, counts=dict(commit.counts)
            )
        return self._infos[version]

    def activate(self, version: int) -> SnapshotInfo | Refusal:
        """Commit the content of an earlier version as the newest; nothing changes where it is what is current.

        Raises:
            TableError: the table cannot be read or written, or moved.
            OutputError: the log cannot be read.
        """
        current = self.find()
        if version == current:
            return self.info(version)
        if not 0 <= version < current:
            return _not_found(f"there is no version {version}, the newest is {current}; give an earlier one")
        try:
            old = FactTable.open(self.table_uri, version)
        except TableError:
            if self.find() != current:  # raises where it is the table that cannot be read
                return self.activate(version)
            return _not_found(f"version {version} cannot be read any more; give a later one")
        if self._identity is not None and old.identity.fingerprint != self._identity.fingerprint:
            return Refusal(
                message=f"version {version} was encoded by another editor; give a later one",
                code="snapshot_of_another_editor",
                param="version",
                status=409,
            )
        try:
            return self.info(rollback(self.table_uri, version).version)
        except VersionGoneError:
            return _not_found(f"files of version {version} were removed by a vacuum; give a later one")


def _moved(to: str) -> str:
    return f"the table moved to {to}; deploy again, with the editor of that table"


def _not_found(message: str) -> Refusal:
    return Refusal(message=message, code="snapshot_not_found", param="version", status=404)
