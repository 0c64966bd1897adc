"""A headless Chromium of the system, and the page on loopback.

`CHROMIUM` names the browser where it is not on the path. `RECIPE_RAY_URL` names a true server, whose facts may be
changed, to run against in place of the fake one; `RECIPE_RAY_KEY` a key for it.
"""

import os
import shutil
import threading
import time
from dataclasses import dataclass

import pytest
import uvicorn
from fake_api import FakeApi, create_app

TIMEOUT_MS = 20_000  # of one step, on a busy machine


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: needs Chromium; skipped where there is none")


@pytest.fixture(scope="session")
def chromium():
    """One browser for the session."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path: install Debian's package chromium, or name one in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Site:
    """Where the page is; `api` is None where a true server answers."""

    url: str
    api: FakeApi | None
    key: str | None


@pytest.fixture
def fake_site():
    """The page over the fake interface, empty."""
    api = FakeApi()
    config = uvicorn.Config(create_app(api), port=0, log_level="error", lifespan="off", ws="none", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(url=f"http://127.0.0.1:{port}", api=api, key=None)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def site(request):
    """The true server where one is named, else the fake one."""
    url = os.environ.get("RECIPE_RAY_URL")
    if url:
        return Site(url=url.rstrip("/"), api=None, key=os.environ.get("RECIPE_RAY_KEY"))
    return request.getfixturevalue("fake_site")


@pytest.fixture
def new_page(chromium):
    """Opens pages that may not fail in silence: no error of a script or of the policy, nothing from elsewhere."""
    contexts, faults = [], []

    def open_page(site, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: faults.append(f"error of a script: {error}"))
        page.on("console", lambda message: _note(message, faults))
        page.on("request", lambda asked: asked.url.startswith(site.url) or faults.append(f"asked for {asked.url}"))
        if site.key:
            page.add_init_script(f"sessionStorage.setItem('recipe-ray.key', {site.key!r})")
        page.goto(f"{site.url}/console")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def _note(message, faults):
    # Chromium writes a line for each answer of 400 and above; what the page makes of it is tested.
    if message.type == "error" and not message.text.startswith("Failed to load resource"):
        faults.append(f"console: {message.text}")
