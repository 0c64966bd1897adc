"""What is told of each request: its id to the client, one line to the log, a count to the observer."""

import asyncio
import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import errors

if TYPE_CHECKING:
    from serving.http.context import Service

CLIENT_LEFT = 499
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

logger = logging.getLogger("recipe_ray.access")


def request_id_of(request: Request) -> str:
    """The id that a request goes by in logs and in `X-Request-Id`."""
    request_id: str = request.state.request_id
    return request_id


def note_model(request: Request, model: str) -> None:
    """Say which model a request is for, by its name as served: a name of the client's own making would be a label."""
    request.state.model = model


def json_line(event: str, **values: Any) -> str:
    """One line of a log for programs, with the time in UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **values}, ensure_ascii=True)


class ObserveMiddleware:
    """Counts, times and logs requests; outermost, so that refused ones are among them.

    Never logs what is in a request: no prompt, fact, query, key, or path as it came.

    Args:
        app: what answers.
        service: knows who counts.
        server_tells_ids: see `create_http_app`.
    """

    def __init__(self, app: ASGIApp, service: "Service", *, server_tells_ids: bool) -> None:
        self._app = app
        self._service = service
        self._server_tells_ids = server_tells_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(scope, receive, send, tells_id=not self._server_tells_ids)
        started = time.perf_counter()
        try:
            await self._app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:  # how Serve tells that the client left
            watch.left = True
            raise
        except Exception:
            # Answered here, so that this answer has an id too; the server logs the traceback.
            if watch.status is None:
                error = errors.failed()
                await JSONResponse(error.body(), error.status)(scope, watch.receive, watch.send)
            raise
        finally:
            self._tell(scope, watch, time.perf_counter() - started)

    def _tell(self, scope: Scope, watch: "_Watch", seconds: float) -> None:
        state = scope["state"]
        route, model = _route(scope), state.get("model", "")
        status = watch.final_status()
        self._service.observer.request(route=route, model=model, status=status, seconds=seconds)
        if logger.isEnabledFor(logging.INFO):
            caller = state.get("caller")
            logger.info(
                json_line(
                    "request",
                    request_id=state["request_id"],
                    key_id=None if caller is None else caller.key_id,
                    route=route,
                    model=model,
                    status=status,
                    seconds=round(seconds, 4),
                )
            )


class _Watch:
    """Looks on as an application receives and sends."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, tells_id: bool) -> None:
        self._receive, self._send = receive, send
        self._tells_id = tells_id
        self._request_id = _request_id(scope, only_sane=tells_id)
        scope.setdefault("state", {})["request_id"] = self._request_id
        self.status: int | None = None
        self.left = False
        self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._tells_id:
                MutableHeaders(scope=message)["X-Request-Id"] = self._request_id
        try:
            await self._send(message)
        except OSError:  # how servers of ASGI tell that the client left
            self.left = True
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True

    def final_status(self) -> int:
        """As sent; 499 where the client did not wait for the end, 500 where there was none."""
        if self._ended:
            return self.status or 500
        return CLIENT_LEFT if self.left else 500


def _request_id(scope: Scope, *, only_sane: bool) -> str:
    """The one that the request came with, or a new one; the server's is taken as it is, since the client gets it so."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) or (given and not only_sane) else f"req-{secrets.token_hex(12)}"


def _route(scope: Scope) -> str:
    """Method and template of the path: few, whatever clients send."""
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    path = getattr(scope.get("route"), "path_format", None) or "unmatched"
    return f"{method} {path}"
