"""Errors as a client of the HTTP interface sees them, in OpenAI's shape."""

from recipe_ray.errors import ServiceError


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
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def overloaded() -> ApiError:
    """More requests wait than the service keeps."""
    return ApiError(
        503, "too many requests are waiting; try again later", code="overloaded", headers={"Retry-After": "1"}
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
