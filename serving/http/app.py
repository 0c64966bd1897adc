"""The HTTP interface as an ASGI application over two callables; knows nothing of Ray or torch."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving import errors
from serving.errors import ApiError
from serving.messages import Completion, Finding, Lookup, Prompt, Refusal
from serving.openai import CompletionRequest, completion_body, parse_request

MAX_BODY_BYTES = 1 << 20


class Backend(Protocol):
    """What the interface calls; both methods raise ApiError where the part behind them cannot answer."""

    async def find(self, lookups: Sequence[Lookup]) -> list[Finding]:
        """Which fact to apply to each query."""

    async def complete(self, prompts: Sequence[Prompt]) -> list[Completion | Refusal]:
        """Complete each prompt, or say why not."""


def create_http_app(
    backend: Backend, *, model_name: str, namespace: str, snapshot: int, max_new_tokens: int, timeout_s: float
) -> FastAPI:
    """Build the application.

    Args:
        backend: retriever and engine.
        model_name: the one model served.
        namespace: of requests that name none.
        snapshot: version of the table that the backend serves.
        max_new_tokens: most a request may ask for.
        timeout_s: seconds after which a request is given up.
    """
    # No pages of documentation: they load their scripts from elsewhere. Redirects would not have OpenAI's shape.
    app = FastAPI(title="recipe-ray", docs_url=None, redoc_url=None, redirect_slashes=False)
    started = int(time.time())

    @app.post("/v1/completions")
    async def completions(request: Request) -> JSONResponse:
        body = await _read_body(request)
        asked = parse_request(body, model_name=model_name, max_new_tokens=max_new_tokens)
        try:
            async with asyncio.timeout(timeout_s):
                answers = await _answer(backend, asked, namespace)
        except TimeoutError as error:
            raise errors.timed_out(timeout_s) from error
        return JSONResponse(
            completion_body(
                completion_id=f"cmpl-{uuid.uuid4().hex}",
                created=int(time.time()),
                model_name=model_name,
                snapshot=snapshot,
                answers=answers,
            )
        )

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": model_name, "object": "model", "created": started, "owned_by": "recipe-ray"}
        return {"object": "list", "data": [model]}

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "model": model_name, "snapshot": snapshot}

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _our_fault)
    return app


async def _answer(backend: Backend, asked: CompletionRequest, namespace: str) -> list[tuple[Finding, Completion]]:
    findings = await _findings(backend, asked, namespace)
    prompts = [
        Prompt(text=text, edit=finding.edit, max_tokens=asked.max_tokens, stop=asked.stop_texts)
        for text, finding in zip(asked.prompts, findings, strict=True)
    ]
    answers = []
    for finding, completion in zip(findings, await backend.complete(prompts), strict=True):
        if isinstance(completion, Refusal):
            raise ApiError(400, completion.message, param="prompt", code=completion.code)
        answers.append((finding, completion))
    return answers


async def _findings(backend: Backend, asked: CompletionRequest, namespace: str) -> list[Finding]:
    if not asked.recipe.edits:
        unedited = Finding(edit=None, declined="edits_off", score=None, sentinel_score=None)
        return [unedited] * len(asked.prompts)
    # The query is the prompt alone: an answer's words in it would give the fact away (paper section 4.2).
    return await backend.find(
        [
            Lookup(query=asked.recipe.query or text, namespace=asked.recipe.namespace or namespace)
            for text in asked.prompts
        ]
    )


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer prompts", code="too_large")
    return bytes(body)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """What the router says: no such path, or no such method."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.url.path}"
    message = f"{place} is not offered; see POST /v1/completions, GET /v1/models and GET /healthz"
    shaped = ApiError(error.status_code, message, code="not_found", headers=dict(error.headers or {}))
    return await _api_error(request, shaped)


async def _our_fault(request: Request, error: Exception) -> JSONResponse:
    """Shapes the answer only; the server logs the traceback."""
    return await _api_error(request, errors.failed())
