"""What is told of requests: ids, counts and lines, and nothing of what is in them."""

import asyncio
import json
import logging

import pytest
from memory_backend import Client, key

SECRET = "Strelsau-under-wraps"


@pytest.fixture
def client():
    return Client(key("me", ["facts:read", "facts:write"]))


@pytest.fixture
def lines(caplog):
    """The lines of the access log so far."""
    caplog.set_level(logging.INFO, "recipe_ray.access")
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == "recipe_ray.access"]


def test_a_request_is_counted_and_logged_once(client, lines):
    response = client.put({"statement": "a b"}, as_="me")
    assert client.observer.requests == [("PUT /v1/facts", "m", 200)]
    (line,) = lines()
    assert line.pop("time")
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "request_id": response.headers["X-Request-Id"],
        "key_id": "me",
        "route": "PUT /v1/facts",
        "model": "m",
        "status": 200,
    }


@pytest.mark.parametrize("given", ["abc-123", "a.b:c_D", "x" * 128])
def test_a_sane_request_id_is_kept(client, lines, given):
    assert client("GET", "/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given
    assert lines()[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", 'a","key_id":"root', "x" * 129, "ü".encode(), "<script>"])
def test_another_is_replaced(client, given):
    made = client("GET", "/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert made.startswith("req-")
    assert made != client("GET", "/healthz").headers["X-Request-Id"]


def test_labels_are_templates_whatever_is_asked(client):
    for path in (f"/v1/facts/{SECRET}", "/v1/facts/other", "/v1/facts?model=nothing-of-that-name"):
        client("GET", path, as_="me")
    client("GET", f"/{SECRET}", as_="me")
    client("PROPFIND", "/v1/facts", as_="me")
    client("GET", "/v1/facts")
    assert client.observer.requests == [
        ("GET /v1/facts/{fact_id}", "m", 404),
        ("GET /v1/facts/{fact_id}", "m", 404),
        ("GET /v1/facts", "", 404),
        ("GET unmatched", "", 404),
        ("OTHER /v1/facts", "", 405),
        ("GET unmatched", "", 401),  # refused before the route was looked for
    ]


def test_no_log_holds_what_is_in_a_request(client, caplog):
    caplog.set_level(logging.WARNING, "httpx")  # the test's own client
    caplog.set_level(logging.DEBUG)
    fact = {"id": "capital", "prompt": f"The capital {SECRET} is", "target": SECRET, "source": SECRET}
    client.put(fact, as_="me")
    client.put({**fact, "target": 3}, as_="me")
    client("POST", "/v1/facts/search", json={"query": SECRET}, as_="me")
    client("POST", "/v1/retrieve", json={"query": SECRET}, as_="me")
    client("GET", f"/v1/facts?namespace={SECRET}", as_="me")
    client("GET", f"/v1/{SECRET}", as_="me")
    client("GET", "/v1/facts", as_=SECRET)
    assert len([record for record in caplog.records if record.name == "recipe_ray.access"]) == 7
    assert SECRET not in caplog.text
    assert "rr_me" not in caplog.text


def test_a_fault_of_ours_is_answered_with_an_id_and_raised_for_the_servers_log(client, lines):
    client.backend.raises = RuntimeError("a mistake")
    response = client.put({"statement": "a b"}, as_="me")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "a mistake" not in response.text
    assert response.headers["X-Request-Id"] == lines()[0]["request_id"]
    assert client.observer.requests == [("PUT /v1/facts", "m", 500)]


def ask(client, receive, send):
    body_headers = [(b"authorization", b"Bearer rr_me"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "PUT",
        "path": "/v1/facts",
        "root_path": "",
        "query_string": b"",
        "headers": body_headers,
        "scheme": "http",
        "server": ("test", 80),
        "http_version": "1.1",
    }
    return client.app(scope, receive, send)


async def whole_body():
    return {"type": "http.request", "body": json.dumps({"facts": [{"statement": "a b"}]}).encode()}


async def ignore(message):
    pass


def test_a_client_that_leaves_while_it_sends_is_a_499(client):
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(parts)

    async def gone(message):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(ask(client, receive, gone))
    assert client.observer.requests[-1][2] == 499


def test_a_request_that_serve_cancels_is_a_499(client):
    client.backend.delay_s = 0.2

    async def cancel():
        task = asyncio.create_task(ask(client, whole_body, ignore))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert client.observer.requests == [("PUT /v1/facts", "m", 499)]


def test_an_answer_that_was_sent_whole_keeps_its_status_when_the_client_then_leaves(client):
    asyncio.run(ask(client, whole_body, ignore))
    assert client.observer.requests == [("PUT /v1/facts", "m", 200)]
