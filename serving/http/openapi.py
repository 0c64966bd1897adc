"""The document of the interface: FastAPI's own, with what it cannot know."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serving.http.context import Limits

JSON = "application/json"
_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string", "description": "The JSON of a chunk, an error, or `[DONE]`."}},
    "required": ["data"],
}
STREAM: dict[str, Any] = {
    "description": "The answer; with `stream`, its pieces, then `[DONE]`. A fault on the way is an event `{error: …}`.",
    "content": {"text/event-stream": {"itemSchema": _EVENT}},  # OpenAPI 3.2's word, as FastAPI uses it
}
"""Of a route that can answer in pieces."""

_OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or an unknown one.",
    403: "The key lacks a scope.",
    404: "There is no such thing, or not for this key.",
    405: "The path has other methods.",
    409: "The table cannot be written.",
    413: "The body is too large.",
    429: "Too many requests are in work; try again after `Retry-After` seconds.",
    500: "A fault of the service; its log says why.",
    503: "A part is away or behind; try again.",
    504: "The answer took too long.",
}


class ErrorDetail(BaseModel):
    """What went wrong.

    Attributes:
        message: in words.
        type: whose fault: `invalid_request_error` or `server_error`.
        param: the field at fault.
        code: for programs.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is an error."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning} for status, meaning in _ERRORS.items()
}
"""What any route may answer."""


def complete_document(app: FastAPI, limits: Limits) -> None:
    """Make `app` tell its keys, its limits and the status of faulty requests as they are."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(described(), limits)
        return described()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any], limits: Limits) -> None:
    """Edits FastAPI's document in place, once: it keeps what it made."""
    components = document["components"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; ours is 400
            # Keys are optional in this document: whether they are asked for is the operator's choice.
            operation["security"] = [] if path in _OPEN_PATHS else [{}, {"key": []}]
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for request, field, most in (
        ("CompletionRequest", "max_tokens", limits.new_tokens),
        ("ChatRequest", "max_tokens", limits.new_tokens),
        ("ChatRequest", "max_completion_tokens", limits.new_tokens),
        ("CompletionRequest", "n", limits.prompts),
        ("ChatRequest", "n", limits.prompts),
    ):
        number = schemas[request]["properties"][field]["anyOf"][0]
        number["maximum"] = min(most, number.get("maximum", most))
