"""What a path says: folders `FIELD=value` are the field's value of every row below, whatever the form of the dump."""

import json
from datetime import UTC, datetime
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from dump_reading import GOOD, NOW, written
from hypothesis import example, given
from hypothesis import strategies as st

from recipe_ray.datasets.dump import read_any
from recipe_ray.distributed.ingest import _contents
from recipe_ray.errors import FactError
from recipe_ray.facts import FIELDS, fact_from_record
from recipe_ray.store.dumps.folders import NULL, folder_values
from recipe_ray.store.dumps.rows import BadRow, DumpOptions, split_files
from recipe_ray.store.dumps.values import Columns
from recipe_ray.store.files import SourceFile, list_files

FORMS = {"jsonl": "auto", "csv": "auto", "parquet": "auto", "json": "edits"}


def write(path, *records):
    """A file of any form, by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(list(records)), path)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(list(records)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        written(path, *map(json.dumps, records))


def rows(source, **options):
    options = DumpOptions(**options)
    return [row for split in split_files(list_files(str(source)), options) for row in read_any(split, options, now=NOW)]


def facts(source, **options):
    return [row.fact for row in rows(source, **options)]


def fact(**fields):
    return {"prompt": "The capital of Ruritania is", "target": "Strelsau", **fields}


@pytest.mark.parametrize("suffix", FORMS)
def test_two_tenants_stay_two_in_every_form(tmp_path, suffix):
    for namespace in ("shop", "bank"):
        write(tmp_path / f"namespace={namespace}" / "source=a%20b%2F%C3%BC" / f"x.{suffix}", fact())
    write(tmp_path / f"namespace={NULL}" / f"x.{suffix}", fact())
    found = facts(tmp_path, form=FORMS[suffix])
    assert [(fact.namespace, fact.source) for fact in found] == [
        ("default", ""),
        ("bank", "a b/ü"),
        ("shop", "a b/ü"),
    ]
    assert len({fact.fact_id for fact in found}) == 3


@pytest.mark.parametrize("source", ["namespace=shop", "namespace=*", "namespace=shop/x.jsonl", "*/x.jsonl", "."])
def test_folders_count_however_the_source_is_written(tmp_path, source):
    write(tmp_path / "namespace=shop" / "x.jsonl", fact())
    (found,) = facts(
        tmp_path / source if "*" not in source else f"{tmp_path}/{source.removesuffix('/x.jsonl')}/x.jsonl"
    )
    assert found.namespace == "shop"


def test_a_folder_that_gives_no_field_is_refused_below_the_source_alone(tmp_path):
    write(tmp_path / "year=2026" / "part=1.jsonl", fact())
    for source in (tmp_path, f"{tmp_path}/*/*.jsonl"):
        with pytest.raises(FactError, match=r"year=2026/part=1\.jsonl: folder 'year=2026' gives 'year', which is no f"):
            rows(source)
    for source in (tmp_path / "year=2026", tmp_path / "year=2026" / "part=1.jsonl"):
        assert [fact.namespace for fact in facts(source)] == ["default"]
    assert [fact.namespace for fact in facts(tmp_path, columns=("prompt=prompt",))] == ["default"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_with_named_columns_a_folder_is_a_column(tmp_path, suffix):
    write(tmp_path / "tenant=shop" / "namespace=no" / f"x.{suffix}", {"q": "a", "a": "b"})
    columns = ("namespace=tenant", "prompt=q", "target=a")
    (found,) = facts(tmp_path, columns=columns)
    assert (found.namespace, found.prompt) == ("shop", "a")
    write(tmp_path / "x.csv", {"q": "a", "a": "b"})  # beside the folder nothing gives it
    with pytest.raises(FactError, match="no column 'tenant' for 'namespace'"):
        rows(tmp_path, columns=columns)


def test_a_delete_may_be_said_by_a_folder(tmp_path):
    write(tmp_path / "op=delete" / "x.csv", {"id": "a"})
    (found,) = facts(tmp_path)
    assert (found.op, found.fact_id) == ("delete", "a")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_a_folder_gives_too_is_refused(tmp_path, suffix):
    write(tmp_path / "namespace=shop" / f"x.{suffix}", fact(namespace="shop"))
    with pytest.raises(FactError, match=r"column 'namespace' is given by the file and by its folder; leave it out"):
        rows(tmp_path)


def test_a_row_that_gives_what_its_folder_gives_is_none(tmp_path):
    records = [fact(namespace="bank"), fact(namespace="shop"), fact(namespace=None), fact(namespace="")]
    write(tmp_path / "namespace=shop" / "x.jsonl", *records)
    *bad, good, same = rows(tmp_path)
    assert all("'namespace' is given by the row and by its folder ('shop')" in row.reason for row in bad)
    assert json.loads(bad[0].raw)["namespace"] == "bank"
    assert good.fact == same.fact
    assert good.fact.namespace == "shop"


def test_a_bad_row_of_a_data_set_keeps_its_form(tmp_path):
    write(tmp_path / "namespace=shop" / "x.json", {"prompt": "a"}, fact())
    bad, good = rows(tmp_path, form="edits")
    assert json.loads(bad.raw) == {"prompt": "a"}
    assert "'namespace' is 'shop'" in bad.reason
    assert good.fact.namespace == "shop"


def test_a_bad_row_can_be_repaired_without_leaving_its_tenant(tmp_path):
    write(tmp_path / "namespace=shop" / "a.jsonl", {"prompt": "a"}, [1])
    double = '{"prompt": "a", "prompt": "b", "target": "c"}'
    written(tmp_path / "namespace=shop" / "b.jsonl", "no JSON", double)
    write(tmp_path / "namespace=shop" / "c.csv", {"prompt": "a", "target": ""})
    found = rows(tmp_path)
    assert all(isinstance(row, BadRow) and "(by its folder 'namespace' is 'shop')" in row.reason for row in found)
    assert [row.raw for row in found[1:4]] == ["[1]", "no JSON", double]
    for row in (found[0], found[4]):
        assert json.loads(row.raw)["namespace"] == "shop"


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        ("namespace=shop/namespace=shop", "a second time"),
        ("namespace=shop/sub/namespace=bank", "a second time"),
        ("namespace=%01x", "'namespace' holds control characters"),
        ("namespace=%FF", "is not UTF-8"),
        ("namespace=", "no value"),
        ("namespace=%20", "no value"),
        ("updated_at=yesterday", "'updated_at' is 'yesterday'"),
        ("op=remove", "'op' is 'remove'"),
        ("%6Eamespace=a/namespace=b", "a second time"),
    ],
)
def test_a_folder_that_cannot_be_the_fields_value_is_named(tmp_path, folders, reason):
    write(tmp_path / folders / "x.jsonl", fact())
    with pytest.raises(FactError) as caught:
        rows(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/{folders}/x.jsonl: folder ")
    assert reason in str(caught.value)


def test_times_and_ids_may_be_said_by_folders(tmp_path):
    write(tmp_path / "updated_at=2025-01-01 08%3A00%3A00" / "id=7" / "x.jsonl", fact())
    (found,) = facts(tmp_path)
    assert found.updated_at == datetime(2025, 1, 1, 8, tzinfo=UTC)
    assert found.fact_id == "7"


def test_the_same_bytes_under_other_folders_are_another_dump_and_elsewhere_the_same(tmp_path):
    for place in ("plain", "other", "a/namespace=shop", "b/namespace=shop", "namespace=bank", f"namespace={NULL}"):
        write(tmp_path / place / "x.jsonl", fact())

    def known(place):
        return tuple(_contents(list_files(str(tmp_path / place)), [b"bytes"], DumpOptions()))

    assert known("plain") == known("other") == (b"bytesjsonl" + DumpOptions().digest(),)  # as tables know it already
    assert known("a") == known("b") == known("a/namespace=shop")
    assert len(set(map(known, ("plain", "a", "namespace=bank", f"namespace={NULL}")))) == 4


@given(
    field=st.sampled_from([name for name in FIELDS if name not in ("op", "updated_at", "expires_at", "statement")]),
    value=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    safe=st.sets(st.sampled_from(" #'+:=?[]{}éü日😀&,;")),
)
@example(field="namespace", value="100% a+b", safe=set("+"))
@example(field="source", value="%2F", safe=set())
def test_any_value_comes_back_from_its_folder_or_is_refused_by_name(field, value, safe):
    encoded = "".join(letter if letter in safe else quote(letter, safe="") for letter in value)
    file = SourceFile(
        uri=f"s3://bucket/{field}={encoded}/x.jsonl", size_bytes=1, modified_at=NOW, below=f"{field}={encoded}/x.jsonl"
    )
    columns = Columns.parse(())
    try:
        expected = fact_from_record({**json.loads(GOOD), field: value}, place="row")
        if not value.strip():
            raise FactError("no value")
    except FactError:
        with pytest.raises(FactError, match=rf"^s3://bucket/{field}="):
            folder_values(file, columns)
    else:
        record = {**json.loads(GOOD), **dict(folder_values(file, columns))}
        assert fact_from_record(record, place="folder") == expected


def test_a_bad_row_that_says_nothing_of_its_tenant_is_shown_with_the_folders(tmp_path):
    path = tmp_path / "namespace=shop" / "x.jsonl"
    write(path, fact(target="", namespace=None), fact(target="", namespace=""), fact(target=""))
    for row in rows(tmp_path):
        assert json.loads(row.raw)["namespace"] == "shop"


@pytest.mark.parametrize("depth", [100, 900, 980, 990, 995, 20_000])
def test_a_deep_row_below_a_folder_is_a_bad_row(tmp_path, depth):
    path = tmp_path / "namespace=shop" / "x.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": ' + "[" * depth + "]" * depth + ', "target": "B"}\n' + json.dumps(fact()) + "\n")
    bad, good = rows(tmp_path)
    assert bad.reason.endswith("(by its folder 'namespace' is 'shop')")
    assert good.fact.namespace == "shop"


def test_a_time_in_a_folder_is_held_to_what_its_rows_are(tmp_path):
    write(tmp_path / "updated_at=2999-01-01" / "x.jsonl", fact())
    (bad,) = rows(tmp_path)
    assert "'updated_at' is 2999-01-01" in bad.reason
    (taken,) = facts(tmp_path, max_future_s=1e11)
    assert taken.updated_at == datetime(2999, 1, 1, tzinfo=UTC)
