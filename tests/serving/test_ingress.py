"""Failures of the parts behind the ingress, as its clients see them."""

import asyncio

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from recipe_ray.errors import OutputError
from serving.errors import ApiError
from serving.ingress import ServeBackend


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
