"""The writer without Serve, over tables on the local disk and a made-up encoder."""

import asyncio
import dataclasses
import itertools
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tiny_models import tiny_editor

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import ModelError, ServiceError, TableError
from recipe_ray.facts import Fact
from recipe_ray.model.llm import load_llm
from recipe_ray.model.prompt_encoder import StatementReader
from recipe_ray.store.delta import trim_log
from recipe_ray.store.pointer import move_back, write_pointer
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable, GroupId
from recipe_ray.store.writing import write_facts
from serving import group_writer as module
from serving.group_writer import Writer, WriterOptions
from serving.messages import Refusal, WriteResult
from serving.writer import PinnedWriter, WriterDeployment

IDENTITY = EditorIdentity(
    fingerprint="f00d",
    encoder="an encoder",
    llm="an llm",
    llm_width=5,
    key_width=4,
    num_virtual_tokens=3,
    sentinel_K=np.zeros(4, np.float32),
)
_numbers = itertools.count()


def encode(statements):
    keys_FK = np.ones((len(statements), 4), np.float32)
    keys_FK[[text.startswith("loud") for text in statements]] = 1e9
    return keys_FK, np.ones((len(statements), 3, 5), np.float32)


@pytest.fixture
def uri(tmp_path):
    return FactTable.create_or_open(str(tmp_path / "table"), IDENTITY).uri


def put(fact_id, statement="text", **more):
    return Fact(fact_id=fact_id, statement=statement, **more)


def delete(fact_id):
    return Fact(fact_id=fact_id, statement="", op="delete")


def elsewhere(uri, *facts):
    """A commit by another process."""
    group = GroupId(writer="another", number=next(_numbers))
    return write_facts(uri, facts, encode, identity=IDENTITY, group=group).version


def live(uri, version=None):
    facts = read_snapshot(uri, version).facts
    return dict(zip(facts["fact_id"].to_pylist(), facts["statement"].to_pylist(), strict=True))


def run(uri, scenario, *, encoder=encode, identity=IDENTITY, poll_s=0.02, **options):
    """Run a coroutine function with a writer, and close it."""

    async def go():
        writer = Writer(
            uri,
            identity=identity,
            encode=encoder,
            options=WriterOptions(poll_s=poll_s, **{"merge_every": None, **options}),
        )
        try:
            return await asyncio.wait_for(scenario(writer), 60)
        finally:
            await writer.close()

    return asyncio.run(go())


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_concurrent_puts_are_few_commits_and_all_are_there(uri):
    async def scenario(writer):
        return await asyncio.gather(*[writer.write([put(str(number))]) for number in range(200)])

    results = run(uri, scenario)
    assert {result.outcomes for result in results} == {("new",)}
    newest = max(result.snapshot for result in results)
    assert newest == FactTable.open(uri).version <= 3
    assert live(uri).keys() == {str(number) for number in range(200)}


def test_each_request_gets_the_outcomes_of_its_own_facts_in_its_order(uri):
    async def scenario(writer):
        await writer.write([put("a", "x"), put("b", "x")])
        return await asyncio.gather(
            writer.write([put("a", "y"), delete("b"), delete("no")]), writer.write([]), writer.write([put("c")])
        )

    results = run(uri, scenario)
    assert [result.outcomes for result in results] == [("changed", "deleted", "absent"), (), ("new",)]
    assert live(uri) == {"a": "y", "c": "text"}


def test_of_concurrent_puts_of_one_fact_the_last_to_come_stands(uri):
    async def scenario(writer):
        return await asyncio.gather(*[writer.write([put("a", f"text {number}")]) for number in range(50)])

    run(uri, scenario)
    assert live(uri) == {"a": "text 49"}


def test_a_clock_that_is_set_back_does_not_let_an_older_put_win(uri, monkeypatch):
    class Clock(datetime):
        moments = iter([datetime(2026, 6, 1, tzinfo=UTC) - timedelta(hours=hour) for hour in range(3)])

        @classmethod
        def now(cls, tz=None):
            return next(cls.moments)

    async def scenario(writer):
        return [(await writer.write([put("a", text)])).outcomes for text in ("x", "y", "z")]

    monkeypatch.setattr(module, "datetime", Clock)
    assert run(uri, lambda writer: scenario(writer)) == [("new",), ("changed",), ("changed",)]
    assert live(uri) == {"a": "z"}


def test_a_group_is_no_larger_than_allowed_and_a_request_stays_together(uri):
    async def scenario(writer):
        requests = [[put(f"{number}-{fact}") for fact in range(4)] for number in range(6)]
        return await asyncio.gather(*[writer.write(facts) for facts in [*requests, [put(f"b{n}") for n in range(30)]]])

    results = run(uri, scenario, max_group=10)
    assert [result.snapshot for result in results] == [1, 1, 2, 2, 3, 3, 4]


def test_facts_that_cannot_be_stored_refuse_their_request_alone(uri):
    async def scenario(writer):
        return await asyncio.gather(
            writer.write([put("a"), put("b", "loud 1")]),
            writer.write([put("c")]),
            writer.write([put(f"d{number}", f"loud {number}") for number in range(5)]),
            writer.write([put("e"), delete("a")]),
        )

    first, second, third, fourth = run(uri, scenario)
    assert isinstance(first, Refusal)
    assert (first.code, first.status) == ("fact_not_encodable", 400)
    assert first.message.startswith("fact 'b': its vectors are not finite")
    assert first.message.endswith("nothing of this request was written")
    assert "2 more facts" in third.message
    assert (second.outcomes, fourth.outcomes) == (("new",), ("new", "absent"))
    assert live(uri).keys() == {"c", "e"}


def test_a_failure_reaches_all_who_wait_and_the_next_group_is_written(uri, monkeypatch):
    def fail(*args, **options):
        raise TableError("no space left")

    async def scenario(writer):
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_facts", fail)
            failed = await asyncio.gather(*[writer.write([put(n)]) for n in "abc"], return_exceptions=True)
        await writer.check_health()
        return failed, await writer.write([put("d")])

    monkeypatch.setattr(module, "_RETRY_S", 0)
    failed, written = run(uri, scenario)
    assert [str(error) for error in failed] == ["no space left"] * 3
    assert written.outcomes == ("new",)
    assert live(uri).keys() == {"d"}


def test_a_failure_of_the_encoder_reaches_all_who_wait(uri):
    def broken(statements):
        raise RuntimeError("out of memory")

    async def scenario(writer):
        with pytest.raises(RuntimeError, match="out of memory"):
            await writer.write([put("a")])
        return await writer.write([delete("a")])

    assert run(uri, scenario, encoder=broken).outcomes == ("absent",)


def test_a_commit_whose_answer_is_lost_is_made_once(uri, monkeypatch):
    commit, calls = FactTable.commit_group, []

    def commit_and_lose_the_first_answer(self, *args, **options):
        calls.append(commit(self, *args, **options))
        if len(calls) == 1:
            raise TableError("the connection broke")

    monkeypatch.setattr(FactTable, "commit_group", commit_and_lose_the_first_answer)
    monkeypatch.setattr(module, "_RETRY_S", 0)
    result = run(uri, lambda writer: writer.write([put("a"), delete("b")]))
    assert result == WriteResult(snapshot=1, outcomes=("new", "absent"), fact_ids=("a", "b"))
    assert (FactTable.open(uri).version, calls) == (1, [1])


def test_a_put_that_its_client_gave_up_before_its_turn_is_not_written(uri):
    begun, go_on = threading.Event(), threading.Event()

    def slow(statements):
        begun.set()
        go_on.wait(10)
        return encode(statements)

    async def scenario(writer):
        first = asyncio.create_task(writer.write([put("a")]))
        await until(begun.is_set)
        second, third = (asyncio.create_task(writer.write([put(name, "other")])) for name in "bc")
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, third)

    run(uri, scenario, encoder=slow)
    assert live(uri).keys() == {"a", "c"}


def test_more_facts_than_may_wait_are_refused(uri):
    async def scenario(writer):
        return await asyncio.gather(*[writer.write([put(f"{n}-{m}") for m in range(4)]) for n in range(4)])

    results = run(uri, scenario, max_waiting=10)
    refused = [result for result in results if isinstance(result, Refusal)]
    assert [(refusal.status, refusal.code) for refusal in refused] == [(429, "rate_limited")] * 2
    assert len(live(uri)) == 8


def test_those_who_wait_wake_at_once_after_a_write(uri):
    async def scenario(writer):
        waiting = [asyncio.create_task(writer.wait_for(0, 30)) for _ in range(100)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await writer.write([put("a")])
        versions = await asyncio.gather(*waiting)
        return versions, time.monotonic() - started, await writer.wait_for(1, 0.05), await writer.wait_for(0, 30)

    versions, seconds, timed_out, known = run(uri, scenario, poll_s=30)
    assert versions == [1] * 100
    assert seconds < 20  # no poll comes to help
    assert (timed_out, known) == (1, 1)


def test_commits_of_others_are_noticed(uri):
    async def scenario(writer):
        await writer.current_version()
        await asyncio.to_thread(elsewhere, uri, put("a"))
        first = await writer.wait_for(0, 30)
        await asyncio.to_thread(lambda: [elsewhere(uri, put(name)) for name in "bcd"])
        await until(lambda: writer._version == 4)
        own = await writer.write([put("a", "mine"), put("e")])
        return first, own

    first, own = run(uri, scenario)
    assert (first, own) == (1, WriteResult(snapshot=5, outcomes=("changed", "new"), fact_ids=("a", "e")))


def test_commits_are_noticed_where_the_log_between_was_cut_off(uri, monkeypatch):
    async def scenario(writer):
        monkeypatch.setattr("serving.versions._LOOK_ANEW_S", 0)
        for name in "abcd":
            elsewhere(uri, put(name))
        trim_log(uri, 4)
        return await writer.wait_for(0, 30)

    assert run(uri, scenario) == 4


def test_what_others_commit_during_a_write_is_kept(uri, monkeypatch):
    commit, others = FactTable.commit_group, iter(["one", "two"])

    def lose_the_race(self, files, group, **options):
        if group.writer != "another":
            for other in others:
                elsewhere(uri, put(other))
                break
        return commit(self, files, group, **options)

    monkeypatch.setattr(FactTable, "commit_group", lose_the_race)
    result = run(uri, lambda writer: writer.write([put("a"), put("one", "of mine")]))
    assert result == WriteResult(snapshot=3, outcomes=("new", "changed"), fact_ids=("a", "one"))
    assert live(uri) == {"a": "text", "one": "of mine", "two": "text"}


def test_snapshots_are_told_newest_first_and_gone_back_to(uri):
    async def scenario(writer):
        await writer.write([put("a", "x")])
        await writer.write([put("a", "y"), put("b")])
        told = await writer.snapshots(10)
        back = await writer.activate(1)
        after = await writer.wait_for(2, 0)
        again = await writer.activate(back.version)
        return told, back, after, again, await writer.snapshots(2), await writer.activate(2), await writer.snapshots(1)

    told, back, after, again, newest, forth, last = run(uri, scenario)
    assert [(info.version, info.operation) for info in told] == [(2, "put"), (1, "put"), (0, "create")]
    assert told[0].counts == {"changed": 1, "new": 1, "written": 2, "encoded": 2}
    assert told[0].committed_at > told[1].committed_at > datetime.now(UTC) - timedelta(minutes=1)
    assert (back.version, back.operation, back.counts) == (3, "rollback", {"to": 1})
    assert (after, again) == (3, back)
    assert [info.version for info in newest] == [3, 2]
    assert [forth] == last
    assert live(uri, 3) == {"a": "x"}
    assert live(uri) == {"a": "y", "b": "text"}


def test_an_activation_comes_in_its_turn(uri):
    async def scenario(writer):
        await writer.write([put("a")])
        return await asyncio.gather(writer.write([put("b")]), writer.activate(1), writer.write([put("c")]))

    before, info, after = run(uri, scenario)
    assert (before.snapshot, info.version, after.snapshot) == (2, 3, 4)
    assert live(uri).keys() == {"a", "c"}


def test_a_version_that_cannot_be_gone_back_to_is_refused(uri):
    async def scenario(writer):
        for name in "abc":
            await writer.write([put(name, name * 9)])
        refused = [await writer.activate(version) for version in (9, -1)]
        for file in FactTable.open(uri, 1).files():
            shutil.move(f"{uri}/{file.path}", f"{uri}/{file.path}.away")
        refused.append(await writer.activate(1))
        for file in FactTable.open(uri, 1).files():
            shutil.move(f"{uri}/{file.path}.away", f"{uri}/{file.path}")
        trim_log(uri, 2)
        refused.append(await writer.activate(0))
        return refused

    refused = run(uri, scenario)
    assert {(refusal.status, refusal.code) for refusal in refused} == {(404, "snapshot_not_found")}
    assert [refusal.message for refusal in refused] == [
        "there is no version 9, the newest is 3; give an earlier one",
        "there is no version -1, the newest is 3; give an earlier one",
        "files of version 1 were removed by a vacuum; give a later one",
        "version 0 cannot be read any more; give a later one",
    ]
    assert FactTable.open(uri).version == 3


def test_a_table_that_moved_is_followed_no_more_until_it_is_back(uri, tmp_path):
    other = FactTable.create_or_open(str(tmp_path / "other"), IDENTITY).uri

    async def scenario(writer):
        await writer.write([put("a")])
        write_pointer(uri, other, from_version=1)
        await until(lambda: writer._fault)
        with pytest.raises(ServiceError, match=r"moved to .*other; deploy again"):
            await writer.check_health()
        with pytest.raises(ServiceError, match="moved to"):
            await writer.write([put("b")])
        assert await writer.current_version() == 1
        move_back(uri)
        await until(lambda: writer._fault is None)
        await writer.check_health()
        return await writer.write([put("b")])

    assert run(uri, scenario).snapshot == 2
    assert FactTable.open(other).version == 0


def test_a_table_made_anew_or_by_another_editor_is_unhealthy(uri, monkeypatch):
    monkeypatch.setattr("serving.versions._LOOK_ANEW_S", 0)

    async def scenario(writer, identity, message):
        await writer.write([put("a")])
        await writer.write([put("b")])
        shutil.rmtree(uri)
        FactTable.create_or_open(uri, identity)
        for number in range(3 * (identity is not IDENTITY)):
            group = GroupId(writer="w", number=number)
            write_facts(uri, [put(str(number))], encode, identity=identity, group=group)
        await until(lambda: writer._fault)
        with pytest.raises(ServiceError, match=message):
            await writer.check_health()
        assert await writer.current_version() == 2

    run(uri, lambda writer: scenario(writer, IDENTITY, "made anew; deploy again"))
    other = dataclasses.replace(IDENTITY, fingerprint="beef")
    shutil.rmtree(uri)
    FactTable.create_or_open(uri, IDENTITY)
    run(uri, lambda writer: scenario(writer, other, "fingerprint beef now and was of f00d"), poll_s=0.2)


def test_a_log_that_cannot_be_read_for_a_while_is_no_fault(uri, monkeypatch, caplog):
    async def scenario(writer):
        with monkeypatch.context() as patched:
            patched.setattr(writer._versions, "look", lambda known: (_ for _ in ()).throw(TableError("away")))
            await writer.current_version()
            await until(lambda: "away" in caplog.text)
            await writer.check_health()
            await asyncio.sleep(0.1)
        elsewhere(uri, put("a"))
        return await writer.wait_for(0, 30)

    assert run(uri, scenario) == 1
    assert caplog.text.count("away") == 1


def test_a_writer_of_another_editor_does_not_start(uri):
    with pytest.raises(TableError, match="was encoded by the editor with fingerprint f00d"):
        Writer(uri, identity=dataclasses.replace(IDENTITY, fingerprint="beef"), encode=encode)


def test_small_files_are_merged_beside_the_writes(uri):
    async def scenario(writer):
        for number in range(24):
            await writer.write([put(str(number)), put(f"of {number}")])
        await until(lambda: writer._merging and writer._merging.done())
        return await writer.current_version(), await writer.snapshots(100)

    current, told = run(uri, scenario, merge_every=20)
    assert "merge" in {info.operation for info in told}
    assert current == FactTable.open(uri).version
    assert len(FactTable.open(uri).files()) < 24
    assert len(live(uri)) == 48


def test_a_pinned_writer_changes_nothing(uri):
    elsewhere(uri, put("a"))
    elsewhere(uri, put("b"))

    async def scenario():
        writer = PinnedWriter(uri, 1)
        refusals = [await writer.write([put("c")]), await writer.activate(0)]
        await writer.check_health()
        return refusals, await writer.current_version(), await writer.wait_for(1, 0.01), await writer.snapshots(9)

    refusals, current, waited, told = asyncio.run(scenario())
    assert {(refusal.status, refusal.code) for refusal in refusals} == {(409, "read_only")}
    assert (current, waited, [info.version for info in told]) == (1, 1, [1, 0])
    assert FactTable.open(uri).version == 2
    with pytest.raises(TableError):
        PinnedWriter(uri, 7)


def test_closing_finishes_what_waits(uri):
    async def scenario(writer):
        writing = [asyncio.create_task(writer.write([put(str(number))])) for number in range(30)]
        waiting = asyncio.create_task(writer.wait_for(99, 60))
        await asyncio.sleep(0.01)
        await writer.close()
        with pytest.raises(ServiceError, match="stopping"):
            await writer.write([put("late")])
        return await asyncio.gather(*writing), await waiting

    results, version = run(uri, scenario)
    assert all(result.outcomes == ("new",) for result in results)
    assert version == FactTable.open(uri).version
    assert len(live(uri)) == 30


def test_the_deployment_encodes_with_the_editor_of_the_table(tmp_path, editor, editor_dir):
    uri = FactTable.create_or_open(str(tmp_path / "table"), editor.identity(), dtype="float32").uri
    deployment = WriterDeployment(table=uri, editor=str(editor_dir), poll_s=0.05)

    async def scenario():
        result = await deployment.write([put("a", "The capital of Ruritania is Strelsau")])
        told = (await deployment.current_version(), await deployment.wait_for(0, 5))
        infos = await deployment.snapshots(5), await deployment.activate(0)
        await deployment.check_health()
        await deployment._writer.close()
        return result, told, infos

    result, told, (snapshots, activated) = asyncio.run(scenario())
    assert (result.outcomes, told, len(snapshots), activated.version) == (("new",), (1, 1), 2, 2)
    keys_FK, prompts_FPD = editor.encode_facts(["The capital of Ruritania is Strelsau"])
    snapshot = read_snapshot(uri, 1)
    np.testing.assert_array_equal(snapshot.keys_FK, keys_FK)
    np.testing.assert_array_equal(snapshot.prompts_FPD, prompts_FPD)
    assert isinstance(WriterDeployment(table=uri, editor="no editor", version=1)._writer, PinnedWriter)


def test_the_deployment_has_read_the_embeddings_of_its_llm_before_the_first_write(tmp_path, llm_dir):
    where = shutil.copytree(llm_dir, tmp_path / "llm")
    editor = tiny_editor(llm=str(tmp_path / "of the training"), prompt_source="statement")
    editor.save(tmp_path / "editor")
    uri = FactTable.create_or_open(str(tmp_path / "table"), editor.identity(), dtype="float32").uri
    with pytest.raises(ModelError, match=r"of the training: no config\.json there"):
        WriterDeployment(table=uri, editor=str(tmp_path / "editor"))
    deployment = WriterDeployment(table=uri, editor=str(tmp_path / "editor"), llm=str(where))
    for file in where.iterdir():
        file.unlink()

    async def scenario():
        result = await deployment.write([put("a", "The capital of Ruritania is Strelsau")])
        await deployment._writer.close()
        return result

    assert asyncio.run(scenario()).outcomes == ("new",)
    llm = load_llm(str(llm_dir), "cpu")
    editor.read_with(StatementReader(llm.tokenizer, llm.embedding))
    _, prompts_FPD = editor.encode_facts(["The capital of Ruritania is Strelsau"])
    np.testing.assert_array_equal(read_snapshot(uri, 1).prompts_FPD, prompts_FPD)


def test_a_table_on_s3_is_written_followed_and_rolled_back(s3):
    uri = FactTable.create_or_open(f"{s3}/table", IDENTITY).uri

    async def scenario(writer):
        own = await writer.write([put("a")])
        await asyncio.to_thread(elsewhere, uri, put("b"))
        return own.snapshot, await writer.wait_for(1, 30), await writer.activate(1), await writer.snapshots(2)

    own, followed, activated, told = run(uri, scenario)
    assert (own, followed, activated.version) == (1, 2, 3)
    assert [info.version for info in told] == [3, 2]
    assert live(uri) == {"a": "text"}
