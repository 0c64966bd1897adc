from datetime import UTC, datetime, timedelta

import pytest
from tables import EPOCH, fill, minutes
from test_table import Event, statements

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep import deletion as module
from recipe_ray.store.upkeep.deletion import Selection, delete_facts


def live(uri, version=None):
    return sorted(statements(read_snapshot(str(uri), version)))


def delete(uri, *fact_ids, **options):
    names = ("namespace", "where_namespace", "source")
    selection = Selection(fact_ids=fact_ids, **{name: options.pop(name) for name in names if name in options})
    return delete_facts(str(uri), selection, **options)


def data_files(uri):
    return sorted(uri.rglob("part-*.parquet"))


def test_deleted_facts_are_gone_in_one_new_version_and_the_old_one_keeps_them(tmp_path, append):
    append(tmp_path, *[Event(str(number), f"text {number}") for number in range(12)])
    report = delete(tmp_path, "3", "4", "5", "6", "7")
    assert (report.version, report.num_deleted, report.missing) == (2, 5, ())
    assert sorted(report.first["fact_id"].to_pylist()) == ["3", "4", "5", "6", "7"]
    assert live(tmp_path) == ["0", "1", "10", "11", "2", "8", "9"]
    assert len(live(tmp_path, version=1)) == 12
    commit = commit_of(str(tmp_path), 2)
    assert (commit.operation, commit.counts, commit.dump_hash) == ("delete", {"deleted": 5}, None)


def test_a_late_older_dump_does_not_bring_a_deleted_fact_back(tmp_path, append):
    append(tmp_path, Event("a", "x", updated=5))
    delete(tmp_path, "a")
    append(tmp_path, Event("a", "late", updated=6, ingested=100))
    assert live(tmp_path) == []


def test_a_fact_of_the_near_future_is_deleted_too(tmp_path, append):
    ahead = int((datetime.now(UTC) - EPOCH) / timedelta(minutes=1)) + 30
    append(tmp_path, Event("a", "x", updated=ahead), Event("b", "y", updated=ahead, ingested=ahead))
    delete(tmp_path, "a", "b")
    assert live(tmp_path) == []


def test_a_delete_as_of_a_time_deletes_or_is_refused(tmp_path, append):
    append(tmp_path, Event("a", "x", updated=5), Event("b", "y", updated=20))
    with pytest.raises(FactError, match=r"1 facts are so as of later, such as 'b' \(2026-01-01T00:20:00\+00:00\)"):
        delete(tmp_path, "a", "b", updated_at=minutes(10))
    assert live(tmp_path) == ["a", "b"]
    with pytest.raises(FactError, match="after the present"):
        delete(tmp_path, "a", updated_at=datetime.now(UTC) + timedelta(hours=2))
    assert len(data_files(tmp_path)) == len(FactTable.open(str(tmp_path)).files())
    delete(tmp_path, "a", updated_at=minutes(10))
    append(tmp_path, Event("a", "later", updated=11))
    assert live(tmp_path) == ["a", "b"]


def test_ids_that_are_not_live_are_named_and_nothing_is_deleted(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("expired", "y", expires=1), Event("deleted", "z"))
    append(tmp_path, Event("deleted", op="delete", updated=1))
    with pytest.raises(
        FactError,
        match=r"not live: 'expired' \(expired\), 'deleted' \(deleted\), 'no' \(never there\); correct the ids",
    ):
        delete(tmp_path, "a", "expired", "deleted", "no")
    assert live(tmp_path) == ["a"]
    assert FactTable.open(str(tmp_path)).version == 2
    assert len(data_files(tmp_path)) == len(FactTable.open(str(tmp_path)).files())
    report = delete(tmp_path, "a", "expired", "no", missing_ok=True)
    assert (report.num_deleted, report.missing) == (1, ("expired", "no"))
    assert live(tmp_path) == []
    assert delete(tmp_path, "a", missing_ok=True).version == 3  # nothing to do makes no version
    with pytest.raises(FactError, match=r"'4' \(never there\) and 2 more; correct"):
        delete(tmp_path, *"0123456")


def test_an_id_of_several_namespaces_needs_one(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("a", "y", namespace="news"), Event("b", "z", namespace="news"))
    with pytest.raises(FactError, match="'a' is live in the namespaces 'default', 'news'; give --namespace"):
        delete(tmp_path, "a", "b")
    delete(tmp_path, "a", namespace="news")
    assert live(tmp_path) == ["a", "b"]
    delete(tmp_path, "a", "b")  # each is live in one now
    assert live(tmp_path) == []


def test_facts_are_deleted_by_namespace_and_source(tmp_path, identity):
    def record(number, namespace, source):
        return {
            "id": f"{namespace}-{source}-{number}",
            "statement": "s",
            "namespace": namespace,
            "source": source,
        }

    fill(
        tmp_path,
        identity,
        *[record(number, namespace, source) for number in range(5) for namespace in "ab" for source in ("x", "y")],
    )
    assert delete(tmp_path, where_namespace="a", source="x").num_deleted == 5
    assert {name[:3] for name in live(tmp_path)} == {"a-y", "b-x", "b-y"}
    assert delete(tmp_path, source="y").num_deleted == 10
    report = delete(tmp_path, where_namespace="b", num_first=2)
    assert (report.num_deleted, len(report.first)) == (5, 2)
    assert live(tmp_path) == []
    assert delete(tmp_path, where_namespace="b").num_deleted == 0


def test_a_dry_run_tells_and_writes_nothing(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    before = sorted(tmp_path.rglob("*"))
    report = delete(tmp_path, where_namespace="default", dry_run=True)
    assert (report.version, report.num_deleted, report.first["statement"].to_pylist()) == (1, 2, ["x", "y"])
    assert sorted(tmp_path.rglob("*")) == before


def test_another_writer_in_between_is_decided_about_again(tmp_path, append, monkeypatch):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    write = module.write_events
    others = iter([Event("c", "new"), Event("a", "newer", updated=10_000)])

    def write_and_lose_the_race(uri, rows):
        files = write(uri, rows)
        for event in others:
            append(tmp_path, event)
            break
        return files

    monkeypatch.setattr(module, "write_events", write_and_lose_the_race)
    report = delete(tmp_path, where_namespace="default")
    assert (report.version, report.num_deleted) == (4, 3)
    assert live(tmp_path) == []
    assert len(data_files(tmp_path)) == len(FactTable.open(str(tmp_path)).files())  # no file of the lost races is left


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no facts are named"),
        ({"fact_ids": ("a",), "source": "x"}, "ids and source are given"),
        ({"fact_ids": ("a",), "where_namespace": "x"}, "ids and where_namespace are given"),
        ({"namespace": "n", "source": "x"}, "namespace and source are given"),
    ],
)
def test_a_selection_that_contradicts_itself_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Selection(**options)


def test_facts_are_deleted_on_s3(s3, append):
    append(f"{s3}/table", Event("a", "x"), Event("b", "y"))
    delete(f"{s3}/table", "a")
    assert live(f"{s3}/table") == ["b"]
