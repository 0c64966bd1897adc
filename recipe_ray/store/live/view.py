"""One version of a table, or of some shards of it: immutable, searched, listed.

Shapes: B queries, K key width, P virtual tokens, D LLM width.
"""

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.indexes.artefacts import OpenPart, ShardedIndex
from recipe_ray.store.live.layers import Layer, Layers, memory_part, prompt_of
from recipe_ray.store.live.ledger import (
    Key,
    Ledger,
    StoredFacts,
    changed_ids,
    partitions_by_key,
    read_facts,
)
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.schema import FACT_COLUMNS, microseconds, shard_of
from recipe_ray.store.snapshot import read_partition
from recipe_ray.store.table import FactTable, Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fact that a search found.

    Attributes:
        score: similarity to the query, exact.
        shard: of the table.
        fact_id: its id.
        part, row: where it lies.
    """

    score: float
    shard: int
    fact_id: str
    part: OpenPart
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The live facts of one version.

    Attributes:
        uri: of the table, absolute.
        version: of the table.
        committed_at: when it was committed, UTC; of a version that the log was cut off after, when its last event was
            ingested.
        identity: the editor that encoded it.
        num_shards: of the table, all of them.
        partitions: the data files, by namespace and shard.
        parts: the facts, likewise; a partition without any may be missing.
        base_version: of the index artefact that lies below; None where all was read from the table.
    """

    uri: str
    version: int
    committed_at: datetime
    identity: EditorIdentity
    num_shards: int
    partitions: Mapping[Key, Partition]
    parts: Mapping[Key, Layers]
    base_version: int | None

    @property
    def paths(self) -> frozenset[str]:
        """All data files."""
        return frozenset(path for partition in self.partitions.values() for path in partition.paths)

    @property
    def index_bytes(self) -> int:
        """Of indexes and keys, mapped or in memory."""
        return sum(part.index_bytes for part in self.parts.values())

    def search(
        self,
        queries_BK: npt.NDArray[np.float32],
        namespaces: Sequence[str],
        top_k: int,
        *,
        at: datetime | None = None,
    ) -> list[list[Hit]]:
        """Find the best facts of each query within the query's namespace.

        The scores are exact, the same alone and in a batch, and so is the order: of equal scores the lower shard comes
        first, then the lower id, wherever the facts lie.

        Args:
            queries_BK: float32.
            namespaces: of each query.
            top_k: facts for each query, at most.
            at: the time of asking, not before the view was made; None for now. What has expired is not found.
        """
        assert queries_BK.shape == (len(namespaces), self.identity.key_width), (queries_BK.shape, len(namespaces))
        now_us = microseconds(at or datetime.now(UTC))
        found: list[list[tuple[float, OpenPart, Layer, int]]] = [[] for _ in namespaces]
        of_query = np.asarray(namespaces, dtype=object)
        for key in sorted(self.parts):
            among = np.flatnonzero(of_query == key[0])
            if not len(among):
                continue
            for layer in self.parts[key].layers:
                rows_BN, scores_BN = layer.search(queries_BK[among], top_k, now_us)
                for query, rows, scores in zip(among.tolist(), rows_BN.tolist(), scores_BN.tolist(), strict=True):
                    found[query] += [
                        (score, layer.part, layer, row) for row, score in zip(rows, scores, strict=True) if row >= 0
                    ]
        return [_best(of_one, top_k) for of_one in found]

    def fact_of(self, hit: Hit) -> dict[str, Any]:
        """FACT_COLUMNS of a hit."""
        return _texts(hit.part, hit.row)

    def prompt(self, hit: Hit) -> npt.NDArray[Any]:
        """The continuous prompt of a hit, [P, D], read-only and as stored."""
        return prompt_of(hit.part, hit.row, (self.identity.num_virtual_tokens, self.identity.llm_width))

    def fact(self, namespace: str, fact_id: str, *, at: datetime | None = None) -> dict[str, Any] | None:
        """FACT_COLUMNS of a live fact; None where there is none (or its shard is not of this view)."""
        part = self.parts.get((namespace, shard_of(fact_id, self.num_shards)))
        now = at or datetime.now(UTC)
        for layer in part.layers if part is not None else ():
            row = layer.find(fact_id)
            if row is not None:
                fact = _texts(layer.part, row)
                return fact if fact["expires_at"] is None or fact["expires_at"] > now else None
        return None

    def facts(
        self, namespace: str, *, after_id: str | None = None, limit: int, at: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Live facts of a namespace in the order of their ids, behind `after_id`: FACT_COLUMNS of `limit` at most."""
        now_us = microseconds(at or datetime.now(UTC))
        layers = [layer for (of_part, _), part in self.parts.items() if of_part == namespace for layer in part.layers]
        listed = heapq.merge(*(_listed(layer, after_id, now_us) for layer in layers), key=lambda entry: entry[0])
        return [_texts(layer.part, row) for (_, layer, row), _ in zip(listed, range(limit), strict=False)]

    def counts(self, *, at: datetime | None = None) -> dict[str, int]:
        """Live facts by namespace; a namespace without any is left out."""
        now_us = microseconds(at or datetime.now(UTC))
        counts: dict[str, int] = {}
        for (namespace, _), part in sorted(self.parts.items()):
            num_facts = sum(layer.num_visible(now_us) for layer in part.layers)
            if num_facts:
                counts[namespace] = counts.get(namespace, 0) + num_facts
        return counts


def read_view(table: FactTable, ledger: Ledger, *, shards: Collection[int] | None, at: datetime) -> View:
    """Read a version into memory, searched exactly.

    Args:
        table: at the version.
        ledger: of the table.
        shards: partitions of these shards alone; None for all.
        at: facts that have expired by then are left out.

    Raises:
        TableError: a file is missing or damaged.
    """
    parts = {}
    partitions = partitions_by_key(table, shards)
    for key, partition in partitions.items():
        read = read_partition(table, partition, at=at)
        if len(read.facts):
            stored = StoredFacts(
                texts=read.facts, keys_FK=read.keys_FK, prompts_FW=read.prompts_FPD.reshape(len(read.facts), -1)
            )
            parts[key] = Layers(layers=(Layer(memory_part(*key, stored)),))
    return _view(table, ledger, partitions, parts, base_version=None)


def mapped_view(table: FactTable, ledger: Ledger, index: ShardedIndex, *, shards: Collection[int] | None) -> View:
    """The version that an index was made of.

    Args:
        table: at that version.
        ledger: of the table.
        index: opened for these shards.
        shards: see `read_view`.

    Raises:
        TableError: a file is missing or damaged.
    """
    parts = {(part.namespace, part.shard): Layers(layers=(Layer(part),)) for part in index.parts}
    return _view(table, ledger, partitions_by_key(table, shards), parts, base_version=index.manifest.version)


def advanced(view: View, table: FactTable, ledger: Ledger, *, shards: Collection[int] | None, at: datetime) -> View:
    """Another version, made of a view by what changed between the two; the view itself stays as it is.

    Only the partitions whose files differ are looked at. A later version usually; an earlier one is as good.

    Args:
        view: of the same shards.
        table: at the version that is wanted.
        ledger: of the table; reads what it does not know yet.
        shards: see `read_view`.
        at: the time; facts that have expired by then are left out of what is new.

    Raises:
        TableError: a file is missing or damaged.
    """
    now_us = microseconds(at)
    partitions = partitions_by_key(table, shards)
    parts = dict(view.parts)
    for key in sorted(view.partitions.keys() | partitions.keys()):
        before, after = view.partitions.get(key), partitions.get(key)
        if before == after:
            continue
        fact_ids = changed_ids(ledger, before, after)
        if not len(fact_ids):
            continue
        new = None
        if after is not None:
            decided = ledger.decide(after, fact_ids)
            live = decided.live(now_us)
            new = memory_part(*key, read_facts(table, decided, live)) if len(live) else None
        if key in parts:
            parts[key] = parts[key].changed(fact_ids, new, now_us)
        elif new is not None:
            parts[key] = Layers(layers=(Layer(new),))
    return _view(table, ledger, partitions, parts, base_version=view.base_version)


def with_parts(view: View, parts: Mapping[Key, Layers]) -> View:
    """The same version, some of its partitions held in another way."""
    return replace(view, parts={**view.parts, **parts})


def _view(
    table: FactTable,
    ledger: Ledger,
    partitions: Mapping[Key, Partition],
    parts: Mapping[Key, Layers],
    *,
    base_version: int | None,
) -> View:
    paths = [path for partition in partitions.values() for path in partition.paths]
    ledger.load(paths)
    return View(
        uri=table.uri,
        version=table.version,
        committed_at=_committed_at(table, ledger, paths),
        identity=table.identity,
        num_shards=table.num_shards,
        partitions=partitions,
        parts=parts,
        base_version=base_version,
    )


def _committed_at(table: FactTable, ledger: Ledger, paths: Sequence[str]) -> datetime:
    try:
        return commit_of(table.uri, table.version).at
    except TableError:  # the log was cut off after it
        return ledger.newest(paths) or datetime.fromtimestamp(0, tz=UTC)


def _best(found: list[tuple[float, OpenPart, Layer, int]], top_k: int) -> list[Hit]:
    """The best of what the layers found, each of which told its own best."""
    if len(found) > top_k:
        least = sorted((score for score, *_ in found), reverse=True)[top_k - 1]
        found = [entry for entry in found if entry[0] >= least]  # ids are read of these alone
    hits = [
        Hit(score=score, shard=part.shard, fact_id=layer.fact_id(row), part=part, row=row)
        for score, part, layer, row in found
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.shard, hit.fact_id))[:top_k]


def _listed(layer: Layer, after_id: str | None, now_us: int) -> Iterator[tuple[str, Layer, int]]:
    # No id is lower than its own extension by the lowest character, nor is there one between the two.
    first = 0 if after_id is None else layer.first_row(after_id + "\0")
    for row in layer.rows_from(first, now_us):
        yield layer.fact_id(row), layer, row


def _texts(part: OpenPart, row: int) -> dict[str, Any]:
    texts: dict[str, Any] = part.facts.select(FACT_COLUMNS).slice(row, 1).to_pylist()[0]
    return texts
