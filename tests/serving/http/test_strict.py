"""Nothing of a request is dropped: fields and query parameters that stand twice, parameters that are none."""

import pytest
from fake_service import assert_refused
from memory_backend import Client

JSON = {"Content-Type": "application/json"}
CHAT = '{"messages": [{"role": "user", "content": "a"%s}]%s}'


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("PUT", "/v1/facts", '{"facts": [{"prompt": "a", "target": "b", "target": "c"}]}', "facts.0.target"),
        ("PUT", "/v1/facts", '{"facts": [], "facts": [{"statement": "a b"}]}', "facts"),
        ("PUT", "/v1/facts", '{"facts": [{"statement": "a b"}], "namespace": "a", "namespace": "b"}', "namespace"),
        ("POST", "/v1/facts/delete", '{"ids": ["a"], "ids": ["b"]}', "ids"),
        ("POST", "/v1/facts/search", '{"query": "a", "query": "b"}', "query"),
        ("POST", "/v1/retrieve", '{"query": "a", "top_k": 1, "top_k": 2}', "top_k"),
        ("POST", "/v1/completions", '{"prompt": "a", "prompt": "b"}', "prompt"),
        ("POST", "/v1/completions", '{"prompt": "a", "pro\\u006dpt": "b"}', "prompt"),
        ("POST", "/v1/completions", '{"prompt": "a", "recipe": {"query": "a", "query": "b"}}', "recipe.query"),
        ("POST", "/v1/completions", '{"prompt": "a", "logit_bias": {"5": 1, "5": 2}}', "logit_bias.5"),
        (
            "POST",
            "/v1/completions",
            '{"prompt": "a", "stream": true, "stream_options": {"include_usage": true, "include_usage": false}}',
            "stream_options.include_usage",
        ),
        ("POST", "/v1/completions", '{"prompt": "a", "colour": {"r": 1, "r": 2}}', "colour.r"),
        ("POST", "/v1/chat/completions", CHAT % (', "content": "b"', ""), "messages.0.content"),
        ("POST", "/v1/chat/completions", CHAT % ("", ', "metadata": {"a": "1", "a": "2"}'), "metadata.a"),
        (
            "POST",
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
            "messages.0.content.0.text",
        ),
    ],
)
def test_a_field_that_stands_twice_is_refused_wherever_it_is(method, path, body, param):
    client = Client()
    response = client(method, path, content=body, headers=JSON)
    assert_refused(response, 400, param=param, code="duplicate_field", says=f"'{param}' stands twice; give it once")
    assert client.backend.calls == []
    assert client.backend.version == 0


def test_every_route_with_a_body_refuses_a_doubled_field_and_every_one_an_unknown_parameter(call):
    """Of the document, so that a new route is not lax by mistake."""
    num_bodies = 0
    for path, operations in call("GET", "/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            url = path.replace("{version}", "1").replace("{fact_id}", "a").replace("{model_id}", "a")
            if "requestBody" in operation:
                num_bodies += 1
                response = call(method, url, content='{"x": 1, "x": 2}', headers=JSON)
                assert_refused(response, 400, param="x", code="duplicate_field", says="stands twice")
            response = call(method, url, params={"colour": "red"}, json={} if "requestBody" in operation else None)
            if url in ("/healthz", "/readyz"):
                assert response.status_code == 200, "a probe may add what it likes"
            else:
                assert_refused(response, 400, param="colour", code="unknown_parameter", says="query parameter 'colour'")
    assert num_bodies >= 6


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/facts?namespace=a&namespace=b"),
        ("GET", "/v1/facts?namespace=a&namespace=a"),
        ("GET", "/v1/facts/x?limit=1&namespace=a&namespace=b"),
        ("DELETE", "/v1/facts/x?namespace=a&namespace=b"),
    ],
)
def test_a_query_parameter_that_stands_twice_is_refused(method, path):
    client = Client()
    response = client(method, path)
    assert_refused(response, 400, param="namespace", code="duplicate_field", says="query parameter 'namespace'")
    assert client.backend.calls == []


def test_a_namespace_in_the_address_of_a_put_is_refused_and_not_dropped():
    client = Client()
    response = client("PUT", "/v1/facts?namespace=shop", json={"facts": [{"statement": "a b"}]})
    assert_refused(response, 400, param="namespace", code="unknown_parameter", says="leave it out")
    assert client.backend.version == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'\xef\xbb\xbf{"prompt": "a"}', None),  # a byte order mark is none of the JSON
        (b'{"prompt": "\xe9"}', "invalid_json"),
        (b'{"prompt": "a", "metadata": ' + b'{"a":' * 7_000 + b"1" + b"}" * 7_001, "invalid_json"),
        (b'{"prompt": "a", "user": "b"} {"prompt": "a"}', "invalid_json"),
        (b'{"prompt": "\xed\xa0\x80"}', "invalid_value"),
        (b'{"prompt": "a", "\\ud800": 1, "\\ud800": 2}', "duplicate_field"),
        (b'{"prompt": "a", "' + b"x" * 5000 + b'": 1, "' + b"x" * 5000 + b'": 2}', "duplicate_field"),
    ],
)
def test_odd_bodies_stay_clear_answers(call, body, code):
    response = call("POST", "/v1/completions", content=body, headers=JSON)
    assert response.status_code == (400 if code else 200)
    if code:
        error = response.json()["error"]
        assert error["code"] == code
        assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/v1/facts/a"), ("POST", "/v1/snapshots/0/activate"), ("GET", "/v1/models")]
)
def test_a_body_where_none_is_read_is_refused_and_not_dropped(method, path):
    client = Client()
    response = client(method, path, content=b'{"namespace": "shop"}', headers=JSON)
    assert_refused(response, 400, code="unexpected_body", says="this request has no body")
    assert client.backend.calls == []


@pytest.mark.parametrize("namespace", ["sh\u0007op", "shop\u001f", "\u0085\u0001"])
def test_a_namespace_of_control_characters_is_refused_in_a_completion_as_elsewhere(call, namespace):
    body = {"prompt": "a", "recipe": {"namespace": namespace}}
    assert_refused(call("POST", "/v1/completions", json=body), 400, param="recipe.namespace", code="invalid_value")
