"""Facts and snapshots over HTTP: put, delete, read, search, look up, roll back."""

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Annotated, Protocol, TypeVar

from fastapi import APIRouter, Path, Query, Request

from recipe_ray.errors import FactError
from recipe_ray.facts import FIELDS, Fact, fact_from_record
from serving import errors
from serving.errors import ApiError
from serving.http.audit import AuditRecord, audited
from serving.http.context import ModelEntry, caller_of, service_of
from serving.http.facts_wire import (
    DeleteAnswer,
    DeleteBody,
    FactAnswer,
    FactQuery,
    ListAnswer,
    ListQuery,
    ModelQuery,
    NamespaceQuery,
    OutcomeBody,
    PutBody,
    RetrieveAnswer,
    RetrieveBody,
    SearchAnswer,
    SearchBody,
    SnapshotBody,
    SnapshotsAnswer,
    SnapshotsQuery,
    StatusAnswer,
    StatusQuery,
    WriteAnswer,
    deletion,
    fact_body,
    finding_body,
    scored_body,
    snapshot_body,
)
from serving.http.generate import model_of
from serving.http.strict import StrictRoute
from serving.http.wire import MAX_INT64
from serving.keys import Scope
from serving.messages import Lookup, Refusal, WriteResult

_WAIT_S = 2.0  # for a snapshot that is on its way; the retriever's own patience
_LOOK_EVERY_S = 0.1
_FIELD = re.compile(r"facts\[\d+\]: .*?'(\w+)'")


class _OfSnapshot(Protocol):
    @property
    def snapshot(self) -> int: ...


Read = TypeVar("Read", bound=_OfSnapshot)
Value = TypeVar("Value")

router = APIRouter(prefix="/v1", tags=["facts"], route_class=StrictRoute)


@router.put("/facts")
async def put_facts(request: Request, body: PutBody) -> WriteAnswer:
    """Put facts, all or none, durably; the same facts again change nothing. A fact's `op` may be `delete`."""

    async def work(record: AuditRecord) -> WriteAnswer:
        entry = _entry(request, "facts:write", body.model, record)
        facts = _facts(request, entry, body)
        return _write_answer(await _write(request, entry, facts, record))

    async with _in_time(request, writing=True):
        return await audited(request, "put", work)


@router.post("/facts/delete")
async def delete_facts(request: Request, body: DeleteBody) -> WriteAnswer:
    """Delete facts by id, all or none; those that are not there come out `absent`."""

    async def work(record: AuditRecord) -> WriteAnswer:
        entry = _entry(request, "facts:write", body.model, record)
        _check_number(request, "ids", body.ids)
        namespace = _namespace(request, entry, body.namespace)
        facts = [deletion(fact_id, namespace, param=f"ids.{number}") for number, fact_id in enumerate(body.ids)]
        return _write_answer(await _write(request, entry, facts, record))

    async with _in_time(request, writing=True):
        return await audited(request, "delete", work)


@router.post("/facts/search")
async def search_facts(request: Request, body: SearchBody) -> SearchAnswer:
    """Find the facts nearest to a text, with their scores and the sentinel's."""
    entry = _entry(request, "facts:read", body.model)
    namespace = _namespace(request, entry, body.namespace)
    _check_chars(request, "query", body.query)
    async with _in_time(request):
        found = await _at_least(
            body.min_snapshot, lambda: entry.backend.search(body.query, namespace, limit=body.limit)
        )
    return SearchAnswer(
        snapshot=found.snapshot,
        sentinel_score=found.sentinel_score,
        facts=[scored_body(fact) for fact in found.facts],
    )


@router.get("/facts")
async def list_facts(request: Request, query: Annotated[ListQuery, Query()]) -> ListAnswer:
    """List the live facts of a namespace in the order of their ids."""
    entry = _entry(request, "facts:read", query.model)
    namespace = _namespace(request, entry, query.namespace)
    after_id = None if query.cursor is None else _after_id(query.cursor, namespace)
    async with _in_time(request):
        page = await _at_least(
            query.min_snapshot, lambda: entry.backend.facts(namespace, after_id=after_id, limit=query.limit)
        )
    return ListAnswer(
        snapshot=page.snapshot,
        facts=[fact_body(fact) for fact in page.facts],
        next_cursor=None if page.next_id is None else _cursor(page.next_id, namespace),
    )


@router.get("/facts/{fact_id:path}")
async def get_fact(request: Request, fact_id: str, query: Annotated[FactQuery, Query()]) -> FactAnswer:
    """Read one live fact; its id may hold slashes."""
    entry = _entry(request, "facts:read", query.model)
    wanted = _of_id(request, entry, fact_id, query.namespace)
    async with _in_time(request):
        found = await _at_least(
            query.min_snapshot,
            lambda: entry.backend.fact(wanted.namespace, wanted.fact_id, min_snapshot=query.min_snapshot),
        )
    if found.fact is None:
        raise errors.fact_not_found(wanted.fact_id, wanted.namespace)
    return FactAnswer(snapshot=found.snapshot, fact=fact_body(found.fact))


@router.delete("/facts/{fact_id:path}")
async def delete_fact(request: Request, fact_id: str, query: Annotated[NamespaceQuery, Query()]) -> DeleteAnswer:
    """Delete one fact; its id may hold slashes."""

    async def work(record: AuditRecord) -> DeleteAnswer:
        entry = _entry(request, "facts:write", query.model, record)
        fact = _of_id(request, entry, fact_id, query.namespace, record)
        result = await _write(request, entry, [fact], record)
        if result.outcomes[0] == "absent":
            raise errors.fact_not_found(fact.fact_id, fact.namespace)
        return DeleteAnswer(snapshot=result.snapshot, outcome=result.outcomes[0])

    async with _in_time(request, writing=True):
        return await audited(request, "delete", work)


@router.post("/retrieve")
async def retrieve(request: Request, body: RetrieveBody) -> RetrieveAnswer:
    """Tell which facts would be applied to each query, as a completion would look them up; nothing is generated."""
    entry = _entry(request, "facts:read", body.model)
    namespace = _namespace(request, entry, body.namespace)
    limits = service_of(request).limits
    if len(body.texts) > limits.prompts:
        raise _invalid("queries", f"holds {len(body.texts)} texts; give at most {limits.prompts} in one request")
    for number, text in enumerate(body.texts):
        _check_chars(request, "query" if body.query is not None else f"queries.{number}", text)
    lookups = [
        Lookup(
            query=text,
            namespace=namespace,
            top_k=body.top_k,
            snapshot=body.snapshot,
            min_snapshot=body.min_snapshot,
        )
        for text in body.texts
    ]
    started = time.perf_counter()
    async with _in_time(request):
        findings = [_accepted(finding) for finding in await entry.backend.find(lookups)]
    service_of(request).observer.retrieval(model=entry.name, seconds=time.perf_counter() - started)
    return RetrieveAnswer(snapshot=findings[0].snapshot, findings=[finding_body(finding) for finding in findings])


@router.get("/snapshots")
async def list_snapshots(request: Request, query: Annotated[SnapshotsQuery, Query()]) -> SnapshotsAnswer:
    """List the versions of the table, newest first."""
    caller = caller_of(request)
    entry = _entry(request, "facts:read", query.model)
    async with _in_time(request):
        infos = await entry.backend.snapshots(limit=query.limit)
    return SnapshotsAnswer(snapshots=[snapshot_body(info, with_counts=caller.namespaces is None) for info in infos])


@router.get("/snapshots/current")
async def current_snapshot(request: Request, query: Annotated[StatusQuery, Query()]) -> StatusAnswer:
    """Tell what is served now."""
    caller = caller_of(request)
    entry = _entry(request, "facts:read", query.model)
    async with _in_time(request):
        status = await _at_least(query.min_snapshot, entry.backend.status)
    return StatusAnswer(
        model=entry.name,
        snapshot=status.snapshot,
        committed_at=status.committed_at,
        num_facts={name: count for name, count in sorted(status.num_facts.items()) if caller.sees(name)},
        index_bytes=status.index_bytes if caller.namespaces is None else None,
        writable=status.writable,
    )


@router.post("/snapshots/{version}/activate")
async def activate_snapshot(
    request: Request, version: Annotated[int, Path(ge=0, le=MAX_INT64)], query: Annotated[ModelQuery, Query()]
) -> SnapshotBody:
    """Make the content of an earlier version current, as a new version: a rollback, which can be undone likewise."""

    async def work(record: AuditRecord) -> SnapshotBody:
        record.version = version
        entry = _entry(request, "admin", query.model, record)
        if caller_of(request).namespaces is not None:
            raise ApiError(
                403,
                "a snapshot is of all namespaces, and this key is for some; use a key for all of them",
                code="insufficient_namespaces",
            )
        info = _accepted(await entry.backend.activate(version))
        record.snapshot = info.version
        return snapshot_body(info, with_counts=True)

    async with _in_time(request, writing=True):
        return await audited(request, "activate", work)


def _entry(request: Request, scope: Scope, name: str | None, record: AuditRecord | None = None) -> ModelEntry:
    """See `model_of`; an audit's record is told which it is."""
    entry = model_of(request, name, scope)
    if record is not None:
        record.model = entry.name
    return entry


def _namespace(request: Request, entry: ModelEntry, given: str | None) -> str:
    """Whose facts a request is about, as the table spells it.

    Raises:
        ApiError: 404 the key is not for it; 400 none is given, and it is not clear which.
    """
    caller = caller_of(request)
    if given is None:
        return caller.default_namespace(entry.namespace)
    namespace = deletion("any", given, param="namespace").namespace
    if not caller.sees(namespace):
        raise errors.namespace_not_found(namespace, param="namespace")
    return namespace


def _of_id(
    request: Request, entry: ModelEntry, fact_id: str, given: str | None, record: AuditRecord | None = None
) -> Fact:
    """The event that deletes a fact; it also spells namespace and id as the table does.

    Raises:
        ApiError: 404 where the namespace is not the key's, in the words of a fact that is not there.
    """
    caller = caller_of(request)
    namespace = caller.default_namespace(entry.namespace) if given is None else given
    if not fact_id.strip():
        raise errors.fact_not_found(fact_id, namespace)
    fact = deletion(fact_id, namespace, param="id")
    if record is not None:
        record.concerns([fact])
    if not caller.sees(fact.namespace):
        raise errors.fact_not_found(fact.fact_id, fact.namespace)
    return fact


def _facts(request: Request, entry: ModelEntry, body: PutBody) -> list[Fact]:
    """Check the facts of a put; one that is wrong refuses all."""
    _check_number(request, "facts", body.facts)
    facts = []
    for number, record in enumerate(body.facts):
        if isinstance(record, dict) and record.get("namespace") in (None, ""):
            record = {**record, "namespace": body.namespace or caller_of(request).default_namespace(entry.namespace)}
        place = f"facts[{number}]"
        try:
            facts.append(fact_from_record(record, place=place))
        except FactError as error:
            field = _FIELD.match(str(error))
            param = f"facts.{number}.{field[1]}" if field and field[1] in FIELDS else f"facts.{number}"
            raise ApiError(400, str(error), param=param, code="invalid_value") from error
    return facts


async def _write(request: Request, entry: ModelEntry, facts: Sequence[Fact], record: AuditRecord) -> WriteResult:
    """Have facts written, where they are the key's to write."""
    record.concerns(facts)
    for number, fact in enumerate(facts):
        if not caller_of(request).sees(fact.namespace):
            raise errors.namespace_not_found(fact.namespace, param=f"facts.{number}.namespace")
    result = _accepted(await entry.backend.write(facts))
    record.became(result.fact_ids, result.outcomes, result.snapshot)
    return result


def _write_answer(result: WriteResult) -> WriteAnswer:
    return WriteAnswer(
        snapshot=result.snapshot,
        facts=[
            OutcomeBody(id=fact_id, outcome=outcome)
            for fact_id, outcome in zip(result.fact_ids, result.outcomes, strict=True)
        ],
    )


def _accepted(answer: Value | Refusal) -> Value:
    if isinstance(answer, Refusal):
        # The parts name fields as completions do, which hold them one level down.
        param = answer.param and answer.param.removeprefix("recipe.")
        raise errors.refused(replace(answer, param=param))
    return answer


async def _at_least(min_snapshot: int | None, read: Callable[[], Awaitable[Read]]) -> Read:
    """Read, again where what answers has not yet come to the snapshot that the caller has written.

    Raises:
        ApiError: 503, it is not there within the patience for it.
    """
    patience = asyncio.get_running_loop().time() + _WAIT_S
    while (answer := await read()).snapshot < (min_snapshot or 0):
        if asyncio.get_running_loop().time() > patience:
            raise ApiError(
                503,
                f"snapshot {min_snapshot} is not there yet, only {answer.snapshot}; try again, or leave it out",
                param="min_snapshot",
                code="snapshot_not_yet",
                headers={"Retry-After": "1"},
            )
        await asyncio.sleep(_LOOK_EVERY_S)
    return answer


@contextlib.asynccontextmanager
async def _in_time(request: Request, *, writing: bool = False) -> AsyncIterator[None]:
    timeout_s = service_of(request).limits.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        advice = "; it may come to be yet: send it again, which then changes nothing" if writing else "; try again"
        raise ApiError(504, f"no answer within {timeout_s:g} seconds{advice}", code="timeout") from error


def _check_number(request: Request, param: str, given: Sequence[object]) -> None:
    limit = service_of(request).limits.facts
    if len(given) > limit:
        raise _invalid(param, f"holds {len(given)}; give at most {limit} in one request")


def _check_chars(request: Request, param: str, text: str) -> None:
    limit = service_of(request).limits.prompt_chars
    if len(text) > limit:
        raise _invalid(param, f"has {len(text)} characters; give at most {limit}")


def _invalid(param: str, complaint: str) -> ApiError:
    return ApiError(400, f"'{param}' {complaint}", param=param, code="invalid_value")


def _cursor(next_id: str, namespace: str) -> str:
    """Where a listing goes on; of its namespace, so that another's is not taken for it."""
    return base64.urlsafe_b64encode(json.dumps([namespace, next_id]).encode()).decode().rstrip("=")


def _after_id(cursor: str, namespace: str) -> str:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        of_namespace, after_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        after_id.encode()
        if of_namespace != namespace:
            raise ValueError("of another namespace")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid("cursor", "is none of this listing; give the 'next_cursor' of the page before") from error
    return str(after_id)
