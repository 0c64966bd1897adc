import gzip
import json
import random

import pytest
from dump_reading import FACT, GOOD, NOW, read, rows_of, written, zstd

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.facts import FIELDS, fact_from_record, record_from_line
from recipe_ray.store.dumps import streams
from recipe_ray.store.dumps.rows import DumpOptions, GoodRow, Split, form_of, hash_file, read_split, split_files
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, RAW_BYTES
from recipe_ray.store.files import list_files

# JSON Lines


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"prompt": "x", "targ', "not JSON"),
        ('["a", "list"]', "expected a JSON object"),
        ('{"prompt": "x", "target": ""}', "'target' is empty"),
        ('{"prompt": "x", "target": "y", "colour": "red"}', "unknown field 'colour'"),
        ('{"prompt": "x", "target": "y", "prompt": "z"}', "field 'prompt' stands twice"),
        ('{"prompt": "x", "target": "y", "updated_at": "2026-01-01T02:00:00Z"}', "after the present"),
        ('{"prompt": "x", "target": "y", "updated_at": 1767225600}', "epoch numbers tell no unit"),
        ('{"prompt": "x", "target": {"text": "y"}}', "'target' is dict; give text"),
        ('{"prompt": "x", "target": "\\u0007"}', "control characters"),
        ('{"prompt": "x", "target": "\\u0000"}', "control characters"),
        ('{"prompt": "x", "target": "\0"}', "not JSON (Invalid control character"),
        ("\0\0\0\0", "not JSON"),
        ('{"prompt": "x", "target": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "x", "target": "y", "source": NaN}', "NaN is no JSON"),
        ("[" * 20_000, "JSON nested too deeply; give one flat object a line"),
    ],
)
def test_a_bad_line_is_handed_on_with_place_reason_and_text(tmp_path, bad, reason):
    path = written(tmp_path / "d.jsonl", GOOD, "", bad, GOOD)
    good, row, last = read(path)
    assert (good, last) == (GoodRow(1, FACT), GoodRow(4, FACT))
    assert (row.line, row.raw) == (3, bad)
    assert reason in row.reason
    assert str(path) not in row.reason


def test_a_line_that_is_not_utf8_is_shown_so_that_it_is_no_fact_until_it_is_repaired(tmp_path):
    path = written(tmp_path / "d.jsonl", GOOD, b'{"prompt": "caf\xe9", "target": "y"}\n', GOOD)
    _, row, _ = read(path)
    assert "not UTF-8 (invalid continuation byte at byte 15)" in row.reason
    assert row.raw == '{"prompt": "caf\\xe9", "target": "y"}'
    (again,) = read(written(tmp_path / "again.jsonl", row.raw))
    assert "not JSON" in again.reason
    (repaired,) = read(written(tmp_path / "repaired.jsonl", row.raw.replace("\\xe9", "é")))
    assert repaired.fact.prompt == "café"


def test_lines_of_many_megabytes_are_refused_and_not_held(tmp_path):
    long = b'{"prompt": "' + b"x" * 10 * 2**20 + b'"}\n'
    longest = json.dumps({"prompt": "x", "target": "y", "source": "z" * (MAX_ROW_BYTES - 45)}) + "\n"
    assert len(longest) == MAX_ROW_BYTES
    path = written(tmp_path / "d.jsonl", GOOD, long, GOOD, longest.encode(), f" {longest}".encode(), b"x" * 3 * 2**20)
    rows = read(path)
    assert [(row.line, isinstance(row, GoodRow)) for row in rows] == [
        *((1, True), (2, False), (3, True), (4, True), (5, False), (6, False))
    ]
    for row in (rows[1], rows[4], rows[5]):
        assert row.reason == f"the row has over {MAX_ROW_BYTES} bytes; give one fact a row"
        assert len(row.raw) == RAW_BYTES


def test_a_text_that_is_shown_is_cut_between_characters(tmp_path):
    (row,) = read(written(tmp_path / "d.jsonl", "é" * RAW_BYTES))
    assert row.raw == "é" * (RAW_BYTES // 2)


def test_a_bom_at_the_start_of_any_line_is_none_of_the_text(tmp_path):
    path = tmp_path / "joined.jsonl"
    path.write_bytes(f"\ufeff{GOOD}\n\ufeff\ufeff{GOOD}\n\ufeff\n\ufeffx\n".encode())
    one, two, bad = read(path)
    assert (one, two) == (GoodRow(1, FACT), GoodRow(2, FACT))
    assert (bad.line, bad.raw) == (4, "x")


def test_crlf_bom_blank_lines_and_a_missing_last_line_end_change_nothing(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n \t\r\n\r\n{GOOD}".encode())
    assert read(path) == [GoodRow(1, FACT), GoodRow(4, FACT)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.jsonl.gz", "d.jsonl.zst", "d.json"])
@pytest.mark.parametrize(("content", "num_lines"), [(b"", 0), (b"\n \r\n\t\n\n", 4), (b"\xef\xbb\xbf", 1)])
def test_a_file_without_rows_has_none(tmp_path, name, content, num_lines):
    pack = {"gz": gzip.compress, "zst": zstd}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(content))
    (split,) = split_files(list_files(str(tmp_path / name)), DumpOptions())
    assert rows_of(split, DumpOptions()) == ([], num_lines)


def test_the_namespace_and_the_future_are_the_dumps(tmp_path):
    ahead = '{"prompt": "x", "target": "y", "namespace": "sport", "updated_at": "2026-01-01T02:00:00Z"}'
    path = written(tmp_path / "d.jsonl", GOOD, ahead)
    news, sport = read(path, namespace="news", max_future_s=7200.0)
    assert (news.fact.namespace, sport.fact.namespace) == ("news", "sport")


# Splits


def small_dump():
    """Lines of all sorts and ends, of a few hundred bytes."""
    lines = [
        b'\xef\xbb\xbf{"statement": "a"}\r\n',
        b"\n",
        b'{"statement": "b"}\n',
        b"\r\n",
        b"bad\r\n",
        '{"statement": "é法"}\n'.encode(),
        b"\n\n",
        b'{"statement": "caf\xe9"}\n',
        b'\xef\xbb\xbf{"statement": "c"}\n',
        b'{"statement": "d"}',
    ]
    return b"".join(lines)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n"])
def test_every_split_size_gives_the_rows_of_one_split(tmp_path, ending):
    path = written(tmp_path / "d.jsonl", small_dump() + ending)
    whole = read(path)
    assert [row.line for row in whole] == [1, 3, 5, 6, 9, 10, 11]
    for split_bytes in range(1, path.stat().st_size + 2):
        assert read(path, split_bytes=split_bytes) == whole


def test_long_lines_belong_to_the_split_they_begin_in(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 40)
    path = written(tmp_path / "d.jsonl", '{"statement": "a"}', "x" * 200, "y" * 39, "z" * 40, '{"statement": "b"}')
    whole = read(path)
    assert [isinstance(row, GoodRow) for row in whole] == [True, False, False, False, True]
    for split_bytes in range(1, 330):
        assert read(path, split_bytes=split_bytes) == whole


def test_splits_cover_each_plain_file_and_leave_others_whole(tmp_path):
    written(tmp_path / "a.jsonl", "x" * 24)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"x" * 100))
    written(tmp_path / "c.csv", "statement", "x" * 100)
    written(tmp_path / "d.jsonl", b"")
    splits = split_files(list_files(str(tmp_path)), DumpOptions(), split_bytes=10)
    assert [(split.file, split.part, split.start, split.end) for split in splits] == [
        *((0, 0, 0, 10), (0, 1, 10, 20), (0, 2, 20, 25)),
        *((1, 0, 0, None), (2, 0, 0, None), (3, 0, 0, 0)),
    ]
    assert splits[0].uri == str(tmp_path / "a.jsonl")


# Compression and damage


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".zst", zstd), (".zstd", zstd), (".GZ", gzip.compress)],
)
def test_compressed_files_of_several_members_are_read_whole(tmp_path, suffix, pack):
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + f"{GOOD}\n{GOOD[:20]}".encode()) + pack(f"{GOOD[20:]}\n".encode()))
    assert read(path, split_bytes=10) == [GoodRow(1, FACT), GoodRow(2, FACT)]
    (tmp_path / f"d.csv{suffix}").write_bytes(pack(b"statement\na\n"))
    assert [row.fact.statement for row in read(tmp_path / f"d.csv{suffix}")] == ["a"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_that_was_cut_short_gives_its_rows_and_then_an_error_with_the_line(
    tmp_path, suffix, pack, form, monkeypatch
):
    monkeypatch.setattr(streams, "_BUFFER_BYTES", 65536)
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghijklmnop", k=500)) for _ in range(3000)]
    lines = ["statement", *texts] if form == "csv" else [json.dumps({"statement": text}) for text in texts]
    path = tmp_path / f"d.{form}{suffix}"
    path.write_bytes(pack("\n".join(lines).encode())[:-100])
    (split,) = split_files(list_files(str(path)), DumpOptions())
    rows = read_split(split, DumpOptions(), now=NOW)
    for text in texts[:2000]:
        assert next(rows).fact.statement == text
    with pytest.raises(FactError, match=rf"d\.{form}{suffix}: cannot be read at line \d+ \(") as caught:
        list(rows)
    assert 2000 < int(str(caught.value).partition("at line ")[2].split()[0]) <= 3001


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_not_compressed_as_it_says_is_named(tmp_path, suffix):
    path = written(tmp_path / f"d.jsonl{suffix}", GOOD)
    with pytest.raises(FactError, match=rf"d\.jsonl{suffix}: cannot be read at line 1 \(.*\); check that the file is"):
        read(path)


def test_a_file_that_is_gone_is_named(tmp_path):
    path = written(tmp_path / "d.jsonl", GOOD)
    (split,) = split_files(list_files(str(path)), DumpOptions())
    path.unlink()
    with pytest.raises(FactError, match=r"d\.jsonl: cannot be read at line 1 \(.*No such file"):
        rows_of(split, DumpOptions())
    with pytest.raises(FactError, match=r"d\.jsonl: cannot be read \(.*No such file"):
        hash_file(str(path))


def test_a_files_hash_is_of_its_bytes(tmp_path):
    one, two = written(tmp_path / "one.jsonl", GOOD), written(tmp_path / "two.csv", GOOD)
    assert len(hash_file(str(one))) == 16
    assert hash_file(str(one)) == hash_file(str(two))
    assert hash_file(str(written(two, GOOD, ""))) != hash_file(str(one))


# Forms by name


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("d.jsonl", "jsonl"),
        ("d.NDJSON", "jsonl"),
        ("s3://b/c.csv/d.json.gz", "jsonl"),
        ("d.csv.zst", "csv"),
        ("d.tar.parquet", "parquet"),
        ("d.pq", "parquet"),
    ],
)
def test_a_files_form_is_told_by_its_name(name, form):
    assert form_of(name, DumpOptions()) == form
    assert form_of(name, DumpOptions(form="csv")) == "csv"


@pytest.mark.parametrize("name", ["d", "d.txt", "d.gz", "facts.jsonl/d", "jsonl", "d.jsonl.bz2", "d.tsv"])
def test_a_name_that_tells_no_form_asks_for_the_flag(tmp_path, name):
    with pytest.raises(FactError, match=r"its name tells no form .*; give --form, one of jsonl, csv, parquet"):
        form_of(name, DumpOptions())
    assert form_of(name, DumpOptions(form="jsonl")) == "jsonl"


def test_parquet_in_an_envelope_is_refused():
    with pytest.raises(FactError, match=r"d\.parquet\.gz: Parquet cannot be read out of \.gz; unpack it"):
        form_of("d.parquet.gz", DumpOptions())


@pytest.mark.parametrize("name", ["d.json", "d.json.gz"])
def test_a_json_array_says_what_to_do(tmp_path, name):
    content = b'\xef\xbb\xbf \n[{"prompt": "x"}]'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(FactError, match=r"holds a JSON array; give --form of a data set .* or one object a line"):
        read(tmp_path / name)
    written(tmp_path / "lines.json", GOOD)
    assert read(tmp_path / "lines.json") == [GoodRow(1, FACT)]


# Options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"form": "xml"}, "form is 'xml'; give one of auto, jsonl, csv, parquet, counterfact, zsre, ripe, edits"),
        ({"columns": ("prompt",)}, "columns has 'prompt'; give FIELD=COLUMN"),
        ({"columns": ("prompt=",)}, "columns has 'prompt='; give FIELD=COLUMN"),
        ({"columns": ("=q",)}, "columns has '=q'; give FIELD=COLUMN"),
        ({"columns": ("colour=q",)}, "columns has 'colour=q', of an unknown field; the fields are id, prompt"),
        ({"columns": ("prompt=q", "prompt=r")}, "columns names 'prompt' twice"),
        ({"columns": ("prompt=q",), "form": "zsre"}, "columns is given with form zsre"),
        ({"namespace": ""}, "namespace is ''; give a name"),
        ({"namespace": "a\0"}, "namespace is .*; give a name"),
        ({"namespace": " a"}, "namespace is ' a'; give a name"),
        ({"max_future_s": -1.0}, "max_future_s is -1.0; give seconds, 0 or more"),
        ({"max_future_s": float("nan")}, "max_future_s is nan"),
        ({"max_future_s": float("inf")}, "max_future_s is inf"),
    ],
)
def test_options_that_cannot_be_are_refused(options, complaint):
    with pytest.raises(ConfigError, match=f"^{complaint}"):
        DumpOptions(**options)


def test_the_options_digest_is_of_what_makes_another_dump():
    first = DumpOptions(columns=("prompt=q", "target=a"))
    assert len(first.digest()) == 16
    assert DumpOptions(columns=("target=a", "prompt=q")).digest() == first.digest()
    others = [
        DumpOptions(),
        DumpOptions(form="csv"),
        DumpOptions(columns=("prompt=q",)),
        DumpOptions(namespace="news"),
        DumpOptions(max_future_s=0.0),
    ]
    assert len({first.digest(), *(options.digest() for options in others)}) == 6


def test_columns_rename_the_fields_of_json_lines(tmp_path):
    path = written(
        tmp_path / "d.jsonl",
        '{"question": "The capital of Ruritania is", "target": "Strelsau"}',
        '{"question": "x", "target": "y", "prompt": "z"}',
        "[1]",
    )
    good, unknown, array = read(path, columns=("prompt=question",))
    assert good == GoodRow(1, FACT)
    assert "unknown field 'prompt'; the fields are question, id, target" in unknown.reason
    assert "expected a JSON object, got list" in array.reason


def test_a_column_may_give_two_fields_and_a_name_be_lent_to_another_field(tmp_path):
    path = written(tmp_path / "d.jsonl", '{"statement": "Strelsau", "prompt": "The capital of Ruritania is"}')
    (row,) = read(path, columns=("target=statement", "id=prompt", "prompt=prompt"))
    assert (row.fact.statement, row.fact.target) == ("The capital of Ruritania is Strelsau", "Strelsau")
    assert row.fact.fact_id == "The capital of Ruritania is"


# S3


def test_dumps_on_s3_are_read_in_splits(s3):
    from recipe_ray.store.files import filesystem

    filesystem_, path = filesystem(f"{s3}/dump")
    contents = {"a.jsonl": small_dump(), "b.csv.gz": gzip.compress(b"statement\na\n"), "c.jsonl.zst": zstd(b"{}\n")}
    for name, content in contents.items():
        with filesystem_.open_output_stream(f"{path}/{name}", compression=None) as sink:
            sink.write(content)
    rows = read(f"{s3}/dump", split_bytes=50)
    assert [row.line for row in rows] == [1, 3, 5, 6, 9, 10, 11, 2, 1]
    assert read(f"{s3}/dump") == rows
    with pytest.raises(FactError, match=r"s3://facts/dump/gone\.jsonl: cannot be read at line 1"):
        rows_of(Split(file=0, uri=f"{s3}/dump/gone.jsonl", part=0, start=0, end=9), DumpOptions())


def test_every_field_of_a_fact_can_be_read_from_every_form(tmp_path):
    record = {
        "id": "e1",
        "prompt": "p",
        "target": "t",
        "statement": "s",
        "subject": "u",
        "namespace": "n",
        "source": "o",
        "updated_at": "2025-01-01T00:00:00.123456Z",
        "expires_at": "2027-01-01",
        "op": "upsert",
    }
    assert tuple(record) == FIELDS
    lines = written(tmp_path / "d.jsonl", json.dumps(record))
    table = written(tmp_path / "d.csv", ",".join(record), ",".join(record.values()))
    (one,), (two,) = read(lines), read(table)
    assert one.fact == two.fact == fact_from_record(record_from_line(json.dumps(record), place="x"), place="x", now=NOW)
