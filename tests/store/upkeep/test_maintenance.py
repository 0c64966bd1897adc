"""Rolling back, and verifying: an older content comes back whole or not at all; what is damaged is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_compaction import assert_same_facts
from test_table import EPOCH, Event, statements

from recipe_ray.errors import TableError
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, shard_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep import maintenance
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback, verify


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "table") if request.param == "disk" else request.getfixturevalue("s3") + "/table"


def commit(uri, identity, dump_hash, *events):
    table = FactTable.create_or_open(str(uri), identity)
    rows = pa.Table.from_pylist([event.row(table.num_shards) for event in events], EVENT_SCHEMA)
    return table.commit(write_events(table.uri, rows), dump_hash=dump_hash, counts={})


def test_an_older_content_comes_back_and_the_dumps_between_stay_known(place, identity):
    commit(place, identity, "monday", Event("a", "x"), Event("b", "y"))
    commit(place, identity, "tuesday", Event("a", "wrong", updated=1), Event("c", "wrong"))
    commit(place, identity, "wednesday", Event("b", op="delete", updated=1))
    compact(place)
    before = read_snapshot(place, version=1)
    report = rollback(place, 1)
    assert report.version == 5
    assert [dump.dump_hash for dump in report.undone] == ["tuesday", "wednesday"]
    assert_same_facts(read_snapshot(place), before)
    table = FactTable.open(place)
    assert table.version == 5
    assert all(table.has_dump(dump) for dump in ("monday", "tuesday", "wednesday"))
    assert statements(read_snapshot(place, version=3)) == {"a": "wrong", "c": "wrong"}
    assert rollback(place, 3).version == 6  # and forth again
    assert statements(read_snapshot(place)) == {"a": "wrong", "c": "wrong"}
    assert verify(place).problems == ()


def test_where_nothing_differs_nothing_is_committed(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("b", "x"))
    assert rollback(str(tmp_path), 1).version == 3
    assert rollback(str(tmp_path), 1).version == 3


@pytest.mark.parametrize("version", [2, 3])
def test_a_version_that_is_not_older_is_refused(tmp_path, append, version):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("b", "x"))
    with pytest.raises(TableError, match=rf"version {version} is not before it"):
        rollback(str(tmp_path), version)


def test_what_was_vacuumed_does_not_come_back_in_part(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    append(tmp_path, Event("a", "z", updated=1))
    compact(str(tmp_path))
    gone = {file.path for file in FactTable.open(str(tmp_path), 2).files()}
    gone -= {file.path for file in FactTable.open(str(tmp_path)).files()}
    (tmp_path / min(gone)).unlink()
    with pytest.raises(TableError, match=r"part-.*is gone, as 1 of the 2 files of version 2"):
        rollback(str(tmp_path), 2)
    assert FactTable.open(str(tmp_path)).version == 3


def test_an_append_in_between_is_undone_too(tmp_path, append, monkeypatch):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "wrong", updated=1))
    look, looks = maintenance.missing_files, []

    def meanwhile(*args):
        if not looks:
            append(tmp_path, Event("b", "late"))
        looks.append(args)
        return look(*args)

    monkeypatch.setattr(maintenance, "missing_files", meanwhile)
    assert rollback(str(tmp_path), 1).version == 4
    assert statements(read_snapshot(str(tmp_path))) == {"a": "x"}


def test_a_whole_table_verifies(place, append):
    append(place, *[Event(str(number), f"text {number}") for number in range(20)], Event("a", "x", expires=1))
    append(place, Event("0", op="delete", updated=1), Event("1", "text 1", updated=1, encoded=False))
    report = verify(place)
    assert report.problems == ()
    assert (report.num_events, report.num_facts, report.version) == (23, 19, 2)
    assert report.size_bytes > 0
    assert verify(place, 1, at=EPOCH).num_facts == 21


def with_row(tmp_path, identity, **changes):
    """A table of a sound fact and of one with other columns."""
    table = FactTable.create_or_open(str(tmp_path), identity)
    rows = [Event("sound", "x").row(table.num_shards), {**Event("bad", "y").row(table.num_shards), **changes}]
    files = write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA))
    table.commit(files, dump_hash="h", counts={})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": b"\0\0"}, r"part-.*column 'key': a cell has not 4 entries of float16"),
        (
            {"prompt_embeddings": np.full(15, np.inf, np.float16).tobytes()},
            r"'prompt_embeddings': not finite for id 'b",
        ),
        ({"key": None}, r"column 'key': vectors are not where 'encoded' says"),
        ({"encoded": False}, r"column 'key': vectors are not where 'encoded' says"),
        ({"encoded": False, "key": None, "prompt_embeddings": None}, r"1 facts have no vectors, id 'bad'"),
        ({"content_hash": b"short"}, r"a hash has not 16 bytes"),
        ({"shard": (shard_of("bad", 4) + 1) % 4}, r"facts of another shard, id 'bad'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, identity, changes, complaint):
    with_row(tmp_path, identity, **changes)
    problems = verify(str(tmp_path)).problems
    assert problems
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError("\n".join(problems))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_and_the_rest_is_looked_at(tmp_path, append, damage):
    append(tmp_path, Event("a", "x"), Event("b", "y", encoded=False), Event("c", "z"))
    path = next(path for path in tmp_path.rglob("part-*.parquet") if f"shard={shard_of('c', 4)}" in path.as_posix())
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif damage == "cut":
        path.write_bytes(content[:-20])
    else:
        path.unlink()
    problems = verify(str(tmp_path)).problems
    assert path.name in problems[-1] or path.name in problems[0]
    assert any("have no vectors, id 'b'" in problem for problem in problems)


def test_a_file_of_other_rows_than_the_log_says_is_named(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    (path,) = tmp_path.rglob("part-*.parquet")
    rows = pq.read_table(path, partitioning=None)
    pq.write_table(pa.concat_tables([rows, rows]), path)
    problems = verify(str(tmp_path)).problems
    assert any("has 2 rows, the log says 1" in problem for problem in problems)
    assert any("not those that were written" in problem for problem in problems)
