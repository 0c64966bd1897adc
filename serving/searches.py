"""Queries encoded and searched for, those of concurrent calls together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.batching import Batcher
from serving.shard_set import ShardLostError, ShardSet, VersionNotHeldError
from serving.shards import ShardHit, Wanted

MAX_BATCH = 32
"""Queries are short: one encoder pass over this many costs little more than one over a few."""
_GATHER_S = 0.004  # under load: encoding eight questions together costs twice what one costs alone
_SEARCHES_AT_ONCE = 4

EncodeQueries = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search.

    Attributes:
        query_K: encoded.
        namespace: whose facts.
        top_k: at most so many.
        version: of the table.
        wanted: what to tell of them.
    """

    query_K: npt.NDArray[np.float32]
    namespace: str
    top_k: int
    version: int
    wanted: Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Facts, best first, and how many live ones there are in all namespaces."""

    hits: tuple[ShardHit, ...]
    num_facts: int


class Searches:
    """Belongs to one event loop, on which none of its work is done.

    Args:
        encode: texts to queries [B, K].
        shards: the index.
    """

    def __init__(self, encode: EncodeQueries, shards: ShardSet) -> None:
        self._encode = encode
        self._shards = shards
        # One thread at a time uses the tokenizer and the encoder; the loop stays free to gather the next batch.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode-queries")
        self._encoding = Batcher(self._encode_batch, max_items=MAX_BATCH, gather_s=_GATHER_S)
        self._searching = Batcher(self._search_batch, max_items=2 * MAX_BATCH, num_at_once=_SEARCHES_AT_ONCE)

    async def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Queries [B, K] of texts, at least one."""
        return np.stack(list(await self._encoding.submit(queries)))

    async def search(self, searches: Sequence[Search]) -> list[Found]:
        """Search; see ShardSet for what it raises."""
        found: list[Found] = []
        for one in await self._searching.submit(searches):
            if isinstance(one, Exception):
                raise one
            found.append(one)
        return found

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)

    async def _encode_batch(self, queries: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        return list(await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, list(queries)))

    async def _search_batch(self, searches: Sequence[Search]) -> list[Found | Exception]:
        """Ask the index once for all searches that want the same of one version."""
        groups: dict[tuple[int, Wanted], list[int]] = {}
        for place, search in enumerate(searches):
            groups.setdefault((search.version, search.wanted), []).append(place)
        answers = await asyncio.gather(
            *(self._search_alike([searches[place] for place in places]) for places in groups.values())
        )
        found: dict[int, Found | Exception] = {}
        for places, answer in zip(groups.values(), answers, strict=True):
            found.update(zip(places, answer, strict=True))
        return [found[place] for place in range(len(searches))]

    async def _search_alike(self, searches: Sequence[Search]) -> Sequence[Found | Exception]:
        try:
            found = await self._shards.search(
                np.stack([search.query_K for search in searches]),
                [search.namespace for search in searches],
                max(search.top_k for search in searches),
                searches[0].version,
                searches[0].wanted,
            )
        except (ShardLostError, VersionNotHeldError) as error:
            return [error] * len(searches)
        return [
            Found(hits=hits[: search.top_k], num_facts=found.num_facts)
            for search, hits in zip(searches, found.hits, strict=True)
        ]
