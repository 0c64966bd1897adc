"""Failures of the parts behind the ingress, as its clients see them."""

import asyncio
import json
import logging
from types import SimpleNamespace

import httpx
import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve.exceptions import BackPressureError

from recipe_ray.errors import OutputError
from serving.errors import ApiError
from serving.http.access import Access
from serving.http.context import Limits, Service
from serving.ingress import IngressDeployment, ServeBackend
from serving.observer import Observer


class Silent(Observer):
    def request(self, **values):
        pass


class Response:
    """What a handle's call returns: an awaitable that can be cancelled."""

    def __init__(self, outcome):
        self.outcome, self.cancelled = outcome, False

    def __await__(self):
        yield from asyncio.sleep(0 if isinstance(self.outcome, Exception) else 0.01).__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.cancelled = True


class Handle:
    """A deployment handle whose `complete` has these outcomes, one a call."""

    def __init__(self, *outcomes):
        self.responses = [Response(outcome) for outcome in outcomes]
        self._next = iter(self.responses)

    @property
    def complete(self):
        return self

    def remote(self, message):
        return next(self._next)


def complete(handle):
    backend = ServeBackend(retriever=None, engine=handle, writer=None)
    return asyncio.run(backend.complete([object()] * len(handle.responses)))


def test_answers_keep_the_order_of_the_prompts_and_nothing_is_cancelled():
    handle = Handle("a", "b", "c")
    assert complete(handle) == ["a", "b", "c"]
    assert not any(response.cancelled for response in handle.responses)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (BackPressureError(10, 10), 429, "rate_limited"),
        (RayActorError(), 503, "unavailable"),
        (RayTaskError("complete", "Traceback …", ZeroDivisionError("secret")), 500, "internal_error"),
        (RayTaskError("complete", "Traceback …", OutputError("disk secret")), 503, "unavailable"),
        (RayTaskError("complete", "Traceback …", ApiError(409, "said", code="busy")), 409, "busy"),
    ],
)
def test_a_failure_has_its_status_and_cancels_the_other_prompts(failure, status, code):
    handle = Handle("a", failure, "c")
    with pytest.raises(ApiError) as error:
        complete(handle)
    assert (error.value.status, error.value.code) == (status, code)
    assert "secret" not in error.value.message
    assert all(response.cancelled for response in handle.responses)


@pytest.mark.parametrize("given", [None, "abc-1", "a b", "x" * 200])
@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/console", "/v1/facts"])
def test_behind_serve_an_answer_has_one_request_id_and_the_log_has_the_same(caplog, path, given):
    caplog.set_level(logging.INFO, "recipe_ray.access")
    service = Service(models={}, access=Access.open(), limits=Limits(), observer=Silent())
    app = IngressDeployment.__serve_build_asgi_app__(SimpleNamespace(_service=service))

    async def ask():
        transport = httpx.ASGITransport(app=RequestIdMiddleware(app))  # what Serve puts around every application
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers={"X-Request-Id": given} if given else {})

    headers = asyncio.run(ask()).headers
    assert len(headers.multi_items()) == len(headers.keys()), "a header stands twice"
    assert given in (None, headers["X-Request-Id"])
    assert json.loads(caplog.records[-1].message)["request_id"] == headers["X-Request-Id"]
