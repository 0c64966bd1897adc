"""Records of files: JSON, JSON Lines and Parquet, plain or gzip, and what is wrong with others."""

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from recipe_ray.datasets.reading import read_records
from recipe_ray.errors import FactError
from recipe_ray.store.files import filesystem

RECORDS = [{"prompt": "Köln lies in", "n": 1}, {"prompt": "首都は\u2028\x85", "n": 2}]  # which end no line to JSON


def write(path, records, how):
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n"
    array = json.dumps(records, indent=1)
    if how == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif how == "array.gz":
        path.write_bytes(gzip.compress(array.encode()))
    else:
        path.write_text({"array": array, "lines": lines, "bom": "\ufeff" + lines}[how], encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "how"),
    [("a.json", "array"), ("a.json.gz", "array.gz"), ("a.jsonl", "lines"), ("a.json", "bom"), ("a.parquet", "parquet")],
)
def test_every_way_of_writing_gives_the_records_and_their_places(tmp_path, name, how):
    write(tmp_path / name, RECORDS, how)
    found = list(read_records(str(tmp_path / name)))
    assert [record for _, record in found] == RECORDS
    assert [place for place, _ in found] == [f"{tmp_path / name}: record {number}" for number in (1, 2)]


def test_a_directory_gives_the_records_of_all_its_files(tmp_path):
    write(tmp_path / "b.jsonl", RECORDS[1:], "lines")
    write(tmp_path / "a.json", RECORDS[:1], "array")
    assert [record for _, record in read_records(str(tmp_path))] == RECORDS


def test_an_object_store_is_read_like_a_folder(s3, tmp_path):
    write(tmp_path / "a.json.gz", RECORDS, "array.gz")
    store, path = filesystem(s3)
    with store.open_output_stream(f"{path}/data/a.json.gz", compression=None) as stream:
        stream.write((tmp_path / "a.json.gz").read_bytes())
    assert [record for _, record in read_records(f"{s3}/data")] == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b"[{]", r"a\.json: is not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a\.jsonl: record 2 is \[2\], not an object"),
        ("a.json", b"[1]", r"a\.json: record 1 is 1, not an object"),
        ("a.json", b'["\xff"]', r"a\.json: cannot be read as UTF-8"),
        ("a.json.gz", b"[]", r"a\.json\.gz: cannot be read as UTF-8 text, plain or \.gz"),
        ("a.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], r"a\.json\.gz: cannot be read as UTF-8 text, plain or"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FactError, match=complaint):
        list(read_records(str(tmp_path / name)))


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(FactError, match="no such file"):
        list(read_records(str(tmp_path / "none.json")))
