"""Compaction: the same facts in fewer rows and files, whatever else happens meanwhile."""

import itertools
import random
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from test_table import EPOCH, Event, events_strategy, statements

from recipe_ray.store.parquet import check_file, read_batches
from recipe_ray.store.schema import FILE_SCHEMA
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep import compaction
from recipe_ray.store.upkeep.compaction import compact

NOW = EPOCH + timedelta(days=10)


def assert_same_facts(one, two):
    assert one.facts.equals(two.facts)
    np.testing.assert_array_equal(one.keys_FK, two.keys_FK)
    np.testing.assert_array_equal(one.prompts_FPD, two.prompts_FPD)


def rows_of(uri, columns=FILE_SCHEMA.names):
    """All rows of the last version, by partition, in the order of files."""
    table = FactTable.open(str(uri))
    found = {}
    for partition in table.partitions():
        batches = [batch for path in partition.paths for batch in read_batches(table.uri, path, columns)]
        found[partition.namespace, partition.shard] = pa.Table.from_batches(batches).to_pylist()
    return found


def all_rows(uri):
    return [row for rows in rows_of(uri).values() for row in rows]


# Few examples, since each commits; what stands is tested at length in test_order.py.
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events_strategy)
def test_the_facts_stay_the_same_and_what_does_not_stand_goes(tmp_path_factory, append, events):
    uri = str(tmp_path_factory.mktemp("table"))
    for chunk in (events[:4], events[4:]):
        if chunk:
            append(uri, *chunk)
    before = read_snapshot(uri)
    compact(uri, now=NOW)
    assert_same_facts(read_snapshot(uri), before)
    latest = {
        event.fact_id: max(other.updated for other in events if other.fact_id == event.fact_id) for event in events
    }
    expected = {(event.fact_id, event.content_hash) for event in events if event.updated == latest[event.fact_id]}
    assert sorted((row["fact_id"], row["content_hash"]) for row in all_rows(uri)) == sorted(expected)
    version = FactTable.open(uri).version
    assert compact(uri, now=NOW).version == version


def test_what_lost_a_tie_loses_when_it_is_said_again(tmp_path, append):
    append(tmp_path, Event("a", "old", ingested=1), Event("b", "old", ingested=1))
    append(tmp_path, Event("a", "new", ingested=2), Event("b", op="delete", ingested=2))
    compact(str(tmp_path), now=NOW)
    append(tmp_path, Event("a", "old", ingested=3, encoded=False), Event("b", "old", ingested=3, encoded=False))
    assert statements(read_snapshot(str(tmp_path))) == {"a": "new"}
    # A first copy that was on its way decides, and the vectors are still there.
    append(tmp_path, Event("a", "new", ingested=0, encoded=False), Event("b", op="delete", ingested=0))
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == {"a": "old", "b": "old"}
    for key in snapshot.keys_FK:
        np.testing.assert_array_equal(key, Event("", "old").key)


def test_what_ties_with_a_tombstone_goes_with_it(tmp_path, append):
    append(tmp_path, Event("a", "old", ingested=1), Event("a", op="delete", ingested=2))
    report = compact(str(tmp_path), drop_tombstones_older_than=timedelta(days=5), now=NOW)
    assert (report.num_dropped, report.num_tombstones_dropped) == (1, 1)
    assert all_rows(tmp_path) == []


def test_what_expired_only_by_a_clock_that_is_ahead_keeps_its_vectors(tmp_path, append):
    append(tmp_path, Event("a", "x", expires=60), Event("b", "y", expires=20))
    clock = EPOCH + timedelta(minutes=90)
    compact(str(tmp_path), drop_tombstones_older_than=timedelta(0), now=clock)
    assert statements(read_snapshot(str(tmp_path), at=EPOCH + timedelta(minutes=50))) == {"a": "x"}
    assert [row["fact_id"] for row in all_rows(tmp_path)] == ["a"]


def test_vectors_of_an_older_event_come_into_the_row_that_stands(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    append(tmp_path, Event("a", "x", updated=5, ingested=1, encoded=False))
    before = read_snapshot(str(tmp_path))
    report = compact(str(tmp_path), now=NOW)
    assert report.num_dropped == 1
    assert_same_facts(read_snapshot(str(tmp_path)), before)
    (row,) = [row for row in all_rows(tmp_path) if row["fact_id"] == "a"]
    assert row["encoded"]
    assert row["key"] == Event("a", "x").key.tobytes()


def test_of_copies_the_first_ingestion_is_kept(tmp_path, append):
    append(tmp_path, Event("a", "x", ingested=7))
    append(tmp_path, Event("a", "x", ingested=3, encoded=False))
    compact(str(tmp_path), now=NOW)
    (row,) = all_rows(tmp_path)
    assert row["ingested_at"] == EPOCH + timedelta(minutes=3)
    assert row["encoded"]


def test_what_was_deleted_or_expired_does_not_come_back_with_a_late_dump(tmp_path, append):
    append(tmp_path, Event("a", "x", updated=1), Event("b", "y", updated=1, expires=9), Event("c", "z"))
    append(tmp_path, Event("a", op="delete", updated=2))
    compact(str(tmp_path), now=NOW)
    rows = {row["fact_id"]: row for row in all_rows(tmp_path)}
    assert rows.keys() == {"a", "b", "c"}
    assert [rows[fact_id]["key"] for fact_id in "ab"] == [None, None]
    assert not rows["b"]["encoded"]
    append(tmp_path, Event("a", "late", updated=1), Event("b", "late", updated=0))
    assert statements(read_snapshot(str(tmp_path))) == {"c": "z"}


def test_old_tombstones_go_when_asked(tmp_path, append):
    day = 24 * 60
    append(tmp_path, Event("a", op="delete", updated=1), Event("b", op="delete", updated=8 * day))
    append(tmp_path, Event("c", op="delete", updated=1, ingested=8 * day), Event("d", "x", expires=2 * day))
    append(tmp_path, Event("e", "x", expires=8 * day), Event("f", "live since long"))
    report = compact(str(tmp_path), drop_tombstones_older_than=timedelta(days=5), now=NOW)
    assert report.num_tombstones_dropped == 2
    assert {row["fact_id"] for row in all_rows(tmp_path)} == {"b", "c", "e", "f"}


def test_small_files_become_few_sorted_by_id(tmp_path, append):
    events = [Event(f"{number:03}", f"text {number}") for number in range(60)]
    random.Random(0).shuffle(events)
    for start in range(0, 60, 15):
        append(tmp_path, *events[start : start + 15])
    before = read_snapshot(str(tmp_path))
    report = compact(str(tmp_path), now=NOW)
    assert (report.num_files_before, report.num_files, report.num_rewritten) == (16, 4, 4)
    for rows in rows_of(tmp_path, ["fact_id"]).values():
        ids = [row["fact_id"] for row in rows]
        assert ids == sorted(ids)
    assert_same_facts(read_snapshot(str(tmp_path)), before)
    for file in FactTable.open(str(tmp_path)).files():
        check_file(str(tmp_path), file.path)


def test_files_are_cut_at_a_size(tmp_path, append):
    append(tmp_path, *[Event(f"{number:03}", f"text {number}", updated=number % 2) for number in range(200)])
    append(tmp_path, *[Event(f"{number:03}", op="delete", updated=1) for number in range(0, 200, 2)])
    before = read_snapshot(str(tmp_path))
    report = compact(str(tmp_path), now=NOW, file_bytes=2000)
    assert report.num_files > 8
    assert_same_facts(read_snapshot(str(tmp_path)), before)
    table = FactTable.open(str(tmp_path))
    ranges = [
        sorted(row["fact_id"] for batch in read_batches(table.uri, path, ["fact_id"]) for row in batch.to_pylist())
        for path in table.partitions()[0].paths
    ]
    ranges.sort()
    assert all(one[-1] < two[0] for one, two in itertools.pairwise(ranges))


def test_where_nothing_is_to_gain_nothing_is_written(tmp_path, append):
    append(tmp_path, *[Event(str(number), f"text {number}") for number in range(20)])
    assert compact(str(tmp_path), now=NOW).version == 1
    append(tmp_path, Event("0", "new", updated=1))
    paths = {(found.namespace, found.shard): found.paths for found in FactTable.open(str(tmp_path)).partitions()}
    report = compact(str(tmp_path), now=NOW)
    assert (report.version, report.num_rewritten, report.num_partitions) == (3, 1, 4)
    after = {(found.namespace, found.shard): found.paths for found in FactTable.open(str(tmp_path)).partitions()}
    assert sum(paths[key] != after[key] for key in paths) == 1
    assert compact(str(tmp_path), now=NOW).version == 3


def test_older_versions_can_still_be_read(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "y", updated=1))
    compact(str(tmp_path), now=NOW)
    assert statements(read_snapshot(str(tmp_path), version=1)) == {"a": "x"}


def test_an_append_in_between_is_folded_in_and_nothing_is_lost(tmp_path, append, monkeypatch):
    append(tmp_path, *[Event(str(number), f"text {number}") for number in range(20)])
    append(tmp_path, *[Event(str(number), f"new {number}", updated=1) for number in range(20)])
    late = [Event("0", "latest", updated=2), Event("1", "text 1", updated=2, encoded=False)]
    fold, num_folded = compaction._fold, []

    def meanwhile(table, partition, *args):
        if len(num_folded) == 3:  # after most was folded, before the commit
            append(tmp_path, *late)
        num_folded.append(partition)
        return fold(table, partition, *args)

    monkeypatch.setattr(compaction, "_fold", meanwhile)
    report = compact(str(tmp_path), now=NOW)
    monkeypatch.undo()
    assert report.version == 4
    assert 4 < len(num_folded) <= 6  # what the append did not touch was not folded again
    expected = {str(number): f"new {number}" for number in range(20)} | {"0": "latest", "1": "text 1"}
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == expected
    for row, text in enumerate(snapshot.facts["statement"].to_pylist()):
        np.testing.assert_array_equal(snapshot.keys_FK[row], Event("", text).key)
    needed = {file.path for version in (1, 2, 3, 4) for file in FactTable.open(str(tmp_path), version).files()}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("part-*.parquet")} == needed


def test_a_table_on_s3_is_compacted(s3, append):
    uri = f"{s3}/facts"
    append(uri, Event("a", "x"), Event("b", "y"))
    append(uri, Event("a", op="delete", updated=2))
    before = read_snapshot(uri)
    assert compact(uri, now=NOW).num_dropped == 1
    assert_same_facts(read_snapshot(uri), before)


@pytest.mark.parametrize("namespace", ["news", "weiß / 100%"])
def test_every_namespace_keeps_its_files_apart(tmp_path, append, namespace):
    append(tmp_path, Event("a", "x"), Event("a", "y", namespace=namespace))
    append(tmp_path, Event("a", "z", namespace=namespace, updated=1))
    before = read_snapshot(str(tmp_path))
    assert compact(str(tmp_path), now=NOW).num_rewritten == 1
    assert_same_facts(read_snapshot(str(tmp_path)), before)
