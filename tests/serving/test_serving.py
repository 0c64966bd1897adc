"""The whole application over real HTTP, on the Ray cluster: ingress, retriever, two shards, engine, writer."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from recipe_ray.errors import ServiceError
from recipe_ray.store.indexes.exact import FactIndex
from recipe_ray.store.snapshot import read_snapshot
from serving.local import serving
from serving.settings import AppArgs

pytestmark = pytest.mark.ray

PROMPTS = ["The president of Ruritania is", "The capital of Ruritania is", "Water boils at", "x"]
READ_YOUR_WRITES_S = 2.0


@pytest.fixture(scope="module")
def client(server_url):
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client


def complete(client, prompt, **fields):
    response = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_edits_off_gives_what_the_plain_llm_generates(client, llm):
    for prompt in PROMPTS:
        body = complete(client, prompt, recipe={"edits": False})
        (plain,) = llm.generate([prompt], [None], max_new_tokens=8)
        assert body["choices"][0]["text"] == plain.text
        assert body["usage"]["completion_tokens"] == len(plain.token_ids)
        assert body["choices"][0]["recipe"]["reason"] == "edits_off"


def test_an_answer_applies_the_fact_that_retrieval_finds(client, llm, editor, table_uri):
    snapshot = read_snapshot(table_uri)
    index = FactIndex(snapshot.keys_FK, snapshot.facts["namespace"].to_pylist())
    edited = 0
    for prompt in PROMPTS:
        query_1K = editor.encode_queries([prompt])
        found = index.retrieve(query_1K, snapshot.identity.sentinel_K, ["default"])
        row = int(found.row_B[0])
        choice = complete(client, prompt)["choices"][0]
        prefix = None if row < 0 else np.asarray(snapshot.prompts_FPD[row])
        (expected,) = llm.generate([prompt], [prefix], max_new_tokens=8)
        assert choice["text"] == expected.text
        expected_id = None if row < 0 else snapshot.facts["fact_id"][row].as_py()
        assert (choice["recipe"]["fact"] or {}).get("id") == expected_id
        assert choice["recipe"]["score"] == pytest.approx(float(found.score_B[0]), rel=1e-4)
        edited += row >= 0
    assert edited, "no prompt was edited: this test says nothing"


def test_requests_at_once_get_the_same_answers_as_one_by_one(client):
    wishes = [
        {"prompt": prompt, "max_tokens": max_tokens, "recipe": {"edits": edits}}
        for prompt in PROMPTS
        for edits in (True, False)
        for max_tokens in (8, 3)
    ]
    one_by_one = [_answer(complete(client, **wish)["choices"][0]) for wish in wishes]
    with ThreadPoolExecutor(len(wishes)) as pool:
        at_once = list(pool.map(lambda wish: _answer(complete(client, **wish)["choices"][0]), wishes))
    assert at_once == one_by_one
    assert [_answer(choice) for choice in complete(client, PROMPTS)["choices"]] == one_by_one[::4]


def _answer(choice):
    """What must not depend on the company; the encoder's padding moves scores in their last digits."""
    return choice["text"], choice["finish_reason"], choice["recipe"]["fact"] and choice["recipe"]["fact"]["id"]


def test_a_fact_put_is_found_deleted_and_brought_back(client):
    before = client.get("/v1/snapshots/current").json()["snapshot"]
    fact = {"id": "mayor", "prompt": "The mayor of Strelsau is", "target": "Bo Ek", "source": "minutes"}
    put = client.put("/v1/facts", json={"facts": [fact]}).json()
    assert put["facts"] == [{"id": "mayor", "outcome": "new"}]
    assert put["snapshot"] > before
    found = client.get("/v1/facts/mayor", params={"min_snapshot": put["snapshot"]}).json()
    assert found["fact"]["target"] == "Bo Ek"
    hits = client.post("/v1/facts/search", json={"query": "The mayor of Strelsau is Bo Ek", "limit": 10}).json()
    assert "mayor" in [hit["id"] for hit in hits["facts"]]
    answer = complete(client, "x", recipe={"min_snapshot": put["snapshot"]})
    assert answer["choices"][0]["recipe"]["snapshot"] >= put["snapshot"]

    deleted = client.delete("/v1/facts/mayor").json()
    gone = client.get("/v1/facts/mayor", params={"min_snapshot": deleted["snapshot"]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "fact_not_found")

    again = client.post(f"/v1/snapshots/{put['snapshot']}/activate").json()
    assert again["version"] > deleted["snapshot"]
    assert client.get("/v1/facts/mayor", params={"min_snapshot": again["version"]}).status_code == 200
    operations = [one["operation"] for one in client.get("/v1/snapshots").json()["snapshots"]]
    assert operations[:3] == ["rollback", "delete", "put"]


def test_many_puts_at_once_are_few_versions(client):
    before = client.get("/v1/snapshots/current").json()["snapshot"]

    def put(number):
        fact = {"id": f"many-{number}", "prompt": f"The number {number} is", "target": "even" if number % 2 else "odd"}
        return client.put("/v1/facts", json={"facts": [fact]}).json()["snapshot"]

    with ThreadPoolExecutor(40) as pool:
        versions = list(pool.map(put, range(80)))
    assert max(versions) - before < 40, "every put became a commit of its own"
    assert client.get("/v1/facts/many-0", params={"min_snapshot": max(versions)}).status_code == 200
    page = client.get("/v1/facts", params={"limit": 1000}).json()
    assert sum(fact["id"].startswith("many-") for fact in page["facts"]) == 80


@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"prompt": ""}', 400, "invalid_value", "prompt"),
        (b'{"prompt": "%s"}' % (b"a" * 200), 400, "context_length_exceeded", "prompt"),
        (b'{"prompt": "a", "model": "other"}', 404, "model_not_found", "model"),
        (b'{"prompt": "%s"}' % (b"a" * 5_000_000), 413, "too_large", None),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(client, content, status, code, param):
    response = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


def test_models_health_and_unknown_paths(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").status_code == 200
    assert client.get("/console").status_code == 200
    assert client.get("/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("given", [None, "mine-1"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/healthz", None),
        ("GET", "/nothing", None),
        ("GET", "/console", None),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": True}),
        ("POST", "/v1/completions", {"prompt": ""}),
        ("DELETE", "/v1/models", None),
        ("GET", "/v1/facts/no-such", None),
    ],
)
def test_no_header_stands_twice(client, method, path, body, given):
    headers = client.request(method, path, json=body, headers={"X-Request-Id": given} if given else {}).headers
    assert len(headers.multi_items()) == len(headers.keys()), headers.multi_items()
    assert {"x-request-id", "date", "server", "content-type"} <= headers.keys()
    assert given in (None, headers["x-request-id"])


def test_a_second_server_is_refused_while_one_runs(client, editor_dir, table_uri):
    args = AppArgs(editor=str(editor_dir), table=table_uri, cpus=0.1)
    port = client.base_url.port
    with pytest.raises(ServiceError, match=f"port {port} on 127.0.0.1 is in use"), serving(args, port=port):
        pass
    with pytest.raises(ServiceError, match="already runs in this Ray cluster"), serving(args, port=0):
        pass
    assert client.get("/healthz").status_code == 200, "the refused start must leave the running one alone"


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"cpus": 64}, "needs 65 CPUs"),
        ({"device": "cuda"}, "needs 1 GPUs"),
        ({"cpus": 0.1, "num_index_shards": 2, "shard_resources": {"index": 1}}, "needs 2 of the resource 'index'"),
        (
            {"cpus": 0.1, "num_index_shards": 1, "shard_replicas": 2, "shard_replicas_per_node": 1},
            "has 1 nodes with CPUs",
        ),
    ],
)
def test_an_application_too_large_for_the_cluster_is_refused_at_once(ray_cluster, editor_dir, table_uri, wish, says):
    args = AppArgs(editor=str(editor_dir), table=table_uri, **wish)
    with pytest.raises(ServiceError, match=says), serving(args, port=0):
        pass
