"""What a job of several steps shows a person: each step with one bar, and nothing of what libraries say.

On a terminal a step's bar moves; elsewhere, as in a log, a few lines take its place.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

WIDTH = 120
_SHARES = (0.25, 0.5, 0.75)  # of a step, at which a log gets a line
_LINE_INTERVAL_S = 5.0


@contextmanager
def said_into(path: Path) -> Iterator[TextIO]:
    """Have all that this process and those it starts write to standard output and error go into a file.

    Yields what still writes to standard output.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        open(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace") as shown,  # noqa: PTH123 -- a descriptor
        open(os.dup(2), "w") as kept_stderr,  # noqa: PTH123
        path.open("a", buffering=1) as log,
    ):
        os.dup2(log.fileno(), 1)  # of what is written in C, and by processes
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(log), redirect_stderr(log):
                yield shown
        finally:
            shown.flush()
            os.dup2(shown.fileno(), 1)
            os.dup2(kept_stderr.fileno(), 2)


class Steps:
    """The steps of a job, numbered, on a console.

    Args:
        console: where.
        num: of steps.

    Attributes:
        seconds: of the steps that have ended, by name.
    """

    def __init__(self, console: Console, num: int) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._num = num

    @contextmanager
    def step(self, name: str, title: str) -> Iterator["Step"]:
        """One step, with its bar, which ends before what the step found is printed."""
        begun = time.monotonic()
        self._console.print(f"{len(self.seconds) + 1}/{self._num}  {title}", style="bold", highlight=False)
        step: Step = _Bar(self._console) if self._console.is_terminal else _Lines(self._console)
        try:
            yield step
        finally:
            step.close()
        self.seconds[name] = time.monotonic() - begun
        if not self._console.is_terminal:
            self._console.print(f"     done in {self.seconds[name]:.0f} s", highlight=False)


class Step:
    """How far one step is."""

    @contextmanager
    def show(self, description: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a stretch of the step in its bar, in place of the one before; yields what counts it forward."""
        self.begin(description, total, unit)
        yield self.advance

    def begin(self, description: str, total: int, unit: str) -> None:
        """A new stretch."""
        raise NotImplementedError

    def advance(self, count: int) -> None:
        """So many units more are done."""
        raise NotImplementedError

    def close(self) -> None:
        """The step has ended."""


class _Bar(Step):
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("     {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("starting", total=None, unit="")
        self._progress.start()

    def begin(self, description: str, total: int, unit: str) -> None:
        self._progress.update(self._task, description=description, total=total, completed=0, unit=unit)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def close(self) -> None:
        self._progress.stop()


class _Lines(Step):
    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = self._printed = time.monotonic()
        self._left: list[float] = []
        self.begin("", 0, "")

    def begin(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit, self._done = description, total, unit, 0
        self._left = [share * total for share in _SHARES]

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        passed = [mark for mark in self._left if mark <= self._done]
        if not passed or self._done >= self._total or now - self._printed < _LINE_INTERVAL_S:
            return
        self._left = self._left[len(passed) :]
        self._printed = now
        self._console.print(
            f"     {self._description}: {self._done} of {self._total} {self._unit}, {now - self._begun:.0f} s",
            highlight=False,
        )
