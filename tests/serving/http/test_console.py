"""The web page as it is served: whole, from here alone, under a policy that allows nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from serving.console import router as console
from serving.errors import ApiError

STATIC = Path(console.__file__).parent / "static"
ASSETS = sorted(path.name for path in STATIC.iterdir())
SVG_NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nothing is loaded from
UNSAFE_SINKS = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setTimeout\(\s*['\"]"


@pytest.fixture(scope="module")
def client():
    app = FastAPI(redirect_slashes=False)
    app.include_router(console.router)

    @app.exception_handler(ApiError)
    async def shaped(request, error):
        return JSONResponse(error.body(), status_code=error.status)

    with TestClient(app) as client:
        yield client


class Page(HTMLParser):
    """Every element of a document, and the text within each script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.inline = ""
        self._in_code = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_code = False

    def handle_data(self, data):
        if self._in_code:
            self.inline += data

    def loaded(self):
        return [
            attributes.get("src") or attributes["href"]
            for tag, attributes in self.elements
            if tag in ("script", "link", "img", "iframe", "source")
        ]


@pytest.fixture(scope="module")
def page(client):
    return Page(client.get("/console").text)


def test_the_page_and_all_that_it_loads_are_served(client, page):
    response = client.get("/console")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert page.loaded()
    for address in page.loaded():
        assert client.get(f"/{address}").status_code == 200, address


@pytest.mark.parametrize("name", ASSETS)
def test_each_asset_has_its_type_and_the_policy(client, name):
    response = client.get(f"/console/{name}")
    assert response.content == (STATIC / name).read_bytes()
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}
    assert response.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    directives = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert directives["default-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


def test_an_unchanged_file_is_not_sent_again_and_a_changed_one_is(client):
    etag = client.get("/console/console.js").headers["etag"]
    again = client.get("/console/console.js", headers={"If-None-Match": f'W/{etag}, "other"'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    assert client.get("/console/console.js", headers={"If-None-Match": '"older"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "router.py", "..%2frouter.py", "%2e%2e%2frouter.py", "index.html%00"])
def test_nothing_but_the_assets_is_served(client, name):
    assert client.get(f"/console/{name}").status_code == 404


def test_a_slash_too_many_leads_to_the_page(client):
    response = client.get("/console/", follow_redirects=False)
    assert response.status_code == 307
    assert client.get("/console/").url.path == "/console"


def test_the_page_is_no_part_of_the_described_interface(client):
    assert client.get("/openapi.json").json()["paths"] == {}


@pytest.mark.parametrize("name", ASSETS)
def test_no_asset_names_an_address_elsewhere(name):
    text = (STATIC / name).read_text().replace(SVG_NAMESPACE, "")
    assert not re.search(r"https?:|wss?:|[\"'(]//", text)
    assert not re.search(r"@import|url\(", text)


def test_the_page_has_no_inline_code_or_style(page):
    assert not page.inline.strip()
    for tag, attributes in page.elements:
        inline = [name for name in attributes if name.startswith("on") or name == "style"]
        assert not inline, (tag, inline)
        assert not (attributes.get("href") or "").lower().startswith("javascript:")


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_module_makes_markup_or_code_of_text(name):
    text = (STATIC / name).read_text()
    assert not re.search(UNSAFE_SINKS, text)
    imported = re.findall(r'from "([^"]+)"', text)
    assert all((STATIC / other).is_file() and other.startswith("./") for other in imported)


def test_the_key_is_kept_in_the_session_alone():
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    assert not re.search(r"localStorage|document\.cookie|indexedDB", scripts)


def test_every_control_has_a_name_and_every_reference_its_element(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in page.elements if tag == "label"}
    for tag, attributes in page.elements:
        if tag in ("input", "select", "textarea"):
            assert attributes.get("id") in labelled, attributes
        for name in ("for", "list", "aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids), (tag, attributes)
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids


def test_the_scripts_ask_only_for_elements_that_are_there(page):
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for path in STATIC.glob("*.js"):
        assert set(re.findall(r'\$\("([^"]+)"\)', path.read_text())) <= ids, path.name
