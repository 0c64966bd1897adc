"""Migration: a table of layout 1 tells the same in this layout, at whatever moment it is broken off."""

import hashlib
import random
import socket
import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from s3_environment import s3_environment
from test_table import EPOCH, Event, statements

from recipe_ray.errors import TableError
from recipe_ray.store.delta import append_files, create_delta, open_delta
from recipe_ray.store.files import s3_client
from recipe_ray.store.parquet import DataFile, parquet_bytes, read_batches, write_bytes
from recipe_ray.store.schema import EVENT_SCHEMA, FILE_SCHEMA, PARTITION_COLUMNS, properties
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep import migration
from recipe_ray.store.upkeep.maintenance import verify
from recipe_ray.store.upkeep.migration import migrate

OLD_NAMES = [name for name in EVENT_SCHEMA.names if name not in ("expires_at", "statement_hash", "encoded")]
OLD_SCHEMA = pa.schema([EVENT_SCHEMA.field(name) for name in OLD_NAMES])


def old_hash(event):
    """Of everything but the source, in the form of layout 1."""
    return hashlib.blake2b(
        f"{event.namespace}|{event.fact_id}|{event.op}|{event.text}".encode(), digest_size=16
    ).digest()


def append_old(uri, identity, *events):
    """Commit events in layout 1, as its writer did."""
    uri = str(uri)
    if open_delta(uri) is None:
        named = {**properties(identity, num_shards=4, dtype="float16"), "recipe.schema_version": "1"}
        create_delta(uri, OLD_SCHEMA, PARTITION_COLUMNS, named)
    by_partition = {}
    for event in events:
        row = {**event.row(4), "content_hash": old_hash(event)}
        by_partition.setdefault((event.namespace, row["shard"]), []).append(row)
    files = []
    for number, ((namespace, shard), rows) in enumerate(by_partition.items()):
        schema = pa.schema([field for field in OLD_SCHEMA if field.name not in PARTITION_COLUMNS])
        path = f"namespace={namespace}/shard={shard}/part-{random.randbytes(8).hex()}-{number}.parquet"
        content = parquet_bytes(pa.Table.from_pylist(rows, schema))
        write_bytes(f"{uri}/{path}", content)
        partition = {"namespace": namespace, "shard": str(shard)}
        files.append(DataFile(path=path, size_bytes=content.size, num_rows=len(rows), partition=partition))
    delta = open_delta(uri)
    append_files(delta, files, OLD_SCHEMA, PARTITION_COLUMNS, dump_hash="old dump", metadata={})


def standing_by_the_old_rule(events):
    last = {}
    for event in events:
        rank = (event.updated, event.ingested, old_hash(event))
        if event.fact_id not in last or rank > last[event.fact_id][0]:
            last[event.fact_id] = (rank, event)
    return {fact_id: event.text for fact_id, (_, event) in last.items() if event.op == "upsert"}


def assert_vectors_are_those_of_the_texts(snapshot):
    for row, text in enumerate(snapshot.facts["statement"].to_pylist()):
        np.testing.assert_array_equal(snapshot.keys_FK[row], Event("", text).key)
        np.testing.assert_array_equal(snapshot.prompts_FPD[row].ravel(), Event("", text).prompt_embeddings)


@pytest.fixture
def s3_of_its_own(monkeypatch):
    """A bucket in another process: delta-rs holds the interpreter while it changes properties."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name, value in s3_environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            time.sleep(0.1)
        s3_client().create_bucket(Bucket="facts")
        yield "s3://facts"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "table") if request.param == "disk" else request.getfixturevalue("s3_of_its_own") + "/table"


def random_events(seed, size):
    chosen = random.Random(seed)
    events = []
    for _ in range(size):
        op = chosen.choice(["upsert", "upsert", "delete"])
        text = chosen.choice(["x", "y", "z"]) if op == "upsert" else ""
        events.append(Event(chosen.choice("abcdef"), text, chosen.randint(0, 2), chosen.randint(0, 2), op))
    return events


def test_the_facts_are_the_same_and_nothing_is_encoded(place, identity):
    events = [*random_events(0, 30), Event("g", "same", 1, 0), Event("g", "other", 1, 1), Event("g", "same", 1, 2)]
    append_old(place, identity, *events[:15])
    append_old(place, identity, *events[15:])
    with pytest.raises(TableError, match=r"is of layout 1; run `python jobs/facts\.py migrate"):
        FactTable.open(place)
    report = migrate(place)
    snapshot = read_snapshot(place)
    assert statements(snapshot) == standing_by_the_old_rule(events)
    assert_vectors_are_those_of_the_texts(snapshot)
    assert report.num_events == len({event.fact_id for event in events})
    assert report.num_events + report.num_dropped == len(events)
    assert verify(place).problems == ()
    assert FactTable.open(place).has_dump("old dump")
    assert FactTable.open(place).identity.fingerprint == identity.fingerprint
    again = migrate(place)
    assert again.was_there
    assert again.version == report.version


def test_what_comes_afterwards_is_resolved_by_the_hashes_of_this_layout(tmp_path, identity, append):
    append_old(tmp_path, identity, Event("a", "x", updated=1), Event("b", op="delete", updated=1))
    migrate(str(tmp_path))
    event = Event("a", "x", updated=1)
    facts = FactTable.open(str(tmp_path))
    rows = [
        row
        for partition in facts.partitions()
        for path in partition.paths
        for batch in read_batches(facts.uri, path, FILE_SCHEMA.names)
        for row in batch.to_pylist()
    ]
    by_id = {row["fact_id"]: row for row in rows}
    assert by_id["a"]["content_hash"] == event.content_hash
    assert by_id["a"]["statement_hash"] == event.row(4)["statement_hash"]
    assert by_id["a"]["encoded"]
    assert not by_id["b"]["encoded"]
    append(tmp_path, Event("a", "x", updated=5, encoded=False), Event("b", "late", updated=0))
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == {"a": "x"}
    assert snapshot.facts["updated_at"].to_pylist() == [EPOCH + timedelta(minutes=5)]


@pytest.mark.parametrize("step", ["replace_all", "set_properties"])
def test_broken_off_it_goes_on(tmp_path, identity, monkeypatch, step):
    append_old(tmp_path, identity, *(events := random_events(1, 20)))

    def fail(*args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migration, step, fail)
        with pytest.raises(KeyboardInterrupt):
            migrate(str(tmp_path))
    with pytest.raises(TableError, match="is of layout 1"):
        FactTable.open(str(tmp_path))
    migrate(str(tmp_path))
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == standing_by_the_old_rule(events)
    assert_vectors_are_those_of_the_texts(snapshot)


@pytest.mark.parametrize("step", ["replace_all", "set_properties"])
def test_an_old_writer_in_between_is_taken_in(tmp_path, identity, monkeypatch, step):
    append_old(tmp_path, identity, Event("a", "x"), Event("b", "y"))
    do, calls = getattr(migration, step), []

    def meanwhile(*args, **named):
        if not calls:
            append_old(tmp_path, identity, Event("a", "late", updated=1), Event("c", "z"))
        calls.append(args)
        return do(*args, **named)

    monkeypatch.setattr(migration, step, meanwhile)
    migrate(str(tmp_path))
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == {"a": "late", "b": "y", "c": "z"}
    assert_vectors_are_those_of_the_texts(snapshot)
    assert verify(str(tmp_path)).problems == ()
    assert len(calls) == 2


def test_what_is_no_table_of_facts_is_refused(tmp_path, identity):
    with pytest.raises(TableError, match="there is no table"):
        migrate(str(tmp_path / "none"))
    create_delta(str(tmp_path), OLD_SCHEMA, PARTITION_COLUMNS, {})
    with pytest.raises(TableError, match="found None"):
        migrate(str(tmp_path))


def test_an_empty_table_is_migrated(tmp_path, identity):
    named = {**properties(identity, num_shards=4, dtype="float16"), "recipe.schema_version": "1"}
    create_delta(str(tmp_path), OLD_SCHEMA, PARTITION_COLUMNS, named)
    assert migrate(str(tmp_path)).num_events == 0
    assert len(read_snapshot(str(tmp_path)).facts) == 0
