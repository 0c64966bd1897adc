"""The HTTP ingress: joins the HTTP interface to the parts of each model, and names their failures."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from recipe_ray.errors import RecipeError
from serving import errors
from serving.errors import ApiError
from serving.http.access import Access
from serving.http.app import create_http_app
from serving.http.context import Limits, ModelEntry, Service
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
from serving.metrics import RayObserver
from serving.observer import Observer
from serving.retriever import Retriever

logger = logging.getLogger("ray.serve")

_STATUS_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """One model's deployments, as the ingress gets them.

    Attributes:
        retriever: its deployment, or what to make one of within the ingress.
        engine_kind: which engine generates, and so what it cannot do.
        See ModelEntry for the others.
    """

    name: str
    engine_kind: str
    engine: Any
    writer: Any
    retriever: Any
    namespace: str
    query_chars: int


class ServeBackend:
    """`serving.backend.Backend` over the handles of one model, and a retriever here or behind a handle."""

    def __init__(
        self,
        *,
        retriever: Retriever | DeploymentHandle[Any],
        engine: DeploymentHandle[Any],
        writer: DeploymentHandle[Any],
    ) -> None:
        self._retriever = retriever
        self._engine = engine
        self._writer = writer

    async def find(self, lookups: Sequence[Lookup]) -> list[Finding | Refusal]:
        """See `Backend.find`."""
        return await self._retrieve("find", list(lookups))

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion | Refusal]:
        """See `Backend.complete`: a call for each prompt, so that any replica may take it; if one fails, all do."""
        responses = [self._engine.complete.remote(request) for request in requests]
        answered = False
        try:
            with named_failures():
                answers = await asyncio.gather(*responses)
            answered = True
        finally:
            if not answered:  # the client left too
                for response in responses:
                    response.cancel()
        return answers

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Chunk | Refusal]:
        """See `Backend.stream`."""
        response = self._engine.options(stream=True).stream.remote(request)
        ended = False
        try:
            with named_failures():
                async for chunk in response:
                    yield chunk
            ended = True
        finally:
            if not ended:
                response.cancel()

    async def write(self, facts: Write) -> WriteResult | Refusal:
        """See `Backend.write`."""
        return await _answer(self._writer.write.remote(list(facts)))

    async def fact(self, namespace: str, fact_id: str, *, min_snapshot: int | None = None) -> FactLookup:
        """See `Backend.fact`."""
        return await self._retrieve("fact", namespace, fact_id, min_snapshot=min_snapshot)

    async def facts(self, namespace: str, *, after_id: str | None, limit: int) -> FactPage:
        """See `Backend.facts`."""
        return await self._retrieve("facts", namespace, after_id=after_id, limit=limit)

    async def search(self, query: str, namespace: str, *, limit: int) -> SearchResult:
        """See `Backend.search`."""
        return await self._retrieve("search", query, namespace, limit=limit)

    async def snapshots(self, *, limit: int) -> list[SnapshotInfo]:
        """See `Backend.snapshots`."""
        return await _answer(self._writer.snapshots.remote(limit))

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """See `Backend.activate`."""
        return await _answer(self._writer.activate.remote(version))

    async def status(self) -> ModelStatus:
        """See `Backend.status`."""
        return await self._retrieve("status")

    async def check_health(self) -> None:
        """Raise what keeps a retriever in this process from its work; a deployment's is asked by Serve."""
        if isinstance(self._retriever, Retriever):
            await self._retriever.check_health()

    async def _retrieve(self, method: str, *values: Any, **named: Any) -> Any:
        if isinstance(self._retriever, Retriever):
            with named_failures():
                return await getattr(self._retriever, method)(*values, **named)
        return await _answer(getattr(self._retriever, method).remote(*values, **named))


async def _answer(response: Awaitable[Any]) -> Any:
    with named_failures():
        return await response


@contextlib.contextmanager
def named_failures() -> Iterator[None]:
    """Turn failures of a part into answers.

    Raises:
        ApiError: 429 the part is overloaded, 503 it is away, 500 it failed; or the one that the part raised.
    """
    try:
        yield
    except BackPressureError as error:
        raise errors.overloaded() from error
    except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        logger.warning("a part of the application is away: %s", error)
        raise errors.unavailable() from error
    except RayTaskError as error:
        if isinstance(error.cause, ApiError):
            raise error.cause from error
        if isinstance(error.cause, RecipeError):  # storage, or the table: not the request's fault, and it may pass
            logger.warning("a part of the application cannot work: %s", error.cause)
            raise errors.unavailable() from error
        logger.exception("a part of the application failed")
        raise errors.failed() from error


@serve.ingress()
class IngressDeployment:
    """Takes HTTP requests; holds the query encoders that are no deployments of their own."""

    def __init__(self, parts: Sequence[ModelParts], *, keys: str | None, limits: Limits) -> None:
        _log_as_serve_does()
        self._observer: Observer = RayObserver()
        self._backends = {part.name: _backend(part) for part in parts}
        self._service = Service(
            models={part.name: _entry(part, self._backends[part.name]) for part in parts},
            access=Access.from_file(keys),
            limits=limits,
            observer=self._observer,
        )
        self._reports: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_http_app(self._service, server_tells_ids=True)

    async def check_health(self) -> None:
        """Called by Serve; also what keeps the figures of the snapshots up to date."""
        for backend in self._backends.values():
            await backend.check_health()
        if self._reports is None:
            self._reports = asyncio.create_task(self._report())
        if self._reports.done():
            self._reports.result()

    async def _report(self) -> None:
        """Tell the observer what is served, now and then."""
        while True:
            for name, backend in self._backends.items():
                with contextlib.suppress(ApiError):  # a part is away: the requests say so
                    _tell(self._observer, name, await backend.status())
            await asyncio.sleep(_STATUS_EVERY_S)


def _log_as_serve_does() -> None:
    """Send the lines about requests and writes where Serve's own go; its level silences those of requests alone."""
    ours = logging.getLogger("recipe_ray")
    ours.handlers, ours.propagate = logger.handlers, False
    logging.getLogger("recipe_ray.access").setLevel(logger.level)
    logging.getLogger("recipe_ray.audit").setLevel(logging.INFO)


def _tell(observer: Observer, name: str, status: ModelStatus) -> None:
    observer.snapshot(
        model=name,
        version=status.snapshot,
        age_s=(datetime.now(UTC) - status.committed_at).total_seconds(),
        num_facts=sum(status.num_facts.values()),
        index_bytes=status.index_bytes,
    )


def _backend(part: ModelParts) -> ServeBackend:
    retriever = Retriever(**part.retriever) if isinstance(part.retriever, Mapping) else part.retriever
    return ServeBackend(retriever=retriever, engine=part.engine, writer=part.writer)


def _entry(part: ModelParts, backend: ServeBackend) -> ModelEntry:
    return ModelEntry(
        name=part.name,
        backend=backend,
        namespace=part.namespace,
        query_chars=part.query_chars,
        unsupported=_unsupported(part.engine_kind),
    )


def _unsupported(engine_kind: str) -> Mapping[str, str]:
    if engine_kind != "vllm":
        return {}
    from serving.engines.vllm_requests import UNSUPPORTED  # loads torch, which an ingress may have no need of

    return UNSUPPORTED
