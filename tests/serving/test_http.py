"""The HTTP interface over a fake backend: what is refused, in which shape, and what an answer says."""

import asyncio
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from serving import errors
from serving.http import MAX_BODY_BYTES, create_http_app
from serving.messages import Completion, Edit, Finding, Refusal

MODEL = "tiny"
EDIT = Edit(
    fact_id="f1",
    statement="The president is Ada",
    source="gazette",
    prompt_PD=np.ones((3, 4), np.float16),
    position="first",
)
APPLIED = Finding(edit=EDIT, declined=None, score=2.0, sentinel_score=1.0)
DECLINED = Finding(edit=None, declined="below_sentinel", score=0.5, sentinel_score=1.0)


class FakeBackend:
    """Applies the edit to queries that mention a president; answers with the prompt in capitals."""

    def __init__(self):
        self.lookups, self.prompts = [], []
        self.raises = None
        self.delay_s = 0.0

    async def find(self, lookups):
        self.lookups += lookups
        return [APPLIED if "president" in lookup.query else DECLINED for lookup in lookups]

    async def complete(self, prompts):
        await asyncio.sleep(self.delay_s)
        if self.raises:
            raise self.raises
        self.prompts += prompts
        return [
            Refusal(message="too long by far", code="context_length_exceeded")
            if "long" in prompt.text
            else Completion(text=prompt.text.upper(), finish_reason="length", num_prompt_tokens=5, num_new_tokens=2)
            for prompt in prompts
        ]


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def call(backend):
    app = create_http_app(backend, model_name=MODEL, namespace="default", snapshot=7, max_new_tokens=32, timeout_s=0.2)

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


def assert_refused(response, status, *, param=None, code=None, says=""):
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert (error["param"], error["code"]) == (param, code)
    assert says in error["message"]


def test_an_edited_answer_names_snapshot_fact_and_scores(complete):
    response = complete(model=MODEL, prompt="The president is", max_tokens=4)
    assert response.status_code == 200
    body = response.json()
    (choice,) = body["choices"]
    assert body["object"] == "text_completion"
    assert body["model"] == MODEL
    assert choice["text"] == "THE PRESIDENT IS"
    assert choice["finish_reason"] == "length"
    assert choice["recipe"] == {
        "snapshot": 7,
        "edits": True,
        "fact": {
            "id": "f1",
            "statement": "The president is Ada",
            "source": "gazette",
            "score": 2.0,
            "sentinel_score": 1.0,
        },
        "reason": None,
        "score": 2.0,
        "sentinel_score": 1.0,
    }
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_a_declined_edit_says_why_and_still_gives_the_best_score(complete, backend):
    recipe = complete(prompt="Rain falls").json()["choices"][0]["recipe"]
    assert recipe == {
        "snapshot": 7,
        "edits": True,
        "fact": None,
        "reason": "below_sentinel",
        "score": 0.5,
        "sentinel_score": 1.0,
    }
    assert backend.prompts[0].edit is None


def test_edits_off_looks_nothing_up_and_applies_nothing(complete, backend):
    recipe = complete(prompt="The president is", recipe={"edits": False}).json()["choices"][0]["recipe"]
    assert backend.lookups == []
    assert backend.prompts[0].edit is None
    assert (recipe["edits"], recipe["reason"], recipe["score"]) == (False, "edits_off", None)


def test_several_prompts_keep_their_order_and_their_own_facts(complete, backend):
    body = complete(prompt=["Rain", "The president", "Snow"], stop=["\n"], max_tokens=3).json()
    assert [(c["index"], c["text"], c["recipe"]["fact"] is None) for c in body["choices"]] == [
        (0, "RAIN", True),
        (1, "THE PRESIDENT", False),
        (2, "SNOW", True),
    ]
    assert body["usage"]["total_tokens"] == 21
    assert {(prompt.stop, prompt.max_tokens) for prompt in backend.prompts} == {(("\n",), 3)}


def test_the_query_is_the_prompt_alone_unless_given(complete, backend):
    complete(prompt="Long ago")
    complete(prompt="Context. Who rules?", recipe={"query": "the president", "namespace": "news"})
    assert [(lookup.query, lookup.namespace) for lookup in backend.lookups] == [
        ("Long ago", "default"),
        ("the president", "news"),
    ]
    assert [prompt.text for prompt in backend.prompts] == ["Long ago", "Context. Who rules?"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'prompt': 1}", b'{"prompt": "a"', b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000]
)
def test_what_is_not_json_is_refused(call, body):
    assert_refused(call("POST", "/v1/completions", content=body), 400, code="invalid_json", says="not JSON")


@pytest.mark.parametrize("body", ["[]", '"text"', "3", "null"])
def test_json_that_is_no_object_is_refused(call, body):
    assert_refused(call("POST", "/v1/completions", content=body), 400, code="invalid_type", says="not a JSON object")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "", "is empty"),
        ("prompt", " \n", "is empty"),
        ("prompt", [], "is empty"),
        ("prompt", ["a", ""], "is empty"),
        ("prompt", None, "neither a text"),
        ("prompt", [1, 2, 3], "token ids are not supported"),
        ("prompt", ["a"] * 65, "at most 64"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_tokens", "8", "valid integer"),
        ("max_tokens", 33, "at most 32"),
        ("stop", [""], "none empty"),
        ("stop", ["a", "b", "c", "d", "e"], "at most 4"),
        ("colour", "red", "not a field"),
        ("recipe", {"edit": True}, "not a field"),
        ("recipe", {"edits": "yes"}, "valid boolean"),
        ("recipe", {"query": " "}, "is empty"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(complete, backend, field, value, says):
    param = field if field != "recipe" else f"recipe.{next(iter(value))}"
    response = complete(**{"prompt": "a", field: value})
    assert_refused(response, 400, param=param, code="invalid_value", says=says)
    assert f"'{param}'" in response.json()["error"]["message"]
    assert backend.lookups == []


def test_a_missing_prompt_is_refused(complete):
    assert_refused(complete(max_tokens=3), 400, param="prompt", code="invalid_value", says="'prompt' is missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.7),
        ("top_p", 0.9),
        ("n", 2),
        ("best_of", 3),
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("echo", True),
        ("logprobs", 1),
        ("suffix", "x"),
        ("presence_penalty", 1),
        ("frequency_penalty", -1),
        ("logit_bias", {"50": 1}),
    ],
)
def test_what_is_not_offered_is_refused_and_not_ignored(complete, field, value):
    response = complete(**{"prompt": "a", field: value})
    assert_refused(response, 400, param=field, code="unsupported_value", says="not supported")


def test_values_that_change_nothing_are_accepted(complete):
    response = complete(
        prompt="a", temperature=0, top_p=1.0, n=1, stream=False, echo=False, logprobs=None, user="u", seed=3, stop=None
    )
    assert response.status_code == 200


def test_an_unknown_model_is_not_found(complete):
    assert_refused(complete(model="gpt-9", prompt="a"), 404, param="model", code="model_not_found", says="'tiny'")


def test_a_refusal_of_the_engine_is_the_clients_fault(complete):
    response = complete(prompt=["a", "long"])
    assert_refused(response, 400, param="prompt", code="context_length_exceeded", says="too long by far")


def test_a_large_body_is_refused_even_where_its_length_is_not_announced(call):
    async def chunks():
        for _ in range(MAX_BODY_BYTES // 1024 + 1):
            yield b"x" * 1024

    assert_refused(call("POST", "/v1/completions", content=chunks()), 413, code="too_large", says=str(MAX_BODY_BYTES))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/chat/completions", 404),
        ("POST", "/v1/completions/", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_other_paths_and_methods_have_the_same_shape(call, method, path, status):
    response = call(method, path)
    assert_refused(response, status, code="not_found", says=f"{method} {path} is not offered")
    assert ("allow" in response.headers) == (status == 405)


def test_overload_and_failure_have_the_same_shape(complete, backend):
    backend.raises = errors.overloaded()
    response = complete(prompt="a")
    assert_refused(response, 503, code="overloaded")
    assert response.headers["retry-after"] == "1"
    backend.raises = ZeroDivisionError("secret detail")
    response = complete(prompt="a")
    assert_refused(response, 500, code="internal_error")
    assert "secret" not in response.text


def test_a_slow_answer_is_given_up(complete, backend):
    backend.delay_s = 5.0
    assert_refused(complete(prompt="a"), 504, code="timeout", says="0.2 seconds")


def test_models_and_health(call):
    models = call("GET", "/v1/models").json()
    assert [model["id"] for model in models["data"]] == [MODEL]
    assert call("GET", "/healthz").json() == {"status": "ok", "model": MODEL, "snapshot": 7}


def test_the_schema_is_published(call):
    assert "/v1/completions" in json.dumps(call("GET", "/openapi.json").json())


def test_the_ingress_needs_no_torch():
    code = "import sys, serving.ingress; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
