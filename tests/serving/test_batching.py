"""Calls that come thick share a batch; one that comes alone waits for nobody."""

import asyncio

from serving.batching import Batcher

GATHER_S = 0.05


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
