"""Following the writer: a task that hears of each new version and takes it up."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from recipe_ray.errors import RecipeError

logger = logging.getLogger("ray.serve")

PART_FAILURES = (RayError, RayServeException, TimeoutError, asyncio.TimeoutError)
"""How a part behind a handle fails: it is gone, not there yet, overloaded, late, or raised an error itself."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_SHORT_S = 0.5  # no long-poll that found nothing


class Follower:
    """Takes up versions as the writer commits them; belongs to the event loop on which it is started.

    Whatever keeps the writer from answering, or a version from being taken up, passes or is tried again, ever more
    slowly up to ten seconds; what is served goes on meanwhile.

    Args:
        writer: handle of the writer.
        current: the version that is served; -1 where none is yet.
        take_up: called with a later one; raises where it cannot be served.
    """

    def __init__(self, writer: Any, current: Callable[[], int], take_up: Callable[[int], Awaitable[None]]) -> None:
        self._writer = writer
        self._current = current
        self._take_up = take_up
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; nothing happens where it has begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(), name="follow-writer")

    def check(self) -> None:
        """Raise what ended the task, which is a mistake of ours."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                newest = await self._writer.wait_for.remote(after_version=self._current())
                if newest > self._current():
                    await self._take_up(newest)
                elif time.monotonic() < began + _SHORT_S:
                    await asyncio.sleep(_SHORT_S)
                pause_s = _FIRST_PAUSE_S
            except (*PART_FAILURES, RecipeError, OSError) as error:
                logger.warning(
                    "version %d is served on, the next is tried again in %.1f s: %s",
                    self._current(),
                    pause_s,
                    _said(error.__cause__ or error),
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _said(error: BaseException) -> str:
    """The last line of an error, which of another part's holds a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
