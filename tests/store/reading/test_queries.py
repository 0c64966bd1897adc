from datetime import timedelta

import pytest
from tables import EPOCH, fill, minutes
from test_table import Event

from recipe_ray.store.reading.commits import read_commits
from recipe_ray.store.reading.queries import find_fact, list_facts, read_history
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback


def listed(uri, **asked):
    found = list_facts(FactTable.open(str(uri)), **{"limit": 100, **asked})
    return list(zip(found.facts["namespace"].to_pylist(), found.facts["fact_id"].to_pylist(), strict=True)), found


@pytest.fixture
def many(tmp_path, append):
    append(tmp_path, *[Event(f"{number:02}", f"text {number}") for number in range(30)])
    append(tmp_path, *[Event(f"{number:02}", f"Novel {number}", updated=1) for number in range(0, 30, 7)])
    append(tmp_path, *[Event(f"{number:02}", op="delete", updated=2) for number in range(0, 30, 5)])
    append(tmp_path, Event("00", "elsewhere", namespace="a space"), Event("gone", "x", expires=5))
    return tmp_path


def test_the_live_facts_are_listed_by_namespace_and_id(many):
    names, found = listed(many)
    facts = read_snapshot(str(many)).facts.sort_by([("namespace", "ascending"), ("fact_id", "ascending")])
    assert found.facts.equals(facts)
    assert names[0] == ("a space", "00")
    assert found.num_facts == len(names) == 25


def test_a_limit_gives_the_first_and_counts_all(many):
    everything, _ = listed(many)
    for limit in (0, 1, 7, 25, 26):
        names, found = listed(many, limit=limit)
        assert names == everything[:limit]
        assert found.num_facts == 25


def test_a_list_is_narrowed_by_namespace_prefix_and_text(many):
    assert listed(many, namespace="a space")[0] == [("a space", "00")]
    assert [name for _, name in listed(many, prefix="1")[0]] == ["11", "12", "13", "14", "16", "17", "18", "19"]
    assert [name for _, name in listed(many, contains="nOVEL")[0]] == ["07", "14", "21", "28"]  # 00 was deleted
    assert listed(many, contains="novel", prefix="2", limit=1)[0] == [("default", "21")]
    assert listed(many, namespace="never heard of")[1].num_facts == 0


def test_a_list_is_of_a_time(many):
    assert ("default", "gone") in listed(many, at=EPOCH + timedelta(minutes=4))[0]
    assert ("default", "gone") not in listed(many, at=EPOCH + timedelta(minutes=5))[0]


def test_what_stands_of_a_fact_is_told_with_its_file(tmp_path, append):
    append(tmp_path, Event("live", "x"), Event("deleted", "x"), Event("expired", "x", expires=1))
    append(tmp_path, Event("live", "x", updated=3, ingested=9, encoded=False), Event("deleted", op="delete", updated=1))
    table = FactTable.open(str(tmp_path))
    (live,) = find_fact(table, "live")
    assert (live.status, live.event["statement"], live.event["updated_at"]) == ("live", "x", minutes(3))
    assert live.event["ingested_at"] == minutes(9)
    first, second = (commit.added for commit in read_commits(table.uri) if commit.added)
    assert live.path in {path for _, path in second}
    assert live.vectors_path in {path for _, path in first}
    assert [state.status for state in find_fact(table, "deleted")] == ["deleted"]
    assert find_fact(table, "deleted")[0].vectors_path is None
    assert [state.status for state in find_fact(table, "expired")] == ["expired"]
    assert [state.status for state in find_fact(table, "expired", at=EPOCH)] == ["live"]
    assert find_fact(table, "never there") == []


def test_an_id_is_found_in_every_namespace_or_in_one(many):
    table = FactTable.open(str(many))
    assert [(state.event["namespace"], state.status) for state in find_fact(table, "00")] == [
        ("a space", "live"),
        ("default", "deleted"),
    ]
    assert [state.event["statement"] for state in find_fact(table, "00", namespace="a space")] == ["elsewhere"]


def history(uri, fact_id, version=None):
    table = FactTable.open(str(uri), version)
    return [
        (
            event.event["statement"] or event.event["op"],
            event.commit and (event.commit.version, event.commit.operation),
            event.is_held,
            event.stands,
        )
        for event in read_history(table, fact_id)
    ]


def test_a_history_tells_events_as_they_decide_and_who_brought_them(tmp_path, append):
    append(tmp_path, Event("a", "second", updated=2), Event("b", "x"))
    append(tmp_path, Event("a", "first", updated=1), Event("a", op="delete", updated=3))
    append(tmp_path, Event("a", "second", updated=2, ingested=5))  # the same event again
    assert history(tmp_path, "a") == [
        ("first", (2, "ingest"), True, False),
        ("second", (1, "ingest"), True, False),
        ("delete", (2, "ingest"), True, True),
    ]
    (event, *_) = read_history(FactTable.open(str(tmp_path)), "a")
    assert event.commit.dump_hash == "a dump"
    assert history(tmp_path, "a", version=1) == [("second", (1, "ingest"), True, True)]
    assert history(tmp_path, "never there") == []


def test_a_history_knows_what_was_folded_away_as_long_as_the_files_are_there(tmp_path, append):
    append(tmp_path, Event("a", "old", updated=1))
    append(tmp_path, Event("a", "new", updated=2))
    old_file = next(path for commit in read_commits(str(tmp_path)) for _, path in commit.added)
    compact(str(tmp_path))
    assert history(tmp_path, "a") == [("old", (1, "ingest"), False, False), ("new", (2, "ingest"), True, True)]
    for path in tmp_path.rglob("part-*.parquet"):
        if path.relative_to(tmp_path).as_posix() not in FactTable.open(str(tmp_path)).partitions()[0].paths:
            path.unlink()
    assert not (tmp_path / old_file).exists()
    assert history(tmp_path, "a") == [("new", (3, "compact"), True, True)]


def test_a_history_knows_what_was_rolled_back(tmp_path, append):
    append(tmp_path, Event("a", "old", updated=1))
    append(tmp_path, Event("a", "new", updated=2))
    rollback(str(tmp_path), 1)
    assert history(tmp_path, "a") == [("old", (1, "ingest"), True, True), ("new", (2, "ingest"), False, False)]


def test_commits_tell_their_operation_and_counts(tmp_path, append, identity):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    compact(str(tmp_path))
    append(tmp_path, Event("a", "z", updated=1))
    compact(str(tmp_path))
    commits = list(read_commits(str(tmp_path)))
    assert [(commit.version, commit.operation, commit.is_rewrite) for commit in commits] == [
        (0, "create", False),
        (1, "ingest", False),
        (2, "ingest", False),
        (3, "compact", True),
    ]
    assert commits[1].counts == {"new": 2}
    assert commits[3].num_removed == 2
    assert [commit.version for commit in read_commits(str(tmp_path), until=1)] == [0, 1]


def test_queries_on_s3(s3, identity):
    uri = f"{s3}/table"
    fill(uri, identity, {"id": "a", "prompt": "The capital is", "target": "Lyon"})
    fill(uri, identity, {"id": "a", "op": "delete", "updated_at": minutes(1)})
    assert list_facts(FactTable.open(uri, 1), limit=9).facts["statement"].to_pylist() == ["The capital is Lyon"]
    assert find_fact(FactTable.open(uri), "a")[0].status == "deleted"
    assert history(uri, "a") == [
        ("The capital is Lyon", (1, "ingest"), True, False),
        ("delete", (2, "ingest"), True, True),
    ]
