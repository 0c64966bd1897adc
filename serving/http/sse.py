"""Answers in pieces, as server-sent events, and what becomes of the work when a client leaves."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serving import errors
from serving.errors import ApiError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would gather the pieces
}

T = TypeVar("T")


def event(data: str) -> bytes:
    """One event; `data` is JSON on one line."""
    return b"data: " + data.encode() + b"\n\n"


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work while the client waits for it; its body must have been read.

    Raises:
        ClientDisconnect: the client left; the work was cancelled.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _cancel(working, leaving)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def merge(sources: Sequence[AsyncIterator[T]], *, deadline: float) -> AsyncGenerator[tuple[int, T], None]:
    """What several iterators give, with the iterator's index, as it comes; closing this closes all of them.

    Args:
        sources: each is asked by one task alone from beginning to end, as generators may need.
        deadline: by the event loop's clock.

    Raises:
        TimeoutError: an item did not come before the deadline.
        ApiError: a source was cancelled by another than us; also whatever a source raises.
    """
    # Bounded by what the sources give: an answer has a limited number of tokens.
    arrived: asyncio.Queue[tuple[int, T] | asyncio.Task[None]] = asyncio.Queue()

    async def pump(index: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                arrived.put_nowait((index, item))
        finally:
            await _close(source)

    pumps = [asyncio.create_task(pump(index, source)) for index, source in enumerate(sources)]
    for task in pumps:
        task.add_done_callback(arrived.put_nowait)
    try:
        num_running = len(pumps)
        while num_running:
            async with asyncio.timeout_at(deadline):
                item = await arrived.get()
            if isinstance(item, tuple):
                yield item
                continue
            if item.cancelled():  # its exception would look like our own cancellation
                raise errors.unavailable()
            item.result()
            num_running -= 1
    finally:
        await _cancel(*pumps)


async def _close(source: AsyncIterator[Any]) -> None:
    if isinstance(source, AsyncGenerator):
        await source.aclose()


async def stream(request: Request, events: AsyncGenerator[bytes, None], *, deadline: float) -> Response:
    """Answer with events, once the first of them is there: what fails before is an error as any other.

    Args:
        request: its body must have been read.
        events: closed when all are sent, when sending fails, and when the client leaves.
        deadline: by the event loop's clock; a client that has not taken the answer by then is left.

    Raises:
        ClientDisconnect: the client left before the first event.
    """
    return _EventStream(await unless_left(request, _first(events)), events, deadline)


async def _first(events: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(events)


class _EventStream(Response):
    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], deadline: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            # Events themselves keep the deadline, and tell of it; a second later only a stalled client is left.
            left_s = self._deadline + 1.0 - asyncio.get_running_loop().time()
            await asyncio.wait({sending, leaving}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _cancel(sending, leaving)

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send(send, self._first)
            try:
                async for piece in self._events:
                    await _send(send, piece)
            except ApiError as error:
                await _send(send, event(json.dumps(error.body())))
            except OSError:  # the client left in the middle of a send
                raise
            except Exception:
                logger.exception("a stream failed")
                await _send(send, event(json.dumps(errors.failed().body())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _send(send: Send, body: bytes) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": body, "more_body": True})
