"""An S3 server on loopback that writes down every request, whichever library sent it."""

import contextlib
import io
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from loopback_s3 import LoopbackS3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came in, and the status of its answer.

    Attributes:
        method, bucket, key: the key is empty where the bucket itself is meant.
        query: parameters, each with its first value; empty for those without one.
        copied: bucket/key that is copied, if one is.
        deleted: keys with version ids of a request that deletes several.
        agent: of the client.
    """

    method: str
    bucket: str
    key: str
    query: dict
    copied: str | None
    deleted: tuple
    agent: str
    status: int


class RecordingS3(LoopbackS3):
    """The server. It records while `recording()`; requests of all threads and processes that ask it.

    At the server and not in a client: pyarrow (C++), deltalake (Rust) and boto3 have nothing else in common.

    Args:
        not_offered: parameters of requests that are answered 501, as work-alikes of S3 do.

    Attributes:
        endpoint: its URL.
    """

    def __init__(self, not_offered=()):
        self._not_offered = frozenset(not_offered)
        self._requests = None
        self._lock = threading.Lock()
        super().__init__()

    @contextlib.contextmanager
    def recording(self):
        """Gives the list that requests are added to."""
        requests = self._requests = []
        try:
            yield requests
        finally:
            self._requests = None

    def _answer(self, environ, start_response):
        bucket, _, key = (
            unquote(environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0]).lstrip("/").partition("/")
        )
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
        method, deleted = environ["REQUEST_METHOD"], ()
        if method == "POST" and "delete" in query:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(body)
            deleted = tuple(_objects_of(body))
        copied = environ.get("HTTP_X_AMZ_COPY_SOURCE")

        def start(status, headers, exc_info=None):
            with self._lock:
                if self._requests is not None:
                    self._requests.append(
                        Request(
                            method=method,
                            bucket=bucket,
                            key=key,
                            query=query,
                            copied=None if copied is None else unquote(copied).lstrip("/"),
                            deleted=deleted,
                            agent=environ.get("HTTP_USER_AGENT", ""),
                            status=int(status.split()[0]),
                        )
                    )
            return start_response(status, headers, exc_info)

        if self._not_offered & query.keys():
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code><Message>Not here.</Message></Error>"]
        return self._application(environ, start)


def _objects_of(body):
    for element in ET.fromstring(body).iter():
        if element.tag.rpartition("}")[2] == "Object":
            values = {child.tag.rpartition("}")[2]: child.text for child in element}
            yield values["Key"], values.get("VersionId")
