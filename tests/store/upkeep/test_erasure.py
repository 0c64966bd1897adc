"""Erasure: not a byte of it is left below the table; what else was there stays."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compaction import all_rows, assert_same_facts
from test_table import Event, statements

from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.files import write_text
from recipe_ray.store.parquet import write_events
from recipe_ray.store.pointer import write_pointer
from recipe_ray.store.quarantine import BadLine, quarantine, read_quarantine
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.stored import list_stored
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep import erasure
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.erasure import erase
from recipe_ray.store.upkeep.maintenance import verify
from recipe_ray.store.upkeep.traces import Traces, joined

SECRET = "Rudolf Rassendyll lives in Streatham"


@dataclasses.dataclass(frozen=True)
class Person(Event):
    subject: str = ""
    source: str = ""
    prompt: str = ""
    target: str = ""

    def row(self, num_shards):
        fields = ("subject", "source", "prompt", "target")
        return super().row(num_shards) | {name: getattr(self, name) for name in fields}


@pytest.fixture
def versioned(s3):
    """The bucket on loopback, with versioning."""
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket="facts", VersioningConfiguration={"Status": "Enabled"})
    yield s3
    for kind in ("Versions", "DeleteMarkers"):
        for found in client.list_object_versions(Bucket="facts").get(kind, []):
            client.delete_object(Bucket="facts", Key=found["Key"], VersionId=found["VersionId"])


@pytest.fixture(params=["disk", "versioned"])
def place(request, tmp_path):
    return str(tmp_path / "table") if request.param == "disk" else request.getfixturevalue("versioned") + "/table"


def contents(uri):
    """All bytes below a place, of older versions of objects too, and all texts in the pages of Parquet, by name."""
    found = {}
    if uri.startswith("s3://"):
        client = boto3.client("s3")
        prefix = uri.removeprefix("s3://facts/") + "/"
        for version in client.list_object_versions(Bucket="facts", Prefix=prefix).get("Versions", []):
            body = client.get_object(Bucket="facts", Key=version["Key"], VersionId=version["VersionId"])["Body"].read()
            found[version["Key"], version["VersionId"]] = body
    else:
        found = {path: path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}
    for name, content in list(found.items()):
        if content.startswith(b"PAR1"):
            rows = pq.read_table(pa.BufferReader(content), partitioning=None)
            texts = rows.select([name for name in rows.column_names if name not in ("key", "prompt_embeddings")])
            found[name] = content + repr(texts.to_pylist()).encode()
    return found


def holding(uri, *texts):
    return {name for name, content in contents(uri).items() for text in texts if text.encode() in content}


def make_full(uri, append):
    """A table with all that can lie beside it, and a person in every part of it."""
    append(uri, Person("rudolf", "Rudolf Rassendyll was away", updated=1), Event("b", "about others"))
    append(uri, Person("rudolf", SECRET, updated=2), Event("rudolf-2", "not he"), Event("c", "x", namespace="news"))
    append(uri, Event("b", "about others, now", updated=1), Event("rudolf", "a namesake", namespace="news"))
    compact(uri)
    bad = [
        BadLine(file="a.jsonl", line=1, reason="no", raw=json.dumps({"id": "rudolf", "prompt": ""})),
        BadLine(file="a.jsonl", line=2, reason="no", raw=json.dumps({"prompt": SECRET, "x": 1})),
        BadLine(file="a.jsonl", line=3, reason="no", raw=json.dumps({"id": "rudolf-2", "prompt": ""})),
    ]
    quarantine(uri, bad, dump_hash="dump", ingested_at=datetime(2026, 1, 1, tzinfo=UTC))
    write_text(f"{uri}/_staging/key/rows/0.parquet", SECRET)
    write_text(f"{uri}/_index/2-ab/0.arrow", SECRET)
    write_text(f"{uri}/_index/2-ab/manifest.json", "{}")
    write_text(f"{uri}/_reencode/1.parquet", SECRET)


def in_two_hours():
    return datetime.now(UTC) + timedelta(hours=2)


def test_not_a_byte_is_left(place, append):
    make_full(place, append)
    assert holding(place, SECRET, "Rassendyll")
    report = erase(place, ["rudolf"], namespace="default", now=in_two_hours())
    assert holding(place, SECRET, "Rassendyll was away", "Streatham") == set()
    assert (report.num_facts, report.num_events, report.num_quarantined) == (1, 1, 2)
    assert report.num_indexes == 1
    assert report.num_searched == len(list_stored(place))
    assert statements(read_snapshot(place))["b"] == "about others, now"
    assert {(row["fact_id"], row["statement"]) for row in all_rows(place)} == {
        ("b", "about others, now"),
        ("rudolf-2", "not he"),
        ("c", "x"),
        ("rudolf", "a namesake"),
    }
    assert read_quarantine(place)["line"].to_pylist() == [3]
    assert verify(place).problems == ()
    for version in range(report.version):
        with pytest.raises(TableError):
            FactTable.open(place, version)
    names = {str(name) for name in contents(place)}
    assert not [name for name in names if "_index" in name or "_staging" in name or "_reencode" in name]
    if place.startswith("s3"):
        assert report.num_object_versions > 0
        left = boto3.client("s3").list_object_versions(Bucket="facts", Prefix="table/")
        assert all(found["IsLatest"] for found in left["Versions"])
        assert not left.get("DeleteMarkers")
    assert append(place, Event("new", "goes on")) == report.version + 1
    assert statements(read_snapshot(place))["new"] == "goes on"


def test_a_person_is_found_by_subject_and_by_source_in_whatever_version(tmp_path, append):
    uri = str(tmp_path)
    append(uri, Person("one", "he is away", subject="Rudolf R."), Person("two", "he is here", source="letters"))
    append(uri, Person("one", "he is back", updated=1), Event("three", "of others"))
    compact(uri)  # the version that names the subject is not the last
    report = erase(uri, subject="Rudolf R.", now=in_two_hours())
    assert report.num_facts == 1
    assert holding(uri, "Rudolf R.", "he is away", "he is back") == set()
    erase(uri, source="letters", now=in_two_hours())
    assert holding(uri, "letters", "he is here") == set()
    assert statements(read_snapshot(uri)) == {"three": "of others"}


def test_without_a_tombstone_a_late_dump_brings_it_back_and_with_one_it_does_not(tmp_path, append):
    for name, keep in (("without", False), ("with", True)):
        uri = str(tmp_path / name)
        append(uri, Event("rudolf", SECRET), Event("b", "y"))
        erase(uri, ["rudolf"], keep_tombstone=keep, now=in_two_hours())
        assert holding(uri, SECRET) == set()
        assert bool(holding(uri, "rudolf")) == keep
        append(uri, Event("rudolf", "late", updated=5))
        assert ("rudolf" in statements(read_snapshot(uri))) == (not keep)


def test_a_dry_run_counts_and_changes_nothing(tmp_path, append):
    make_full(str(tmp_path), append)
    before = contents(str(tmp_path))
    report = erase(str(tmp_path), ["rudolf"], dry_run=True, now=in_two_hours())
    assert (report.num_facts, report.num_events, report.num_quarantined, report.num_files) == (2, 2, 2, 0)
    assert contents(str(tmp_path)) == before


def test_what_others_say_too_is_named_and_all_else_is_erased(tmp_path, append):
    uri = str(tmp_path)
    append(uri, Event("rudolf", SECRET), Event("other", SECRET), Event("b", "y"))
    with pytest.raises(TableError, match=r"part-.*still holds a text of the erased facts, in the facts 'other'"):
        erase(uri, ["rudolf"], now=in_two_hours())
    assert statements(read_snapshot(uri)) == {"other": SECRET, "b": "y"}
    erase(uri, ["other"], now=in_two_hours())
    assert holding(uri, SECRET) == set()


def test_a_file_that_nobody_knows_is_named(tmp_path, append):
    append(tmp_path, Event("rudolf", SECRET))
    (tmp_path / "notes.txt").write_text(json.dumps({"said": f"that {SECRET}, ä"}))
    with pytest.raises(TableError, match=r"notes\.txt: still holds the statement of 'rudolf'"):
        erase(str(tmp_path), ["rudolf"], now=in_two_hours())
    table = pa.table({"text": [f"that {SECRET}"], "nested": [[{"x": "y"}]]})
    (tmp_path / "notes.txt").unlink()
    append(tmp_path, Event("rudolf", SECRET))
    pq.write_table(table, tmp_path / "copy.bin", compression="zstd")
    with pytest.raises(TableError, match=r"copy\.bin: still holds"):
        erase(str(tmp_path), ["rudolf"], now=in_two_hours())


def test_prompt_and_target_are_searched_together(tmp_path, append):
    uri = str(tmp_path)
    append(uri, Person("rudolf", "He dwells there", prompt="Rudolf dwells in", target="Streatham"))
    append(uri, Person("other", "Otherwise said", prompt="Rudolf dwells in", target="Zenda"))
    erase(uri, ["rudolf"], now=in_two_hours())
    append(uri, Person("rudolf", "He dwells there", prompt="Rudolf dwells in", target="Streatham"))
    append(uri, Person("other", "Else", prompt="Rudolf dwells in", target="Streatham", updated=1))
    with pytest.raises(TableError, match="in the facts 'other'"):
        erase(uri, ["rudolf"], now=in_two_hours())


@pytest.mark.parametrize("kind", ["staging", "data"])
def test_beside_an_ingest_it_refuses_unless_forced(tmp_path, append, kind):
    uri = str(tmp_path)
    append(uri, Event("rudolf", SECRET), Event("b", "y"))
    if kind == "staging":
        write_text(f"{uri}/_staging/key/ingest.json", "{}")
    else:
        write_events(uri, pa.Table.from_pylist([Event("rudolf", SECRET).row(4)], EVENT_SCHEMA))
    with pytest.raises(TableError, match=r"an ingest may be running.*--force"):
        erase(uri, ["rudolf"])
    assert "rudolf" in statements(read_snapshot(uri))
    erase(uri, ["rudolf"], force=True)
    assert holding(uri, SECRET) == set()
    assert not (tmp_path / "_staging").exists()


def test_who_is_not_there_costs_nothing(tmp_path, append):
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", "y", updated=1))
    with pytest.raises(TableError, match="no version holds such a fact"):
        erase(str(tmp_path), ["nobody"])
    with pytest.raises(TableError, match="no version holds such a fact"):
        erase(str(tmp_path), ["a"], namespace="news")
    assert statements(read_snapshot(str(tmp_path), version=1)) == {"a": "x"}
    with pytest.raises(ConfigError, match="nothing to erase was named"):
        erase(str(tmp_path))


@pytest.mark.parametrize("step", ["_remove_rest", "purge_object_versions", "erase_quarantined"])
def test_broken_off_it_goes_on(tmp_path, append, monkeypatch, step):
    uri = str(tmp_path)
    make_full(uri, append)

    def fail(*args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasure, step, fail)
        with pytest.raises(KeyboardInterrupt):
            erase(uri, ["rudolf"], now=in_two_hours())
    erase(uri, ["rudolf"], now=in_two_hours())
    assert holding(uri, SECRET, "Streatham") == set()
    assert read_quarantine(uri)["line"].to_pylist() == [3]


def test_an_append_in_between_is_gone_through_too(tmp_path, append, monkeypatch):
    uri = str(tmp_path)
    append(uri, Event("rudolf", SECRET), Event("b", "y"))
    rewrite, calls = erasure._Rewriting._rewrite, []

    def meanwhile(self, file):
        if not calls:
            append(uri, Event("rudolf", SECRET, updated=7), Event("c", "late"))
        calls.append(file)
        return rewrite(self, file)

    monkeypatch.setattr(erasure._Rewriting, "_rewrite", meanwhile)
    erase(uri, ["rudolf"], now=in_two_hours())
    assert holding(uri, SECRET) == set()
    assert statements(read_snapshot(uri)) == {"b": "y", "c": "late"}


def test_where_the_table_moved_both_places_are_gone_through(tmp_path, append):
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    for uri in (old, new):
        append(uri, Event("rudolf", SECRET), Event("b", "y"))
    write_pointer(old, new, from_version=1)
    before = read_snapshot(new)
    report = erase(old, ["rudolf"], now=in_two_hours())
    assert (report.table, report.places) == (new, (new, old))
    assert holding(str(tmp_path), SECRET) == set()
    assert statements(read_snapshot(old)) == statements(read_snapshot(new)) == {"b": "y"}
    assert FactTable.open(old, moved=False).version == 2
    assert len(before.facts) == 2


def test_a_table_that_moved_twice_is_gone_through_in_the_middle_too(tmp_path, append):
    old, middle, new = (str(tmp_path / name) for name in ("old", "middle", "new"))
    for uri in (old, middle, new):
        append(uri, Event("rudolf", SECRET), Event("b", "y"))
    write_pointer(old, new, from_version=1, previous=[middle, str(tmp_path / "removed")])
    assert set(erase(old, ["rudolf"], now=in_two_hours()).places) == {old, middle, new}
    assert holding(str(tmp_path), SECRET) == set()


def test_other_facts_keep_their_vectors(tmp_path, append):
    uri = str(tmp_path)
    append(uri, *[Event(f"fact {number}", f"text {number}") for number in range(40)])
    append(uri, *[Event(f"fact {number}", f"text {number}", updated=1, encoded=False) for number in range(0, 40, 3)])
    append(uri, Event("fact 3", "text 3 again", updated=2))
    before = read_snapshot(uri)
    erase(uri, ["fact 3", "fact 39"], now=in_two_hours())
    kept = [row for row, name in enumerate(before.facts["fact_id"].to_pylist()) if name not in ("fact 3", "fact 39")]
    expected = dataclasses.replace(
        before, facts=before.facts.take(kept), keys_FK=before.keys_FK[kept], prompts_FPD=before.prompts_FPD[kept]
    )
    assert_same_facts(read_snapshot(uri), expected)


@given(
    texts=st.sets(st.text('ab é"', min_size=1, max_size=9), min_size=1, max_size=5),
    content=st.text('ab é"\n', max_size=40),
)
def test_traces_are_found_where_they_stand_by_themselves(texts, content):
    def is_word(character):
        return character.isalnum()

    def stands(text):
        for start in range(len(content) - len(text) + 1):
            end = start + len(text)
            if content[start:end] != text:
                continue
            begins = start == 0 or not (is_word(content[start - 1]) and is_word(content[start]))
            ends = end == len(content) or not (is_word(content[end - 1]) and is_word(content[end]))
            if begins and ends:
                return True
        return False

    found = Traces(texts).find(content.encode())
    assert (found is not None) >= any(stands(text) for text in texts)
    in_json = Traces(texts).find(json.dumps([content]).encode())
    assert (in_json is not None) >= any(stands(text) for text in texts if "\n" not in content)


def test_a_trace_across_two_parts_of_a_file_is_found(tmp_path, monkeypatch):
    from recipe_ray.store.upkeep import traces

    monkeypatch.setattr(traces, "_READ_BYTES", 16)
    for start in range(40):
        (tmp_path / "file").write_bytes(b"." * start + b" island-10 land-1 " + b"." * 20)
        (file,) = list_stored(str(tmp_path))
        assert Traces(["land-1"]).find_in_file(file) == "land-1"
        (tmp_path / "file").write_bytes(b"." * start + b" island-1 land-10 land-11" + b"." * 20)
        (file,) = list_stored(str(tmp_path))
        assert Traces(["land-1"]).find_in_file(file) is None


@pytest.mark.parametrize("content", ["land-10", "land-1-a", "x.land-1", "a/land-1", "island-1", "land-1@x"])
def test_an_id_is_not_found_within_another(content):
    assert Traces([], ["land-1"]).find(content.encode()) is None
    for around in ("{}", "({}).", '"{}"', "to {}: so", "{}- ", "\0{}\0"):
        assert Traces([], ["land-1"]).find(around.format("land-1").encode()) == "land-1"


def test_texts_of_a_column_do_not_run_into_each_other():
    assert Traces(["ab cd"]).find(joined(pa.array(["ab", "cd", None]))) is None
    assert Traces(["cd"]).find(joined(pa.array(["ab", "cd", None]))) == "cd"
