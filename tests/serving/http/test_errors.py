"""What is refused, in which words and shape."""

import asyncio

import httpx
import pytest
from fake_service import MODEL, FakeBackend, assert_refused

from serving import errors
from serving.http.app import create_http_app
from serving.http.context import ModelEntry, Service

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'prompt': 1}",
        b'{"prompt": "a"',
        b"\xff\xfe",
        b"[" * 40_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(call, body):
    response = call("POST", "/v1/completions", content=body, headers=JSON)
    assert_refused(response, 400, code="invalid_json", says="not JSON")


@pytest.mark.parametrize("body", ["[]", '"text"', "3", "null", "NaN"])
def test_json_that_is_no_object_is_refused(call, body):
    response = call("POST", "/v1/completions", content=body, headers=JSON)
    assert_refused(response, 400, code="invalid_type", says="not a JSON object")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_is_not_announced_as_json_is_refused(call, backend, kind):
    headers = {"Content-Type": kind} if kind else {}
    response = call("POST", "/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert_refused(response, 400, code="invalid_type", says="application/json")
    assert backend.requests == []


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_sites_page_sends_is_refused(call, backend, site):
    headers = {"Sec-Fetch-Site": site}
    response = call("POST", "/v1/completions", json={"prompt": "a"}, headers=headers)
    assert_refused(response, 403, code="cross_site", says="another site")
    assert_refused(call("POST", "/v1/snapshots/1/activate", headers=headers), 403, code="cross_site")
    assert call("POST", "/v1/completions", json={"prompt": "a"}, headers={"Sec-Fetch-Site": "same-origin"}).is_success


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"prompt": "\\ud800"}', "prompt", "invalid_value"),
        (b'{"prompt": ["a", "\\ud800"]}', "prompt", "invalid_value"),
        (b'{"prompt": "a", "stop": "\\udfff"}', "stop", "invalid_value"),
        (b'{"prompt": "a", "user": "\\ud800"}', "user", "invalid_value"),
        (b'{"prompt": "a", "suffix": "\\ud800"}', "suffix", "unsupported_value"),
        (b'{"prompt": "a", "\\ud800": 1}', None, "invalid_type"),
        (b'{"prompt": "a", "recipe": {"query": "\\ud800"}}', "recipe.query", "invalid_value"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature", "invalid_value"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature", "invalid_value"),
        (b'{"prompt": "a", "top_p": -Infinity}', "top_p", "invalid_value"),
        (b'{"prompt": "a", "logit_bias": NaN}', "logit_bias", "unsupported_value"),
        (b'{"prompt": "a", "seed": 1.5}', "seed", "invalid_value"),
        (b'{"prompt": "a", "seed": 9223372036854775808}', "seed", "invalid_value"),
        (b'{"prompt": [99999999999999999999999999]}', "prompt", "invalid_value"),
        (b'{"prompt": "a", "max_tokens": 1e400}', "max_tokens", "invalid_value"),
    ],
)
def test_json_that_says_what_no_field_can_hold_is_refused(call, body, param, code):
    assert_refused(call("POST", "/v1/completions", content=body, headers=JSON), 400, param=param, code=code)


def test_a_model_named_by_half_a_character_is_refused_and_not_a_fault(call):
    response = call("POST", "/v1/completions", content=b'{"prompt": "a", "model": "\\ud800"}', headers=JSON)
    assert_refused(response, 400, param="model", code="invalid_value")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "", "is empty"),
        ("prompt", " \n", "is empty"),
        ("prompt", [], "is empty"),
        ("prompt", [[]], "neither a text, nor token ids"),
        ("prompt", ["a", ""], "is empty"),
        ("prompt", ["a", 3], "neither a text, nor token ids"),
        ("prompt", [1, True], "neither a text, nor token ids"),
        ("prompt", [-1], "no token id"),
        ("prompt", None, "neither a text"),
        ("prompt", {"text": "a"}, "neither a text"),
        ("prompt", ["a"] * 9, "at most 8"),
        ("max_tokens", 0, "without 'echo'"),
        ("max_tokens", -1, "greater than or equal to 0"),
        ("max_tokens", "8", "valid integer"),
        ("max_tokens", 33, "at most 32"),
        ("temperature", 2.1, "less than or equal to 2"),
        ("temperature", True, "valid number"),
        ("top_p", 0, "greater than 0"),
        ("n", 0, "greater than or equal to 1"),
        ("n", 9, "at most 8"),
        ("best_of", 2, "beside 'n' of 1"),
        ("stop", [""], "each of 1 to"),
        ("stop", ["a", "b", "c", "d", "e"], "at most 4"),
        ("stop", 3, "is not a text"),
        ("logprobs", 21, "less than or equal to 20"),
        ("stream", "yes", "valid boolean"),
        ("stream_options", {"include_usage": True}, "'stream': true"),
        ("recipe", {"edits": "yes"}, "valid boolean"),
        ("recipe", {"query": " "}, "words in it"),
        ("recipe", {"top_k": 17}, "less than or equal to 16"),
        ("recipe", {"snapshot": -1}, "greater than or equal to 0"),
        ("recipe", {"min_snapshot": 3, "snapshot": 2}, "comes before it"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(complete, backend, field, value, says):
    param = field if field != "recipe" else f"recipe.{next(iter(value))}"
    response = complete(**{"prompt": "a", field: value})
    assert_refused(response, 400, param=param, code="invalid_value", says=says)
    assert f"'{param}'" in response.json()["error"]["message"]
    assert backend.lookups == []


@pytest.mark.parametrize(("field", "value"), [("colour", "red"), ("recipe", {"edit": True})])
def test_an_unknown_field_is_refused_by_its_name(complete, field, value):
    param = field if field != "recipe" else "recipe.edit"
    response = complete(**{"prompt": "a", field: value})
    assert_refused(response, 400, param=param, code="unknown_parameter", says="not a field")


def test_a_missing_prompt_is_refused(complete):
    response = complete(max_tokens=3)
    assert_refused(response, 400, param="prompt", code="missing_required_parameter", says="'prompt' is missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"),
        ("presence_penalty", 1),
        ("presence_penalty", False),
        ("frequency_penalty", -1),
        ("logit_bias", {"50": 1}),
    ],
)
def test_what_is_not_offered_is_refused_and_not_ignored(complete, field, value):
    response = complete(**{"prompt": "a", field: value})
    assert_refused(response, 400, param=field, code="unsupported_value", says="not supported")


def test_values_that_change_nothing_are_accepted(complete):
    response = complete(
        prompt="a",
        suffix="",
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        echo=False,
        logprobs=None,
        user="u",
        recipe=None,
        n=None,
        stream_options=None,
    )
    assert response.status_code == 200, response.text


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_looked_up(complete, backend):
    for prompt in ("a" * 10_001, [7] * 10_001):
        response = complete(prompt=prompt)
        assert_refused(response, 400, param="prompt", code="context_length_exceeded", says="10000 are read")
    response = complete(prompt="a", recipe={"query": "a" * 10_001})
    assert_refused(response, 400, param="recipe.query", code="invalid_value", says="10000 are read")
    assert backend.lookups == []


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_large_body_is_refused_whether_its_length_is_announced_or_not(call, limits, is_announced):
    async def chunks():
        for _ in range(60):
            yield b"x" * 1024

    for method, path in (("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("PUT", "/v1/facts")):
        response = call(method, path, content=b"x" * 60 * 1024 if is_announced else chunks(), headers=JSON)
        assert_refused(response, 413, code="too_large", says=str(limits.body_bytes))


def test_an_unknown_model_is_not_found(complete, call):
    assert_refused(
        complete(model="gpt-9", prompt="a"), 404, param="model", code="model_not_found", says=f"one of {MODEL}"
    )
    assert_refused(call("GET", "/v1/models/gpt-9"), 404, param="model", code="model_not_found", says=f"one of {MODEL}")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/", None),
        ("POST", "/v1/completions/", None),
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("DELETE", "/v1/facts", "GET, PUT"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_other_paths_and_methods_have_the_same_shape(call, method, path, allow):
    response = call(method, path)
    status, code = (405, "method_not_allowed") if allow else (404, "not_found")
    assert_refused(response, status, code=code, says=f"{method} {path} is not offered")
    assert response.headers.get("allow") == allow


def test_overload_and_failure_have_the_same_shape(complete, backend):
    backend.raises = errors.overloaded()
    response = complete(prompt="a")
    assert_refused(response, 429, code="rate_limited")
    assert response.headers["retry-after"] == "1"
    backend.raises = ZeroDivisionError("secret detail")
    response = complete(prompt="a")
    assert_refused(response, 500, code="internal_error")
    assert "secret" not in response.text


def test_a_slow_answer_is_given_up(complete, backend):
    backend.delay_s = 5.0
    assert_refused(complete(prompt="a"), 504, code="timeout", says="0.5 seconds")
    assert backend.num_open == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "a", "logprobs": 0}, "logprobs"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True}, "logprobs"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_its_reason(access, limits, tally, path, body, param):
    unsupported = {"echo": "it scores no prompts", "logprobs": "it tells none"}
    entry = ModelEntry(name=MODEL, backend=FakeBackend(), unsupported=unsupported)
    app = create_http_app(Service(models={MODEL: entry}, access=access, limits=limits, observer=tally))

    async def send(content):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.post(path, json=content)

    response = asyncio.run(send(body))
    assert_refused(response, 400, param=param, code="unsupported_value", says=unsupported[param])
    assert asyncio.run(send({**body, param: False if param == "echo" else None})).status_code == 200
