"""Requests in which nothing is dropped: no field or parameter twice, no unknown one, no body where none is read."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from recipe_ray import strict_json
from serving.http.wire import doubled_field, unexpected_body, unknown_field


class StrictRoute(APIRoute):
    """A route that reads requests so; the class of every router of the interface."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, asked with a strict request."""
        handle = super().get_route_handler()
        # Where a route declares any, FastAPI refuses the others by itself.
        takes_query, takes_body = bool(self.dependant.query_params), self.body_field is not None

        async def strict(request: Request) -> Response:
            _check_query(request, takes_query=takes_query)
            if not takes_body and (await request.body()).strip() not in (b"", b"{}"):
                raise unexpected_body()
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body, parsed once.

        Raises:
            ApiError: an object in it has a field twice. FastAPI takes it for a fault in reading, and names it the
                cause of its own error.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            text = body.decode(json.detect_encoding(body), "surrogatepass")  # as `json.loads` does
            try:
                self._json = strict_json.parse_body(text)
            except strict_json.DoubledFieldError as error:
                raise doubled_field("body", strict_json.path_of(error, text)) from error
        return self._json


def _check_query(request: Request, *, takes_query: bool) -> None:
    given = Counter(name for name, _ in request.query_params.multi_items())
    for name, number in given.items():
        if not takes_query:
            raise unknown_field("query", name)
        if number > 1:
            raise doubled_field("query", name)
