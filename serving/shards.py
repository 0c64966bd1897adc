"""Parts of an index: each holds some shards of a table, follows the writer, and answers for one version at a time."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from recipe_ray.retrieval import NO_FACT, decide
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.live.index import LiveIndex, LiveSettings
from recipe_ray.store.live.view import Hit, View
from recipe_ray.store.table import FactTable
from serving.following import Follower
from serving.messages import StoredFact

WAIT_S = 2.0
"""How long a part waits for a version that it does not hold yet."""

Wanted = Literal["applied", "texts"]
"""What to tell of the facts found: texts and prompts of those above the sentinel, or the texts of all."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHit:
    """A fact that a part found.

    Attributes:
        score: similarity to the query.
        shard, fact_id: which; of equal scores the lower shard comes first, then the lower id.
        fact: its texts, where they were wanted.
        prompt_PD: its continuous prompt, where it is to be applied.
    """

    score: float
    shard: int
    fact_id: str
    fact: StoredFact | None = None
    prompt_PD: npt.NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHits:
    """The best facts of each query, best first, and how many live facts the part holds in all namespaces."""

    hits: tuple[tuple[ShardHit, ...], ...]
    num_facts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """What a part holds of a version."""

    num_facts: dict[str, int]
    index_bytes: int
    committed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Generic[Value]):
    """The answer of a part, all of it from one version.

    Attributes:
        fingerprint: of the editor whose keys it holds.
        version: of the table.
        value: what was asked for.
    """

    fingerprint: str
    version: int
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class NotHere:
    """A part does not hold the version that was asked for: not any more, or not yet."""

    fingerprint: str
    version: int
    held: tuple[int, ...]


class IndexShard:
    """A part of an index, or the whole; belongs to one event loop, on which none of its work is done.

    Args:
        index: the versions that it holds.
        fingerprint: of the editor whose keys these are.
        wait_s: for a version that is not here yet.
    """

    def __init__(self, index: LiveIndex, fingerprint: str, *, wait_s: float = WAIT_S) -> None:
        self._index = index
        self._fingerprint = fingerprint
        self._wait_s = wait_s
        self._moved = asyncio.Event()

    @property
    def version(self) -> int:
        """The newest that is held."""
        return self._index.version

    async def advance(self, version: int) -> None:
        """Hold a later version too.

        Raises:
            TableError: it cannot be read; what is held is served on.
            OutputError: likewise.
        """
        await asyncio.to_thread(self._index.advance, version)
        self._moved.set()
        self._moved = asyncio.Event()

    async def ready(self, version: int) -> "Told[tuple[int, ...]] | NotHere":
        """Wait until this version, or a later one, is held; tells all that are."""
        if not await self._reach(version):
            return self._not_here(version)
        return Told(fingerprint=self._fingerprint, version=self.version, value=self._index.versions)

    async def search(
        self,
        queries_BK: npt.NDArray[np.float32],
        namespaces: Sequence[str],
        top_k: int,
        version: int,
        wanted: Wanted = "applied",
    ) -> "Told[ShardHits] | NotHere":
        """Find the best facts of each query; what is told of them goes along, so that nobody asks twice."""
        view = await self._view(version)
        if view is None:
            return self._not_here(version)
        found = await asyncio.to_thread(_search, view, queries_BK, namespaces, top_k, wanted)
        return Told(fingerprint=self._fingerprint, version=version, value=found)

    async def fact(self, namespace: str, fact_id: str, version: int) -> "Told[StoredFact | None] | NotHere":
        """A live fact by its id."""
        view = await self._view(version)
        if view is None:
            return self._not_here(version)
        found = await asyncio.to_thread(view.fact, namespace, fact_id)
        fact = None if found is None else StoredFact(**found)
        return Told(fingerprint=self._fingerprint, version=version, value=fact)

    async def facts(
        self, namespace: str, after_id: str | None, limit: int, version: int
    ) -> "Told[tuple[StoredFact, ...]] | NotHere":
        """Live facts of a namespace in the order of their ids, behind one."""
        view = await self._view(version)
        if view is None:
            return self._not_here(version)
        found = await asyncio.to_thread(view.facts, namespace, after_id=after_id, limit=limit)
        facts = tuple(StoredFact(**fact) for fact in found)
        return Told(fingerprint=self._fingerprint, version=version, value=facts)

    async def status(self, version: int) -> "Told[ShardStatus] | NotHere":
        """How many facts a version has here, and what they take."""
        view = await self._view(version)
        if view is None:
            return self._not_here(version)
        counts = await asyncio.to_thread(view.counts)
        status = ShardStatus(num_facts=counts, index_bytes=view.index_bytes, committed_at=view.committed_at)
        return Told(fingerprint=self._fingerprint, version=version, value=status)

    async def _view(self, version: int) -> View | None:
        await self._reach(version)
        return self._index.view(version)

    async def _reach(self, version: int) -> bool:
        """Wait until a version, or a later one, is held; false where it does not come in time."""
        try:
            async with asyncio.timeout(self._wait_s):
                while self.version < version:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _not_here(self, version: int) -> NotHere:
        return NotHere(fingerprint=self._fingerprint, version=version, held=self._index.versions)


class IndexShardDeployment:
    """Holds every `num_index_shards`-th shard of a table. Its methods are those of IndexShard, but for `advance`.

    Args:
        table: URI, where it lies.
        fingerprint: of the editor that asks.
        shard: which part, from 0.
        num_index_shards: how many parts there are.
        writer: handle of the writer, which is followed.
        version: serve this one for ever; None for the writer's.
        settings: what to keep.
        wait_s: for a version that is not here yet.

    Raises:
        TableError: the table cannot be read, or another editor encoded it.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        *,
        table: str,
        fingerprint: str,
        shard: int,
        num_index_shards: int,
        writer: Any,
        version: int | None = None,
        settings: LiveSettings | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        first = await writer.current_version.remote() if version is None else version
        index = await asyncio.to_thread(
            _open, table, first, fingerprint, shard=shard, num_index_shards=num_index_shards, settings=settings
        )
        self._shard = IndexShard(index, fingerprint, wait_s=wait_s)
        self._follower = Follower(writer, lambda: self._shard.version, self._shard.advance)
        if version is None:
            self._follower.start()

    async def ready(self, version: int) -> Told[tuple[int, ...]] | NotHere:
        """See IndexShard."""
        return await self._shard.ready(version)

    async def search(
        self,
        queries_BK: npt.NDArray[np.float32],
        namespaces: Sequence[str],
        top_k: int,
        version: int,
        wanted: Wanted = "applied",
    ) -> Told[ShardHits] | NotHere:
        """See IndexShard."""
        return await self._shard.search(queries_BK, namespaces, top_k, version, wanted)

    async def fact(self, namespace: str, fact_id: str, version: int) -> Told[StoredFact | None] | NotHere:
        """See IndexShard."""
        return await self._shard.fact(namespace, fact_id, version)

    async def facts(
        self, namespace: str, after_id: str | None, limit: int, version: int
    ) -> Told[tuple[StoredFact, ...]] | NotHere:
        """See IndexShard."""
        return await self._shard.facts(namespace, after_id, limit, version)

    async def status(self, version: int) -> Told[ShardStatus] | NotHere:
        """See IndexShard."""
        return await self._shard.status(version)

    async def check_health(self) -> None:
        """Called by Serve: fails where the writer is not followed any more."""
        self._follower.check()


def _open(
    table: str, version: int, fingerprint: str, *, shard: int, num_index_shards: int, settings: LiveSettings | None
) -> LiveIndex:
    num_shards = FactTable.open(table, version).num_shards
    shards = range(shard, num_shards, num_index_shards)
    return LiveIndex(table, fingerprint=fingerprint, version=version, shards=shards, settings=settings)


def _search(
    view: View, queries_BK: npt.NDArray[np.float32], namespaces: Sequence[str], top_k: int, wanted: Wanted
) -> ShardHits:
    found = view.search(queries_BK, namespaces, top_k)
    hits = [hit for of_query in found for hit in of_query]
    query_H = np.repeat(np.arange(len(found)), [len(of_query) for of_query in found])
    score_H = np.array([hit.score for hit in hits], np.float32)
    sentinel_B = inner_products(queries_BK, view.identity.sentinel_K)
    row_H = decide(np.arange(len(hits)), score_H, sentinel_B[query_H]).row_B
    told = iter([_told(view, hit, wanted, is_applied=row != NO_FACT) for hit, row in zip(hits, row_H, strict=True)])
    return ShardHits(
        hits=tuple(tuple(itertools.islice(told, len(of_query))) for of_query in found),
        num_facts=sum(view.counts().values()),
    )


def _told(view: View, hit: Hit, wanted: Wanted, *, is_applied: bool) -> ShardHit:
    told: dict[str, Any] = {"score": hit.score, "shard": hit.shard, "fact_id": hit.fact_id}
    if wanted == "texts":
        return ShardHit(**told, fact=StoredFact(**view.fact_of(hit)))
    if is_applied:
        return ShardHit(**told, fact=StoredFact(**view.fact_of(hit)), prompt_PD=view.prompt(hit))
    return ShardHit(**told)
