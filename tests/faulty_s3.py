"""An S3 server on loopback that fails on demand."""

import contextlib
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class FaultyS3:
    """Every third request is answered 503 while `failing` is set.

    Attributes:
        endpoint: its URL.
        failing: an event, to be set and cleared.
        num_failed: requests failed so far.
    """

    def __init__(self):
        self.failing = threading.Event()
        self.num_failed = 0
        self._num_requests = 0
        self._lock = threading.Lock()
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ, start_response):
        with self._lock:
            self._num_requests += 1
            fails = self.failing.is_set() and self._num_requests % 3 == 0
            self.num_failed += fails
        if not fails:
            return self._application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
