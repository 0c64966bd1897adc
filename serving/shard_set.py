"""All parts of an index asked as one: whole answers of one version, or none."""

import asyncio
import heapq
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.exceptions import RayActorError

from recipe_ray.store.schema import shard_of
from serving.following import PART_FAILURES
from serving.messages import StoredFact
from serving.shards import IndexShard, NotHere, ShardHit, ShardHits, ShardStatus, Told, Wanted

logger = logging.getLogger("ray.serve")


class ShardLostError(Exception):
    """A part does not answer, is late, or holds the keys of another editor."""


class VersionNotHeldError(Exception):
    """A part does not hold the version that was asked for, any more or yet."""


class ShardSet:
    """The parts of an index, each here or behind a handle.

    Every method raises ShardLostError where a part does not answer, and VersionNotHeldError where one does not hold the
    version.

    Args:
        parts: in the order of their numbers: IndexShard, or handles of IndexShardDeployment.
        fingerprint: of the editor that asks; an answer about another's keys does not count.
        num_shards: of the table.
        timeout_s: after which a part counts as lost.
    """

    def __init__(self, parts: Sequence[Any], *, fingerprint: str, num_shards: int, timeout_s: float) -> None:
        assert parts
        self._parts = tuple(parts)
        self._fingerprint = fingerprint
        self._num_shards = num_shards
        self._timeout_s = timeout_s

    async def ready(self, version: int) -> int | None:
        """Wait for a version; the newest that all parts hold by then, None where there is none.

        Parts that are here are moved on to it: those behind handles follow the writer themselves.

        Raises:
            RecipeError: it cannot be read here.
        """
        for part in self._parts:
            if isinstance(part, IndexShard):
                await part.advance(version)
        held = await self._ask_all("ready", version)
        return max(set[int].intersection(*(set(versions) for versions in held)), default=None)

    async def search(
        self,
        queries_BK: npt.NDArray[np.float32],
        namespaces: Sequence[str],
        top_k: int,
        version: int,
        wanted: Wanted = "applied",
    ) -> ShardHits:
        """See `IndexShard.search`."""
        found: list[ShardHits] = await self._ask_all("search", queries_BK, namespaces, top_k, version, wanted)
        if len(found) == 1:
            return found[0]
        return ShardHits(
            hits=tuple(_best(of_query, top_k) for of_query in zip(*(part.hits for part in found), strict=True)),
            num_facts=sum(part.num_facts for part in found),
        )

    async def fact(self, namespace: str, fact_id: str, version: int) -> StoredFact | None:
        """See `IndexShard.fact`; asks the part that would hold it."""
        number = shard_of(fact_id, self._num_shards) % len(self._parts)
        fact: StoredFact | None = await self._ask(number, "fact", namespace, fact_id, version)
        return fact

    async def facts(self, namespace: str, *, after_id: str | None, limit: int, version: int) -> tuple[StoredFact, ...]:
        """See `IndexShard.facts`."""
        found: list[tuple[StoredFact, ...]] = await self._ask_all("facts", namespace, after_id, limit, version)
        return tuple(heapq.merge(*found, key=lambda fact: fact.fact_id))[:limit]

    async def status(self, version: int) -> ShardStatus:
        """See `IndexShard.status`."""
        found: list[ShardStatus] = await self._ask_all("status", version)
        num_facts: dict[str, int] = {}
        for part in found:
            for namespace, count in part.num_facts.items():
                num_facts[namespace] = num_facts.get(namespace, 0) + count
        return ShardStatus(
            num_facts=dict(sorted(num_facts.items())),
            index_bytes=sum(part.index_bytes for part in found),
            committed_at=max(part.committed_at for part in found),
        )

    async def _ask_all(self, method: str, *values: Any) -> list[Any]:
        asked = [asyncio.ensure_future(self._ask(number, method, *values)) for number in range(len(self._parts))]
        try:
            return await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()  # where one failed, the others are of no use

    async def _ask(self, number: int, method: str, *values: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer: Told[Any] | NotHere = await self._call(number, method, *values)
        except PART_FAILURES as error:
            logger.warning("part %d of the index does not answer: %s", number, type(error).__name__)
            raise ShardLostError(f"part {number} of the index does not answer") from error
        if answer.fingerprint != self._fingerprint:
            logger.warning(
                "part %d of the index holds keys of the editor with fingerprint %s, the one that asks has %s",
                number,
                answer.fingerprint,
                self._fingerprint,
            )
            raise ShardLostError(f"part {number} of the index is of another editor")
        if isinstance(answer, NotHere):
            raise VersionNotHeldError(f"part {number} of the index holds {answer.held}, not {answer.version}")
        return answer.value

    async def _call(self, number: int, method: str, *values: Any) -> Any:
        part = self._parts[number]
        if isinstance(part, IndexShard):
            return await getattr(part, method)(*values)
        try:
            return await getattr(part, method).remote(*values)
        except RayActorError:
            # A replica went with the request in hand. All of these only read: another one is asked, once.
            return await getattr(part, method).remote(*values)


def _best(found: Sequence[Sequence[ShardHit]], top_k: int) -> tuple[ShardHit, ...]:
    hits = [hit for of_part in found for hit in of_part]
    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.shard, hit.fact_id))[:top_k])
