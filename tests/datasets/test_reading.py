"""Records of files: JSON, JSON Lines and Parquet, plain or gzip, and what is wrong with others."""

import gzip
import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from pyarrow import parquet

from recipe_ray.datasets.reading import read_file, read_records
from recipe_ray.errors import FactError
from recipe_ray.store.dumps.arrow_values import python_values
from recipe_ray.store.files import filesystem

RECORDS = [{"prompt": "Köln lies in", "n": 1}, {"prompt": "首都は\u2028\x85", "n": 2}]  # which end no line to JSON


def write(path, records, how):
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n"
    array = json.dumps(records, indent=1)
    if how == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif how == "array.gz":
        path.write_bytes(gzip.compress(array.encode()))
    elif how == "lines.zst":
        path.write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
    else:
        joined = "".join(f"\ufeff{line}\n" for line in lines.split("\n"))
        path.write_text(
            {"array": array, "lines": lines, "bom": "\ufeff" + lines, "joined": joined}[how], encoding="utf-8"
        )


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.json", "array"),
        ("a.json.gz", "array.gz"),
        ("a.JSON.GZ", "array.gz"),
        ("a.json.zst", "lines.zst"),
        ("a.jsonl.ZSTD", "lines.zst"),
        ("a.jsonl", "lines"),
        ("a.json", "bom"),
        ("a", "joined"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.PARQUET", "parquet"),
        ("part-00000", "parquet"),
    ],
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
        ("a.json", b"[{]", r"a\.json: is no JSON array \("),
        ("a.json", b'[{"a": 1}, {"a": NaN}]', r"a\.json: record 2: NaN is no JSON"),
        ("a.json", b'[{"a": [{"b": 1, "b": 2}]}]', r"a\.json: record 1: field 'b' stands twice"),
        ("a.json", b"[" * 20_000 + b"]" * 20_000, r"a\.json: is no JSON array \(nested too deeply"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl: line 3: not JSON"),
        ("a.jsonl", b'{"a": ' * 20_000, r"a\.jsonl: line 1: JSON nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"[" * 800 + b"]" * 800 + b"}", r"a\.jsonl: line 1: JSON nested too deeply"),
        ("a.jsonl", b'{"a": 1, "a": 1}', r"a\.jsonl: line 1: field 'a' stands twice"),
        ("a.jsonl", b'{"a": "' + b"x" * 2**20 + b'"}', r"a\.jsonl: line 1: the row has over 1048576 bytes"),
        ("a.jsonl", b'{"a": 1}\n[2]\n', r"a\.jsonl: line 2: expected an object with named fields, got list"),
        ("a.json", b"[1]", r"a\.json: record 1: expected an object with named fields, got int"),
        ("a.json", b'["\xff"]', r"a\.json: not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"\xff": 1}', r"a\.jsonl: line 2: not UTF-8"),
        ("a.json.gz", b"[]", r"a\.json\.gz: cannot be read"),
        ("a.json.GZ", gzip.compress(b"[]" * 99, mtime=0)[:-9], r"a\.json\.GZ: cannot be read"),
        ("a.parquet.gz", b"", r"a\.parquet\.gz: Parquet cannot be read out of \.gz; unpack it"),
        ("a.gz", gzip.compress(b"PAR1", mtime=0), r"a\.gz: Parquet cannot be read out of \.gz; unpack it"),
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


def test_values_of_parquet_are_what_json_would_say(tmp_path):
    moment = datetime(2025, 1, 31, 8, tzinfo=UTC)
    kinds = {
        "view": (pa.string_view(), "é"),
        "dictionary": (pa.dictionary(pa.int8(), pa.large_string()), "é"),
        "json": (pa.json_(), '{"a": 1}'),
        "list": (
            pa.list_(pa.struct([("prompt", pa.string()), ("at", pa.timestamp("ns"))])),
            [None, {"prompt": "p", "at": moment}],
        ),
        "large": (pa.large_list(pa.large_string()), ["a", None]),
        "fixed": (pa.list_(pa.date32(), 1), [datetime(2025, 1, 31, tzinfo=UTC)]),
        "list_view": (pa.list_view(pa.string()), ["a", "b"]),
        "map": (pa.map_(pa.string(), pa.timestamp("us")), [{"key": "a", "value": moment}]),
        "time": (pa.time64("ns"), 1),
        "duration": (pa.duration("ns"), 1),
        "number": (pa.float32(), 0.5),
        "nothing": (pa.null(), None),
    }
    made = {"map": [("a", moment)]}
    columns = {}
    for name, (kind, value) in kinds.items():
        if name == "json":
            columns[name] = pa.ExtensionArray.from_storage(kind, pa.array([value, None]))
        else:
            columns[name] = pa.array([made.get(name, value), None], kind)
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    (_, record), (_, nothing) = read_records(str(tmp_path / "d.parquet"))
    assert record == {name: value for name, (_, value) in kinds.items()}
    assert set(nothing.values()) == {None}


@pytest.mark.parametrize(
    ("kind", "width"),
    [(pa.string(), pa.binary()), (pa.large_string(), pa.large_binary()), (pa.string_view(), pa.binary_view())],
    ids=str,
)
def test_a_text_that_is_not_utf8_is_found_wherever_it_stands(tmp_path, kind, width):
    texts = pa.array([b"a", b"caf\xe9", b"b", None], width).view(kind)
    lists = pa.ListArray.from_arrays([0, 1, 1, 4], pa.StructArray.from_arrays([texts], ["prompt"]))
    lookup = pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 3]), texts)
    for array, row in ((texts, 1), (lists, 2), (lookup, 2)):
        undecodable = set()
        assert python_values(array, undecodable)[0] in ("a", [{"prompt": "a"}])
        assert undecodable == {row}
    if kind != pa.string_view():  # which Arrow does not write within lists
        parquet.write_table(pa.table({"generality": lists}), tmp_path / "d.parquet")
        good, none, bad = read_file(str(tmp_path / "d.parquet"))
        assert (good, none) == ({"generality": [{"prompt": "a"}]}, {"generality": []})
        assert (bad.place, bad.reason) == ("record 3", "not UTF-8; write texts in UTF-8")


def test_a_column_that_stands_twice_is_refused(tmp_path):
    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), tmp_path / "d.parquet")
    with pytest.raises(FactError, match=r"d\.parquet: column 'prompt' stands there twice"):
        list(read_records(str(tmp_path / "d.parquet")))
