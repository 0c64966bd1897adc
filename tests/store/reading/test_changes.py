import random
from datetime import UTC, datetime, timedelta

import pytest
from test_table import Event, statements

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.reading import changes as module
from recipe_ray.store.reading.changes import read_changes
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback


def told(uri, before, after, **asked):
    def statement(fact):
        return fact and fact["statement"]

    found = [
        (change.kind, change.fact_id, statement(change.before), statement(change.after))
        for change in read_changes(str(uri), before, after, **asked)
    ]
    return sorted(found)


def test_new_changed_and_deleted_facts_are_told_with_what_said_them(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("b", "y"), Event("c", "z"))
    append(tmp_path, Event("a", "x2", updated=1), Event("b", op="delete", updated=1), Event("d", "w"))
    append(tmp_path, Event("c", "late", updated=-1), Event("c", "z", updated=5))  # neither changes what c says
    assert told(tmp_path, 1, 3) == [
        ("changed", "a", "x", "x2"),
        ("deleted", "b", "y", None),
        ("new", "d", None, "w"),
    ]
    assert told(tmp_path, 2, 3) == []
    assert told(tmp_path, 0, 1) == [("new", name, None, text) for name, text in zip("abc", "xyz", strict=True)]


def test_backwards_a_deleted_fact_is_new_and_one_never_there_is_gone(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", op="delete", updated=1), Event("b", "y"))
    assert told(tmp_path, 2, 1) == [("gone", "b", "y", None), ("new", "a", None, "x")]


def test_a_rollback_changes_back_and_a_compaction_nothing(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "y", updated=1), Event("b", "new"))
    compact(str(tmp_path))
    assert told(tmp_path, 2, 3) == []
    rollback(str(tmp_path), 1)
    assert told(tmp_path, 3, 4) == [("changed", "a", "y", "x"), ("gone", "b", "new", None)]


@pytest.mark.parametrize("touched", [False, True], ids=["another partition changes", "its own partition changes"])
def test_a_fact_that_expires_between_two_commits_is_told(tmp_path, append, monkeypatch, touched):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(
        module, "_committed_us", lambda table: module.microseconds(start + timedelta(minutes=10 * table.version))
    )
    append(tmp_path, Event("a", "x", expires=15), Event("b", "y", expires=25))
    append(tmp_path, Event("c", "z", namespace="default" if touched else "news"))
    assert ("expired", "a", "x", None) in told(tmp_path, 1, 2)
    assert [change[:2] for change in told(tmp_path, 1, 2)] == [("expired", "a"), ("new", "c")]
    assert told(tmp_path, 2, 1) == [("gone", "c", "z", None), ("new", "a", None, "x")]


def test_one_namespace_is_compared(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "y", updated=1), Event("a", "z", namespace="news"))
    assert told(tmp_path, 1, 2, namespace="news") == [("new", "a", None, "z")]


def test_changes_are_the_difference_of_the_snapshots(tmp_path, append):
    chosen = random.Random(3)
    for _ in range(4):
        events = [
            Event(
                chosen.choice("abcdefgh"),
                chosen.choice("xyz"),
                updated=chosen.randrange(6),
                op=chosen.choice(["upsert", "upsert", "delete"]),
            )
            for _ in range(6)
        ]
        append(tmp_path, *[Event(e.fact_id, "" if e.op == "delete" else e.text, e.updated, op=e.op) for e in events])
    for before, after in ((1, 4), (2, 3), (4, 2), (0, 4)):
        old = statements(read_snapshot(str(tmp_path), version=before))
        new = statements(read_snapshot(str(tmp_path), version=after))
        expected = {(name, old.get(name), new.get(name)) for name in old | new if old.get(name) != new.get(name)}
        assert {change[1:] for change in told(tmp_path, before, after)} == expected


def test_the_log_may_have_been_cut_off(tmp_path, append):
    append(tmp_path, Event("a", "x", ingested=1))
    append(tmp_path, Event("a", "y", updated=1, ingested=2))
    assert module._committed_us(module.FactTable.open(str(tmp_path), 1)) > 0
    (tmp_path / "_delta_log" / f"{2:020}.json").rename(tmp_path / "cut off")
    table = module.FactTable.open(str(tmp_path), 1)
    table.version = 2  # as after a checkpoint of version 2
    assert module._committed_us(table) == module.microseconds(datetime(2026, 1, 1, 0, 1, tzinfo=UTC))


def test_versions_that_cannot_be_compared_are_refused(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    with pytest.raises(ConfigError, match="both versions are 1; give two"):
        told(tmp_path, 1, 1)
    with pytest.raises(TableError, match="at version 9"):
        told(tmp_path, 1, 9)
