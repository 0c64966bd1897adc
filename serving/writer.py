"""The writer: the one part that commits to a table of facts, and says which version is current."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from recipe_ray.facts import Fact
from recipe_ray.store.files import localize_editor
from recipe_ray.store.probe import check_conditional_writes
from serving.group_writer import MERGE_EVERY, POLL_S, Writer, WriterOptions
from serving.messages import Refusal, SnapshotInfo, WriteResult
from serving.versions import Versions

_READ_ONLY = Refusal(
    message="this model serves one version of its facts, which cannot be changed; ask a model without a fixed snapshot",
    code="read_only",
    status=409,
)


class FactWriter(Protocol):
    """What the other parts ask of a writer."""

    async def write(self, facts: Sequence[Fact]) -> WriteResult | Refusal:
        """Put or delete facts; answers once all of them are durable, or none is written."""

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """Make the content of an earlier version current, as a new version."""

    async def current_version(self) -> int:
        """The version to serve."""

    async def wait_for(self, after_version: int, timeout_s: float = 10.0) -> int:
        """The current version, as soon as it is later than this one; after the timeout whichever it is."""

    async def snapshots(self, limit: int) -> list[SnapshotInfo]:
        """The newest versions up to the current one, newest first."""

    async def check_health(self) -> None:
        """Raise what keeps it from its work."""

    async def close(self) -> None:
        """Finish what waits, and stop."""


class PinnedWriter:
    """A writer that writes nothing: one version, for ever. See FactWriter.

    Raises:
        TableError: there is no such version.
    """

    def __init__(self, table: str, version: int) -> None:
        self._versions = Versions(table, None)
        self._version = self._versions.find(version)

    async def write(self, facts: Sequence[Fact]) -> WriteResult | Refusal:
        """Refuse."""
        return _READ_ONLY

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """Refuse."""
        return _READ_ONLY

    async def current_version(self) -> int:
        """See FactWriter."""
        return self._version

    async def wait_for(self, after_version: int, timeout_s: float = 10.0) -> int:
        """See FactWriter."""
        if self._version <= after_version:
            await asyncio.sleep(timeout_s)
        return self._version

    async def snapshots(self, limit: int) -> list[SnapshotInfo]:
        """See FactWriter."""
        return await asyncio.to_thread(self._versions.newest, limit, until=self._version)

    async def check_health(self) -> None:
        """See FactWriter."""

    async def close(self) -> None:
        """See FactWriter."""


class WriterDeployment:
    """Holds the editor and the writer of a model; one replica. Its methods are those of FactWriter.

    Every write in work is a request in work, so a replica that is stopped finishes its groups first.

    Args:
        table: URI, where it lies.
        editor: the directory of the table's editor.
        llm: whose embeddings statements are read with, where the editor makes prompts of statements; None for the one
            it was trained for.
        safetensors_only: refuse weights of it in other formats, which are pickles.
        version: serve this one for ever; None for the newest.
        device: where facts are encoded.
        poll_s, merge_every: see WriterOptions.
    """

    def __init__(
        self,
        *,
        table: str,
        editor: str,
        llm: str | None = None,
        safetensors_only: bool = True,
        version: int | None = None,
        device: str = "cpu",
        poll_s: float = POLL_S,
        merge_every: int | None = MERGE_EVERY,
    ) -> None:
        if version is not None:
            self._writer: FactWriter = PinnedWriter(table, version)
            return
        # Here, not above: a writer of a fixed version needs nothing of what loads a model.
        from recipe_ray.model.editor import load_editor
        from recipe_ray.model.embedding import load_embedding
        from recipe_ray.model.prompt_encoder import StatementReader

        loaded = load_editor(localize_editor(editor), device)
        if loaded.config.prompt_source == "statement":  # now, so that the first write does not wait for it
            embedding = load_embedding(llm or loaded.config.llm, safetensors_only=safetensors_only)
            loaded.read_with(StatementReader(*embedding))
        options = WriterOptions(poll_s=poll_s, merge_every=merge_every)
        self._writer = Writer(table, identity=loaded.identity(), encode=loaded.encode_facts, options=options)
        check_conditional_writes(table)

    async def write(self, facts: Sequence[Fact]) -> WriteResult | Refusal:
        """See FactWriter."""
        return await self._writer.write(facts)

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """See FactWriter."""
        return await self._writer.activate(version)

    async def current_version(self) -> int:
        """See FactWriter."""
        return await self._writer.current_version()

    async def wait_for(self, after_version: int, timeout_s: float = 10.0) -> int:
        """See FactWriter."""
        return await self._writer.wait_for(after_version, timeout_s)

    async def snapshots(self, limit: int) -> list[SnapshotInfo]:
        """See FactWriter."""
        return await self._writer.snapshots(limit)

    async def check_health(self) -> None:
        """Called by Serve; see FactWriter."""
        await self._writer.check_health()
