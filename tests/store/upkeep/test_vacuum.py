"""Vacuum: what nobody needs goes, what anybody may need stays."""

import json
import os
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from test_compaction import assert_same_facts
from test_maintenance import commit
from test_table import Event, statements

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.files import write_text
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.stored import list_stored, relative
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback, verify
from recipe_ray.store.upkeep.vacuum import vacuum

HOUR = timedelta(hours=1)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "table") if request.param == "disk" else request.getfixturevalue("s3") + "/table"


def paths(uri):
    return {relative(file.uri, uri) for file in list_stored(uri)}


def data_files(uri):
    return {path for path in paths(uri) if path.startswith("namespace=")}


def needed(uri, *versions):
    return {file.path for version in versions for file in FactTable.open(uri, version).files()}


def later(**by):
    return datetime.now(UTC) + timedelta(**by)


def age(tmp_path, **by):
    """Make all files below look as old."""
    for path in tmp_path.rglob("*"):
        if path.is_file():
            then = (datetime.now(UTC) - timedelta(**by)).timestamp()
            os.utime(path, (then, then))


def test_after_the_retention_only_the_last_version_is_there(place, identity):
    commit(place, identity, "one", Event("a", "x"), Event("b", "y"))
    commit(place, identity, "two", Event("a", "z", updated=1))
    compact(place)
    before, everything = read_snapshot(place), paths(place)
    kept = vacuum(place, retention=2 * HOUR, now=later(hours=1))
    assert kept.garbage == ()
    dry = vacuum(place, retention=2 * HOUR, now=later(hours=3), dry_run=True)
    assert paths(place) == everything
    done = vacuum(place, retention=2 * HOUR, now=later(hours=3))
    assert done.garbage == dry.garbage
    assert done.oldest_version == 3
    assert {file.path for file in done.garbage} == everything - paths(place)
    assert data_files(place) == needed(place, 3)
    assert_same_facts(read_snapshot(place), before)
    table = FactTable.open(place)
    assert table.version == 3
    assert table.has_dump("one")
    assert table.has_dump("two")
    with pytest.raises(TableError, match="version 1"):
        read_snapshot(place, version=1)
    with pytest.raises(TableError, match="version 2"):
        rollback(place, 2)
    assert commit(place, identity, "three", Event("c", "new")) == 4
    assert statements(read_snapshot(place)) == {"a": "z", "b": "y", "c": "new"}
    assert statements(read_snapshot(place, version=3)) == {"a": "z", "b": "y"}


def test_versions_within_the_retention_stay_whole(tmp_path, append, monkeypatch):
    uri = str(tmp_path)
    append(uri, Event("a", "x"))
    append(uri, Event("a", "y", updated=1))
    compact(uri)
    append(uri, Event("a", "z", updated=2))
    compact(uri)
    # As if versions 0 and 1 came ten days ago, 2 and 3 (the first compaction) five days ago, the others now.
    for version, days in ((0, 10), (1, 10), (2, 5), (3, 5)):
        path = tmp_path / "_delta_log" / f"{version:020}.json"
        then = (datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] = int(then)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    age(tmp_path / "namespace=default", days=20)
    report = vacuum(uri)
    assert report.oldest_version == 1  # it was the last one until five days ago
    assert verify(uri, 1).problems == verify(uri, 2).problems == verify(uri, 3).problems == ()
    report = vacuum(uri, retention=timedelta(days=4))
    assert report.oldest_version == 3
    assert data_files(uri) == needed(uri, 3, 4, 5)


def test_what_a_broken_ingest_left_goes_after_the_retention_and_not_before(place, append, identity):
    append(place, Event("a", "x"))
    table = FactTable.open(place)

    def written(fact_id):
        (file,) = write_events(place, pa.Table.from_pylist([Event(fact_id, "y").row(4)], EVENT_SCHEMA))
        return file.path

    orphan, staged = written("b"), written("c")
    write_text(f"{place}/_staging/key/units/1-ab.json", json.dumps([{"path": staged}]))
    write_text(f"{place}/_staging/key/rows/0.parquet", "rows")
    vacuum(place, retention=0 * HOUR)  # it may be about to commit
    assert {orphan, staged, "_staging/key/rows/0.parquet"} <= paths(place)
    garbage = vacuum(place, retention=3 * HOUR, now=later(hours=4)).garbage
    assert {file.kind for file in garbage} == {"data", "staging"}
    assert data_files(place) == {file.path for file in table.files()}
    assert not [path for path in paths(place) if path.startswith("_staging")]


def test_what_a_staging_will_commit_stays_however_old(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    (file,) = write_events(str(tmp_path), pa.Table.from_pylist([Event("b", "y").row(4)], EVENT_SCHEMA))
    age(tmp_path, days=9)
    write_text(f"{tmp_path}/_staging/key/units/1-ab.json", json.dumps([{"path": file.path}]))
    vacuum(str(tmp_path), retention=timedelta(days=7))
    assert (tmp_path / file.path).exists()


def test_a_file_that_left_the_table_goes_with_retention_0_however_young(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "y", updated=1))
    compact(str(tmp_path))
    vacuum(str(tmp_path), retention=0 * HOUR, now=later(seconds=1))
    assert data_files(str(tmp_path)) == needed(str(tmp_path), 3)


def test_the_newest_two_indexes_stay_and_one_that_is_being_built(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    for name in ("9-aa", "10-aa", "10-bb"):
        write_text(f"{tmp_path}/_index/{name}/0.faiss", "x")
        write_text(f"{tmp_path}/_index/{name}/manifest.json", "{}")
    write_text(f"{tmp_path}/_index/3-cc/0.faiss", "x")
    vacuum(str(tmp_path), retention=timedelta(days=7))
    assert {path.name for path in (tmp_path / "_index").iterdir()} == {"10-aa", "10-bb", "3-cc"}
    age(tmp_path / "_index", hours=2)
    vacuum(str(tmp_path), retention=timedelta(days=7))
    assert {path.name for path in (tmp_path / "_index").iterdir()} == {"10-aa", "10-bb"}


def test_other_files_are_left_alone(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    for name in ("notes.txt", "_quarantine/part-1.parquet", "_moved-not.json", "other/part.parquet"):
        write_text(f"{tmp_path}/{name}", "x")
    before = paths(str(tmp_path))
    vacuum(str(tmp_path), retention=0 * HOUR, now=later(days=30))
    assert {path for path in before - paths(str(tmp_path)) if not path.startswith("_delta_log")} == set()


def test_a_negative_retention_is_refused(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    with pytest.raises(ConfigError, match="retention"):
        vacuum(str(tmp_path), retention=-HOUR)
