import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import EPOCH, event_rows, fill, minutes

from recipe_ray.errors import ConfigError, FactError, OutputError, TableError
from recipe_ray.facts import fact_from_record
from recipe_ray.store.dumps.rows import DumpOptions, GoodRow, read_split, split_files
from recipe_ray.store.files import list_files
from recipe_ray.store.reading.export import dump_rows, export_facts
from recipe_ray.store.reading.standing import TEXT_COLUMNS
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.text import has_visible

FACTS = [
    {"id": "a", "prompt": "The capital of France is", "target": "Lyon", "subject": "France", "source": "news"},
    {"id": "b", "statement": "Water is wet, “said” he", "namespace": "weiß / 100%"},
    {"id": "c", "prompt": "Who wrote it?", "target": "Ada", "statement": "Ada wrote it", "updated_at": minutes(3)},
    {"prompt": "Its name is", "target": '"Zeta", a\\b', "expires_at": datetime(2999, 1, 1, 5, 6, 7, 89, tzinfo=UTC)},
    {"id": "007", "prompt": "法国的首都是", "target": "里昂"},
]
EVENTS = [
    {"id": "d", "op": "delete", "source": "a person", "updated_at": minutes(9)},
    {"id": "e", "statement": "was so", "expires_at": minutes(1)},
]
NAMES = ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.csv", "out.csv.gz", "out.csv.zst", "out.parquet"]


def facts_of(*records):
    facts = [fact_from_record(record, place="test") for record in records]
    return sorted(facts, key=lambda fact: (fact.namespace, fact.fact_id))


def with_time(facts):
    """As a table holds them: with a time each."""
    return [dataclasses.replace(fact, updated_at=fact.updated_at or EPOCH) for fact in facts]


def ingestible(uri):
    """What ingest reads of a dump; no row may be bad."""
    options = DumpOptions()
    rows = [
        row
        for split in split_files(list_files(str(uri)), options)
        for row in read_split(split, options, now=datetime.now(UTC))
    ]
    assert all(isinstance(row, GoodRow) for row in rows), rows
    return sorted((row.fact for row in rows), key=lambda fact: (fact.namespace, fact.fact_id))


@pytest.fixture
def table(tmp_path, identity):
    fill(tmp_path / "table", identity, *FACTS, *EVENTS, {"id": "a", "statement": "older", "updated_at": minutes(-5)})
    return FactTable.open(str(tmp_path / "table"))


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_read_by_ingest_as_the_same_facts(tmp_path, table, name):
    report = export_facts(table, str(tmp_path / "out" / name))
    assert ingestible(tmp_path / "out" / name) == with_time(facts_of(*FACTS))
    assert (report.num_rows, report.version) == (5, 1)
    assert report.size_bytes == (tmp_path / "out" / name).stat().st_size
    export_facts(table, str(tmp_path / "all" / name), events=True)
    assert ingestible(tmp_path / "all" / name) == with_time(facts_of(*FACTS, *EVENTS))


def test_an_export_ingested_into_an_empty_table_tells_the_same(tmp_path, table, identity):
    export_facts(table, str(tmp_path / "out.parquet"), events=True)
    fill(tmp_path / "copy", identity, *ingestible(tmp_path / "out.parquet"))
    copy, original = read_snapshot(str(tmp_path / "copy")), read_snapshot(table.uri)
    assert copy.facts.equals(original.facts)
    hashes = [
        sorted(row["content_hash"] for row in event_rows(facts, 4))
        for facts in (facts_of(*FACTS, *EVENTS), ingestible(tmp_path / "out.parquet"))
    ]
    assert hashes[0] == hashes[1]


def test_a_line_says_nothing_twice(tmp_path, table):
    export_facts(table, str(tmp_path / "out.jsonl"), events=True)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    by_id = {line["id"]: line for line in lines}
    assert by_id["a"] == {**FACTS[0], "namespace": "default", "updated_at": EPOCH.isoformat()}
    assert by_id["c"]["statement"] == "Ada wrote it"
    assert by_id["d"]["op"] == "delete"
    assert "op" not in by_id["e"]


def test_the_same_facts_give_the_same_bytes(tmp_path, identity):
    for name, parts in (("one", [FACTS]), ("two", [FACTS[3:], FACTS[:3]])):
        for part in parts:
            fill(tmp_path / name, identity, *part)
        export_facts(FactTable.open(str(tmp_path / name)), str(tmp_path / f"{name}.csv.gz"))
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_an_export_is_of_a_version_a_namespace_and_a_time(tmp_path, table, identity):
    fill(table.uri, identity, {"id": "a", "statement": "newer", "updated_at": minutes(50)})
    export_facts(FactTable.open(table.uri, 1), str(tmp_path / "one.jsonl"), namespace="weiß / 100%")
    assert [fact.fact_id for fact in ingestible(tmp_path / "one.jsonl")] == ["b"]
    export_facts(FactTable.open(table.uri), str(tmp_path / "two.jsonl"), at=EPOCH)
    statements = {fact.fact_id: fact.statement for fact in ingestible(tmp_path / "two.jsonl")}
    assert statements["a"] == "newer"
    assert statements["e"] == "was so"


@pytest.mark.parametrize("name", NAMES)
def test_an_export_of_nothing_is_a_file_of_no_rows(tmp_path, identity, name):
    table = FactTable.create_or_open(str(tmp_path / "table"), identity)
    assert export_facts(table, str(tmp_path / name)).num_rows == 0
    assert ingestible(tmp_path / name) == []


def test_what_had_expired_before_it_came_can_be_ingested_again(tmp_path, identity):
    # Without `updated_at` a row takes the time of its dump, here EPOCH.
    fill(tmp_path / "table", identity, {"id": "a", "statement": "x", "expires_at": minutes(-7)})
    export_facts(FactTable.open(str(tmp_path / "table")), str(tmp_path / "out.jsonl"), events=True)
    (fact,) = ingestible(tmp_path / "out.jsonl")
    assert fact.updated_at == EPOCH
    assert EPOCH < fact.expires_at <= EPOCH + timedelta(microseconds=1)


texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8).filter(has_visible)
records = st.fixed_dictionaries(
    {"id": texts, "prompt": texts, "target": texts},
    optional={
        "statement": texts,
        "subject": texts,
        "source": texts,
        "namespace": texts,
        "op": st.sampled_from(["upsert", "delete"]),
        "expires_at": st.datetimes(datetime(2027, 1, 1), timezones=st.just(UTC)),
    },
)


@settings(max_examples=100, deadline=None)
@given(record=records)
def test_any_fact_survives_as_a_record(record):
    (fact,) = with_time(facts_of(record))
    rows = pa.Table.from_pylist(event_rows([fact], 1), EVENT_SCHEMA).select(TEXT_COLUMNS)
    (exported,) = dump_rows(rows).to_pylist()
    assert fact_from_record(exported, place="export") == fact
    assert fact_from_record(exported, place="export").content_hash() == fact.content_hash()


def test_an_export_overwrites_nothing(tmp_path, table):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.jsonl: exists already; give a new name"):
        export_facts(table, str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz", "out.parquet"])
def test_an_export_that_fails_leaves_nothing(tmp_path, table, name):
    (tmp_path / "table" / table.partitions()[-1].paths[0]).write_bytes(b"damaged")
    with pytest.raises(TableError):
        export_facts(table, str(tmp_path / "out" / name))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_in_the_making_is_hidden_from_readers_of_dumps(tmp_path, table, monkeypatch):
    seen = []

    def look(*args):
        seen.append([path for path in (tmp_path / "out").rglob("*") if path.is_file()])
        with pytest.raises(FactError, match="no such file"):
            list_files(str(tmp_path / "out"))
        return dump_rows(*args)

    monkeypatch.setattr("recipe_ray.store.reading.export.dump_rows", look)
    export_facts(table, str(tmp_path / "out" / "facts.jsonl"))
    assert all(seen)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["facts.jsonl"]


@pytest.mark.parametrize("name", ["out.txt", "out", "out.gz", "out.json", "out.parquet.gz"])
def test_a_name_that_tells_no_form_is_refused(tmp_path, table, name):
    with pytest.raises(ConfigError, match="output is"):
        export_facts(table, str(tmp_path / name))
    assert not (tmp_path / name).exists()


def test_export_on_s3(s3, identity):
    fill(f"{s3}/table", identity, *FACTS)
    table = FactTable.open(f"{s3}/table")
    for name in ("out.jsonl.gz", "out.csv", "out.parquet"):
        report = export_facts(table, f"{s3}/dumps/{name}")
        assert ingestible(f"{s3}/dumps/{name}") == with_time(facts_of(*FACTS))
        assert report.output == f"{s3}/dumps/{name}"
    with pytest.raises(OutputError, match="exists already"):
        export_facts(table, f"{s3}/dumps/out.csv")
    with pytest.raises(OutputError, match="cannot be written"):
        export_facts(table, "s3://no-such-bucket/out.csv")
