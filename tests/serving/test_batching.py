"""Calls share batches without waiting for each other, and each gets its own."""

import asyncio

import pytest

from serving.batching import Batcher

GATHER_S = 0.05


class Doubles:
    """Doubles numbers in batches that take their time; refuses negative ones."""

    def __init__(self):
        self.batches = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, items):
        self.batches.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if min(items) < 0:
            raise ValueError("negative")
        return [2 * item for item in items]


def test_calls_share_batches_and_those_of_one_call_stay_together():
    async def ask():
        process = Doubles()
        batcher = Batcher(process, max_items=4)
        calls = [[1], [2, 3], [4, 5, 6], [7], [], [8, 9, 10, 11, 12, 13]]
        answers = []

        async def call(items):
            answers.append((items, await batcher.submit(items)))

        first = asyncio.create_task(call(calls[0]))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, *(call(items) for items in calls[1:]))
        assert all(list(answer) == [2 * item for item in items] for items, answer in answers)
        return process

    process = asyncio.run(ask())
    assert process.batches == [[1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert process.most_at_once == 1


def test_a_batch_that_fails_is_its_callers_and_calls_right_behind_it_are_taken():
    async def ask():
        batcher = Batcher(Doubles(), max_items=4)
        for _ in range(5):  # each begins in the moment in which the worker before ends
            with pytest.raises(ValueError, match="negative"):
                await batcher.submit([-1])
            assert await batcher.submit([3]) == [6]

    asyncio.run(asyncio.wait_for(ask(), 10))


def test_a_caller_that_has_left_is_not_worked_for():
    async def ask():
        process = Doubles()
        batcher = Batcher(process, max_items=4)
        first, second, third = (asyncio.create_task(batcher.submit([number])) for number in range(3))
        await asyncio.sleep(0.001)
        fourth = asyncio.create_task(batcher.submit([4]))
        fifth = asyncio.create_task(batcher.submit([5]))
        await asyncio.sleep(0)
        second.cancel()
        fourth.cancel()
        assert [await first, await third, await fifth] == [[0], [4], [10]]
        return process.batches

    assert asyncio.run(ask()) == [[0, 1, 2], [5]]


def test_several_batches_may_be_in_work():
    async def ask():
        process = Doubles()
        batcher = Batcher(process, max_items=1, num_at_once=3)
        await asyncio.gather(*(batcher.submit([number]) for number in range(9)))
        return process.most_at_once

    assert asyncio.run(ask()) == 3


def batches_of(calls):
    """Submit items, each after a pause in seconds; gives the batches that were made and how long each call took."""
    batches, seconds = [], []

    async def run():
        async def process(items):
            batches.append(list(items))
            return items

        batcher = Batcher(process, max_items=8, gather_s=GATHER_S)
        loop = asyncio.get_running_loop()

        async def call(item):
            begun = loop.time()
            assert await batcher.submit([item]) == [item]
            seconds.append(loop.time() - begun)

        tasks = []
        for pause, item in calls:
            await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(call(item)))
        await asyncio.gather(*tasks)

    asyncio.run(run())
    return batches, seconds


def test_a_lone_call_is_not_held_up():
    batches, seconds = batches_of([(0, 1), (5 * GATHER_S, 2)])
    assert batches == [[1], [2]]
    assert max(seconds) < GATHER_S / 2


def test_calls_that_come_thick_share_a_batch():
    batches, _ = batches_of([(0, 0), *((GATHER_S / 10, number) for number in range(1, 7))])
    assert batches[0] == [0]
    assert len(batches) <= 3
    assert sorted(item for batch in batches for item in batch) == list(range(7))
