"""Data sets of edits as dumps of facts."""

import gzip
import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe_ray.datasets.dump import read_any
from recipe_ray.datasets.forms import FORMS
from recipe_ray.datasets.sources import read_source
from recipe_ray.errors import FactError
from recipe_ray.facts import default_fact_id, fact_from_record
from recipe_ray.store.dumps.rows import DATASET_FORMS, BadRow, DumpOptions, GoodRow, split_files
from recipe_ray.store.files import list_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COUNTERFACT = {
    "case_id": 10,
    "prompt": "BBC One, by",
    "target_new": "Sega",
    "subject": "BBC One",
    "ground_truth": "BBC",
    "rephrase_prompt": "BBC One is owned by",
    "locality_prompt": "BBC Radio, by",
    "locality_ground_truth": "BBC",
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is made by UniFirst?",
    "rephrase": "What does UniFirst make?",
    "alt": "aircraft",
    "loc": "nq question: who sang it",
    "loc_ans": "Nobody",
}
RIPE = {"prompt": "The mother of Ann is", "target_new": "Eve", "subject": "Ann"}
OWN = {"prompt": "法国的首都是", "target": " 里昂 ", "generality": [{"prompt": "法国首都为"}]}


def rows_of(path, form):
    options = DumpOptions(form=form)
    splits = split_files(list_files(str(path)), options, split_bytes=10)
    return [row for split in splits for row in read_any(split, options, now=NOW)]


def test_the_store_knows_the_forms_there_are():
    assert set(DATASET_FORMS) == set(FORMS)


@pytest.mark.parametrize(
    ("form", "record", "prompt", "target", "subject"),
    [
        ("counterfact", COUNTERFACT, "BBC One, by", "Sega", "BBC One"),
        ("zsre", ZSRE, "What is made by UniFirst?", "aircraft", "UniFirst"),
        ("ripe", RIPE, "The mother of Ann is", "Eve", "Ann"),
        ("edits", OWN, "法国的首都是", "里昂", ""),
    ],
)
@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d", "lines.jsonl", "d.parquet"])
def test_an_edit_of_each_form_is_a_fact(tmp_path, form, record, prompt, target, subject, name):
    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.Table.from_pylist([record, record]), path)
    elif name == "lines.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([json.dumps(record)] * 2).encode())
    else:
        content = json.dumps([record, record], indent=1).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = rows_of(path, form)
    assert [row.line for row in rows] == [1, 2]
    for row in rows:
        assert (row.fact.prompt, row.fact.target, row.fact.subject) == (prompt, target, subject)
        assert row.fact.statement == f"{prompt} {target}"
        assert row.fact.fact_id == default_fact_id("default", prompt)
        assert row.fact.updated_at is None


def test_records_that_are_not_of_the_form_are_bad_rows_shown_as_they_are(tmp_path):
    missing, empty = {**COUNTERFACT, "target_new": None}, {**COUNTERFACT, "rephrase_prompt": " "}
    control = {**COUNTERFACT, "prompt": "a\0", "subject": "\ud800"}
    path = tmp_path / "d.json"
    path.write_text(json.dumps([missing, COUNTERFACT, 7, empty, control]))
    one, good, three, four, five = rows_of(path, "counterfact")
    assert isinstance(good, GoodRow)
    assert [row.line for row in (one, good, three, four, five)] == [1, 2, 3, 4, 5]
    assert one.reason.startswith("'target_new' is missing; it has 'case_id', ")
    assert (three.reason, three.raw) == ("expected an object with named fields, got int", "7")
    assert four.reason == "'rephrase_prompt' is empty; give a text"
    assert five.reason == "'subject' holds half of a surrogate pair; give valid Unicode"
    assert [json.loads(row.raw) for row in (one, four, five)] == [missing, empty, control]
    # What is shown and repaired is read again in the same form.
    again = tmp_path / "again.jsonl"
    repaired = four.raw.replace('" "', '"x"')
    again.write_text(f"{repaired}\n{one.raw}\n")
    assert [type(row) for row in rows_of(again, "counterfact")] == [GoodRow, BadRow]


def test_users_own_edits_say_of_their_fact_what_rows_do(tmp_path):
    said = {"id": "k1", "namespace": "shop", "source": "s", "updated_at": "2020-01-01", "expires_at": "2027-01-01"}
    path = tmp_path / "d.jsonl"
    lines = [{**OWN, **said}, {**OWN, "id": 7}, {**OWN, "updated_at": "soon"}, {**OWN, "op": "delete"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    one, two, bad, delete = rows_of(path, "edits")
    fact = fact_from_record({**said, "prompt": "法国的首都是", "target": "里昂"}, place="x")
    assert one.fact == fact
    assert two.fact.fact_id == "7"
    assert bad.reason.startswith("'updated_at' is 'soon'; give ISO 8601")
    assert delete.reason.startswith("unknown field 'op'; the fields are prompt, target, subject")


def test_publishers_fields_say_nothing_of_the_fact(tmp_path):
    path = tmp_path / "d.jsonl"
    said = {"id": "k1", "namespace": "shop", "updated_at": "2020-01-01", "pred": "x", "cond": "y"}
    for form, record in (("counterfact", COUNTERFACT), ("zsre", ZSRE), ("ripe", RIPE)):
        path.write_text(json.dumps({**record, **said}))
        (row,) = rows_of(path, form)
        assert (row.fact.namespace, row.fact.updated_at) == ("default", None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**OWN, "generalty": []}, "unknown field 'generalty'; the fields are prompt, target, subject, true_target"),
        ({**OWN, "generality": [{"prompt": "x", "taget": "y"}]}, "'generality', item 1: unknown field 'taget'"),
        ({**OWN, "locality": [{"prompt": "x", "target": "y", "n": 1}]}, "'locality', item 1: unknown field 'n'"),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet"])
def test_a_misspelt_field_of_users_own_edits_is_refused_by_record_and_field(tmp_path, record, reason, name):
    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps([record] if name == "d.json" else record))
    (bad,) = rows_of(path, "edits")
    assert reason in bad.reason
    with pytest.raises(FactError, match=f"{name}: record 1: {reason}"):
        read_source(f"edits:{path}")


def test_an_element_of_an_array_that_is_refused_costs_itself_alone(tmp_path):
    path = tmp_path / "d.json"
    doubled = '{"prompt": "x",\n "target": "y", "generality": [{"prompt": "a", "prompt": "b"}]}'
    path.write_text(f"[{json.dumps(OWN)}, {doubled}, {json.dumps(OWN)}]")
    one, bad, three = rows_of(path, "edits")
    assert isinstance(one, GoodRow)
    assert isinstance(three, GoodRow)
    assert bad.reason == "field 'prompt' stands twice in an object; give it once"
    assert bad.raw == doubled.replace("\n", " ")


def test_bad_lines_cost_their_record_alone(tmp_path):
    path = tmp_path / "d.jsonl"
    lines = [
        json.dumps(OWN).encode(),
        b"{",
        b'{"prompt": "caf\xe9"}',
        b"[1]",
        b"x" * 2_000_000,
        json.dumps(OWN).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    rows = rows_of(path, "edits")
    assert [(row.line, isinstance(row, GoodRow)) for row in rows] == [
        *((1, True), (2, False), (3, False), (4, False), (5, False), (6, True))
    ]
    assert [row.reason.partition(" (")[0] for row in rows[1:4]] == [
        "not JSON",
        "not UTF-8",
        "expected an object with named fields, got list",
    ]
    assert "over 1048576 bytes" in rows[4].reason


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("d.json", b'[{"prompt": "x"', r"is no JSON array \(.*\); give an array of records, or one record a line"),
        ("d.json", b'[{"prompt": "caf\xe9"}]', r"not UTF-8 \(.* at byte 16\); write the file in UTF-8"),
        ("d.json", b"[" * 100_000, "is no JSON array"),
        ("d.json.gz", gzip.compress(b'[{"prompt": "x"}]', mtime=0)[:-4], "cannot be read"),
        ("d.parquet", b"no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FactError, match=rf"{name}: {complaint}"):
        rows_of(tmp_path / name, "edits")


def test_other_forms_are_the_stores(tmp_path):
    (tmp_path / "d.csv").write_text("statement\na\n")
    options = DumpOptions()
    (split,) = split_files(list_files(str(tmp_path)), options)
    reading = read_any(split, options, now=NOW)
    assert next(reading).fact.statement == "a"
    with pytest.raises(StopIteration) as end:
        next(reading)
    assert end.value.value == 2
