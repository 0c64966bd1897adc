import numpy as np
from test_table import Event, statements

from recipe_ray.store.delta import CommitConflictError
from recipe_ray.store.reading.commits import commit_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.maintenance import verify
from recipe_ray.store.upkeep.merging import merge_small_files


def files(uri):
    return FactTable.open(str(uri)).files()


def fill(uri, append):
    for number in range(12):
        append(
            uri,
            *[Event(str(fact), f"{number} {fact}", updated=number, ingested=number) for fact in range(number, 20)],
            Event("only", f"of news {number}", updated=number, namespace="news"),
        )


def test_small_files_become_one_a_partition_and_the_table_tells_the_same(tmp_path, append):
    fill(tmp_path, append)
    before, num_files = read_snapshot(str(tmp_path)), len(files(tmp_path))
    report = merge_small_files(str(tmp_path))
    assert (report.version, report.num_files_removed, report.num_files_added) == (13, num_files, 5)
    assert len(files(tmp_path)) == 5
    after = read_snapshot(str(tmp_path))
    assert after.facts.equals(before.facts)
    np.testing.assert_array_equal(after.keys_FK, before.keys_FK)
    np.testing.assert_array_equal(after.prompts_FPD, before.prompts_FPD)
    assert sum(file.num_rows for file in files(tmp_path)) == sum(range(9, 21)) + 12  # every event is kept
    assert verify(str(tmp_path)).problems == ()
    commit = commit_of(str(tmp_path), 13)
    assert (commit.operation, commit.is_rewrite) == ("merge", True)
    assert commit.counts == {"removed_files": num_files, "added_files": 5}
    assert merge_small_files(str(tmp_path)).version == 13  # nothing is left to merge


def test_large_files_and_partitions_of_few_files_stay(tmp_path, append):
    fill(tmp_path, append)
    before = {file.path for file in files(tmp_path)}
    assert merge_small_files(str(tmp_path), small_bytes=100).num_files_removed == 0
    assert merge_small_files(str(tmp_path), min_files=13).num_files_removed == 0
    assert {file.path for file in files(tmp_path)} == before


def test_what_others_commit_meanwhile_is_neither_lost_nor_merged_twice(tmp_path, append, monkeypatch):
    fill(tmp_path, append)
    replace, races, num_files = FactTable.replace, [], len(files(tmp_path))

    def lose_the_race(self, *args, **options):
        if len(races) < 2:
            races.append(append(tmp_path, Event("other", f"race {len(races)}", updated=100 + len(races))))
            raise CommitConflictError("another writer")
        return replace(self, *args, **options)

    monkeypatch.setattr(FactTable, "replace", lose_the_race)
    expected = statements(read_snapshot(str(tmp_path))) | {"other": "race 1"}
    assert merge_small_files(str(tmp_path)).version == 15
    assert statements(read_snapshot(str(tmp_path))) == expected
    assert len(files(tmp_path)) == 5 + 2
    assert len(list(tmp_path.rglob("part-*.parquet"))) == num_files + 2 + 5  # merged once, however often it is tried


def test_merged_files_whose_parts_are_gone_meanwhile_are_thrown_away(tmp_path, append, monkeypatch):
    fill(tmp_path, append)
    replace, races = FactTable.replace, []

    def lose_the_race(self, *args, **options):
        if not races:
            races.append(1)
            merge_small_files(str(tmp_path))
        return replace(self, *args, **options)

    monkeypatch.setattr(FactTable, "replace", lose_the_race)
    expected = statements(read_snapshot(str(tmp_path)))
    assert merge_small_files(str(tmp_path)).num_files_removed == 0
    assert statements(read_snapshot(str(tmp_path))) == expected
    assert len(files(tmp_path)) == 5


def test_small_files_are_merged_on_s3(s3, append):
    fill(f"{s3}/table", append)
    expected = statements(read_snapshot(f"{s3}/table"))
    assert merge_small_files(f"{s3}/table").num_files_added == 5
    assert statements(read_snapshot(f"{s3}/table")) == expected
