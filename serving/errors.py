"""Errors as a client of the HTTP interface sees them, in OpenAI's shape."""

from typing import Any

from recipe_ray.errors import ServiceError
from serving.messages import Refusal

_SHOWN_CHARS = 100  # of a client's own text in a message about it


class ApiError(ServiceError):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what was wrong and what to do.
        param: the field of the request at fault.
        code: for programs; OpenAI's word where it has one.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _sendable(message)
        self.param = None if param is None else _sendable(param)
        self.code = code
        self.headers = headers or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Parts of the application raise it to each other."""
        return _made_again, (self.status, self.message, self.param, self.code, self.headers)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _made_again(status: int, message: str, param: str | None, code: str | None, headers: dict[str, str]) -> ApiError:
    return ApiError(status, message, param=param, code=code, headers=headers)


def _sendable(text: str) -> str:
    """Text that UTF-8 can say: a client's own words in it may hold half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def refused(refusal: Refusal) -> ApiError:
    """A part does not take the request."""
    headers = {"Retry-After": "1"} if refusal.status in (429, 503) else None
    return ApiError(refusal.status, refusal.message, param=refusal.param, code=refusal.code, headers=headers)


def model_not_found(name: str, served: list[str]) -> ApiError:
    """A model that is not there, or not for this key: which of the two is not told.

    Args:
        name: as the client gave it.
        served: models that its key may use.
    """
    remedy = f"give one of {', '.join(served)}" if served else "the key may use none"
    return ApiError(
        404,
        f"the model {name[:_SHOWN_CHARS]!r} is not served here; {remedy}",
        param="model",
        code="model_not_found",
    )


def overloaded() -> ApiError:
    """More requests wait than the service keeps."""
    return ApiError(
        429, "too many requests are waiting; try again later", code="rate_limited", headers={"Retry-After": "1"}
    )


def unavailable() -> ApiError:
    """A part of the service is starting, restarting or gone."""
    return ApiError(
        503,
        "the model is not available at the moment; try again later",
        code="unavailable",
        headers={"Retry-After": "5"},
    )


def timed_out(timeout_s: float) -> ApiError:
    """The answer took too long."""
    return ApiError(504, f"no answer within {timeout_s:g} seconds; ask for fewer tokens or prompts", code="timeout")


def failed() -> ApiError:
    """A fault of ours: details are for the log, not for the client."""
    return ApiError(500, "the service failed on this request; its log says why", code="internal_error")


def unauthorized(message: str, *, given: bool) -> ApiError:
    """No key, or none that is known (anymore).

    Args:
        message: what is wrong and what to do; never holds the key.
        given: whether there was a key.
    """
    challenge = 'Bearer realm="recipe-ray"' + (', error="invalid_token"' if given else "")
    code = "invalid_api_key" if given else "missing_api_key"
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": challenge})


def insufficient_scope(scope: str) -> ApiError:
    """The key is known, and not for this."""
    return ApiError(
        403, f"this needs the scope {scope!r}, which the key lacks; ask who gave the key", code="insufficient_scope"
    )


def namespace_not_found(namespace: str, *, param: str | None) -> ApiError:
    """A namespace that is not there, or not for this key: which of the two is not told."""
    return ApiError(
        404,
        f"there is no namespace {namespace!r} for this key; correct the name, or ask who gave the key",
        param=param,
        code="namespace_not_found",
    )


def fact_not_found(fact_id: str, namespace: str) -> ApiError:
    """No live fact of that id in the namespace, or no such namespace for this key: which of the two is not told."""
    return ApiError(
        404,
        f"there is no fact {fact_id!r} in namespace {namespace!r}; correct the id or the namespace",
        param="id",
        code="fact_not_found",
    )


def rate_limited(limit: int) -> ApiError:
    """The key has as many requests in work as it may."""
    return ApiError(
        429,
        f"{limit} requests of this key are in work, which is as many as it may have; wait for one to end",
        code="rate_limited",
        headers={"Retry-After": "1"},
    )
