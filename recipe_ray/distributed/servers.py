"""Waiting until servers answer from a version of a table."""

import os
import time
from collections.abc import Sequence

import httpx

from recipe_ray.errors import ServiceError

KEY_VARIABLE = "RECIPE_RAY_API_KEY"
PATIENCE_S = 120.0
_PAUSE_S = 0.5
_REQUEST_S = 10.0


def await_version(urls: Sequence[str], version: int, *, patience_s: float = PATIENCE_S) -> dict[str, int]:
    """Ask each server what it serves until it is this version or a later one; gives what each told last.

    Args:
        urls: where they listen, with `?model=NAME` where one serves several.
        version: of the table.
        patience_s: how long a version may take to come, for all of them together.

    Raises:
        ServiceError: one cannot be asked, or does not come to the version; it names the server and what it serves.
    """
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    until = time.monotonic() + patience_s
    with httpx.Client(headers=headers, timeout=_REQUEST_S) as client:
        return {url: _await_one(client, url, version, until) for url in urls}


def _await_one(client: httpx.Client, url: str, version: int, until: float) -> int:
    while True:
        served, why = _ask(client, url)
        if served is not None and served >= version:
            return served
        if time.monotonic() > until:
            raise ServiceError(
                f"{url}: {why or f'serves version {served}'}, and version {version} was to be served; look at the "
                "server (one with a fixed snapshot follows nothing), then run this again, which does nothing twice"
            )
        time.sleep(_PAUSE_S)


def _ask(client: httpx.Client, url: str) -> tuple[int | None, str]:
    """The version that a server tells, or why it tells none.

    Raises:
        ServiceError: it refuses the question, which waiting does not change.
    """
    place = httpx.URL(url)
    try:
        answer = client.get(place.copy_with(path=place.path.rstrip("/") + "/v1/snapshots/current"))
        if answer.status_code in (401, 403):
            raise ServiceError(
                f"{url}: answers {answer.status_code}; give a key with the scope facts:read in {KEY_VARIABLE}"
            )
        answer.raise_for_status()
        return int(answer.json()["snapshot"]), ""
    except httpx.HTTPStatusError as error:
        return None, f"answers {error.response.status_code}"
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return None, f"does not answer as a server of facts does ({' '.join(str(error).split())[:200]})"
