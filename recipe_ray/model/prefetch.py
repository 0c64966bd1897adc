"""Values made ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetched(make: Callable[[Item], Value], items: Iterable[Item], *, depth: int = 2) -> Iterator[Value]:
    """`make(item)` of each item in order, made by one thread, up to `depth` ahead of the value in use.

    An exception of `make` is raised where its value would have come.
    """
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
