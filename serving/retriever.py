"""The retriever: encodes queries, searches the keys of one snapshot, lets the sentinel decide."""

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
from ray import serve

from recipe_ray.config import PromptPosition
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.files import localize
from recipe_ray.store.indexes.exact import FactIndex
from recipe_ray.store.snapshot import Snapshot, read_snapshot
from recipe_ray.store.table import FactTable
from serving.messages import Declined, Edit, Finding, Lookup

MAX_BATCH_SIZE = 32  # queries are short, one encoder pass over this many costs little more than one over a few


class QueryEncoder(Protocol):
    """The part of an editor that retrieval needs."""

    def encode_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Queries [B, K]."""


class FactRetriever:
    """Retrieval over one immutable snapshot.

    Args:
        encoder: of the same fingerprint as the snapshot.
        snapshot: live facts with keys and prompts.
        position: where the editor was trained to put continuous prompts.
    """

    def __init__(self, encoder: QueryEncoder, snapshot: Snapshot, position: PromptPosition) -> None:
        facts = snapshot.facts.select(["fact_id", "statement", "source", "namespace"]).combine_chunks()
        self._encoder = encoder
        self._position = position
        self._sentinel_K = snapshot.identity.sentinel_K
        self._index = FactIndex(snapshot.keys_FK, cast("list[str]", facts["namespace"].to_pylist()))
        self._facts = facts.drop_columns(["namespace"])
        self._prompts_FPD = snapshot.prompts_FPD

    def find(self, lookups: Sequence[Lookup]) -> list[Finding]:
        """Decide for each lookup which fact to apply, if any."""
        queries_BK = self._encoder.encode_queries([lookup.query for lookup in lookups])
        namespaces = [lookup.namespace for lookup in lookups]
        found = self._index.retrieve(queries_BK, self._sentinel_K, namespaces)
        return [
            Finding(
                edit=None if row == NO_FACT else self._edit(row),
                declined=self._why_not(namespace) if row == NO_FACT else None,
                score=score if math.isfinite(score) else None,
                sentinel_score=sentinel_score,
            )
            for namespace, row, score, sentinel_score in zip(
                namespaces, found.row_B.tolist(), found.score_B.tolist(), found.sentinel_B.tolist(), strict=True
            )
        ]

    def _edit(self, row: int) -> Edit:
        (fact,) = self._facts.slice(row, 1).to_pylist()
        return Edit(**fact, prompt_PD=self._prompts_FPD[row], position=self._position)

    def _why_not(self, namespace: str) -> Declined:
        if self._index.num_facts == 0:
            return "empty_table"
        return "below_sentinel" if namespace in self._index else "empty_namespace"


class RetrieverDeployment:
    """Holds an editor and a snapshot; batches lookups of concurrent requests."""

    def __init__(self, *, editor: str, table: str, version: int, device: str, batch_wait_s: float) -> None:
        # Here, not above: of the replicas only those that hold a model need to load what reads one.
        from recipe_ray.model.editor import load_editor

        loaded = load_editor(localize(editor), device)
        # A replica may start long after the application was checked, with other weights in the same place.
        FactTable.open(table, version).check_editor(loaded.identity())
        snapshot = read_snapshot(table, version)
        self._retriever = FactRetriever(loaded, snapshot, loaded.config.prompt_position)
        batched = serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=batch_wait_s)
        self._find_batch = batched(self._find_together)

    async def find(self, lookup: Lookup) -> Finding:
        """See `FactRetriever.find`."""
        return await self._find_batch(lookup)

    async def _find_together(self, lookups: list[Lookup]) -> list[Finding]:
        return await asyncio.to_thread(self._retriever.find, lookups)
