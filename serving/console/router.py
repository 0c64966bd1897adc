"""Serves the web page and its assets; it holds no state and asks the backend nothing."""

import functools
import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from serving.errors import ApiError

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    # Nothing from elsewhere, nothing inline, no text that becomes markup, and no page around this one.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cache-Control": "no-cache",  # ask again each time; an unchanged file costs a 304
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE = "index.html"

router = APIRouter(include_in_schema=False)


@router.api_route("/console", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return _respond(request, PAGE)


@router.api_route("/console/", methods=["GET", "HEAD"])
async def page_with_slash() -> Response:
    """To the page: its assets' addresses are relative, so that it works behind a prefix too."""
    return RedirectResponse("../console", status_code=307)


@router.api_route("/console/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    """One of the page's files.

    Raises:
        ApiError: 404 for a file that the page does not have.
    """
    return _respond(request, name)


def _respond(request: Request, name: str) -> Response:
    asset = _assets().get(name)
    if asset is None:
        raise ApiError(404, f"the console has no file {name!r}; its page is GET /console", code="not_found")
    content, etag = asset
    headers = {**HEADERS, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=CONTENT_TYPES[name.rpartition(".")[2]], headers=headers)


@functools.cache
def _assets() -> dict[str, tuple[bytes, str]]:
    """Content and ETag by name, read once: about 40 kB."""
    files = [file for file in resources.files("serving.console").joinpath("static").iterdir() if file.is_file()]
    contents = {file.name: file.read_bytes() for file in files if file.name.rpartition(".")[2] in CONTENT_TYPES}
    return {
        name: (content, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"')
        for name, content in contents.items()
    }
