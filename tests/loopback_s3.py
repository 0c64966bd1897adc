"""moto's S3 as a server on loopback, with something between a request and its answer."""

import contextlib
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class LoopbackS3:
    """Subclasses answer in `_answer(environ, start_response)`, as a rule by `_application`, which is moto's.

    Attributes:
        endpoint: its URL.
    """

    def __init__(self):
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

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
