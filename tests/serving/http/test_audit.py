"""One line for every write, whatever becomes of it and of who asked for it."""

import asyncio
import json
import logging

import pytest
from memory_backend import Client, key

from serving.errors import unavailable

FACT = {"id": "capital", "prompt": "The capital of Ruritania is", "target": "Strelsau"}


@pytest.fixture
def client():
    return Client(
        key("me", ["facts:read", "facts:write"], ["news", "default"]), key("root", ["admin"]), key("none", ["infer"])
    )


@pytest.fixture
def lines(caplog):
    """The lines of the audit log so far."""
    caplog.set_level(logging.INFO, "recipe_ray.audit")
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == "recipe_ray.audit"]


def test_a_put_tells_who_what_and_what_became_of_it(client, lines):
    response = client.put(FACT, {**FACT, "namespace": "news"}, FACT, as_="me")
    (line,) = lines()
    assert line.pop("time")
    assert line == {
        "event": "write",
        "operation": "put",
        "request_id": response.headers["X-Request-Id"],
        "key_id": "me",
        "model": "m",
        "namespaces": ["default", "news"],
        "count": 3,
        "ids": ["capital", "capital", "capital"],
        "outcomes": {"new": 2, "unchanged": 1},
        "version": None,
        "snapshot": 1,
        "status": 200,
        "code": None,
    }


def test_no_line_holds_what_a_fact_says(client, lines):
    client.put(FACT, as_="me")
    client.put({**FACT, "target": 3}, as_="me")
    assert "Strelsau" not in json.dumps(lines())
    assert "Ruritania" not in json.dumps(lines())


def test_deletes_and_rollbacks_are_told(client, lines):
    client.put(FACT, as_="me")
    client("DELETE", "/v1/facts/capital", as_="me")
    client("DELETE", "/v1/facts/capital", as_="me")
    client("POST", "/v1/facts/delete", json={"ids": ["a", "b"]}, as_="me")
    client("POST", "/v1/snapshots/1/activate", as_="root")
    client("POST", "/v1/snapshots/77/activate", as_="root")
    assert [(x["operation"], x["status"], x["outcomes"], x["ids"], x["version"], x["snapshot"]) for x in lines()] == [
        ("put", 200, {"new": 1}, ["capital"], None, 1),
        ("delete", 200, {"deleted": 1}, ["capital"], None, 2),
        ("delete", 404, {"absent": 1}, ["capital"], None, 2),
        ("delete", 200, {"absent": 2}, ["a", "b"], None, 2),
        ("activate", 200, {}, [], 1, 3),
        ("activate", 404, {}, [], 77, None),
    ]


def test_reads_are_not(client, lines):
    client("GET", "/v1/facts", as_="root")
    client("POST", "/v1/retrieve", json={"query": "a"}, as_="root")
    assert lines() == []


def test_refused_writes_are_told(client, lines):
    client.put(FACT, as_="none")
    client.put({**FACT, "namespace": "other"}, as_="me")
    client.put({**FACT, "target": 3}, as_="me")
    client("POST", "/v1/snapshots/0/activate", as_="me")
    assert [(line["status"], line["code"], line["namespaces"]) for line in lines()] == [
        (403, "insufficient_scope", []),
        (404, "namespace_not_found", ["other"]),
        (400, "invalid_value", []),
        (403, "insufficient_scope", []),
    ]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(unavailable(), 503, "unavailable"), (RuntimeError("a mistake"), 500, "internal_error")],
)
def test_failed_writes_are_told(client, lines, fault, status, code):
    client.backend.raises = fault
    assert client.put(FACT, as_="me").status_code == status
    assert [(line["status"], line["code"], line["ids"]) for line in lines()] == [(status, code, ["capital"])]


@pytest.mark.parametrize("fault", [None, RuntimeError("a mistake")])
def test_a_write_whose_client_left_is_told_once_it_is_durable_or_failed(client, lines, fault):
    client.backend.delay_s = 0.1
    client.backend.raises = fault

    async def leave():
        async with client.connect() as connected:
            put = connected.put("/v1/facts", json={"facts": [FACT]}, headers={"Authorization": "Bearer rr_me"})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(put, 0.03)
            assert lines() == []
            await asyncio.sleep(0.2)

    asyncio.run(leave())
    assert [line["status"] for line in lines()] == [500 if fault else 200]
    assert client.backend.version == (0 if fault else 1)
