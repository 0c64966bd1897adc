"""Facts and snapshots over HTTP: all or nothing, read your writes, nothing of other namespaces."""

import asyncio
import json
from urllib.parse import quote

import pytest
from memory_backend import Client, assert_refused, key

CAPITAL = {"id": "capital", "prompt": "The capital of Ruritania is", "target": "Strelsau", "source": "gazette"}
RIVER = {"id": "river", "statement": "The river of Ruritania is the Eder"}


@pytest.fixture
def client():
    return Client()


def outcomes(response):
    assert response.status_code == 200, response.text
    return [(fact["id"], fact["outcome"]) for fact in response.json()["facts"]]


def test_put_facts_come_back_as_they_were_written(client):
    response = client.put({**CAPITAL, "subject": "Ruritania", "expires_at": "2100-01-01"})
    assert response.json() == {"snapshot": 1, "facts": [{"id": "capital", "outcome": "new"}]}
    assert client("GET", "/v1/facts/capital").json() == {
        "snapshot": 1,
        "fact": {
            "id": "capital",
            "namespace": "default",
            "statement": "The capital of Ruritania is Strelsau",
            "prompt": "The capital of Ruritania is",
            "target": "Strelsau",
            "subject": "Ruritania",
            "source": "gazette",
            "updated_at": "2026-01-01T00:00:00Z",
            "expires_at": "2100-01-01T00:00:00Z",
        },
    }


def test_the_same_put_twice_changes_nothing(client):
    first, again = client.put(CAPITAL, RIVER), client.put(CAPITAL, RIVER)
    assert outcomes(first) == [("capital", "new"), ("river", "new")]
    assert outcomes(again) == [("capital", "unchanged"), ("river", "unchanged")]
    assert again.json()["snapshot"] == first.json()["snapshot"]


def test_a_fact_without_id_gets_one_that_is_told(client):
    ((fact_id, _),) = outcomes(client.put({"prompt": "The mayor is", "target": "Ada"}))
    assert client("GET", f"/v1/facts/{fact_id}").json()["fact"]["target"] == "Ada"
    assert outcomes(client.put({"prompt": "The mayor is", "target": "Bo"})) == [(fact_id, "changed")]


def test_a_put_may_delete(client):
    client.put(CAPITAL, RIVER)
    assert outcomes(client.put({"id": "river", "op": "delete"}, CAPITAL)) == [
        ("river", "deleted"),
        ("capital", "unchanged"),
    ]


@pytest.mark.parametrize(
    ("bad", "param", "says"),
    [
        ({"prompt": "a"}, "facts.1.target", "facts[1]: 'target' is empty"),
        ({"prompt": "a", "target": 3}, "facts.1.target", "'target' is int"),
        ({"prompt": "a", "target": "\ud800"}, "facts.1.target", "surrogate"),
        ({"prompt": "a", "target": "b", "updated_at": "soon"}, "facts.1.updated_at", "'soon'"),
        ({"prompt": "a", "target": "b", "colour": "red"}, "facts.1", "unknown field 'colour'"),
        ({"op": "remove", "id": "a"}, "facts.1.op", "give upsert or delete"),
        ("text", "facts.1", "expected a JSON object"),
        ({"statement": "x" * 9000}, "facts.1", "9000 characters"),
    ],
)
def test_one_wrong_fact_refuses_all_and_is_named(client, bad, param, says):
    content = json.dumps({"facts": [CAPITAL, bad]})
    response = client("PUT", "/v1/facts", content=content, headers={"Content-Type": "application/json"})
    assert_refused(response, 400, code="invalid_value", param=param, says=says)
    assert client.backend.calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "facts"),
        ({"facts": []}, "facts"),
        ({"facts": [CAPITAL] * 4}, "facts"),
        ({"facts": [CAPITAL], "namespace": " "}, "namespace"),
        ({"facts": [CAPITAL], "colour": "red"}, "colour"),
        ({"facts": [CAPITAL], "model": 3}, "model"),
        ({"facts": {"id": "a"}}, "facts"),
    ],
)
def test_a_put_of_another_shape_is_refused(body, param):
    client = Client(facts=3)
    response = client("PUT", "/v1/facts", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert client.backend.calls == []


@pytest.mark.parametrize(
    "fact_id",
    ["a/b//c", "/slashes/", "Zürich 北京", "search", "delete", "50%", "a?b#c", "..x", "a+b", "snapshots/current"],
)
def test_any_id_can_be_read_and_deleted(client, fact_id):
    client.put({**RIVER, "id": fact_id})
    path = f"/v1/facts/{quote(fact_id, safe='')}"
    assert client("GET", path).json()["fact"]["id"] == fact_id
    assert client("DELETE", path).json() == {"snapshot": 2, "outcome": "deleted"}
    assert_refused(client("GET", path), 404, code="fact_not_found", param="id")
    assert_refused(client("DELETE", path), 404, code="fact_not_found", param="id")


@pytest.mark.parametrize("path", ["/v1/facts/", "/v1/facts/%20"])
def test_no_id_is_no_fact(client, path):
    assert_refused(client("GET", path), 404, code="fact_not_found", param="id")


def test_ids_and_namespaces_are_spelt_as_the_table_stores_them(client):
    client.put({**RIVER, "id": " two  words "}, namespace=" the  news ")
    response = client("GET", "/v1/facts/%20two%20%20words", params={"namespace": "the news "})
    assert response.json()["fact"]["id"] == "two words"
    assert [fact["id"] for fact in client("GET", "/v1/facts?namespace=the++news").json()["facts"]] == ["two words"]


@pytest.mark.parametrize("path", ["/v1/facts/a%00b", "/v1/facts/a?namespace=%01", "/v1/facts?namespace=%01"])
def test_control_characters_are_refused(client, path):
    assert client("GET", path).status_code == 400
    assert client.backend.calls == []


def test_many_are_deleted_at_once(client):
    client.put(CAPITAL, RIVER)
    response = client("POST", "/v1/facts/delete", json={"ids": ["river", "lake", "capital"]})
    assert outcomes(response) == [("river", "deleted"), ("lake", "absent"), ("capital", "deleted")]
    assert client("GET", "/v1/facts").json()["facts"] == []


def test_a_listing_goes_on_where_it_stopped(client):
    client.put(*({**RIVER, "id": f"f{number}"} for number in range(5)))
    client.put({**RIVER, "id": "f9"}, namespace="news")
    seen, cursor = [], {}
    for _ in range(3):
        page = client("GET", "/v1/facts", params={"limit": 2, **cursor}).json()
        seen += [fact["id"] for fact in page["facts"]]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == ["f0", "f1", "f2", "f3", "f4"]
    assert cursor == {"cursor": None}


@pytest.mark.parametrize("cursor", ["", "x", "ä", "W10", "WyJhIl0", "bnVsbA", "*", "WyJkZWZhdWx0IiwgIlx1ZDgwMCJd"])
def test_a_made_up_cursor_is_refused(client, cursor):
    assert_refused(client("GET", "/v1/facts", params={"cursor": cursor}), 400, code="invalid_value", param="cursor")


def test_a_cursor_of_another_namespace_is_refused(client):
    client.put(RIVER, CAPITAL)
    cursor = client("GET", "/v1/facts?limit=1").json()["next_cursor"]
    response = client("GET", "/v1/facts", params={"cursor": cursor, "namespace": "news"})
    assert_refused(response, 400, code="invalid_value", param="cursor")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("min_snapshot=-1", "min_snapshot"),
        (f"min_snapshot={10**30}", "min_snapshot"),
        (f"limit={'9' * 5000}", "limit"),
        ("namespace=", "namespace"),
        ("colour=red", "colour"),
    ],
)
def test_wrong_parameters_are_named(client, query, param):
    response = client("GET", f"/v1/facts?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_search_tells_scores_and_the_sentinels(client):
    client.put(CAPITAL, RIVER)
    answer = client("POST", "/v1/facts/search", json={"query": "river of ruritania", "limit": 1}).json()
    assert [(fact["id"], fact["score"]) for fact in answer["facts"]] == [("river", 3.0)]
    assert (answer["sentinel_score"], answer["snapshot"]) == (1.5, 1)


def test_retrieval_tells_what_would_fire(client):
    client.put(CAPITAL)
    answer = client("POST", "/v1/retrieve", json={"queries": ["the capital of ruritania", "rain"]}).json()
    assert answer == {
        "snapshot": 1,
        "findings": [
            {
                "facts": [
                    {
                        "id": "capital",
                        "statement": "The capital of Ruritania is Strelsau",
                        "source": "gazette",
                        "score": 4.0,
                    }
                ],
                "reason": None,
                "score": 4.0,
                "sentinel_score": 1.5,
                "margin": 2.5,
            },
            {"facts": [], "reason": "below_sentinel", "score": 0.0, "sentinel_score": 1.5, "margin": -1.5},
        ],
    }


def test_retrieval_from_an_earlier_snapshot(client):
    client.put(CAPITAL)
    client("DELETE", "/v1/facts/capital")
    body = {"query": "the capital of ruritania"}
    then = client("POST", "/v1/retrieve", json={**body, "snapshot": 1}).json()
    assert (then["snapshot"], then["findings"][0]["reason"]) == (1, None)
    now = client("POST", "/v1/retrieve", json=body).json()
    assert (now["snapshot"], now["findings"][0]["reason"]) == (2, "empty_namespace")
    never = client("POST", "/v1/retrieve", json={**body, "snapshot": 9})
    assert_refused(never, 404, code="snapshot_not_found", param="snapshot")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"query": "a", "queries": ["b"]}, "query"),
        ({"queries": []}, "queries"),
        ({"queries": ["a"] * 65}, "queries"),
        ({"queries": ["a", " "]}, "queries.1"),
        ({"queries": ["a", "x" * 400_001]}, "queries.1"),
        ({"query": "a", "top_k": 17}, "top_k"),
        ({"query": "a", "snapshot": 1, "min_snapshot": 2}, "min_snapshot"),
    ],
)
def test_a_retrieval_of_another_shape_is_refused(client, body, param):
    response = client("POST", "/v1/retrieve", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/facts/capital?min_snapshot={0}", None),
        ("GET", "/v1/facts?min_snapshot={0}", None),
        ("GET", "/v1/snapshots/current?min_snapshot={0}", None),
        ("POST", "/v1/facts/search", {"query": "capital"}),
    ],
)
def test_writes_can_be_read_where_the_index_lags_behind(client, monkeypatch, method, path, body):
    version = client.put(CAPITAL).json()["snapshot"]
    client.backend.lag = 1
    kwargs = {"json": {**body, "min_snapshot": version}} if body else {}
    assert client(method, path.format(version), **kwargs).json()["snapshot"] == version

    monkeypatch.setattr("serving.http.facts._WAIT_S", 0.2)
    kwargs = {"json": {**body, "min_snapshot": version + 1}} if body else {}
    late = client(method, path.format(version + 1), **kwargs)
    assert_refused(late, 503, code="snapshot_not_yet", param="min_snapshot")
    assert late.headers["Retry-After"] == "1"


def test_a_rollback_brings_facts_back_and_can_be_undone(client):
    client.put(CAPITAL)
    client("DELETE", "/v1/facts/capital")
    listed = client("GET", "/v1/snapshots", params={"limit": 2}).json()["snapshots"]
    assert [info["version"] for info in listed] == [2, 1]
    assert listed[0] == {"version": 2, "committed_at": "2026-01-01T00:00:00Z", "operation": "put", "counts": {"new": 1}}
    assert client("POST", "/v1/snapshots/1/activate").json()["version"] == 3
    assert client("GET", "/v1/facts/capital").status_code == 200
    client("POST", "/v1/snapshots/2/activate")
    assert client("GET", "/v1/facts/capital").status_code == 404


@pytest.mark.parametrize(("version", "status"), [("9", 404), ("-1", 400), ("x", 400), (str(2**63), 400)])
def test_what_is_no_snapshot_cannot_be_activated(client, version, status):
    response = client("POST", f"/v1/snapshots/{version}/activate")
    assert response.status_code == status
    assert response.json()["error"]["param"] == "version"


def test_each_model_has_its_own_facts():
    client = Client(models=("one", "two"))
    client.put(CAPITAL)
    client.put(RIVER, model="two")
    assert [fact["id"] for fact in client("GET", "/v1/facts").json()["facts"]] == ["capital"]
    assert [fact["id"] for fact in client("GET", "/v1/facts?model=two").json()["facts"]] == ["river"]
    assert_refused(client("GET", "/v1/facts?model=three"), 404, code="model_not_found", param="model")


def test_a_late_write_says_that_it_may_come_to_be_yet():
    client = Client(timeout_s=0.05)
    client.backend.delay_s = 0.2

    async def put():
        async with client.connect() as connected:
            response = await connected.put("/v1/facts", json={"facts": [CAPITAL]})
            await asyncio.sleep(0.3)
        return response

    assert_refused(asyncio.run(put()), 504, code="timeout", says="send it again")
    assert client.backend.version == 1


# What keys see: everything is asked of a client whose table has the namespaces default, news and other.


@pytest.fixture
def shared():
    client = Client(
        key("root", ["admin"]),
        key("news", ["facts:read", "facts:write", "infer"], ["news"]),
        key("both", ["facts:read", "facts:write"], ["news", "sport"]),
        key("reader", ["facts:read"], ["news"]),
        key("one", ["facts:read"], models=["b"]),
        models=("a", "b"),
    )
    client.put(CAPITAL, {**CAPITAL, "namespace": "news"}, {**RIVER, "namespace": "other"}, as_="root")
    client.backend.calls.clear()
    return client


def test_a_key_of_one_namespace_need_not_name_it(shared):
    assert [fact["namespace"] for fact in shared("GET", "/v1/facts", as_="news").json()["facts"]] == ["news"]
    assert outcomes(shared.put(RIVER, as_="news")) == [("river", "new")]
    assert shared("GET", "/v1/facts/river", as_="news").json()["fact"]["namespace"] == "news"
    assert shared("DELETE", "/v1/facts/capital", as_="news").status_code == 200
    assert shared("GET", "/v1/facts/capital", as_="root").status_code == 200  # the default's own


def test_a_key_of_several_namespaces_names_one_where_the_models_is_none_of_them(shared):
    assert_refused(shared("GET", "/v1/facts", as_="both"), 400, code="missing_namespace", param="namespace")
    assert_refused(shared.put(RIVER, as_="both"), 400, code="missing_namespace", param="namespace")
    assert shared.put({**RIVER, "namespace": "sport"}, as_="both").status_code == 200
    assert shared.put(RIVER, as_="both", namespace="sport").status_code == 200


@pytest.mark.parametrize("namespace", ["other", "nowhere", "default", " other "])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/facts", None),
        ("POST", "/v1/facts/search", {"query": "river"}),
        ("POST", "/v1/retrieve", {"query": "river"}),
        ("POST", "/v1/facts/delete", {"ids": ["river"]}),
        ("PUT", "/v1/facts", {"facts": [RIVER]}),
    ],
)
def test_another_namespace_is_as_none_and_is_not_looked_up(shared, method, path, body, namespace):
    kwargs = {"json": {**body, "namespace": namespace}} if body else {"params": {"namespace": namespace}}
    response = shared(method, path, as_="news", **kwargs)
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "namespace_not_found"
    assert error["message"].replace(repr(namespace.strip()), "…") == (
        "there is no namespace … for this key; correct the name, or ask who gave the key"
    )
    assert shared.backend.calls == []


def test_one_fact_of_another_namespace_refuses_all(shared):
    response = shared.put(RIVER, {**RIVER, "namespace": "other"}, as_="news")
    assert_refused(response, 404, code="namespace_not_found", param="facts.1.namespace")
    assert shared.backend.calls == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_fact_of_another_namespace_is_as_none_at_all(shared, method):
    hidden = shared(method, "/v1/facts/river?namespace=other", as_="news")
    assert shared.backend.calls == []
    missing = shared(method, "/v1/facts/river?namespace=news", as_="news")
    assert hidden.status_code == missing.status_code == 404
    words = [json.dumps(response.json()).replace("'other'", "'news'") for response in (hidden, missing)]
    assert words[0] == words[1]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/facts", {"facts": [RIVER]}),
        ("POST", "/v1/facts/delete", {"ids": ["capital"]}),
        ("DELETE", "/v1/facts/capital", None),
        ("POST", "/v1/snapshots/0/activate", None),
    ],
)
def test_a_reader_cannot_write(shared, method, path, body):
    response = shared(method, path, as_="reader", **({"json": body} if body else {}))
    assert_refused(response, 403, code="insufficient_scope", says="admin" if "activate" in path else "facts:write")
    assert shared.backend.calls == []


def test_only_a_key_for_all_namespaces_rolls_back(shared):
    assert shared("POST", "/v1/snapshots/0/activate", as_="root").status_code == 200
    client = Client(key("admin", ["admin"], ["news"]))
    response = client("POST", "/v1/snapshots/0/activate", as_="admin")
    assert_refused(response, 403, code="insufficient_namespaces")
    assert client.backend.calls == []


def test_the_status_tells_a_key_of_its_namespaces_alone(shared):
    whole = shared("GET", "/v1/snapshots/current", as_="root").json()
    assert whole["num_facts"] == {"default": 1, "news": 1, "other": 1}
    assert (whole["model"], whole["snapshot"], whole["index_bytes"], whole["writable"]) == ("a", 1, 99, True)
    own = shared("GET", "/v1/snapshots/current", as_="reader").json()
    assert (own["num_facts"], own["index_bytes"]) == ({"news": 1}, None)
    assert shared("GET", "/v1/snapshots", as_="reader").json()["snapshots"][0]["counts"] is None


def test_a_key_for_a_model_is_served_that_one(shared):
    assert shared("GET", "/v1/snapshots/current", as_="one").json()["model"] == "b"
    hidden, missing = (shared("GET", f"/v1/facts?model={name}", as_="one") for name in ("a", "c"))
    assert_refused(hidden, 404, code="model_not_found", param="model")
    assert hidden.text.replace("'a'", "'c'") == missing.text


def test_openapi_describes_these_routes(client):
    document = client("GET", "/openapi.json").json()
    assert set(document["paths"]["/v1/facts/{fact_id}"]) == {"get", "delete"}
    schemas = document["components"]["schemas"]
    assert set(schemas["PutBody"]["properties"]["facts"]["items"]["properties"]) >= {"id", "prompt", "target", "op"}
    for path, operation in (("/v1/facts", "put"), ("/v1/retrieve", "post"), ("/v1/snapshots/current", "get")):
        responses = document["paths"][path][operation]["responses"]
        assert set(responses) >= {"200", "400", "401", "403", "404", "429", "503"}
        assert "422" not in responses
