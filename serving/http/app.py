"""The HTTP interface as an ASGI application over a Service; knows nothing of Ray or torch."""

import time

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as RoutingException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.console.router import router as console_router
from serving.errors import ApiError
from serving.http.access import AccessMiddleware
from serving.http.chat import router as chat_router
from serving.http.completions import router as completions_router
from serving.http.context import Service
from serving.http.facts import router as facts_router
from serving.http.models import health_router
from serving.http.models import router as models_router
from serving.http.observe import CLIENT_LEFT, ObserveMiddleware
from serving.http.openapi import ERRORS, complete_document
from serving.http.wire import bad_request, invalid_json

_ROUTERS = (models_router, health_router, completions_router, chat_router, facts_router, console_router)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SHOWN_CHARS = 200  # of a path in a message about it


def create_http_app(service: Service, *, server_tells_ids: bool = False) -> FastAPI:
    """Build the application.

    Args:
        service: models, keys, limits, and who counts.
        server_tells_ids: the server in front gives every request its id in `X-Request-Id`, the client's own or a new
            one, and puts it into the answer itself, as Ray Serve does; a second one here would be read as "id, id".
    """
    app = FastAPI(
        title="recipe-ray",
        description="OpenAI's completions and chats of a frozen LLM, edited by the facts that a prompt is about.",
        # No pages of documentation: they load their scripts from elsewhere. Redirects would not have OpenAI's shape.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        middleware=[
            Middleware(ObserveMiddleware, service, server_tells_ids=server_tells_ids),
            Middleware(AccessMiddleware, service),
            Middleware(_IntakeMiddleware, service.limits.body_bytes),
        ],
    )
    app.state.service = service
    app.state.started = int(time.time())
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(RoutingException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_left)
    complete_document(app, service.limits)
    return app


class _IntakeMiddleware:
    """Refuses bodies that are too large, announced or not, and what another site's page makes a browser send.

    Such a page may send a POST to any address, loopback too, and only cannot read the answer. FastAPI takes no body
    that is not announced as JSON, which such a page cannot do; this refuses the requests without a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] not in _SAFE_METHODS and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            error = ApiError(403, "a page of another site sent this; use the API from elsewhere", code="cross_site")
            await _response(error)(scope, receive, send)
            return
        announced = headers.get("content-length", "")
        is_too_large = announced.isdecimal() and int(announced) > self._max_bytes
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = {"type": "http.request"} if is_too_large else await receive()
            num_bytes += len(message.get("body", b""))
            if is_too_large or num_bytes > self._max_bytes:
                said = f"the body is larger than {self._max_bytes} bytes; send it in several requests"
                raise ApiError(413, said, code="too_large")
            return message

        await self._app(scope, limited, send)


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _response(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _response(bad_request(error.errors()))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """What the router says (no such path, or no such method), and what is said of a body that cannot be read."""
    assert isinstance(error, RoutingException)
    if isinstance(error.__cause__, ApiError):
        return _response(error.__cause__)
    if error.status_code == 400:
        return _response(invalid_json("it is not UTF-8, nested too deeply, or holds too large a number"))
    place = f"{request.method} {request.url.path}"
    message = f"{place[:_SHOWN_CHARS]} is not offered; GET /openapi.json describes what is"
    if error.status_code != 405:
        return _response(ApiError(error.status_code, message, code="not_found"))
    headers = {"Allow": ", ".join(_methods(request))}
    return _response(ApiError(405, message, code="method_not_allowed", headers=headers))


def _methods(request: Request) -> list[str]:
    """Of all routes of a path; the router names those of the first alone."""
    allowed: set[str] = set()
    for router in (request.app.router, *_ROUTERS):
        for route in router.routes:
            if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
                allowed |= route.methods or set()
    return sorted(allowed)


async def _client_left(request: Request, error: Exception) -> Response:
    """Nobody reads it; it tells the log."""
    return Response(status_code=CLIENT_LEFT)
