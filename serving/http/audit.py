"""One line for every write: who changed what, and what became of it. Ids and namespaces, never what a fact says."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from fastapi import Request

from recipe_ray.facts import Fact
from serving.errors import ApiError
from serving.http.context import caller_of
from serving.http.observe import CLIENT_LEFT, json_line, request_id_of

Operation = Literal["put", "delete", "activate"]
Answer = TypeVar("Answer")

logger = logging.getLogger("recipe_ray.audit")

_in_work: set[asyncio.Task[object]] = set()  # the event loop alone would not keep them


@dataclass(slots=True, kw_only=True)
class AuditRecord:
    """What is known of a write by now.

    Attributes:
        operation: what is done.
        request_id, key_id: of the request.
        model: whose facts; empty where the request did not come so far.
        namespaces: of the facts.
        fact_ids: in the order given.
        outcomes: how many facts came out how.
        version: asked to be activated.
        snapshot: that tells the write.
    """

    operation: Operation
    request_id: str
    key_id: str | None
    model: str = ""
    namespaces: tuple[str, ...] = ()
    fact_ids: tuple[str, ...] = ()
    outcomes: dict[str, int] = field(default_factory=dict)
    version: int | None = None
    snapshot: int | None = None

    def concerns(self, facts: Sequence[Fact]) -> None:
        """Note the facts that a write is about."""
        self.namespaces = tuple(sorted({fact.namespace for fact in facts}))
        self.fact_ids = tuple(fact.fact_id for fact in facts)

    def became(self, fact_ids: Sequence[str], outcomes: Iterable[str], snapshot: int) -> None:
        """Note under which ids they stand, and what became of them."""
        self.fact_ids = tuple(fact_ids)
        self.outcomes = dict(Counter(outcomes))
        self.snapshot = snapshot

    def tell(self, status: int, code: str | None = None) -> None:
        """Write the line."""
        logger.info(
            json_line(
                "write",
                operation=self.operation,
                request_id=self.request_id,
                key_id=self.key_id,
                model=self.model,
                namespaces=self.namespaces,
                count=len(self.fact_ids),
                ids=self.fact_ids,
                outcomes=self.outcomes,
                version=self.version,
                snapshot=self.snapshot,
                status=status,
                code=code,
            )
        )


async def audited(request: Request, operation: Operation, work: Callable[[AuditRecord], Awaitable[Answer]]) -> Answer:
    """Do a write and tell what became of it, durable, refused or failed.

    A client that leaves, or a time limit, ends the waiting and not the work: it may be durable by then, and the line
    has to say so. Its status is the work's, which such a client did not get to see.
    """
    record = AuditRecord(operation=operation, request_id=request_id_of(request), key_id=caller_of(request).key_id)
    task = asyncio.create_task(_told(record, work))
    _in_work.add(task)
    task.add_done_callback(_forget)
    return await asyncio.shield(task)


async def _told(record: AuditRecord, work: Callable[[AuditRecord], Awaitable[Answer]]) -> Answer:
    try:
        answer = await work(record)
    except ApiError as error:
        record.tell(error.status, error.code)
        raise
    except asyncio.CancelledError:  # the process ends; whether the write is durable its snapshot would tell
        record.tell(CLIENT_LEFT, "cancelled")
        raise
    except Exception:
        record.tell(500, "internal_error")
        raise
    record.tell(200)
    return answer


def _forget(task: asyncio.Task[object]) -> None:
    _in_work.discard(task)
    if not task.cancelled():
        task.exception()  # seen by now: by who waited, or in the line alone
