"""Findings come from one version, whole; what is not there, or not yet, is told from what does not apply."""

import asyncio
import time

import numpy as np
import pytest
from live_parts import DIRECTIONS, FakeEncoder, FakeWriter, Handle, commit, fact

from recipe_ray.errors import TableError
from recipe_ray.store.live.index import LiveIndex, LiveSettings
from serving.errors import ApiError
from serving.messages import Finding, Lookup, Refusal
from serving.retriever import FactRetriever, Retriever, RetrieverDeployment
from serving.shard_set import ShardSet
from serving.shards import IndexShard


@pytest.fixture
def table(tmp_path):
    uri = str(tmp_path / "table")
    commit(
        uri,
        fact("a", "the president is Ada", source="gazette"),
        fact("b", "the capital is Strelsau"),
        fact("c", "the president is Bo", namespace="news"),
        fact("d", "dreary weather", namespace="news"),
    )
    return uri


def index_shard(table, shards=None, **settings):
    settings = LiveSettings(**settings)
    return IndexShard(LiveIndex(table, fingerprint="f00d", shards=shards, settings=settings), "f00d", wait_s=0.2)


def retriever(parts, *, writer=None, version=1, encoder=None, timeout_s=5.0, **options):
    shards = ShardSet(parts, fingerprint="f00d", num_shards=4, timeout_s=timeout_s)
    writer = None if writer is None else Handle(writer)
    return FactRetriever(encoder or FakeEncoder(), shards, writer=writer, version=version, **{"wait_s": 0.3, **options})


def lookup(query, namespace="default", **changes):
    return Lookup(query=query, namespace=namespace, **changes)


def find(table, *lookups, **options):
    return asyncio.run(retriever([index_shard(table)], **options).find(lookups))


def ids(finding):
    return [applied.fact_id for applied in finding.facts]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_fact_above_the_sentinel_is_handed_over_whole(table):
    (found,) = find(table, lookup("who is president?"))
    assert (found.snapshot, found.score, found.sentinel_score, found.declined) == (1, 1.0, 0.5, None)
    (applied,) = found.facts
    assert (applied.fact_id, applied.statement, applied.source) == ("a", "the president is Ada", "gazette")
    assert applied.score == 1.0
    (stored,) = LiveIndex(table, fingerprint="f00d").view().search(np.array([[1, 0, 0]], np.float32), ["default"], 1)
    view = LiveIndex(table, fingerprint="f00d").view()
    np.testing.assert_array_equal(applied.prompt_PD, view.prompt(stored[0]))
    assert applied.prompt_PD.dtype == np.float16


def test_each_lookup_of_a_call_gets_its_own_answer(table):
    found = find(table, lookup("president"), lookup("weather"), lookup("president", "news"), lookup("capital"))
    assert [ids(finding) for finding in found] == [["a"], [], ["c"], ["b"]]
    assert asyncio.run(retriever([index_shard(table)]).find([])) == []


def test_a_fact_below_the_sentinel_is_declined_with_its_score(table):
    (found,) = find(table, lookup("weather"))
    assert (found.facts, found.declined) == ((), "below_sentinel")
    assert found.score == pytest.approx(0.3, abs=1e-3)
    assert found.sentinel_score == pytest.approx(0.45)


@pytest.mark.parametrize("query", ["\u200b", "\ufe0f\u2060", "\x07", "\u00a0", ""])
def test_a_query_of_which_nothing_is_to_be_seen_finds_nothing(table, query):
    silent, other = find(table, lookup(query), lookup("president"))
    assert silent == Finding(snapshot=1, facts=(), declined="no_query", score=None, sentinel_score=None)
    assert ids(other) == ["a"]
    (refused,) = find(table, lookup(query, snapshot=7))
    assert refused.code == "snapshot_not_found"


def test_a_namespace_without_facts_is_told_from_an_empty_table(table, tmp_path):
    (found,) = find(table, lookup("president", "sport"))
    assert (found.facts, found.declined, found.score, found.sentinel_score) == ((), "empty_namespace", None, 0.5)
    empty = str(tmp_path / "empty")
    commit(empty, fact("x", "the president", op="delete"))
    (found,) = find(empty, lookup("president"))
    assert (found.facts, found.declined, found.score) == ((), "empty_table", None)


def test_the_best_facts_above_the_sentinel_are_applied_best_first(table):
    commit(table, *(fact(f"e{number}", "a president") for number in range(3)), fact("f", "the river"))
    (found,) = find(table, lookup("president", top_k=3), version=2)
    assert len(ids(found)) == 3
    assert set(ids(found)) < {"a", "e0", "e1", "e2"}
    found, one = find(table, lookup("president", top_k=50), lookup("president"), version=2)
    assert set(ids(found)) == {"a", "e0", "e1", "e2"}
    assert ids(one) == ids(found)[:1]  # each gets as many as it asked for


def test_findings_are_the_same_alone_together_and_from_any_number_of_parts(table):
    commit(table, *(fact(f"e{number}", f"{word} {number}") for number in range(9) for word in ("president",)))
    lookups = [lookup(word, top_k=4) for word in DIRECTIONS] + [lookup("president", "news")]

    async def ask(parts, together):
        one = retriever(parts, version=2)
        calls = [lookups] if together else [[alone] for alone in lookups]
        return [told for answers in await asyncio.gather(*map(one.find, calls)) for told in answers]

    def plain(findings):
        return [
            (found.declined, found.score, found.sentinel_score, [(a.fact_id, a.score) for a in found.facts])
            for found in findings
        ]

    whole = plain(asyncio.run(ask([index_shard(table)], together=True)))
    assert plain(asyncio.run(ask([index_shard(table)], together=False))) == whole
    parts = [Handle(index_shard(table, [part])) for part in range(4)]
    assert plain(asyncio.run(ask(parts, together=True))) == whole
    halves = [Handle(index_shard(table, [part, part + 2])) for part in range(2)]
    assert plain(asyncio.run(ask(halves, together=False))) == whole


def test_calls_that_come_while_a_batch_is_encoded_share_the_next(table):
    class Slow(FakeEncoder):
        def encode_queries(self, queries):
            time.sleep(0.05)
            return super().encode_queries(queries)

    encoder = Slow()

    async def ask():
        one = retriever([index_shard(table)], encoder=encoder)
        first = asyncio.create_task(one.find([lookup("president")]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(one.find([lookup("capital"), lookup("weather")])) for _ in range(5)]
        return [*await first, *(found for other in await asyncio.gather(*others) for found in other)]

    found = asyncio.run(ask())
    assert [len(batch) for batch in encoder.batches] == [1, 10]  # a lone call did not wait for company
    assert [ids(finding) for finding in found] == [["a"]] + [["b"], []] * 5


def test_a_failure_of_the_encoder_is_the_call_s_and_the_next_goes_on(table):
    async def ask():
        one = retriever([index_shard(table)])
        with pytest.raises(ValueError, match="not enough values"):
            await one.find([lookup("nothing that is known")])
        return await one.find([lookup("president")])

    assert ids(asyncio.run(ask())[0]) == ["a"]


async def followed(table, *, parts=None, **options):
    writer = FakeWriter(1)
    one = retriever(parts or [index_shard(table)], writer=writer, **options)
    await one.check_health()
    return one, writer


def test_a_new_version_is_taken_up_and_the_one_before_can_be_asked_for(table):
    async def ask():
        one, writer = await followed(table)
        for number in range(2):
            writer.move(commit(table, fact("a", f"the president is {number}")))
            (found,) = await one.find([lookup("president", min_snapshot=writer.version)])
            assert (found.snapshot, found.facts[0].statement) == (writer.version, f"the president is {number}")
        old, unheld, ahead = [await one.find([lookup("president", snapshot=version)]) for version in (2, 1, 9)]
        assert (old[0].snapshot, old[0].facts[0].statement) == (2, "the president is 0")
        for (refusal,), version in ((unheld, 1), (ahead, 9)):
            assert (refusal.status, refusal.code, refusal.param) == (404, "snapshot_not_found", "recipe.snapshot")
            assert f"snapshot {version} is not held here, only 2 and 3" in refusal.message
        await one.close()

    asyncio.run(ask())


def test_a_version_that_does_not_come_in_time_is_refused_for_those_who_want_it(table):
    async def ask():
        one, _ = await followed(table, wait_s=0.1)
        late, found = await one.find([lookup("president", min_snapshot=2), lookup("capital", min_snapshot=1)])
        with pytest.raises(ApiError) as error:
            await one.fact("default", "a", min_snapshot=5)
        await one.close()
        return late, found, error.value

    late, found, error = asyncio.run(ask())
    assert isinstance(late, Refusal)
    assert (late.status, late.code, late.param) == (503, "snapshot_not_yet", "recipe.min_snapshot")
    assert ids(found) == ["b"]
    assert (error.status, error.code, error.param) == (503, "snapshot_not_yet", "min_snapshot")


def test_lookups_of_one_call_are_of_one_snapshot(table):
    commit(table, fact("a", "the president is Zoe"))
    one = retriever([index_shard(table)], version=2)
    first, other = asyncio.run(one.find([lookup("president", snapshot=2), lookup("president", snapshot=1)]))
    assert isinstance(first, Finding)
    assert (other.status, other.code) == (400, "snapshot_conflict")


def test_the_version_is_a_new_one_only_once_all_parts_have_it(table):
    async def ask():
        first, second = index_shard(table, [0, 2]), index_shard(table, [1, 3])
        one, writer = await followed(table, parts=[Handle(first), Handle(second)], wait_s=5)
        version = commit(table, *(fact(f"n{number}", "the river") for number in range(8)))
        await first.advance(version)
        writer.move(version)
        (before,) = await one.find([lookup("river", top_k=20)])
        reached = asyncio.create_task(one.find([lookup("river", top_k=20, min_snapshot=version)]))
        await asyncio.sleep(0.1)
        assert not reached.done()
        await second.advance(version)
        (after,) = await reached
        await one.close()
        return before, after

    before, after = asyncio.run(ask())
    assert (before.snapshot, ids(before)) == (1, [])
    assert (after.snapshot, sorted(ids(after))) == (2, [f"n{number}" for number in range(8)])


def test_where_the_parts_have_moved_on_the_call_moves_with_them(table):
    async def ask():
        parts = [index_shard(table, [half, half + 2], linger_s=0) for half in (0, 1)]
        one = retriever([Handle(part) for part in parts])
        for number in range(2):
            commit(table, fact("a", f"the president is {number}"))
            for part in parts:
                await part.advance(2 + number)
        (found,) = await one.find([lookup("president")])
        return found, await one.fact("default", "a")

    found, told = asyncio.run(ask())
    assert (found.snapshot, found.facts[0].statement) == (3, "the president is 1")
    assert (told.snapshot, told.fact.statement) == (3, "the president is 1")


def test_a_version_that_the_parts_have_not_in_common_is_not_taken_up_and_the_current_one_not_twice(table):
    async def ask():
        parts = [index_shard(table, [half, half + 2], linger_s=0) for half in (0, 1)]
        one = retriever([Handle(part) for part in parts])
        for number in range(3):
            commit(table, fact("a", f"the president is {number}"))
        await parts[0].advance(2)
        await parts[1].advance(2)
        await one._take_up(2)
        await one._take_up(2)
        assert [(await one.find([lookup("president", snapshot=version)]))[0].snapshot for version in (1, 2)] == [1, 2]
        await parts[0].advance(3)
        await parts[1].advance(4)
        with pytest.raises(ApiError):
            await one._take_up(3)
        return await one.find([lookup("president")])

    assert asyncio.run(ask())[0].snapshot == 2


class Lost:
    """A part that never answers a search."""

    async def search(self, *values):
        await asyncio.sleep(60)


def test_a_lost_part_fails_the_call_or_leaves_it_unedited_as_is_set(table):
    parts = [Handle(index_shard(table, [0, 2])), Handle(Lost())]
    with pytest.raises(ApiError) as error:
        asyncio.run(retriever(parts, timeout_s=0.1).find([lookup("president")]))
    assert error.value.status == 503
    found = asyncio.run(
        retriever(parts, timeout_s=0.1, on_lost_shard="unedited").find([lookup("president"), lookup("weather")])
    )
    assert [(one.snapshot, one.facts, one.declined, one.score) for one in found] == [(1, (), "shard_lost", None)] * 2
    assert [one.sentinel_score for one in found] == pytest.approx([0.5, 0.45])


@pytest.mark.parametrize("policy", ["fail", "unedited"])
def test_parts_without_a_common_version_are_a_lost_part(table, policy):
    commit(table, fact("z", "the river"))
    ahead = IndexShard(LiveIndex(table, fingerprint="f00d", shards=[1, 3], version=2), "f00d", wait_s=0.05)
    behind = IndexShard(LiveIndex(table, fingerprint="f00d", shards=[0, 2], version=1), "f00d", wait_s=0.05)
    one = retriever([Handle(behind), Handle(ahead)], on_lost_shard=policy)
    if policy == "fail":
        with pytest.raises(ApiError):
            asyncio.run(one.find([lookup("president")]))
    else:
        assert asyncio.run(one.find([lookup("president")]))[0].declined == "shard_lost"


def test_before_any_version_is_there_the_call_fails(table):
    one = retriever([index_shard(table)], version=None, writer=None, wait_s=0.05)
    with pytest.raises(ApiError) as error:
        asyncio.run(one.find([lookup("president")]))
    assert error.value.status == 503


def test_the_first_version_may_come_from_the_writer(table):
    async def ask():
        one = retriever([Handle(index_shard(table))], version=None, writer=FakeWriter(1), wait_s=5)
        found = await one.find([lookup("president")])
        await one.close()
        return found

    assert ids(asyncio.run(ask())[0]) == ["a"]


def test_a_search_tells_facts_applied_or_not(table):
    async def ask():
        return await retriever([index_shard(table)]).search("who is president?", "news", limit=5)

    found = asyncio.run(ask())
    assert (found.snapshot, found.sentinel_score) == (1, 0.5)
    assert [(one.fact.fact_id, round(one.score, 2)) for one in found.facts] == [("c", 1.0), ("d", 0.3)]


def test_facts_are_listed_page_by_page(table):
    commit(table, *(fact(f"n{number}", "the river") for number in range(5)))

    async def pages():
        one, after, pages = retriever([index_shard(table)], version=2), None, []
        while not pages or after is not None:
            page = await one.facts("default", after_id=after, limit=3)
            pages.append([told.fact_id for told in page.facts])
            after = page.next_id
        return pages

    assert asyncio.run(pages()) == [["a", "b", "n0"], ["n1", "n2", "n3"], ["n4"]]


def test_the_status_counts_all_parts(table):
    parts = [Handle(index_shard(table, [part])) for part in range(4)]

    async def ask():
        pinned = await retriever(parts).status()
        one, _ = await followed(table)
        status = await one.status()
        await one.close()
        return pinned, status

    pinned, status = asyncio.run(ask())
    assert (status.snapshot, status.num_facts, status.writable) == (1, {"default": 2, "news": 2}, True)
    assert (pinned.num_facts, pinned.index_bytes, pinned.writable) == (status.num_facts, status.index_bytes, False)
    assert pinned.committed_at == status.committed_at


def test_a_replica_refuses_weights_that_were_replaced_since_the_start(other_editor_dir, table_uri):
    with pytest.raises(TableError, match="fingerprint"):
        RetrieverDeployment(editor=str(other_editor_dir), table=table_uri, writer=None, version=1)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_retriever_is_made_of_an_editor_and_a_table(editor, editor_dir, table_uri, pinned):
    question = "The president of Ruritania is"

    async def ask():
        one = Retriever(
            editor=str(editor_dir), table=table_uri, writer=Handle(FakeWriter(1)), version=1 if pinned else None
        )
        found, status = await one.find([lookup(question)]), await one.status()
        await one.close()
        return found[0], status

    found, status = asyncio.run(ask())
    assert (status.snapshot, status.writable) == (1, not pinned)
    assert found.sentinel_score == pytest.approx(float(editor.thresholds(editor.encode_queries([question]))[0]))
    assert found.score is not None
