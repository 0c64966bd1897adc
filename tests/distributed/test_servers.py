"""Waiting for servers: as long as it takes, and no longer than that."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recipe_ray.distributed import servers
from recipe_ray.distributed.servers import await_version
from recipe_ray.errors import ServiceError


@pytest.fixture
def server(monkeypatch):
    """A server that tells one version after another, the last for ever; (status, body) tells something else."""
    monkeypatch.setattr(servers, "_PAUSE_S", 0.01)
    asked, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            status, body = answer if isinstance(answer, tuple) else (200, json.dumps({"snapshot": answer}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked, answers
    httpd.shutdown()
    httpd.server_close()


def test_a_server_is_asked_until_it_serves_the_version(server, monkeypatch):
    url, asked, answers = server
    monkeypatch.setenv(servers.KEY_VARIABLE, "secret")
    answers += [3, (503, "{}"), (200, "a page"), 4, 5, 9]
    assert await_version([f"{url}/?model=llama"], 5, patience_s=30) == {f"{url}/?model=llama": 5}
    assert asked == [("/v1/snapshots/current?model=llama", "Bearer secret")] * 5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (4, "serves version 4, and version 5 was to be served"),
        ((503, "{}"), "answers 503, and version 5"),
        ((200, "[]"), "does not answer as a server of facts does"),
    ],
    ids=["an older version", "an error", "no server of facts"],
)
def test_a_server_that_does_not_come_is_named_with_what_it_says(server, answer, complaint):
    url, _, answers = server
    answers.append(answer)
    with pytest.raises(ServiceError) as caught:
        await_version([url], 5, patience_s=0.05)
    assert str(caught.value).startswith(f"{url}: {complaint}")


def test_nobody_there_and_no_key_are_told(server):
    url, asked, answers = server
    answers.append((401, "{}"))
    with pytest.raises(ServiceError, match="answers 401; give a key with the scope facts:read in RECIPE_RAY_API_KEY"):
        await_version([url], 5, patience_s=60)
    assert len(asked) == 1
    with pytest.raises(ServiceError, match=r"127.0.0.1:9: does not answer"):
        await_version(["http://127.0.0.1:9"], 5, patience_s=0.05)
