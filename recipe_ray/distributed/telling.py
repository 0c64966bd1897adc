"""What the workers of a job tell its driver as they go: lines, and how far they are.

What a worker prints itself reaches the driver, if at all, behind the name and the process id of its actor, among all
that libraries print there.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

_POLL_S = 0.5
_TAKE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One message.

    Attributes:
        line: for a person to read; empty for none.
        num_done: of what the job does, so much more is done.
    """

    line: str = ""
    num_done: int = 0


Tell = Callable[[Told], None]


def to_nobody(_: Told) -> None:
    """Where nobody listens."""


@contextlib.contextmanager
def listening(hear: Tell) -> Iterator[Tell]:
    """Yield what workers may be given to tell with; what they tell is heard here, in the order of each.

    Messages that are lost, with the node that they pass through, are lost: no worker waits for them or fails.
    """
    mailbox = ray.remote(num_cpus=0, max_restarts=-1)(_Mailbox).remote()
    ended = threading.Event()

    def hear_all() -> None:
        last = False
        while not last:
            last = ended.wait(_POLL_S)
            try:
                messages = ray.get(mailbox.take.remote(), timeout=_TAKE_TIMEOUT_S)
            except RayError as error:
                logging.getLogger(__name__).warning("messages of workers were lost: %s", error)
                continue
            for message in messages:
                hear(message)

    listener = threading.Thread(target=hear_all, name="listening", daemon=True)
    listener.start()
    try:
        yield _Letterbox(mailbox)
    finally:
        ended.set()
        listener.join()
        ray.kill(mailbox)


@dataclass(frozen=True, slots=True)
class _Letterbox:
    """What workers are given: it sends messages, and waits for none."""

    mailbox: Any

    def __call__(self, message: Told) -> None:
        self.mailbox.put.remote(message)


class _Mailbox:
    """The actor that messages wait in."""

    def __init__(self) -> None:
        self._messages: list[Told] = []

    def put(self, message: Told) -> None:
        self._messages.append(message)

    def take(self) -> list[Told]:
        taken, self._messages = self._messages, []
        return taken
