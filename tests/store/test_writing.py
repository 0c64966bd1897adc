"""Facts written in groups: against the rule of what stands, and against an ingest's own resolution."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from event_arrays import standing_by_the_rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import EPOCH, fill, minutes
from test_table import statements

from recipe_ray.errors import TableError
from recipe_ray.facts import Fact
from recipe_ray.store import writing as module
from recipe_ray.store.delta import CommitConflictError
from recipe_ray.store.file_cache import FileCache
from recipe_ray.store.pointer import write_pointer
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.schema import microseconds
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable, GroupId
from recipe_ray.store.upkeep.maintenance import rollback, verify
from recipe_ray.store.writing import UnfitFactsError, write_facts

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Encoder:
    """Vectors made from the statement; counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, statements):
        self.asked += statements
        keys_FK = np.array([[sum(text.encode()) % 97] * 4 for text in statements], np.float32)
        keys_FK[[text == "loud" for text in statements]] = 1e9
        return keys_FK, np.ones((len(statements), 3, 5), np.float32) * keys_FK[:, :1, None]


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def uri(tmp_path, identity):
    return FactTable.create_or_open(str(tmp_path / "table"), identity).uri


@pytest.fixture
def write(uri, encoder, identity):
    """Write facts as one group, each group a minute after the one before."""
    numbers = iter(range(1000))

    def write(*facts, now=None, group=None, **options):
        number = next(numbers)
        group = group or GroupId(writer="w", number=number)
        now = now or NOW + timedelta(minutes=number)
        return write_facts(uri, facts, encoder, identity=identity, group=group, now=now, **options)

    return write


def put(fact_id, statement, **more):
    return Fact(fact_id=fact_id, statement=statement, **more)


def delete(fact_id, **more):
    return Fact(fact_id=fact_id, statement="", op="delete", **more)


def live(uri, version=None):
    return statements(read_snapshot(uri, version, at=NOW))


def num_data_files(uri):
    return len(list(Path(uri).rglob("part-*.parquet")))


def test_a_group_is_one_commit_with_an_outcome_for_each_fact(uri, write):
    first = write(*[put(str(number), f"text {number}") for number in range(20)], delete("no"))
    assert first.outcomes == ("new",) * 20 + ("absent",)
    assert (first.version, first.num_written, first.num_encoded) == (1, 21, 20)
    second = write(
        put("0", "another text"),
        put("1", "text 1"),
        delete("2"),
        delete("no"),
        put("3", "text 3", expires_at=NOW),
        put("4", "old", updated_at=EPOCH),
        put("a", "of news", namespace="news"),
    )
    assert second.outcomes == ("changed", "unchanged", "deleted", "absent", "expired", "superseded", "new")
    assert second.version == 2
    assert live(uri) == {str(n): f"text {n}" for n in range(20) if n not in (2, 3)} | {
        "0": "another text",
        "a": "of news",
    }
    commit = commit_of(uri, 2)
    assert (commit.operation, commit.dump_hash) == ("put", None)
    assert commit.counts == {
        "new": 1, "changed": 1, "unchanged": 1, "deleted": 1, "absent": 1, "expired": 1, "superseded": 1,
        "written": 6, "encoded": 2,
    }  # fmt: skip
    assert len(commit.added) <= 5  # one file a shard and namespace
    assert write(delete("5")).outcomes == ("deleted",)
    assert commit_of(uri, 3).operation == "delete"
    assert verify(uri).problems == ()


def test_vectors_are_those_of_the_statements_and_known_ones_are_not_encoded_again(uri, write, encoder):
    write(put("a", "first"), put("b", "same"), put("c", "same"))
    assert encoder.asked == ["first", "same"]
    write(put("a", "second"))
    again = write(put("a", "first"), put("b", "same", source="elsewhere"))
    assert (again.outcomes, again.num_encoded) == (("changed", "changed"), 0)
    assert encoder.asked == ["first", "same", "second"]
    snapshot = read_snapshot(uri)
    for row, text in enumerate(snapshot.facts["statement"].to_pylist()):
        key_K = np.full(4, sum(text.encode()) % 97)
        np.testing.assert_array_equal(snapshot.keys_FK[row], key_K)
        np.testing.assert_array_equal(snapshot.prompts_FPD[row], np.full((3, 5), key_K[0]))


def test_what_the_table_knows_as_of_the_same_time_or_later_is_no_commit(uri, write, encoder):
    write(put("a", "x", updated_at=minutes(5)))
    nothing = write(
        put("a", "x", updated_at=minutes(5)), put("a", "y", updated_at=minutes(4)), delete("a", updated_at=minutes(1))
    )
    assert nothing.outcomes == ("unchanged", "superseded", "superseded")
    assert (nothing.version, nothing.num_written, encoder.asked) == (1, 0, ["x"])
    assert FactTable.open(uri).version == 1


def test_of_events_of_one_time_the_last_given_stands(uri, write):
    texts = [f"text {number}" for number in range(8)]
    assert write(*[put("a", text) for text in texts]).outcomes == ("superseded",) * 7 + ("new",)
    write(*[put("b", text, updated_at=EPOCH) for text in texts])
    write(put("c", "x"), delete("c"), put("c", "y"), put("d", "x"), delete("d"))
    assert live(uri) == {"a": "text 7", "b": "text 7", "c": "y"}


@pytest.mark.parametrize("ahead", [put("a", "ahead", updated_at=NOW + timedelta(minutes=50)), None])
def test_a_fact_without_a_time_is_later_than_what_is_known_of_the_near_future(uri, identity, write, ahead):
    if ahead:
        write(ahead)
    else:  # by a machine whose clock is ahead
        later = NOW + timedelta(minutes=50)
        fill(uri, identity, put("a", "ahead", updated_at=later), ingested_at=later)
    assert write(put("a", "x")).outcomes == ("changed",)
    assert live(uri) == {"a": "x"}
    assert write(delete("a")).outcomes == ("deleted",)
    assert live(uri) == {}
    assert write(put("a", "y", updated_at=NOW + timedelta(minutes=55)), put("a", "z")).outcomes == ("superseded", "new")
    assert live(uri) == {"a": "z"}


def test_facts_whose_vectors_do_not_fit_are_named_and_nothing_is_written(uri, write):
    with pytest.raises(UnfitFactsError, match="'b': its vectors are not finite in float16") as caught:
        write(put("a", "x"), put("b", "loud"), delete("c"), put("d", "loud"))
    assert sorted(caught.value.faults) == [1, 3]
    assert FactTable.open(uri).version == num_data_files(uri) == 0


def test_a_table_of_another_editor_is_refused(uri, write, identity, encoder):
    other = dataclasses.replace(identity, fingerprint="another")
    with pytest.raises(TableError, match="encoded by the editor with fingerprint f00d"):
        write_facts(uri, [put("a", "x")], encoder, identity=other, group=GroupId(writer="w", number=0))
    assert encoder.asked == []


def test_a_table_that_moved_is_written_no_more(uri, write, tmp_path):
    write_pointer(uri, str(tmp_path / "elsewhere"), from_version=0)
    with pytest.raises(TableError, match=r"moved to .*elsewhere; write there"):
        write(put("a", "x"))
    assert num_data_files(uri) == 0


def test_a_crash_before_the_commit_leaves_the_table_as_it_was(uri, write, monkeypatch):
    write(put("a", "x"))
    with monkeypatch.context() as patched:
        patched.setattr(FactTable, "commit_group", lambda *args, **options: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            write(put("a", "y"), put("b", "z"))
    assert num_data_files(uri) > len(FactTable.open(uri).files())  # files of no version
    assert (FactTable.open(uri).version, live(uri)) == (1, {"a": "x"})
    assert write(put("a", "y"), put("b", "z")).outcomes == ("changed", "new")
    assert live(uri) == {"a": "y", "b": "z"}


def test_a_group_whose_answer_was_lost_is_written_once(uri, write, identity, encoder, monkeypatch):
    write(put("a", "x"), put("gone", "x"))
    commit = FactTable.commit_group

    def commit_and_lose_the_answer(self, *args, **options):
        commit(self, *args, **options)
        raise TableError("the connection broke")

    group, facts = GroupId(writer="w", number=50), [put("a", "y"), put("b", "z"), delete("gone"), delete("no")]
    with monkeypatch.context() as patched:
        patched.setattr(FactTable, "commit_group", commit_and_lose_the_answer)
        with pytest.raises(TableError, match="the connection broke"):
            write(*facts, group=group, now=NOW)
    fill(uri, identity, put("c", "meanwhile"))
    told = write(*facts, group=group, now=NOW)
    assert (told.outcomes, told.version) == (("changed", "new", "deleted", "absent"), 2)
    assert FactTable.open(uri).version == 3
    assert encoder.asked == ["x", "y", "z"]
    assert live(uri) == {"a": "y", "b": "z", "c": "meanwhile"}


def test_another_writer_in_between_is_decided_about_again(uri, write, identity, encoder, monkeypatch):
    write(put("a", "x"))
    others = iter([put("a", "y", updated_at=NOW + timedelta(days=1)), put("b", "of the other", updated_at=EPOCH)])
    commit = FactTable.commit_group

    def lose_the_race(self, *args, **options):
        for other in others:
            fill(uri, identity, other)
            break
        return commit(self, *args, **options)

    monkeypatch.setattr(FactTable, "commit_group", lose_the_race)
    report = write(put("a", "mine", updated_at=NOW + timedelta(hours=1)), put("b", "mine"))
    assert (report.outcomes, report.version) == (("superseded", "changed"), 4)
    assert encoder.asked == ["x", "mine"]  # once, however often it is tried
    assert live(uri) == {"a": "y", "b": "mine"}
    assert num_data_files(uri) == len(FactTable.open(uri).files())  # no file of a lost race is left


def test_writers_that_never_pause_are_an_error(uri, write, monkeypatch):
    def conflict(self, *args, **options):
        raise CommitConflictError("another")

    monkeypatch.setattr(FactTable, "commit_group", conflict)
    monkeypatch.setattr(module, "retrying", lambda attempt: attempt())
    with pytest.raises(CommitConflictError):
        write(put("a", "x"))
    assert num_data_files(uri) == 0


def test_a_rollback_names_dumps_and_not_groups(uri, write, identity):
    write(put("a", "x"))
    fill(uri, identity, put("b", "y"))
    write(put("a", "z"))
    assert [undone.version for undone in rollback(uri, 1).undone] == [2]
    assert live(uri) == {"a": "x"}
    assert write(put("a", "z")).outcomes == ("changed",)


def test_remembered_files_are_told_as_if_they_were_read(uri, write):
    cache, tiny = FileCache(), FileCache(max_bytes=2000)
    for number in range(6):
        facts = [put(str(number * 10 + place), f"text {number}") for place in range(12)]
        assert write(*facts, cache=cache).outcomes.count("new") == (12 if not number else 10)
        assert set(write(*facts, cache=tiny).outcomes) == {"unchanged"}
    assert len(cache) == len(FactTable.open(uri).files()) - 8  # all that was there when the last group was planned
    assert 0 < len(tiny) < len(cache)
    rollback(uri, 1)
    write(put("0", "text 0"), put("1", "text 0"), put("2", "text 0"), put("3", "text 0"), cache=cache)
    assert len(cache) <= 4  # what the table has no more is forgotten


def test_facts_are_written_on_s3(s3, identity, encoder):
    table = FactTable.create_or_open(f"{s3}/table", identity)
    for number, facts in enumerate([[put("a", "x"), put("b", "y")], [delete("a"), put("b", "z")]]):
        write_facts(table.uri, facts, encoder, identity=identity, group=GroupId(writer="w", number=number), now=NOW)
    assert live(table.uri) == {"b": "z"}


fact_strategy = st.builds(
    lambda fact_id, text, minute, expires: Fact(
        fact_id=fact_id,
        statement=text,
        op="upsert" if text else "delete",
        updated_at=None if minute is None else minutes(minute),
        expires_at=None if not text or expires is None else NOW + timedelta(days=expires),
    ),
    st.sampled_from("ab"),
    st.sampled_from(["", "x", "y", "z"]),
    st.none() | st.integers(0, 2),
    st.none() | st.sampled_from([-1, 900]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(fact_strategy, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_table_tells_what_the_rule_says_of_all_events(tmp_path_factory, identity, groups):
    """Every event of every group, with the times that it was given, against the rule written out."""
    uri = FactTable.create_or_open(str(tmp_path_factory.mktemp("t") / "t"), identity).uri
    contents, everything = {}, []
    for number, facts in enumerate(groups):
        now = NOW + timedelta(minutes=number)
        group = GroupId(writer="w", number=number)
        report = write_facts(uri, facts, Encoder(), identity=identity, group=group, now=now)
        assert report.version == FactTable.open(uri).version
        for place, fact in enumerate(facts):
            ingested = microseconds(now) + sum(earlier.fact_id == fact.fact_id for earlier in facts[:place])
            updated = ingested if fact.updated_at is None else microseconds(fact.updated_at)
            content = int.from_bytes(fact.content_hash(), "big")
            contents[content] = fact
            everything.append({"identity": fact.fact_id, "updated": updated, "ingested": ingested, "content": content})
        expected = {}
        for fact_id, (_, content) in standing_by_the_rule(everything).items():
            fact = contents[content]
            if fact.op == "upsert" and (fact.expires_at is None or fact.expires_at > NOW):
                expected[fact_id] = fact.statement
        assert live(uri) == expected
    assert verify(uri, at=NOW).problems == ()


def test_an_ingest_of_the_same_events_writes_the_same_rows(uri, write, identity, tmp_path):
    """One group against one dump of the same facts: what is written of them is the same."""
    from recipe_ray.store.dumps.rows import GoodRow, Split
    from recipe_ray.store.resolve import resolve
    from recipe_ray.store.snapshot import read_events
    from recipe_ray.store.staging import Buckets, Staging, read_bucket, row_groups_by_bucket

    known = [put(str(number), f"text {number}", updated_at=minutes(1)) for number in range(20)]
    facts = [put(str(number), f"text {number // 2}", updated_at=minutes(number % 3)) for number in range(30)]
    facts += [delete(str(number), updated_at=minutes(2)) for number in range(25, 40)]
    write(*known)
    table = FactTable.open(uri)
    staging = Staging.begin(uri, "key", Buckets(num_shards=table.num_shards, num_parts=1), dump_time=NOW, now=NOW)

    def rows():
        yield from (GoodRow(line=number, fact=fact) for number, fact in enumerate(facts))
        return len(facts)

    split = Split(file=0, part=0, uri="dump", start=0, end=None)
    groups = row_groups_by_bucket([staging.stage(split, rows())])
    expected = []
    for bucket, of_bucket in groups.items():
        dump, ids = read_bucket(staging, of_bucket)
        found = resolve(dump, read_events(table, staging.buckets.shard(bucket), ids), now_us=microseconds(NOW))
        expected += [*dump.content_N2[found.written_N, 0].tolist()]
    report = write(*facts, now=NOW)
    assert report.num_written == len(expected)
    written = [
        int.from_bytes(content[:8], "big")
        for _, path in commit_of(uri, report.version).added
        for content in pa.parquet.read_table(f"{uri}/{path}").column("content_hash").to_pylist()
    ]
    assert sorted(written) == sorted(expected)
