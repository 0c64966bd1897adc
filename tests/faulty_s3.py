"""An S3 server on loopback that fails on demand."""

import contextlib
import random
import socket
import threading
import time

from loopback_s3 import LoopbackS3

FAULTS = ("503", "500", "slow", "truncated", "dropped")
_ERRORS = {"503": ("503 Slow Down", "SlowDown"), "500": ("500 Internal Server Error", "InternalError")}


class FaultyS3(LoopbackS3):
    """A third of the requests, by chance, meet one of some faults while `failing` is set.

    By chance and not by turns, in which a request that is tried again could meet the same fault for ever.

    Args:
        faults: an error 503 or 500, a `slow` answer (1 s), a `truncated` body, a `dropped` connection.
        delay_s: of a slow answer.
        heedless: overwrite where `If-None-Match` says not to, as some work-alikes of S3 do; or "refuse" such requests.

    Attributes:
        endpoint: its URL.
        failing: an event, to be set and cleared.
        num_failed: requests failed so far.
    """

    def __init__(self, faults=("503",), delay_s=1.0, heedless=False):
        self.failing = threading.Event()
        self.num_failed = 0
        self._delay_s = delay_s
        self._heedless = heedless
        self._faults = faults
        self._rng = random.Random(0)
        self._lock = threading.Lock()
        super().__init__()

    def _answer(self, environ, start_response):
        with self._lock:
            fails = self.failing.is_set() and self._rng.random() < 1 / 3
            fault = self._rng.choice(self._faults) if fails else None
            self.num_failed += fault is not None
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>Try again.</Message></Error>".encode()]
        if fault == "dropped":
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if fault == "slow":
            time.sleep(self._delay_s)
        if self._heedless == "refuse" and "HTTP_IF_NONE_MATCH" in environ and environ["REQUEST_METHOD"] == "PUT":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code><Message>No conditions.</Message></Error>"]
        if self._heedless:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer = self._application(environ, start_response)
        if fault == "truncated" and environ["REQUEST_METHOD"] == "GET":
            body = b"".join(answer)
            return [body[: len(body) // 2]]  # behind a Content-Length of all of it
        return answer
