"""Two models behind one endpoint, two ingresses, keys: over real HTTP, on the Ray cluster."""

import contextlib
import shutil
import subprocess
import sys

import httpx
import pytest

from serving.keys import PREFIX
from serving.local import serving
from serving.settings import AppArgs

pytestmark = [pytest.mark.ray, pytest.mark.faults]

FACT = {"id": "mayor", "prompt": "The mayor of Strelsau is", "target": "Bo Ek"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The key file and, by name, the secrets that jobs/keys.py printed."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    secrets = {}
    for name, flags in {
        "reader": ["--scopes", "infer", "facts:read", "--namespaces", "default"],
        "writer": ["--scopes", "infer", "facts:read", "facts:write", "--namespaces", "*"],
        "one-model": ["--scopes", "infer", "--namespaces", "*", "--models", "second"],
    }.items():
        done = subprocess.run(
            [sys.executable, "jobs/keys.py", "add", name, "--keys", str(path), *flags],
            capture_output=True,
            text=True,
            check=True,
        )
        secrets[name] = next(word for word in done.stdout.split() if word.startswith(PREFIX))
    return str(path), secrets


@pytest.fixture(scope="module")
def ask(ray_cluster, editor_dir, table_uri, keys, tmp_path_factory):
    """Sends a request as the bearer of a named key, or of a secret; None without one."""
    path, secrets = keys
    models = []
    for name in ("first", "second"):
        table = str(tmp_path_factory.mktemp(name) / "table")
        shutil.copytree(table_uri, table)
        models.append(
            {"model_name": name, "editor": str(editor_dir), "table": table, "cpus": 0.25, "retriever_cpus": 0.1}
        )
    args = AppArgs(models=models, keys=path, num_ingresses=2)
    with serving(args, port=0, quiet=True) as url, httpx.Client(base_url=url, timeout=60) as client:

        def send(method, path, key=None, **request):
            headers = {"Authorization": f"Bearer {secrets.get(key, key)}"} if key else {}
            response = client.request(method, path, headers=headers, **request)
            with contextlib.suppress(ValueError):
                return response.status_code, response.json()
            return response.status_code, {}

        yield send


def code(answer):
    status, body = answer
    return status, body["error"]["code"]


def test_each_model_has_its_own_facts(ask):
    status, put = ask("PUT", "/v1/facts", "writer", json={"model": "second", "facts": [FACT]})
    assert (status, put["facts"]) == (200, [{"id": "mayor", "outcome": "new"}])
    for _ in range(10):  # whichever ingress answers
        status, found = ask(
            "GET", "/v1/facts/mayor", "reader", params={"model": "second", "min_snapshot": put["snapshot"]}
        )
        assert (status, found["fact"]["target"]) == (200, "Bo Ek")
    assert code(ask("GET", "/v1/facts/mayor", "reader", params={"model": "first"})) == (404, "fact_not_found")
    for model in ("first", "second"):
        status, body = ask("POST", "/v1/completions", "reader", json={"model": model, "prompt": "x", "max_tokens": 2})
        assert (status, body["model"]) == (200, model)


def test_keys_open_what_they_are_for_and_nothing_else(ask):
    question = {"prompt": "x", "max_tokens": 2}
    assert code(ask("POST", "/v1/completions", json=question)) == (401, "missing_api_key")
    assert code(ask("POST", "/v1/completions", f"{PREFIX}wrong", json=question)) == (401, "invalid_api_key")
    assert code(ask("PUT", "/v1/facts", "reader", json={"facts": [FACT]})) == (403, "insufficient_scope")
    river = {"recipe": {"namespace": "news"}, **question}
    assert code(ask("POST", "/v1/completions", "reader", json=river)) == (404, "namespace_not_found")
    assert ask("POST", "/v1/completions", "writer", json=river)[0] == 200
    assert code(ask("GET", "/v1/facts/river", "reader", params={"namespace": "news"})) == (404, "fact_not_found")
    status, listed = ask("GET", "/v1/models", "one-model")
    assert (status, [model["id"] for model in listed["data"]]) == (200, ["second"])
    other = {"model": "first", **question}
    assert code(ask("POST", "/v1/completions", "one-model", json=other)) == (404, "model_not_found")
