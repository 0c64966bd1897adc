"""What an ingest keeps beside the table until it commits."""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.errors import OutputError
from recipe_ray.facts import Fact
from recipe_ray.store import staging as staging_module
from recipe_ray.store.dumps.rows import BadRow, GoodRow, Split
from recipe_ray.store.resolve import Resolution, resolve
from recipe_ray.store.schema import EVENT_SCHEMA, identity_hash, shard_of
from recipe_ray.store.snapshot import read_events
from recipe_ray.store.staging import Buckets, Staging, bad_lines, read_bucket, row_groups_by_bucket
from recipe_ray.store.table import FactTable
from recipe_ray.store.units import cut_units, read_unit, to_events

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SPLIT = Split(file=0, uri="dump.jsonl", part=0, start=0, end=None)


def fact(number, target="x"):
    return Fact(
        fact_id=f"id-{number}", statement=f"fact {number} is {target}", prompt=f"fact {number} is", target=target
    )


def rows_of(facts, *, bad=(), num_lines=None):
    """A generator of rows that returns the number of lines."""
    for line, one in enumerate(facts, 1):
        yield GoodRow(line, one)
    for line in bad:
        yield BadRow(line, "no fact", "{raw")
    return num_lines or len(facts)


@pytest.fixture
def staging(tmp_path):
    return Staging.begin(str(tmp_path), "key", Buckets(num_shards=4, num_parts=3), dump_time=NOW, now=NOW)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(staging_module, "_PART_ROWS", 7)
    monkeypatch.setattr(staging_module, "_CHUNK_ROWS", 20)


@pytest.mark.usefixtures("small_chunks")
def test_every_row_is_in_the_bucket_of_its_id_and_in_no_other(staging):
    facts = [fact(number % 60) for number in range(100)]
    groups = row_groups_by_bucket([staging.stage(SPLIT, rows_of(facts))])
    for bucket, of_bucket in groups.items():
        events, ids = read_bucket(staging, of_bucket)
        assert sum(group.num_rows for group in of_bucket) == len(events)
        for fact_id in ids["default"].to_pylist():
            identity = identity_hash("default", fact_id)
            assert staging.buckets.bucket_of(fact(int(fact_id[3:])), identity) == bucket
            assert staging.buckets.shard(bucket) == shard_of(fact_id, 4)
    assert sum(group.num_rows for groups_ in groups.values() for group in groups_) == 100


@pytest.mark.usefixtures("small_chunks")
def test_a_split_that_was_staged_is_not_read_again(staging, tmp_path):
    first = staging.stage(SPLIT, rows_of([fact(number) for number in range(30)], bad=[31], num_lines=31))

    def never():
        pytest.fail("the split was read again")
        yield

    later = datetime(2026, 7, 1, tzinfo=UTC)
    again = Staging.begin(str(tmp_path), "key", Buckets(num_shards=4, num_parts=99), dump_time=NOW, now=later)
    assert again == staging  # as it was begun, its time too
    assert again.stage(SPLIT, never()) == first


def test_bad_rows_are_told_by_the_line_of_their_file(staging):
    splits = [
        staging.stage(dataclasses.replace(SPLIT, part=1), rows_of([fact(1)], bad=[2, 5], num_lines=9)),
        staging.stage(SPLIT, rows_of([fact(2)], bad=[3], num_lines=4)),
        staging.stage(dataclasses.replace(SPLIT, file=1, uri="other.jsonl"), rows_of([fact(3)], bad=[7], num_lines=7)),
    ]
    found = list(bad_lines(staging, splits, ["dump.jsonl", "other.jsonl"]))
    assert [(row.file, row.line) for row in found] == [
        ("dump.jsonl", 3),
        ("dump.jsonl", 6),
        ("dump.jsonl", 9),
        ("other.jsonl", 7),
    ]


@pytest.mark.usefixtures("small_chunks")
def test_units_hold_every_written_row_once_and_make_events(staging, tmp_path, identity):
    facts = [fact(number % 80, target=f"town {number}") for number in range(100)]
    groups = row_groups_by_bucket([staging.stage(SPLIT, rows_of(facts))])
    table = FactTable.create_or_open(str(tmp_path / "table"), identity)
    statements = []
    for bucket, of_bucket in groups.items():
        dump, ids = read_bucket(staging, of_bucket)
        resolution = resolve(dump, read_events(table, staging.buckets.shard(bucket), ids), now_us=0)
        units = cut_units(bucket, dump, resolution, rows_per_unit=5)
        assert all(unit.num_encoded <= 6 for unit in units)
        assert len({unit.digest for unit in units}) == len(units)
        for unit in units:
            rows = read_unit(staging, of_bucket, unit)
            assert len(rows) == unit.num_rows
            assert rows.column("encode").to_pylist() == [True] * unit.num_encoded
            statements += rows.column("statement").to_pylist()
            vectors = rows.append_column("key", rows.column("identity"))
            vectors = vectors.append_column("prompt_embeddings", rows.column("identity"))
            events = to_events(vectors, ingested_at=NOW, num_shards=4).select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
            assert set(events.column("shard").to_pylist()) == {staging.buckets.shard(bucket)}
    assert sorted(statements) == sorted(one.statement for one in facts)  # of one time and different: all are kept


@given(written=st.lists(st.booleans(), min_size=1, max_size=60), size=st.integers(1, 20), data=st.data())
def test_units_cut_what_is_written_into_pieces_in_order(written, size, data):
    from event_arrays import make_events

    encoded = [one and data.draw(st.booleans()) for one in written]
    dump = make_events({"identity": 0, "updated": 0, "ingested": 0, "content": row} for row in range(len(written)))
    resolution = Resolution(
        written_N=np.array(written), encoded_N=np.array(encoded), outcome_N=np.zeros(len(written), np.uint8)
    )
    units = cut_units(0, dump, resolution, rows_per_unit=size)
    found = []
    for unit in units:
        bits = np.unpackbits(np.frombuffer(unit.written, np.uint8), count=unit.stop - unit.start)
        found += (np.flatnonzero(bits) + unit.start).tolist()
        assert unit.num_encoded <= size + 1
    assert found == np.flatnonzero(written).tolist()
    again = cut_units(0, dump, resolution, rows_per_unit=size)
    assert [unit.digest for unit in again] == [unit.digest for unit in units]


def test_a_staged_file_that_is_gone_is_said(staging):
    groups = row_groups_by_bucket([staging.stage(SPLIT, rows_of([fact(1)]))])
    staging.remove()
    with pytest.raises(OutputError, match=r"0-0-0\.parquet: a staged file is gone or damaged"):
        read_bucket(staging, next(iter(groups.values())))
