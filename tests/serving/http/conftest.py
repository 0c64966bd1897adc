"""The HTTP interface over a fake model, asked without a network."""

import asyncio

import httpx
import pytest
from fake_service import MODEL, FakeBackend, Tally

from serving.http.access import Access
from serving.http.app import create_http_app
from serving.http.context import Limits, ModelEntry, Service


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def tally():
    return Tally()


@pytest.fixture
def limits():
    return Limits(body_bytes=50_000, prompts=8, prompt_chars=10_000, new_tokens=32, timeout_s=0.5)


@pytest.fixture
def entry(backend):
    return ModelEntry(name=MODEL, backend=backend, query_chars=40)


@pytest.fixture
def access():
    return Access.open()


@pytest.fixture
def app(entry, access, limits, tally):
    return create_http_app(Service(models={entry.name: entry}, access=access, limits=limits, observer=tally))


@pytest.fixture
def call(app):
    def request(method, path, **kwargs):
        async def send():
            # As a server does: an exception's response has been sent before the exception is seen again.
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(send())

    return request


@pytest.fixture
def complete(call):
    return lambda **body: call("POST", "/v1/completions", json=body)


@pytest.fixture
def chat(call):
    def send(*messages, **body):
        turns = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in messages]
        return call("POST", "/v1/chat/completions", json={"messages": turns, **body})

    return send
