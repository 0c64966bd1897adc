"""What concurrent calls ask for, done together: a lone call at once, others a moment later."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_Call = tuple[Sequence[Item], "asyncio.Future[Sequence[Result]]"]


class Batcher(Generic[Item, Result]):
    """Gathers items into batches while earlier batches are in work, and for a moment where calls come thick.

    Belongs to one event loop.

    Args:
        process: items of one batch to their results, in their order. What it raises, every call of the batch raises.
        max_items: after which a batch is closed; the items of one call stay together, however many.
        num_at_once: batches in work.
        gather_s: seconds that a batch waits for company where the call before it came less than four times that ago; a
            call that comes alone is never held up.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_items: int,
        num_at_once: int = 1,
        gather_s: float = 0.0,
    ) -> None:
        self._process = process
        self._max_items = max_items
        self._num_at_once = num_at_once
        self._gather_s = gather_s
        self._last_call_s = -math.inf
        self._waiting: deque[_Call[Item, Result]] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, items: Sequence[Item]) -> Sequence[Result]:
        """The results of the items of one call, in their order."""
        if not items:
            return []
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[Result]] = loop.create_future()
        self._waiting.append((items, done))
        is_thick = loop.time() - self._last_call_s < 4 * self._gather_s
        self._last_call_s = loop.time()
        if len(self._workers) < self._num_at_once:
            self._workers.add(loop.create_task(self._work(self._gather_s if is_thick else 0.0)))
        return await done

    async def _work(self, gather_s: float) -> None:
        """Take batch after batch until nobody waits."""
        worker = asyncio.current_task()
        assert worker is not None
        try:
            if gather_s:
                await asyncio.sleep(gather_s)
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            # Here, not in a callback: between the last look and that, a call would count on this worker.
            self._workers.discard(worker)

    async def _answer(self, batch: "Sequence[_Call[Item, Result]]") -> None:
        try:
            results = await self._process([item for items, _ in batch for item in items])
        except Exception as error:  # noqa: BLE001  whatever it is, it is for the callers
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
            return
        first = 0
        for items, done in batch:
            if not done.done():  # a caller that has left is done too
                done.set_result(results[first : first + len(items)])
            first += len(items)

    def _next_batch(self) -> "list[_Call[Item, Result]]":
        batch: list[_Call[Item, Result]] = []
        num_items = 0
        while self._waiting:
            items, done = self._waiting[0]
            if done.done():
                self._waiting.popleft()
            elif batch and num_items + len(items) > self._max_items:
                break
            else:
                self._waiting.popleft()
                batch.append((items, done))
                num_items += len(items)
        return batch
