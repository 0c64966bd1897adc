"""A part of an index answers for one version or says that it is not here; it follows the writer through failures."""

import asyncio
import time

import numpy as np
import pytest
from live_parts import SENTINEL_K, FakeWriter, Handle, commit, fact

from recipe_ray.errors import TableError
from recipe_ray.store.live.index import LiveIndex, LiveSettings
from recipe_ray.store.schema import shard_of
from serving.following import Follower
from serving.shard_set import ShardLostError, ShardSet, VersionNotHeldError
from serving.shards import IndexShard, IndexShardDeployment, NotHere

QUERIES_BK = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
NAMESPACES = ["default", "default"]


@pytest.fixture
def table(tmp_path):
    uri = str(tmp_path / "table")
    facts = [fact(f"p{number}", f"the president is {number}") for number in range(8)]
    commit(uri, *facts, fact("c", "the capital is Strelsau"), fact("w", "the weather", namespace="news"))
    return uri


def index_shard(table, *, shards=None, version=None, wait_s=0.05, **settings):
    index = LiveIndex(table, fingerprint="f00d", shards=shards, version=version, settings=LiveSettings(**settings))
    return IndexShard(index, "f00d", wait_s=wait_s)


def deployment(table, writer, **changes):
    """What `__init__`, which Serve awaits, makes."""

    async def make():
        part = IndexShardDeployment.__new__(IndexShardDeployment)
        values = {"table": table, "fingerprint": "f00d", "shard": 0, "num_index_shards": 1, "wait_s": 0.05, **changes}
        await part.__init__(writer=Handle(writer), **values)
        return part

    return make()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_only_what_is_above_the_sentinel_comes_with_its_prompt(table):
    told = asyncio.run(index_shard(table).search(QUERIES_BK, ["default", "news"], 2, 1))
    first, second = told.value.hits
    assert [(hit.fact_id, hit.score) for hit in first] == [(hit.fact_id, 1.0) for hit in first]
    assert all(hit.fact.statement.startswith("the president") and hit.prompt_PD.shape == (1, 2) for hit in first)
    (weather,) = second
    assert (weather.fact_id, weather.fact, weather.prompt_PD) == ("w", None, None)
    assert weather.score == pytest.approx(0.3, abs=1e-3)
    assert (told.version, told.fingerprint, told.value.num_facts) == (1, "f00d", 10)


def test_a_search_for_texts_tells_all_of_them_without_prompts(table):
    told = asyncio.run(index_shard(table).search(QUERIES_BK[:1], ["news"], 5, 1, "texts"))
    ((weather,),) = told.value.hits
    assert (weather.fact.statement, weather.fact.namespace, weather.prompt_PD) == ("the weather", "news", None)


def test_a_fact_that_ties_with_the_sentinel_is_not_applied(table):
    tie_1K = np.array([[1, 0, 0]], np.float32) * 0  # scores 0 with every fact and with the sentinel
    told = asyncio.run(index_shard(table).search(tie_1K, ["default"], 3, 1))
    assert [hit.prompt_PD for hit in told.value.hits[0]] == [None] * 3
    assert float(SENTINEL_K @ tie_1K[0]) == told.value.hits[0][0].score


def test_a_version_that_is_not_held_is_told_from_an_answer(table):
    async def ask():
        shard = index_shard(table, linger_s=0)
        return await asyncio.gather(
            shard.search(QUERIES_BK, NAMESPACES, 1, 2),
            shard.fact("default", "c", 2),
            shard.facts("default", None, 10, 0),
            shard.status(2),
            shard.ready(2),
        )

    for answer in asyncio.run(ask()):
        assert answer == NotHere(fingerprint="f00d", version=answer.version, held=(1,))


def test_a_version_on_its_way_is_waited_for(table):
    async def ask():
        shard = index_shard(table, wait_s=10)
        asked = asyncio.create_task(shard.search(QUERIES_BK, NAMESPACES, 1, 2))
        ready = asyncio.create_task(shard.ready(2))
        await asyncio.sleep(0.05)
        assert not asked.done()
        await shard.advance(commit(table, fact("c", "the capital is Zenda")))
        return await asked, await ready

    asked, ready = asyncio.run(ask())
    assert asked.version == 2
    assert asked.value.hits[1][0].fact.statement == "the capital is Zenda"
    assert ready.value == (1, 2)


def test_it_follows_the_writer(table):
    async def follow():
        writer = FakeWriter(1)
        part = await deployment(table, writer)
        assert (await part.ready(1)).value == (1,)
        writer.move(commit(table, fact("new", "the river is the Wladir")))
        await until(lambda: part._shard.version == 2)
        await part.check_health()
        told = await part.fact("default", "new", 2)
        await part._follower.stop()
        return told.value

    assert asyncio.run(follow()).statement == "the river is the Wladir"


def test_a_pinned_part_stays(table):
    async def pinned():
        commit(table, fact("new", "the river is the Wladir"))
        part = await deployment(table, FakeWriter(2), version=1)
        await asyncio.sleep(0.05)
        return await part.status(1), await part.ready(2)

    status, later = asyncio.run(pinned())
    assert (status.value.num_facts, later.held) == ({"default": 9, "news": 1}, (1,))


def test_parts_have_every_fact_once(table):
    async def counts():
        parts = [await deployment(table, FakeWriter(1), shard=part, num_index_shards=3, version=1) for part in range(3)]
        return [(await part.facts("default", None, 100, 1)).value for part in parts]

    found = asyncio.run(counts())
    assert sorted(one.fact_id for of_part in found for one in of_part) == ["c", *(f"p{n}" for n in range(8))]
    for part, of_part in enumerate(found):
        assert {shard_of(one.fact_id, 4) % 3 for one in of_part} <= {part}


def test_the_writer_s_failures_and_unreadable_versions_pass(table, monkeypatch, caplog):
    monkeypatch.setattr("serving.following._FIRST_PAUSE_S", 0.01)
    taken = []

    async def take_up(version):
        if version == 2 and not taken:
            taken.append("failed")
            raise TableError("not yet")
        taken.append(version)

    async def follow():
        writer = FakeWriter(2)
        writer.failures = 3
        follower = Follower(Handle(writer), lambda: max([1, *(v for v in taken if v != "failed")]), take_up)
        follower.start()
        follower.start()
        await until(lambda: 2 in taken)
        writer.move(5)
        await until(lambda: 5 in taken)
        follower.check()
        await follower.stop()

    asyncio.run(follow())
    assert taken == ["failed", 2, 5]
    assert caplog.text.count("is tried again") == 4
    assert "not yet" in caplog.text


def test_a_writer_that_has_nothing_new_is_asked_now_and_then(monkeypatch):
    monkeypatch.setattr("serving.following._SHORT_S", 0.05)
    asked = []

    class Restless(FakeWriter):
        async def wait_for(self, after_version, timeout_s=10.0):
            asked.append(after_version)
            return self.version

    async def follow():
        follower = Follower(Handle(Restless(2)), lambda: 2, None)  # there is nothing to take up
        follower.start()
        await asyncio.sleep(0.2)
        follower.check()
        await follower.stop()

    asyncio.run(follow())
    assert 1 <= len(asked) <= 5


def test_a_mistake_of_ours_in_following_is_found_by_the_health_check():
    async def follow():
        async def take_up(version):
            raise KeyError(version)

        follower = Follower(Handle(FakeWriter(2)), lambda: 1, take_up)
        follower.start()
        await until(lambda: follower._task.done())
        follower.check()

    with pytest.raises(KeyError):
        asyncio.run(follow())


class Gone:
    """A part that answers as told: an error to raise, or seconds to sleep."""

    def __init__(self, how, part):
        self.how, self.part = how, part

    async def search(self, *values):
        how = self.how.pop(0) if isinstance(self.how, list) and self.how else self.how
        if isinstance(how, Exception):
            raise how
        if how:
            await asyncio.sleep(how)
        return await self.part.search(*values)


def shard_set(*parts, timeout_s=0.3, fingerprint="f00d"):
    return ShardSet(parts, fingerprint=fingerprint, num_shards=4, timeout_s=timeout_s)


def halves(table):
    return [index_shard(table, shards=[half, half + 2]) for half in (0, 1)]


def test_parts_asked_as_one_tell_what_the_whole_tells(table):
    commit(table, fact("equal", "another president"), fact("p1", "the capital is Zenda"))

    async def ask(parts):
        one = shard_set(*parts, timeout_s=10)
        hits = await one.search(QUERIES_BK, NAMESPACES, 4, 2)
        facts = await one.facts("default", after_id="c", limit=3, version=2)
        status = await one.status(2)
        found = [await one.fact("default", name, 2) for name in ("p1", "equal", "nowhere")]
        told = [[(hit.score, hit.shard, hit.fact_id, hit.fact) for hit in of] for of in hits.hits]
        return told, hits.num_facts, facts, status.num_facts, status.committed_at, status.index_bytes, found

    whole = asyncio.run(ask([index_shard(table)]))
    assert asyncio.run(ask([Handle(half) for half in halves(table)])) == whole
    assert whole[1] == 11
    assert [one.fact_id for one in whole[2]] == ["equal", "p0", "p1"]


@pytest.mark.parametrize("how", [TimeoutError(), 5.0], ids=["raises", "late"])
def test_a_lost_part_is_named_and_no_partial_answer_given(table, how):
    first, second = halves(table)
    one = shard_set(Handle(first), Handle(Gone(how, second)))
    began = time.monotonic()
    with pytest.raises(ShardLostError, match="part 1"):
        asyncio.run(one.search(QUERIES_BK, NAMESPACES, 1, 1))
    assert time.monotonic() - began < 3


def test_where_a_replica_is_lost_another_is_asked_once(table):
    from ray.exceptions import RayActorError

    first, second = halves(table)
    told = asyncio.run(
        shard_set(Handle(first), Handle(Gone([RayActorError(), 0], second)), timeout_s=10).search(
            QUERIES_BK, NAMESPACES, 1, 1
        )
    )
    assert len(told.hits) == 2
    with pytest.raises(ShardLostError):
        asyncio.run(
            shard_set(Handle(first), Handle(Gone([RayActorError(), RayActorError()], second))).search(
                QUERIES_BK, NAMESPACES, 1, 1
            )
        )


def test_a_part_of_another_editor_does_not_count(table):
    with pytest.raises(ShardLostError, match="another editor"):
        asyncio.run(shard_set(index_shard(table), fingerprint="beef").search(QUERIES_BK, NAMESPACES, 1, 1))


def test_a_part_without_the_version_is_told_from_a_lost_one(table):
    first, _ = halves(table)
    commit(table, fact("new", "the river is the Wladir"))
    ahead = index_shard(table, shards=[1, 3], version=2)
    one = shard_set(Handle(first), Handle(ahead))
    with pytest.raises(VersionNotHeldError):
        asyncio.run(one.search(QUERIES_BK, NAMESPACES, 1, 1))


def test_the_newest_version_that_all_parts_hold_is_told(table):
    async def ask():
        first, second = halves(table)
        for number in range(2):
            commit(table, fact(f"new{number}", "the river is the Wladir"))
        await first.advance(2)
        await first.advance(3)
        await second.advance(2)
        # Parts behind handles are not moved on, they follow the writer themselves.
        return await shard_set(Handle(first), Handle(second)).ready(2), await shard_set(first, second).ready(3)

    assert asyncio.run(ask()) == (2, 3)
