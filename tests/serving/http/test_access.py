"""Keys on the way in: who is let in, with what, and how many requests at a time."""

import asyncio

import pytest
from memory_backend import Client, assert_refused, key

from serving.errors import ApiError
from serving.http.access import ANYBODY, Access, Caller

OPEN = ["/healthz", "/readyz", "/openapi.json", "/console", "/console/console.js"]
SHUT = ["/v1/models", "/v1/facts", "/v1/snapshots", "/", "/metrics", "/consoles", "/console/../v1/facts", "/healthz/x"]


@pytest.fixture
def client():
    return Client(key("me", ["facts:read"]), key("old", ["admin"], expires_at="2020-01-01T00:00:00Z"))


@pytest.mark.parametrize("path", OPEN)
def test_some_paths_ask_for_no_key(client, path):
    assert client("GET", path).status_code == 200


@pytest.mark.parametrize("path", SHUT)
def test_all_other_paths_ask_for_one_whether_they_exist_or_not(client, path):
    client.app.router.redirect_slashes = False
    response = asyncio.run(raw_get(client.app, path))
    assert response == 401


async def raw_get(app, path):
    """As no HTTP client would send it: the path unchanged."""
    status = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if message["type"] == "http.response.start":
            status.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "root_path": ""}
    await app({**scope, "scheme": "http", "server": ("test", 80), "http_version": "1.1"}, receive, send)
    return status[0]


def test_no_key_is_told_how_to_send_one(client):
    response = client("GET", "/v1/facts")
    assert_refused(response, 401, code="missing_api_key", says="Authorization: Bearer KEY")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="recipe-ray"'


@pytest.mark.parametrize(
    "header",
    ["Bearer rr_you", "Bearer ", "Bearer", "rr_me", "Basic rr_me", "Bearer rr_old", "Bearer " + "x" * 1000, ""],
)
def test_a_wrong_key_is_refused_and_not_repeated(client, header):
    response = client("GET", "/v1/facts", headers={"Authorization": header})
    assert_refused(response, 401, code="invalid_api_key")
    assert response.headers["WWW-Authenticate"].endswith('error="invalid_token"')
    assert "rr_" not in response.text
    assert client.backend.calls == []


def test_two_keys_are_none(client):
    headers = [("Authorization", "Bearer rr_me"), ("Authorization", "Bearer rr_old")]

    async def send():
        async with client.connect() as connected:
            return await connected.get("/v1/facts", headers=headers)

    assert asyncio.run(send()).status_code == 401


@pytest.mark.parametrize("header", ["Bearer rr_me", "bearer rr_me", "BEARER   rr_me "])
def test_a_key_is_let_in_however_its_scheme_is_written(client, header):
    assert client("GET", "/v1/facts", headers={"Authorization": header}).status_code == 200


def test_without_keys_everybody_may_do_everything():
    client = Client()
    assert client.put({"statement": "a b"}).status_code == 200
    assert client("POST", "/v1/snapshots/0/activate").status_code == 200
    assert asyncio.run(Access.open().caller({})) is ANYBODY


def test_a_key_that_is_taken_back_is_refused_at_once():
    client = Client(key("me", ["facts:read"]))
    assert client("GET", "/v1/facts", as_="me").status_code == 200
    client.keys.clear()
    assert client("GET", "/v1/facts", as_="me").status_code == 401


def test_scopes():
    writer = Caller(key_id="k", scopes=frozenset({"facts:write"}), namespaces=frozenset({"news"}))
    writer.check("facts:write", "news")
    with pytest.raises(ApiError, match="'infer'") as refused:
        writer.check("infer")
    assert (refused.value.status, refused.value.code) == (403, "insufficient_scope")


def test_admin_is_every_scope_and_not_every_namespace():
    admin = Caller(key_id="k", scopes=frozenset({"admin"}), namespaces=frozenset({"news"}))
    for scope in ("infer", "facts:read", "facts:write", "admin"):
        admin.check(scope, "news")
    with pytest.raises(ApiError) as refused:
        admin.check("infer", "other", param="recipe.namespace")
    assert (refused.value.status, refused.value.param) == (404, "recipe.namespace")


def test_the_scope_is_looked_at_before_the_namespace():
    caller = Caller(key_id="k", scopes=frozenset({"infer"}), namespaces=frozenset({"news"}))
    with pytest.raises(ApiError) as refused:
        caller.check("facts:read", "other")
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("namespaces", "default"), [(None, "of-model"), ({"a"}, "a"), ({"a", "of-model"}, "of-model"), ({"a", "b"}, None)]
)
def test_the_namespace_of_requests_that_name_none(namespaces, default):
    caller = Caller(key_id="k", scopes=frozenset(), namespaces=namespaces and frozenset(namespaces))
    if default is not None:
        assert caller.default_namespace("of-model") == default
        return
    with pytest.raises(ApiError, match="name one of them"):
        caller.default_namespace("of-model")


def crowd(client, *senders):
    """Writes at the same time, in this order; their statuses."""

    async def send():
        async with client.connect() as connected:
            body = {"facts": [{"statement": "a b"}]}
            puts = [
                connected.put("/v1/facts", json=body, headers={"Authorization": f"Bearer rr_{sender}"})
                for sender in senders
            ]
            return await asyncio.gather(*puts)

    return asyncio.run(send())


def test_a_key_has_only_so_many_requests_in_work_and_others_are_not_kept_from_theirs():
    client = Client(key("few", ["facts:write"], concurrency=1), key("more", ["facts:write"]), concurrency=2)
    client.backend.delay_s = 0.1
    answers = crowd(client, "few", "few", "more", "more", "more")
    assert [response.status_code for response in answers] == [200, 429, 200, 200, 429]
    assert_refused(answers[1], 429, code="rate_limited", says="1 requests of this key")
    assert answers[1].headers["Retry-After"] == "1"
    assert [response.status_code for response in crowd(client, "few", "more")] == [200, 200]


def test_failed_requests_are_counted_out_too():
    client = Client(key("few", ["facts:write"], concurrency=1))
    client.backend.raises = RuntimeError("a mistake")
    assert [response.status_code for response in crowd(client, "few")] == [500]
    client.backend.raises = None
    assert client.put({"statement": "a"}, as_="few", namespace=" ").status_code == 400
    assert [response.status_code for response in crowd(client, "few")] == [200]


def test_a_client_that_leaves_is_counted_out():
    client = Client(key("few", ["facts:write"], concurrency=1))
    client.backend.delay_s = 0.2

    async def leave():
        async with client.connect() as connected:
            put = connected.put(
                "/v1/facts", json={"facts": [{"statement": "a b"}]}, headers={"Authorization": "Bearer rr_few"}
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(put, 0.05)
            return await connected.get("/v1/facts", headers={"Authorization": "Bearer rr_few"})

    assert asyncio.run(leave()).status_code == 403  # and not 429


def test_open_paths_are_not_counted():
    client = Client(key("me", ["facts:write"], concurrency=1))
    client.backend.delay_s = 0.1

    async def send():
        async with client.connect() as connected:
            body = {"facts": [{"statement": "a b"}]}
            put = asyncio.create_task(connected.put("/v1/facts", json=body, headers={"Authorization": "Bearer rr_me"}))
            await asyncio.sleep(0.02)
            health = await connected.get("/healthz", headers={"Authorization": "Bearer rr_me"})
            return (await put).status_code, health.status_code

    assert asyncio.run(send()) == (200, 200)
