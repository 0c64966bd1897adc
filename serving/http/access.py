"""Who may do what, and how many requests at a time: keys on the way in."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from serving import errors
from serving.errors import ApiError
from serving.keys import SCOPES, Key, KeyFile, Keyring, Scope

if TYPE_CHECKING:
    from serving.http.context import Service

_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/console"})
_OPEN_BELOW = "/console/"
_MAX_KEY_CHARS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request.

    Attributes:
        key_id: of the key; None where no keys are asked for.
        scopes: what it may do.
        namespaces: whose facts; None for all.
        models: which models; None for all.
        concurrency: requests at a time; None for what the service allows.
    """

    key_id: str | None
    scopes: frozenset[Scope]
    namespaces: frozenset[str] | None = None
    models: frozenset[str] | None = None
    concurrency: int | None = None

    def check(self, scope: Scope, namespace: str | None = None, *, param: str | None = "namespace") -> None:
        """Refuse what this caller may not do; to be called before anything is looked up.

        Args:
            scope: that the request needs.
            namespace: that it is about.
            param: the request's field that named it.

        Raises:
            ApiError: 403 for the scope; 404 for the namespace, as if there were none.
        """
        if scope not in self.scopes and "admin" not in self.scopes:
            raise errors.insufficient_scope(scope)
        if namespace is not None and not self.sees(namespace):
            raise errors.namespace_not_found(namespace, param=param)

    def sees(self, namespace: str) -> bool:
        """Whether the namespace is one of its own."""
        return self.namespaces is None or namespace in self.namespaces

    def may_use(self, model: str) -> bool:
        """Whether the model is one of its own."""
        return self.models is None or model in self.models

    def default_namespace(self, of_model: str, *, param: str = "namespace") -> str:
        """Namespace of a request that names none: the key's single one, else the model's.

        Args:
            of_model: the model's.
            param: the request's field that could have named it.

        Raises:
            ApiError: 400 where the key has several, and the model's is none of them.
        """
        if self.namespaces is not None and len(self.namespaces) == 1:
            return next(iter(self.namespaces))
        if not self.sees(of_model):
            raise ApiError(
                400,
                f"'{param}' is missing, and this key has several; name one of them",
                param=param,
                code="missing_namespace",
            )
        return of_model


ANYBODY = Caller(key_id=None, scopes=frozenset(SCOPES))


class Access:
    """Tells callers by their keys, and counts the requests that each has in work in this process.

    Args:
        keyring: gives the keys as they are now; None asks for none, and everybody may do everything.
    """

    def __init__(self, keyring: Callable[[], Awaitable[Keyring]] | None) -> None:
        self._keyring = keyring
        self._in_work: dict[str | None, int] = {}

    @classmethod
    def open(cls) -> Self:
        """Without keys."""
        return cls(None)

    @classmethod
    def from_file(cls, uri: str | None) -> Self:
        """With the keys of a file, or open where there is None.

        Raises:
            ConfigError: no such file, or it is no key file.
            OutputError: it cannot be read.
        """
        return cls(None if uri is None else KeyFile(uri).keyring)

    async def caller(self, headers: Headers) -> Caller:
        """Who sends these headers.

        Raises:
            ApiError: 401, no key or none that is known.
        """
        if self._keyring is None:
            return ANYBODY
        key = (await self._keyring()).find(_secret(headers), datetime.now(UTC))
        if key is None:
            raise errors.unauthorized("the API key is unknown or has expired; ask who gave it", given=True)
        return _caller(key)

    def enter(self, caller: Caller, limit: int) -> None:
        """Count a request in; `leave` counts it out. Requests without keys count together.

        Raises:
            ApiError: 429, too many of this caller are in work.
        """
        limit = caller.concurrency or limit
        if self._in_work.get(caller.key_id, 0) >= limit:
            raise errors.rate_limited(limit)
        self._in_work[caller.key_id] = self._in_work.get(caller.key_id, 0) + 1

    def leave(self, caller: Caller) -> None:
        """Count a request out."""
        self._in_work[caller.key_id] -= 1
        if not self._in_work[caller.key_id]:
            del self._in_work[caller.key_id]


class AccessMiddleware:
    """Lets a request in with the caller in its state, for `context.caller_of`; else answers it."""

    def __init__(self, app: ASGIApp, service: "Service") -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request, until its answer has ended or its client has left."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        access = self._service.access
        try:
            caller = await access.caller(Headers(scope=scope))
            scope.setdefault("state", {})["caller"] = caller
            access.enter(caller, self._service.limits.concurrency)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            access.leave(caller)


def _is_open(scope: AsgiScope) -> bool:
    """Whether a path asks for no key; all others do, so that a new route is not open by mistake."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in _OPEN_PATHS or (path.startswith(_OPEN_BELOW) and ".." not in path)


def _secret(headers: Headers) -> str:
    given = headers.getlist("authorization")
    if not given:
        raise errors.unauthorized("there is no API key; send it as 'Authorization: Bearer KEY'", given=False)
    scheme, _, secret = given[0].partition(" ")
    secret = secret.strip()
    if len(given) > 1 or scheme.lower() != "bearer" or not 0 < len(secret) <= _MAX_KEY_CHARS:
        raise errors.unauthorized("the API key cannot be read; send one 'Authorization: Bearer KEY'", given=True)
    return secret


def _caller(key: Key) -> Caller:
    return Caller(
        key_id=key.id,
        scopes=frozenset(key.scopes),
        namespaces=None if key.namespaces == "*" else frozenset(key.namespaces),
        models=None if key.models is None else frozenset(key.models),
        concurrency=key.concurrency,
    )
