import dataclasses
import hashlib
import json
import random
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe_ray.errors import ConfigError, OutputError, TableError
from recipe_ray.facts import Fact
from recipe_ray.store.delta import CommitConflictError
from recipe_ray.store.files import list_below
from recipe_ray.store.parquet import check_file, write_events
from recipe_ray.store.schema import EVENT_SCHEMA, cells_to_vectors, shard_of, vectors_to_cells
from recipe_ray.store.snapshot import read_events, read_partition, read_snapshot
from recipe_ray.store.table import FactTable

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclasses.dataclass(frozen=True)
class Event:
    """An event in short: minutes after EPOCH, and `text` as both statement and source of the vectors."""

    fact_id: str
    text: str = ""
    updated: int = 0
    ingested: int = 0
    op: str = "upsert"
    namespace: str = "default"
    expires: int | None = None
    encoded: bool = True  # whether an upsert brings its vectors

    @property
    def content_hash(self):
        return Fact(fact_id=self.fact_id, statement=self.text, namespace=self.namespace, op=self.op).content_hash()

    @property
    def key(self):
        return np.full(4, sum(self.text.encode()) % 97, np.float16)

    @property
    def prompt_embeddings(self):
        return np.arange(15, dtype=np.float16) + self.key[0]

    def row(self, num_shards):
        encoded = self.encoded and self.op == "upsert"
        return {
            "namespace": self.namespace,
            "shard": shard_of(self.fact_id, num_shards),
            "fact_id": self.fact_id,
            "op": self.op,
            "statement": self.text,
            "prompt": "",
            "target": "",
            "subject": "",
            "source": "",
            "updated_at": EPOCH + timedelta(minutes=self.updated),
            "expires_at": None if self.expires is None else EPOCH + timedelta(minutes=self.expires),
            "ingested_at": EPOCH + timedelta(minutes=self.ingested),
            "content_hash": self.content_hash,
            "statement_hash": hashlib.blake2b(self.text.encode(), digest_size=16).digest(),
            "encoded": encoded,
            "key": self.key.tobytes() if encoded else None,
            "prompt_embeddings": self.prompt_embeddings.tobytes() if encoded else None,
        }


def statements(snapshot):
    return dict(zip(snapshot.facts["fact_id"].to_pylist(), snapshot.facts["statement"].to_pylist(), strict=True))


def test_snapshot_gives_facts_with_their_vectors(tmp_path, append, identity):
    events = [Event(str(number), f"text {number}") for number in range(40)]
    version = append(tmp_path, *events)
    snapshot = read_snapshot(str(tmp_path))
    assert snapshot.version == version == 1
    assert snapshot.identity.fingerprint == identity.fingerprint
    np.testing.assert_array_equal(snapshot.identity.sentinel_K, identity.sentinel_K)
    assert snapshot.keys_FK.dtype == snapshot.prompts_FPD.dtype == np.float16
    assert snapshot.prompts_FPD.shape == (40, 3, 5)
    by_id = {event.fact_id: event for event in events}
    assert sorted(snapshot.facts["fact_id"].to_pylist()) == sorted(by_id)
    for row, fact_id in enumerate(snapshot.facts["fact_id"].to_pylist()):
        np.testing.assert_array_equal(snapshot.keys_FK[row], by_id[fact_id].key)
        np.testing.assert_array_equal(snapshot.prompts_FPD[row].ravel(), by_id[fact_id].prompt_embeddings)


def test_a_new_table_has_no_facts(tmp_path, identity):
    FactTable.create_or_open(str(tmp_path / "new"), identity)
    snapshot = read_snapshot(str(tmp_path / "new"))
    assert (snapshot.version, len(snapshot.facts), snapshot.keys_FK.shape) == (0, 0, (0, 4))
    assert snapshot.prompts_FPD.shape == (0, 3, 5)


def test_a_delete_removes_and_a_later_upsert_brings_back(tmp_path, append):
    append(tmp_path, Event("a", "old", updated=1), Event("b", "kept", updated=1))
    append(tmp_path, Event("a", op="delete", updated=2))
    assert statements(read_snapshot(str(tmp_path))) == {"b": "kept"}
    append(tmp_path, Event("a", "again", updated=3))
    assert statements(read_snapshot(str(tmp_path))) == {"a": "again", "b": "kept"}
    assert statements(read_snapshot(str(tmp_path), version=1)) == {"a": "old", "b": "kept"}


def test_the_same_id_in_two_namespaces_is_two_facts(tmp_path, append):
    append(tmp_path, Event("a", "one"), Event("a", "two", namespace="weiß / 100%"))
    facts = read_snapshot(str(tmp_path)).facts
    assert dict(zip(facts["namespace"].to_pylist(), facts["statement"].to_pylist(), strict=True)) == {
        "default": "one",
        "weiß / 100%": "two",
    }


def expected_by_the_rule(events):
    """The rule written out: the last by updated_at, first ingestion, content hash; deletes drop out."""
    since = {}
    for event in events:
        said = (event.fact_id, event.updated, event.content_hash)
        since[said] = min(event.ingested, since.get(said, event.ingested))
    last = {}
    for event in events:
        rank = (event.updated, since[event.fact_id, event.updated, event.content_hash], event.content_hash)
        if event.fact_id not in last or rank > last[event.fact_id][0]:
            last[event.fact_id] = (rank, event)
    return {fact_id: event.text for fact_id, (_, event) in last.items() if event.op == "upsert"}


events_strategy = st.lists(
    st.builds(
        lambda fact_id, text, updated, ingested, delete: Event(
            fact_id, "" if delete else text, updated, ingested, "delete" if delete else "upsert"
        ),
        st.sampled_from("abcde"),
        st.sampled_from(["x", "y", "z", "w"]),
        st.integers(-2, 2),
        st.integers(0, 2),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


# Few examples, since each commits; the rule itself is tested at length in test_order.py.
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events_strategy, seed=st.randoms(use_true_random=False))
def test_the_last_event_wins_whatever_the_order_of_the_commits(tmp_path_factory, append, events, seed):
    uri = tmp_path_factory.mktemp("table")
    shuffled = list(events)
    seed.shuffle(shuffled)
    cut = seed.randint(0, len(shuffled))
    for commit in (shuffled[:cut], shuffled[cut:]):
        if commit:
            append(uri, *commit)
    assert statements(read_snapshot(str(uri))) == expected_by_the_rule(events)


def test_snapshot_is_the_same_whatever_the_order_of_the_commits(tmp_path, append):
    events = [Event(str(number), f"text {number % 7}", updated=number % 3) for number in range(30)]
    events += [dataclasses.replace(event, text="newer", updated=5) for event in events[::4]]
    append(tmp_path / "one", *events)
    random.Random(0).shuffle(events)
    append(tmp_path / "two", *events[:10])
    append(tmp_path / "two", *events[10:])
    one, two = read_snapshot(str(tmp_path / "one")), read_snapshot(str(tmp_path / "two"))
    assert one.facts.equals(two.facts)
    np.testing.assert_array_equal(one.keys_FK, two.keys_FK)
    np.testing.assert_array_equal(one.prompts_FPD, two.prompts_FPD)


def test_a_fact_said_again_keeps_the_vectors_of_the_first_time(tmp_path, append):
    append(tmp_path, Event("a", "x"), Event("b", "y"))
    append(tmp_path, Event("a", "x", updated=5, encoded=False))
    append(tmp_path, Event("a", "z", updated=3))
    snapshot = read_snapshot(str(tmp_path))
    assert statements(snapshot) == {"a": "x", "b": "y"}
    for row, text in enumerate(snapshot.facts["statement"].to_pylist()):
        np.testing.assert_array_equal(snapshot.keys_FK[row], Event("", text).key)
        np.testing.assert_array_equal(snapshot.prompts_FPD[row].ravel(), Event("", text).prompt_embeddings)
    assert snapshot.facts["updated_at"].to_pylist()[snapshot.facts["fact_id"].to_pylist().index("a")] == (
        EPOCH + timedelta(minutes=5)
    )


def test_a_fact_without_vectors_is_said(tmp_path, append):
    append(tmp_path, Event("a", "x", encoded=False))
    with pytest.raises(TableError, match=r"1 facts of namespace 'default', shard \d have no vectors"):
        read_snapshot(str(tmp_path))


def test_a_fact_is_there_until_it_expires(tmp_path, append):
    append(tmp_path, Event("a", "x", expires=10), Event("b", "y"))
    uri = str(tmp_path)
    assert statements(read_snapshot(uri, at=EPOCH + timedelta(minutes=9))) == {"a": "x", "b": "y"}
    assert statements(read_snapshot(uri, at=EPOCH + timedelta(minutes=10))) == {"b": "y"}
    append(tmp_path, Event("a", "older", updated=-1))  # what an expired fact had replaced does not come back
    assert statements(read_snapshot(uri)) == {"b": "y"}


def test_partitions_are_the_snapshot_cut_in_pieces(tmp_path, append):
    append(tmp_path, *[Event(str(number), f"text {number}") for number in range(20)], Event("0", "x", namespace="news"))
    append(tmp_path, *[Event(str(number), op="delete", updated=1) for number in range(0, 20, 3)])
    whole, table = read_snapshot(str(tmp_path)), FactTable.open(str(tmp_path))
    parts = [read_partition(table, partition) for partition in table.partitions()]
    assert pa.concat_tables(part.facts for part in parts).equals(whole.facts)
    np.testing.assert_array_equal(np.concatenate([part.keys_FK for part in parts]), whole.keys_FK)
    np.testing.assert_array_equal(np.concatenate([part.prompts_FPD for part in parts]), whole.prompts_FPD)


def test_events_of_some_ids_are_read_and_no_others(tmp_path, append):
    append(tmp_path, Event("a", "x", updated=1), Event("b", "y"), Event("a", "x", namespace="news"))
    append(tmp_path, Event("a", op="delete", updated=2))
    table = FactTable.open(str(tmp_path))
    shard = shard_of("a", table.num_shards)
    events = read_events(table, shard, {"default": pa.array(["a", "never there"])})
    assert sorted(zip(events.updated_us_N - events.ingested_us_N, events.is_delete_N.tolist(), strict=True)) == [
        (60_000_000, False),
        (120_000_000, True),
    ]
    assert len(np.unique(events.identity_N2, axis=0)) == 1
    assert len(read_events(table, (shard + 1) % table.num_shards, {"default": pa.array(["a"])})) == 0


def test_another_editor_is_refused_with_both_fingerprints(tmp_path, append, identity):
    append(tmp_path, Event("a", "x"))
    other = dataclasses.replace(identity, fingerprint="beef")
    with pytest.raises(TableError, match=r"f00d.*beef.*use the editor of the table, or ingest into a new table"):
        FactTable.create_or_open(str(tmp_path), other)


def test_a_commit_on_an_old_version_is_refused(tmp_path, append, identity):
    append(tmp_path, Event("a", "x"))
    behind = FactTable.open(str(tmp_path))
    append(tmp_path, Event("b", "y"))
    rows = pa.Table.from_pylist([Event("c", "z").row(4)], EVENT_SCHEMA)
    with pytest.raises(CommitConflictError, match="another writer committed first"):
        behind.commit(write_events(behind.uri, rows), dump_hash="other", counts={})
    assert statements(read_snapshot(str(tmp_path))) == {"a": "x", "b": "y"}


def test_written_files_count_only_once_committed(tmp_path, append, identity):
    append(tmp_path, Event("a", "x"))
    table = FactTable.open(str(tmp_path))
    write_events(table.uri, pa.Table.from_pylist([Event("b", "y").row(4)], EVENT_SCHEMA))
    assert statements(read_snapshot(str(tmp_path))) == {"a": "x"}


def test_no_text_of_a_fact_is_in_the_log(tmp_path, append):
    append(tmp_path, Event("person-17", "Ada Lund lives at 5 Harbour Street"))
    log = "".join(path.read_text() for path in sorted((tmp_path / "_delta_log").glob("*.json")))
    assert "Ada" not in log
    assert "person-17" not in log
    stats = [json.loads(json.loads(line)["add"]["stats"]) for line in log.splitlines() if '"add"' in line]
    assert stats == [{"numRecords": 1}]


def test_other_writers_of_the_table_keep_text_out_of_the_log_too(tmp_path, append):
    from deltalake import DeltaTable

    append(tmp_path, Event("a", "Ada Lund"), Event("a", "Ada Berg", updated=1))
    append(tmp_path, Event("a", "Ada Holm", updated=2))
    DeltaTable(str(tmp_path)).optimize.compact()
    log = "".join(path.read_text() for path in sorted((tmp_path / "_delta_log").glob("*.json")))
    assert "Ada" not in log
    assert statements(read_snapshot(str(tmp_path))) == {"a": "Ada Holm"}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_no_table_is_said(tmp_path, make):
    make(tmp_path / "facts")
    with pytest.raises(TableError, match=r"facts: there is no table; run ingest first"):
        read_snapshot(str(tmp_path / "facts"))


def test_a_missing_version_is_said(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    with pytest.raises(TableError, match="at version 9"):
        read_snapshot(str(tmp_path), version=9)
    with pytest.raises(TableError, match="version -1 cannot be"):
        read_snapshot(str(tmp_path), version=-1)


def test_a_foreign_delta_table_is_refused(tmp_path):
    from deltalake import write_deltalake

    write_deltalake(str(tmp_path), pa.table({"x": [1]}))
    with pytest.raises(TableError, match="not a table of facts"):
        read_snapshot(str(tmp_path))


def flip_a_bit_of(path, needle):
    content = bytearray(path.read_bytes())
    content[content.index(needle)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove", "flip"])
def test_a_damaged_data_file_is_named(tmp_path, append, damage):
    event = Event("a", "x")
    append(tmp_path, event)
    (path,) = tmp_path.rglob("part-*.parquet")
    check_file(str(tmp_path), path.relative_to(tmp_path).as_posix())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        flip_a_bit_of(path, event.prompt_embeddings.tobytes())
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-20])
    with pytest.raises(TableError, match=path.name):
        read_snapshot(str(tmp_path))
    with pytest.raises(TableError, match=path.name):
        check_file(str(tmp_path), path.relative_to(tmp_path).as_posix())


def test_a_damaged_log_is_said(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    (tmp_path / "_delta_log" / f"{1:020}.json").write_text("{half")
    with pytest.raises(TableError, match=tmp_path.name):
        read_snapshot(str(tmp_path))


def test_a_key_of_the_wrong_width_is_refused(tmp_path, append, identity):
    table = FactTable.create_or_open(str(tmp_path), identity)
    row = {**Event("a", "x").row(table.num_shards), "key": b"\0\0"}
    files = write_events(table.uri, pa.Table.from_pylist([row], EVENT_SCHEMA))
    table.commit(files, dump_hash="h", counts={})
    with pytest.raises(TableError, match=r"part-.*column 'key'.*4 entries of float16"):
        read_snapshot(str(tmp_path))


def test_a_place_that_cannot_be_written_is_said(tmp_path, identity):
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, TableError), match="file/table"):
        FactTable.create_or_open(str(tmp_path / "file" / "table"), identity)


@given(vectors=st.lists(st.lists(st.floats(-1000, 1000, width=16), min_size=3, max_size=3), max_size=5))
def test_vectors_survive_their_cells(vectors):
    array = np.array(vectors, np.float16).reshape(-1, 3)
    cells = vectors_to_cells(array, np.dtype("<f2"))
    np.testing.assert_array_equal(cells_to_vectors(cells, 3, np.dtype("<f2")), array)
    np.testing.assert_array_equal(cells_to_vectors(cells[1:], 3, np.dtype("<f2")), array[1:])


def test_a_vector_beyond_the_dtype_is_refused():
    with pytest.raises(TableError, match="not finite in float16"):
        vectors_to_cells(np.array([[70000.0]], np.float32), np.dtype("<f2"))


def test_the_shard_of_an_id_never_changes():
    # Literal values: another hash would put new events of an old fact into another partition.
    assert [shard_of(fact_id, 1000) for fact_id in ("a", "b", "Zürich")] == [928, 668, 368]


def test_a_table_lies_on_s3_as_on_a_disk(s3, append):
    uri = f"{s3}/knowledge/facts"
    with pytest.raises(TableError, match="there is no table"):
        read_snapshot(uri)
    assert append(uri, Event("a", "x"), Event("b", "y")) == 1
    assert append(uri, Event("a", op="delete", updated=1)) == 2
    assert statements(read_snapshot(uri)) == {"b": "y"}
    assert statements(read_snapshot(uri, version=1)) == {"a": "x", "b": "y"}


def test_a_bucket_that_is_not_there_is_said(s3, identity):
    with pytest.raises((TableError, OutputError), match="s3://no-such-bucket/facts"):
        FactTable.create_or_open("s3://no-such-bucket/facts", identity)


@pytest.mark.parametrize("name", ["a b", "a+b", "%", "a%b", "ünï", "a=b", "[*]", "😀"])
def test_a_table_lies_where_it_is_told_to(s3, tmp_path, append, name):
    for place in (tmp_path, s3):
        uri = f"{place}/{name}/t"
        append(uri, Event("a", "x"))
        assert statements(read_snapshot(uri)) == {"a": "x"}
        assert all(found.startswith(f"{uri}/") for found in list_below(str(place)))
    append(f"{tmp_path}/h#x?y", Event("a", "x"))
    assert statements(read_snapshot(f"{tmp_path}/h#x?y")) == {"a": "x"}


@pytest.mark.parametrize("name", ["a%20b", "a%2Fb", "h#x", "q?x", "back\\slash", "tab\t"])
def test_no_table_lies_where_its_log_would_lie_elsewhere(s3, tmp_path, append, name):
    place = tmp_path if name == "back\\slash" else s3
    for look in (lambda uri: append(uri, Event("a", "x")), FactTable.open):
        with pytest.raises(ConfigError, match=rf"{re.escape(name)}: no table can lie there.*give a place without it"):
            look(f"{place}/{name}")
    assert list_below(str(place)) == []
