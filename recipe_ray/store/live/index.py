"""The live index: the versions of a table that a server answers from, followed as they come."""

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from recipe_ray.errors import ConfigError, OutputError, RecipeError, TableError
from recipe_ray.store.indexes.artefacts import latest_index, open_index
from recipe_ray.store.indexes.exact import load_faiss
from recipe_ray.store.live.ledger import Key, Ledger
from recipe_ray.store.live.view import View, advanced, mapped_view, read_view, with_parts
from recipe_ray.store.schema import microseconds
from recipe_ray.store.table import FactTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """What a live index keeps.

    Attributes:
        num_views: last versions that are always held.
        linger_s: how long an older one is held after another took its place: parts of an index do not move at the same
            moment, and whoever asks them all needs a version that all hold.
        max_views: held at most, lingering ones too.
        fold_facts, fold_share: changes since the base of a partition beyond which it gets a new one: the more of that
            many facts and this share of the base.
    """

    num_views: int = 2
    linger_s: float = 30.0
    max_views: int = 32
    fold_facts: int = 1024
    fold_share: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.num_views <= self.max_views:
            raise ConfigError(
                f"num_views is {self.num_views} and max_views {self.max_views}; give at least 1, and no more views "
                "than may be held"
            )


@dataclass(frozen=True, slots=True)
class _Held:
    view: View
    since: float  # on the monotonic clock


class LiveIndex:
    """Holds the last versions of a table, or of some shards of it; safe for several threads.

    A version is served from the newest index artefact that is not later, with what came since in layers above; without
    one it is read from the table and searched exactly. A new version is made beside the old ones and takes their place
    whole. Where too much lies above a base, a thread makes a new one, of a newer artefact or in memory; a base that is
    searched approximately waits for an artefact, since in memory it would be scanned.

    Args:
        uri: of the table.
        fingerprint: of the editor that will ask.
        version: to begin with; None for the newest.
        shards: partitions of these shards of the table alone; None for all.
        settings: what to keep.

    Raises:
        TableError: there is no such table or version, it is damaged, or another editor encoded it.
        OutputError: the place cannot be read.
        ServiceError: FAISS is not installed.
    """

    def __init__(
        self,
        uri: str,
        *,
        fingerprint: str,
        version: int | None = None,
        shards: Collection[int] | None = None,
        settings: LiveSettings | None = None,
    ) -> None:
        load_faiss()
        self._settings = settings or LiveSettings()
        self._fingerprint = fingerprint
        self._shards = None if shards is None else frozenset(shards)
        table = FactTable.open(uri, version)
        self._check_editor(table)
        self.uri = table.uri
        self._ledger = Ledger(table.uri)
        self._advancing = threading.Lock()  # one thread at a time makes a view, or a base
        self._folding: threading.Thread | None = None
        self._looked_at = 0  # how many changes there were when no newer artefact was found
        view = self._from_artefact(table)
        if view is None:
            view = read_view(table, self._ledger, shards=self._shards, at=datetime.now(UTC))
        self._held: tuple[_Held, ...] = (_Held(view, time.monotonic()),)
        self._forget()

    @property
    def version(self) -> int:
        """The newest one that is held."""
        return self._held[-1].view.version

    @property
    def versions(self) -> tuple[int, ...]:
        """All that are held, oldest first."""
        return tuple(held.view.version for held in self._held)

    def view(self, version: int | None = None) -> View | None:
        """A version that is held, the newest if not given; None where it is not held."""
        for held in reversed(self._held):
            if version in (None, held.view.version):
                return held.view
        return None

    def advance(self, version: int) -> View:
        """Hold a later version too and return it; nothing happens where it, or a later one, is held already.

        Raises:
            TableError: the version cannot be read; what was held is served on.
            OutputError: likewise.
        """
        with self._advancing:
            newest = self._held[-1].view
            if version <= newest.version:
                return newest
            try:
                table = FactTable.open(self.uri, version)
                self._check_editor(table)
                view = advanced(newest, table, self._ledger, shards=self._shards, at=datetime.now(UTC))
            except (TableError, OutputError) as error:
                raise type(error)(
                    f"version {version} of the table cannot be served, version {newest.version} goes on: {error}"
                ) from error
            self._held = (*self._held, _Held(view, time.monotonic()))
            self._forget()
        if self._wants_fold(view):
            self._start_folding()
        return view

    def fold(self) -> None:
        """Make new bases where too much lies above the old ones; the newest version tells the same afterwards.

        Raises:
            TableError: an artefact or the table cannot be read; what was held is served on.
            OutputError: likewise.
        """
        self._take_newer_artefact()
        for key in sorted(self._held[-1].view.parts):
            with self._advancing:
                view = self._held[-1].view
                part = view.parts.get(key)
                if part is not None and part.base.is_exact and part.num_above > self._limit(view, key):
                    folded = part.folded(microseconds(datetime.now(UTC)))
                    self._replace_newest(with_parts(view, {key: folded}))

    def settle(self) -> None:
        """Wait for a thread that makes new bases, where there is one."""
        folding = self._folding
        if folding is not None:
            folding.join()

    def _take_newer_artefact(self) -> None:
        view = self._held[-1].view
        num_above = sum(part.num_above for part in view.parts.values())
        waiting = [key for key, part in view.parts.items() if part.num_above > self._limit(view, key)]
        if not waiting or num_above < self._looked_at:
            return
        opened = self._from_artefact(FactTable.open(self.uri, view.version), newer_than=view.base_version)
        if opened is None:
            self._looked_at = num_above + max(1, num_above // 2)
            if any(not view.parts[key].base.is_exact for key in waiting):
                logger.warning(
                    "%s: %d facts changed since the index of version %s, and are scanned; build a new index",
                    self.uri,
                    num_above,
                    view.base_version,
                )
            return
        with self._advancing:
            newest = self._held[-1].view
            if newest.version != opened.version:
                table = FactTable.open(self.uri, newest.version)
                opened = advanced(opened, table, self._ledger, shards=self._shards, at=datetime.now(UTC))
            self._replace_newest(opened)
            self._looked_at = 0

    def _from_artefact(self, table: FactTable, *, newer_than: int | None = None) -> View | None:
        """A version made of the newest artefact that is not later; None where there is none, or it is of no use."""
        uri = latest_index(table.uri, at_most=table.version, fingerprint=self._fingerprint)
        if uri is None:
            return None
        try:
            index = open_index(uri, fingerprint=self._fingerprint, shards=self._shards)
            indexed = index.manifest.version
            if newer_than is not None and indexed <= newer_than:
                return None
            at = datetime.now(UTC)
            with self._advancing:
                base = mapped_view(FactTable.open(table.uri, indexed), self._ledger, index, shards=self._shards)
                if indexed == table.version:
                    return base
                return advanced(base, table, self._ledger, shards=self._shards, at=at)
        except (TableError, OutputError) as error:
            # The table tells the same, only slower; vacuum may have removed what the index was made of.
            logger.warning("%s: the index is passed over: %s", uri, error)
            return None

    def _check_editor(self, table: FactTable) -> None:
        if table.identity.fingerprint != self._fingerprint:
            raise TableError(
                f"{table.uri}: was encoded by the editor with fingerprint {table.identity.fingerprint} "
                f"(for {table.identity.llm}), the one that asks has {self._fingerprint}; use the editor of the table"
            )

    def _forget(self) -> None:
        """Drop views that nobody should need any more, and what only they were made of."""
        now, keep = time.monotonic(), self._settings
        # One is superseded when the next comes.
        ends = [*(held.since for held in self._held[1:]), now]
        recent = [
            held
            for number, (held, end) in enumerate(zip(self._held, ends, strict=True))
            if number >= len(self._held) - keep.num_views or now - end < keep.linger_s
        ]
        self._held = tuple(recent[-keep.max_views :])
        self._ledger.keep(frozenset[str]().union(*(held.view.paths for held in self._held)))

    def _replace_newest(self, view: View) -> None:
        assert view.version == self._held[-1].view.version, (view.version, self._held[-1].view.version)
        self._held = (*self._held[:-1], _Held(view, self._held[-1].since))

    def _limit(self, view: View, key: Key) -> int:
        return max(self._settings.fold_facts, int(self._settings.fold_share * view.parts[key].base.part.num_facts))

    def _wants_fold(self, view: View) -> bool:
        return any(part.num_above > self._limit(view, key) for key, part in view.parts.items())

    def _start_folding(self) -> None:
        if self._folding is None or not self._folding.is_alive():
            self._folding = threading.Thread(target=self._fold_aside, name="live-index-fold", daemon=True)
            self._folding.start()

    def _fold_aside(self) -> None:
        try:
            self.fold()
        except RecipeError as error:  # it is tried again when the next version comes
            logger.warning("%s: no new base could be made: %s", self.uri, error)
