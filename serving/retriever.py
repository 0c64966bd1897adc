"""The retriever: encodes queries, asks the index for one version, tells which facts to apply."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from recipe_ray.config import EditorIdentity
from recipe_ray.store.files import localize_editor
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.live.index import LiveIndex, LiveSettings
from recipe_ray.store.table import FactTable
from recipe_ray.text import has_visible
from serving import errors
from serving.errors import ApiError
from serving.following import Follower
from serving.messages import (
    AppliedFact,
    Declined,
    FactLookup,
    FactPage,
    Finding,
    Lookup,
    ModelStatus,
    Refusal,
    ScoredFact,
    SearchResult,
)
from serving.searches import Found, Search, Searches
from serving.shard_set import ShardLostError, ShardSet, VersionNotHeldError
from serving.shards import WAIT_S, IndexShard, ShardHit

NUM_HELD = 2
"""Versions that a request may name: the current one and the one before."""
_WRITER_TIMEOUT_S = 60.0  # at the start, when the writer may be starting too

OnLostShard = Literal["fail", "unedited"]
Answer = TypeVar("Answer")


class QueryEncoder(Protocol):
    """The part of an editor that retrieval needs."""

    def encode_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Queries [B, K]."""

    def identity(self) -> EditorIdentity:
        """Who it is, and its sentinel."""


class FactRetriever:
    """Retrieval over an index that follows its table; belongs to one event loop, on which none of its work is done.

    A call is answered from one version, whole. The version is a new one only once every part of the index has it.

    Args:
        encoder: the editor whose keys the index holds.
        shards: the index.
        writer: handle of the writer, which is followed; None where one version is served for ever.
        version: to begin with, which the index holds; None for the writer's, as soon as all parts hold it.
        on_lost_shard: what becomes of a lookup where a part of the index does not answer: it fails (503), or it finds
            nothing and says so.
        wait_s: for a version that is not here yet.
    """

    def __init__(
        self,
        encoder: QueryEncoder,
        shards: ShardSet,
        *,
        writer: Any,
        version: int | None = None,
        on_lost_shard: OnLostShard = "fail",
        wait_s: float = WAIT_S,
    ) -> None:
        self._sentinel_K = encoder.identity().sentinel_K
        self._shards = shards
        self._writable = writer is not None
        self._on_lost_shard = on_lost_shard
        self._wait_s = wait_s
        self._versions = deque(() if version is None else (version,), maxlen=NUM_HELD)
        self._switched = asyncio.Event()
        self._searches = Searches(encoder.encode_queries, shards)
        self._follower = Follower(writer, lambda: self._version, self._take_up)

    async def find(self, lookups: Sequence[Lookup]) -> list[Finding | Refusal]:
        """Decide for each lookup which facts to apply, if any; see `serving.backend.Backend`.

        Raises:
            ApiError: 503, a part of the index does not answer, or none of it is there yet.
        """
        await self._begin()
        late = await self._late([lookup.min_snapshot or 0 for lookup in lookups])
        answers: dict[int, Finding | Refusal] = dict(late)
        for number, lookup in enumerate(lookups):
            if number not in late and not has_visible(lookup.query):
                answers[number] = self._nothing_asked(lookup)
        asked = [number for number in range(len(lookups)) if number not in answers]
        if asked:
            answers.update(zip(asked, await self._find([lookups[number] for number in asked]), strict=True))
        return [answers[number] for number in range(len(lookups))]

    async def search(self, query: str, namespace: str, *, limit: int) -> SearchResult:
        """Facts of a namespace nearest to a query, applied or not.

        Raises:
            ApiError: 503, a part of the index does not answer, or none of it is there yet.
        """
        await self._begin()
        (query_K,) = await self._searches.encode([query])

        async def ask(version: int) -> SearchResult:
            search = Search(query_K=query_K, namespace=namespace, top_k=limit, version=version, wanted="texts")
            (found,) = await self._searches.search([search])
            facts = [ScoredFact(fact=hit.fact, score=hit.score) for hit in found.hits if hit.fact is not None]
            return SearchResult(
                snapshot=version, facts=tuple(facts), sentinel_score=float(inner_products(query_K, self._sentinel_K))
            )

        return await self._from_current(ask)

    async def fact(self, namespace: str, fact_id: str, *, min_snapshot: int | None = None) -> FactLookup:
        """One fact.

        Raises:
            ApiError: 503, a part of the index does not answer, or `min_snapshot` does not come in time.
        """
        await self._begin()
        for refusal in (await self._late([min_snapshot or 0], param="min_snapshot")).values():
            raise errors.refused(refusal)

        async def ask(version: int) -> FactLookup:
            return FactLookup(snapshot=version, fact=await self._shards.fact(namespace, fact_id, version))

        return await self._from_current(ask)

    async def facts(self, namespace: str, *, after_id: str | None, limit: int) -> FactPage:
        """Live facts of a namespace in the order of their ids, behind `after_id`.

        Raises:
            ApiError: 503, a part of the index does not answer.
        """
        await self._begin()

        async def ask(version: int) -> FactPage:
            found = await self._shards.facts(namespace, after_id=after_id, limit=limit + 1, version=version)
            facts = found[:limit]
            return FactPage(snapshot=version, facts=facts, next_id=facts[-1].fact_id if len(found) > limit else None)

        return await self._from_current(ask)

    async def status(self) -> ModelStatus:
        """How the facts stand.

        Raises:
            ApiError: 503, a part of the index does not answer.
        """
        await self._begin()

        async def ask(version: int) -> ModelStatus:
            status = await self._shards.status(version)
            return ModelStatus(
                snapshot=version,
                committed_at=status.committed_at,
                num_facts=status.num_facts,
                index_bytes=status.index_bytes,
                writable=self._writable,
            )

        return await self._from_current(ask)

    async def check_health(self) -> None:
        """Follow the writer, before the first call too; raise where it is not followed any more."""
        if self._writable:
            self._follower.start()
        self._follower.check()

    async def close(self) -> None:
        """Stop following."""
        await self._follower.stop()
        self._searches.close()

    @property
    def _version(self) -> int:
        return self._versions[-1] if self._versions else -1

    async def _begin(self) -> None:
        """Follow the writer from the first call on; wait for the first version.

        Raises:
            ApiError: 503, it does not come.
        """
        await self.check_health()
        if not self._versions and not await self._reach(0):
            raise errors.unavailable()

    async def _take_up(self, version: int) -> None:
        """Switch to a version, or to a later one, once all parts hold it.

        Raises:
            RecipeError: it cannot be read.
            ApiError: 503, a part does not answer, or they have no later version in common yet.
        """
        try:
            common = await self._shards.ready(version)
        except (ShardLostError, VersionNotHeldError) as error:
            raise errors.unavailable() from error
        if common is None or common < version:
            raise errors.unavailable()
        if common > self._version:
            self._versions.append(common)
            self._switched.set()
            self._switched = asyncio.Event()

    async def _reach(self, version: int) -> bool:
        """Wait for a version, or a later one; false where it does not come in time."""
        if self._version >= version:
            return True
        try:
            async with asyncio.timeout(self._wait_s):
                while self._version < version:
                    await self._switched.wait()
        except TimeoutError:
            return False
        return True

    async def _late(self, min_snapshots: Sequence[int], *, param: str = "recipe.min_snapshot") -> dict[int, Refusal]:
        """Wait for the versions that are wanted at least; by place, those that do not come in time."""
        if await self._reach(max(min_snapshots, default=0)):
            return {}
        return {
            place: Refusal(
                message=f"snapshot {wanted} is not there yet, only {self._version}; try again, or leave it out",
                code="snapshot_not_yet",
                param=param,
                status=503,
            )
            for place, wanted in enumerate(min_snapshots)
            if wanted > self._version
        }

    async def _find(self, lookups: Sequence[Lookup]) -> list[Finding | Refusal]:
        queries_BK = await self._searches.encode([lookup.query for lookup in lookups])
        sentinel_scores: list[float] = inner_products(queries_BK, self._sentinel_K).tolist()
        wanted = next((lookup.snapshot for lookup in lookups if lookup.snapshot is not None), None)
        among = [place for place, lookup in enumerate(lookups) if lookup.snapshot in (None, wanted)]

        async def ask(version: int) -> list[Finding | Refusal]:
            searches = [
                Search(
                    query_K=queries_BK[place],
                    namespace=lookups[place].namespace,
                    top_k=lookups[place].top_k,
                    version=version,
                    wanted="applied",
                )
                for place in among
            ]
            found = await self._searches.search(searches)
            return [
                _finding(version, sentinel_scores[place], of_one) for place, of_one in zip(among, found, strict=True)
            ]

        try:
            findings = await (self._from_current(ask) if wanted is None else self._from(wanted, ask))
        except ApiError:
            if self._on_lost_shard == "fail":
                raise
            version = self._version if wanted is None else wanted
            findings = [_lost(version, sentinel_scores[place]) for place in among]
        except VersionNotHeldError:
            findings = [self._not_held(wanted)] * len(among)
        answers = dict(zip(among, findings, strict=True))
        return [answers.get(place) or _of_two_versions(wanted) for place in range(len(lookups))]

    async def _from(self, version: int, ask: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Ask for a version that the request names.

        Raises:
            VersionNotHeldError: it is not held.
            ApiError: 503, a part does not answer.
        """
        if version not in self._versions:
            raise VersionNotHeldError(f"{version} is not held")
        try:
            return await ask(version)
        except ShardLostError as error:
            raise errors.unavailable() from error

    async def _from_current(self, ask: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Ask for the current version; where the parts have moved on just now, for the one that they moved to.

        Raises:
            ApiError: 503, a part does not answer, or they have no version in common.
        """
        try:
            try:
                return await ask(self._version)
            except VersionNotHeldError:
                await self._take_up(self._version)
                return await ask(self._version)
        except (ShardLostError, VersionNotHeldError) as error:
            raise errors.unavailable() from error

    def _nothing_asked(self, lookup: Lookup) -> Finding | Refusal:
        version = self._version if lookup.snapshot is None else lookup.snapshot
        if version not in self._versions:
            return self._not_held(version)
        return Finding(snapshot=version, facts=(), declined="no_query", score=None, sentinel_score=None)

    def _not_held(self, version: int | None) -> Refusal:
        held = " and ".join(map(str, sorted(self._versions)))
        return Refusal(
            message=f"snapshot {version} is not held here, only {held}; give one of these, or none",
            code="snapshot_not_found",
            param="recipe.snapshot",
            status=404,
        )


class Retriever(FactRetriever):
    """A FactRetriever of an editor and a table that lie somewhere.

    Args:
        editor: directory of the trained editor.
        table: URI, where it lies.
        writer: handle of the writer, which is followed.
        shards: handles of the parts of the index, in their order; none keeps the whole index here.
        on_lost_shard: see FactRetriever.
        timeout_s: after which a part counts as lost.
        version: serve this one for ever; None for the writer's.
        device: where queries are encoded.
        settings: what an index here keeps.

    Raises:
        EditorError: there is no editor, or it is damaged.
        TableError: the table cannot be read, or another editor encoded it.
    """

    def __init__(
        self,
        *,
        editor: str,
        table: str,
        writer: Any,
        shards: Sequence[Any] = (),
        on_lost_shard: OnLostShard = "fail",
        timeout_s: float = 5.0,
        version: int | None = None,
        device: str = "cpu",
        settings: LiveSettings | None = None,
    ) -> None:
        # Here, not above: of the replicas only those that hold a model need to load what reads one.
        from recipe_ray.model.editor import load_editor

        loaded = load_editor(localize_editor(editor), device)
        identity = loaded.identity()
        # A replica may start long after the application was checked, with other weights in the same place.
        opened = FactTable.open(table, version, moved=False)
        opened.check_editor(identity)
        parts, first = shards, version
        if not parts:
            first = _current_version(writer) if version is None else version
            index = LiveIndex(table, fingerprint=identity.fingerprint, version=first, settings=settings)
            parts = [IndexShard(index, identity.fingerprint)]
        super().__init__(
            loaded,
            ShardSet(parts, fingerprint=identity.fingerprint, num_shards=opened.num_shards, timeout_s=timeout_s),
            writer=writer if version is None else None,
            version=first,
            on_lost_shard=on_lost_shard,
        )


class RetrieverDeployment(Retriever):
    """A Retriever in a process of its own; see there."""


def _current_version(writer: Any) -> int:
    """Ask the writer from a constructor, which may run on an event loop, where its handle refuses to be waited for."""
    answers: list[int] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(writer.current_version.remote().result(timeout_s=_WRITER_TIMEOUT_S))
        except Exception as error:  # noqa: BLE001  raised below, where the constructor is
            failures.append(error)

    thread = threading.Thread(target=ask, name="ask-writer")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return answers[0]


def _finding(version: int, sentinel_score: float, found: Found) -> Finding:
    facts = tuple(_applied(hit) for hit in found.hits if hit.fact is not None)
    return Finding(
        snapshot=version,
        facts=facts,
        declined=None if facts else _why_not(found),
        score=found.hits[0].score if found.hits else None,
        sentinel_score=sentinel_score,
    )


def _applied(hit: ShardHit) -> AppliedFact:
    assert hit.fact is not None and hit.prompt_PD is not None, hit.fact_id
    return AppliedFact(
        fact_id=hit.fact_id,
        statement=hit.fact.statement,
        source=hit.fact.source,
        score=hit.score,
        prompt_PD=hit.prompt_PD,
    )


def _why_not(found: Found) -> Declined:
    if not found.num_facts:
        return "empty_table"
    return "below_sentinel" if found.hits else "empty_namespace"


def _lost(version: int, sentinel_score: float) -> Finding:
    return Finding(snapshot=version, facts=(), declined="shard_lost", score=None, sentinel_score=sentinel_score)


def _of_two_versions(version: int | None) -> Refusal:
    return Refusal(
        message=f"lookups of one call are answered from one snapshot, here {version}; ask for the others alone",
        code="snapshot_conflict",
        param="recipe.snapshot",
    )
