"""What the HTTP interface asks of the parts behind it; knows nothing of Ray or torch."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from serving.messages import (
    Chunk,
    Completion,
    FactLookup,
    FactPage,
    Finding,
    GenerationRequest,
    Lookup,
    ModelStatus,
    Refusal,
    SearchResult,
    SnapshotInfo,
    Write,
    WriteResult,
)


class Backend(Protocol):
    """One model: its retriever, its engine, its table. Every method raises ApiError where a part cannot answer.

    A refusal is the request's fault: the HTTP interface answers it as it says.
    """

    async def find(self, lookups: Sequence[Lookup]) -> list[Finding | Refusal]:
        """Which facts to apply to each query; all findings are of one snapshot."""

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion | Refusal]:
        """Complete each prompt."""

    def stream(self, request: GenerationRequest) -> AsyncIterator[Chunk | Refusal]:
        """Complete a prompt piece by piece; closing the iterator stops the engine's work on it."""

    async def write(self, facts: Write) -> WriteResult | Refusal:
        """Put or delete facts, durably."""

    async def fact(self, namespace: str, fact_id: str, *, min_snapshot: int | None = None) -> FactLookup:
        """One fact."""

    async def facts(self, namespace: str, *, after_id: str | None, limit: int) -> FactPage:
        """Live facts of a namespace in the order of their ids, behind `after_id`."""

    async def search(self, query: str, namespace: str, *, limit: int) -> SearchResult:
        """Facts of a namespace nearest to a query."""

    async def snapshots(self, *, limit: int) -> list[SnapshotInfo]:
        """The newest versions, newest first."""

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """Make the content of an earlier version current, as a new version (a rollback, which can be undone)."""

    async def status(self) -> ModelStatus:
        """How the facts stand."""
