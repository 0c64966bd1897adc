"""The whole application over real HTTP, on the session's Ray cluster."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from recipe_ray.errors import ServiceError
from recipe_ray.store.snapshot import read_snapshot
from serving.local import serving
from serving.messages import Lookup
from serving.retriever import FactRetriever
from serving.settings import AppArgs

pytestmark = pytest.mark.ray

PROMPTS = ["The president of Ruritania is", "The capital of Ruritania is", "Water boils at", "x"]


@pytest.fixture(scope="module")
def args(editor_dir, table_uri):
    return AppArgs(editor=str(editor_dir), table=table_uri, model_name="tiny", cpus=0.5, batch_wait_s=0.05)


@pytest.fixture(scope="module")
def client(ray_cluster, args):
    with serving(args, port=0) as url, httpx.Client(base_url=url, timeout=60) as client:
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
    retriever = FactRetriever(editor, snapshot, "first")
    edited = 0
    for prompt in PROMPTS:
        (finding,) = retriever.find([Lookup(query=prompt, namespace="default")])
        choice = complete(client, prompt)["choices"][0]
        prefix = finding.edit and finding.edit.prompt_PD
        (expected,) = llm.generate([prompt], [prefix], max_new_tokens=8)
        assert choice["text"] == expected.text
        assert (choice["recipe"]["fact"] or {}).get("id") == (finding.edit and finding.edit.fact_id)
        assert choice["recipe"]["score"] == pytest.approx(finding.score, rel=1e-4)
        assert choice["recipe"]["snapshot"] == snapshot.version
        edited += finding.edit is not None
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


@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"prompt": ""}', 400, "invalid_value", "prompt"),
        (b'{"prompt": "%s"}' % (b"a" * 200), 400, "context_length_exceeded", "prompt"),
        (b'{"prompt": "a", "model": "other"}', 404, "model_not_found", "model"),
        (b'{"prompt": "%s"}' % (b"a" * 2_000_000), 413, "too_large", None),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(client, content, status, code, param):
    response = client.post("/v1/completions", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


def test_models_health_and_unknown_paths(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/nothing").json()["error"]["code"] == "not_found"


def test_a_second_server_is_refused_while_one_runs(client, args):
    port = client.base_url.port
    with pytest.raises(ServiceError, match=f"port {port} on 127.0.0.1 is in use"), serving(args, port=port):
        pass
    with pytest.raises(ServiceError, match="already runs in this Ray cluster"), serving(args, port=0):
        pass
    assert client.get("/healthz").status_code == 200, "the refused start must leave the running one alone"


@pytest.mark.parametrize(("wish", "says"), [({"cpus": 64}, "needs 97 CPUs"), ({"device": "cuda"}, "needs 1 GPUs")])
def test_an_application_too_large_for_the_cluster_is_refused_at_once(ray_cluster, args, wish, says):
    with pytest.raises(ServiceError, match=says), serving(args.model_copy(update=wish), port=0):
        pass
