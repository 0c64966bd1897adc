"""How far a job is: a bar on the console, a line now and then in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LOG_INTERVAL_S = 15.0


@contextmanager
def progress(description: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a step of a job with its rate and the time left, on standard error; yields what counts it forward."""
    interval_s = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S
    with tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
        disable=total == 0,
        dynamic_ncols=True,
    ) as bar:
        yield lambda count: bar.update(count) and None


def line(text: str) -> None:
    """A line on standard output, above a bar that is being shown."""
    tqdm.write(text)
    sys.stdout.flush()
