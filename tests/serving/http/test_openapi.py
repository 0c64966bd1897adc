"""Models, health, keys, and the document that describes the interface."""

import asyncio
import subprocess
import sys

import httpx
import jsonschema
import pytest
from fake_service import MODEL, FakeBackend, assert_refused
from openai.types import Model

from serving.http.access import Access, Caller
from serving.http.app import create_http_app
from serving.http.context import ModelEntry, Service


def ask(service, *requests):
    async def send():
        transport = httpx.ASGITransport(app=create_http_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, json=body) for method, path, body in requests]

    return asyncio.run(send())


class OneKey(Access):
    """Everybody is this caller."""

    def __init__(self, caller):
        super().__init__(None)
        self._caller = caller

    async def caller(self, headers):
        return self._caller


@pytest.fixture
def two_models(limits, tally):
    """A service of two models for a caller."""

    def make(**caller):
        entries = [ModelEntry(name=name, backend=FakeBackend()) for name in ("org/first", "second")]
        access = OneKey(Caller(key_id="k", **{"scopes": frozenset({"infer"}), **caller}))
        return Service(models={entry.name: entry for entry in entries}, access=access, limits=limits, observer=tally)

    return make


def test_models_are_listed_and_one_is_told_by_an_id_with_slashes(two_models):
    listed, one = ask(two_models(), ("GET", "/v1/models", None), ("GET", "/v1/models/org/first", None))
    assert [Model.model_validate(model).id for model in listed.json()["data"]] == ["org/first", "second"]
    assert listed.json()["object"] == "list"
    assert one.json() == listed.json()["data"][0]


def test_a_request_goes_to_the_model_that_it_names(two_models):
    service = two_models()
    first, second = ask(
        service,
        ("POST", "/v1/completions", {"prompt": "a"}),
        ("POST", "/v1/completions", {"prompt": "b", "model": "second"}),
    )
    assert (first.json()["model"], second.json()["model"]) == ("org/first", "second")
    asked = [[request.prompt for request in entry.backend.requests] for entry in service.models.values()]
    assert asked == [["a"], ["b"]]


def test_a_key_sees_its_own_models_alone(two_models):
    listed, default, other, told = ask(
        two_models(models=frozenset({"second"})),
        ("GET", "/v1/models", None),
        ("POST", "/v1/completions", {"prompt": "a"}),
        ("POST", "/v1/completions", {"prompt": "a", "model": "org/first"}),
        ("GET", "/v1/models/org/first", None),
    )
    assert [model["id"] for model in listed.json()["data"]] == ["second"]
    assert default.json()["model"] == "second"
    for refused in (other, told):
        assert_refused(refused, 404, param="model", code="model_not_found", says="one of second")


def test_a_key_without_the_scope_or_for_another_namespace_asks_in_vain(two_models):
    service = two_models(scopes=frozenset({"facts:read"}))
    (response,) = ask(service, ("POST", "/v1/completions", {"prompt": "a"}))
    assert_refused(response, 403, code="insufficient_scope", says="'infer'")

    service = two_models(namespaces=frozenset({"mine"}))
    own, other, spelled = ask(
        service,
        ("POST", "/v1/completions", {"prompt": "a"}),
        ("POST", "/v1/completions", {"prompt": "a", "recipe": {"namespace": "default"}}),
        ("POST", "/v1/completions", {"prompt": "a", "recipe": {"namespace": " default "}}),
    )
    assert own.status_code == 200
    assert [lookup.namespace for lookup in service.models["org/first"].backend.lookups] == ["mine"]
    for refused in (other, spelled):
        assert_refused(refused, 404, param="recipe.namespace", code="namespace_not_found")


def test_a_key_of_several_namespaces_that_names_none_may_still_ask_the_unedited_model(two_models):
    service = two_models(namespaces=frozenset({"a", "b"}))
    unedited, unnamed = ask(
        service,
        ("POST", "/v1/completions", {"prompt": "a", "recipe": {"edits": False}}),
        ("POST", "/v1/completions", {"prompt": "a"}),
    )
    assert unedited.status_code == 200
    assert_refused(unnamed, 400, param="recipe.namespace", code="missing_namespace", says="name one of them")


def test_alive_and_ready(call, backend):
    assert call("GET", "/healthz").json() == {"status": "ok"}
    assert call("GET", "/readyz").json() == {"status": "ready", "models": {MODEL: {"snapshot": 7}}}
    backend.is_ready = False
    assert_refused(call("GET", "/readyz"), 503, code="unavailable", says=MODEL)
    assert call("GET", "/healthz").status_code == 200


@pytest.fixture
def document(call):
    return call("GET", "/openapi.json").json()


def test_the_document_names_every_route_and_the_shape_of_every_error(document):
    assert {"/v1/models", "/v1/models/{model_id}", "/v1/completions", "/v1/chat/completions"} <= document[
        "paths"
    ].keys()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            for status in ("400", "401", "403", "404", "413", "429", "500", "503", "504"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_answers_are_as_the_document_says(document, call, path):
    operation = document["paths"][path]["post"]
    body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "The president"}
    validate(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
    answer = operation["responses"]["200"]["content"]
    assert "text/event-stream" in answer
    for options in ({}, {"logprobs": True, "top_logprobs": 2} if "chat" in path else {"logprobs": 2, "echo": True}):
        validate(document, answer["application/json"]["schema"], call("POST", path, json={**body, **options}).json())
    error = operation["responses"]["400"]["content"]["application/json"]["schema"]
    validate(document, error, call("POST", path, json={}).json())


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({"prompt": ["a", "b"], "stop": None, "presence_penalty": 0}, True),
        ({"prompt": [1, 2.0], "max_tokens": 32.0}, True),
        ({"prompt": ["a", [5], "b", [6, 7]]}, True),
        ({"prompt": ["a", 5]}, False),
        ({"prompt": ["a", [5, "b"]]}, False),
        ({"prompt": " "}, False),
        ({"prompt": []}, False),
        ({"prompt": "a", "presence_penalty": 1}, False),
        ({"prompt": "a", "stop": ["1", "2", "3", "4", "5"]}, False),
        ({"prompt": "a", "max_tokens": 33}, False),
        ({"prompt": "a", "n": 9}, False),
        ({"prompt": "a", "n": 0}, False),
        ({"prompt": "a", "logprobs": 21}, False),
        ({"prompt": "a", "recipe": {"snapshot": -1}}, False),
        ({"prompt": "a", "colour": "red"}, False),
        ({"prompt": "a", "recipe": {"top_k": 17}}, False),
        ({"prompt": "a", "recipe": {"query": ""}}, False),
    ],
)
def test_the_document_allows_what_is_taken_and_forbids_what_is_refused(document, complete, body, is_valid):
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if is_valid:
        validate(document, schema, body)
    else:
        with pytest.raises(jsonschema.ValidationError):
            validate(document, schema, body)
    assert complete(**body).status_code == (200 if is_valid else 400)


def validate(document, schema, value):
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_the_interface_needs_neither_torch_nor_ray():
    code = "import sys, serving.http.app; sys.exit(bool({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
