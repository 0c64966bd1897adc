"""CSV as a dump: quoting, headers, rows that are none."""

import json
from datetime import UTC, datetime

import pytest
from dump_reading import read, written

from recipe_ray.errors import FactError
from recipe_ray.store.dumps import csv_rows, streams, values
from recipe_ray.store.dumps.rows import DumpOptions, GoodRow, split_files
from recipe_ray.store.dumps.values import MAX_ROW_BYTES
from recipe_ray.store.files import list_files


def csv_dump(path, *lines, newline="\n", **options):
    path.write_bytes(newline.join((*lines, "")).encode())
    return read(path, **options)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_is_read_as_rfc_4180_has_it(tmp_path, newline):
    rows = csv_dump(
        tmp_path / "d.csv",
        "\ufeffprompt, target ,id,updated_at,source",
        '"The capital of Ruritania is",Strelsau,7,2025-01-31,',
        "",
        '"It says ""no"", and',
        'then, in a second line,","yes",,,"a,b"',
        '5" is,13 cm,,"",',
        newline=newline,
    )
    assert [row.line for row in rows] == [2, 4, 6]
    first, quoted, inches = (row.fact for row in rows)
    assert (first.fact_id, first.target, first.updated_at) == ("7", "Strelsau", datetime(2025, 1, 31, tzinfo=UTC))
    assert quoted.prompt == 'It says "no", and then, in a second line,'
    assert (quoted.target, quoted.source, quoted.updated_at) == ("yes", "a,b", None)
    assert inches.prompt == '5" is'


def test_bad_rows_of_csv_are_shown_as_objects_to_repair(tmp_path):
    rows = csv_dump(
        tmp_path / "d.csv",
        "prompt,target",
        "a",
        "a,b,c",
        '"a"b,c',
        "a,",
        '"a\0",b',
        "good,row",
    )
    assert [(row.line, row.reason, json.loads(row.raw)) for row in rows[:-1]] == [
        (2, "1 fields under a header of 2; quote texts that hold commas", {"prompt": "a"}),
        (
            3,
            "3 fields under a header of 2; quote texts that hold commas",
            {"prompt": "a", "target": "b", "fields beyond the header": ["c"]},
        ),
        (4, "not CSV (',' expected after '\"'); quote texts as RFC 4180 says", {"csv": '"a"b,c'}),
        (
            5,
            "'target' is empty; give the text the edited model should give, or a whole 'statement'",
            {"prompt": "a", "target": ""},
        ),
        (6, "'prompt' holds control characters; remove them", {"prompt": "a\0", "target": "b"}),
    ]
    assert rows[-1].fact.prompt == "good"


def test_csv_that_is_not_utf8_costs_its_row_alone(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'prompt,target\n"two\nlines of caf\xe9",x\nc,d\n')
    bad, good = read(path)
    assert (bad.line, good.line, good.fact.target) == (2, 4, "d")
    assert "not UTF-8 (invalid continuation byte at byte 12 of line 3)" in bad.reason
    assert json.loads(bad.raw) == {"csv": '"two\nlines of caf\\xe9",x'}
    (again,) = read(written(tmp_path / "again.jsonl", bad.raw))
    assert "unknown field 'csv'" in again.reason


def test_a_quote_left_open_costs_the_rows_up_to_the_next_quote_and_says_so(tmp_path):
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", '"a,b', "c,d", 'e,"f"', "g,h")
    assert [(row.line, isinstance(row, GoodRow)) for row in rows] == [(2, False), (5, True)]
    assert "lines 2 to 4 of the file" in rows[0].reason
    assert json.loads(rows[0].raw) == {"csv": '"a,b\nc,d\ne,"f"'}
    (end,) = csv_dump(tmp_path / "e.csv", "prompt,target", '"a,b', "c,d")
    assert "unexpected end of data" in end.reason


def test_csv_holds_no_row_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(csv_rows, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(values, "MAX_ROW_BYTES", 100)
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", "x" * 1000 + ",y", '"' + "z\n" * 90, "b,c")
    assert rows[0].reason == rows[1].reason == "the row has over 100 bytes; give one fact a row"
    assert (rows[0].line, rows[1].line) == (2, 3)
    assert rows[-1].fact.target == "c"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (
            b"prompt,answer",
            "no columns 'prompt' and 'target', nor 'statement' .*; it has 'prompt', 'answer'; .*--columns",
        ),
        (b"id", "no columns 'prompt' and 'target'"),
        (b"statement,statement", "column 'statement' stands there twice"),
        (b"statement,colour,size", "columns 'colour', 'size' are no fields .*--columns FIELD=COLUMN"),
        (b'"statement', "the header is not CSV"),
        (b"caf\xe9", "the header is not UTF-8"),
        (b"s" * (MAX_ROW_BYTES + 1), "the header is the row has over"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_before_anything_is_read(tmp_path, header, complaint):
    path = written(tmp_path / "d.csv", b"\n\n" + header + b"\nx,y\n")
    with pytest.raises(FactError, match=rf"d\.csv.*: {complaint}"):
        split_files(list_files(str(path)), DumpOptions())


def test_named_columns_leave_others_out_and_must_be_there(tmp_path):
    lines = ("question,colour,target", "a,red,b", "c,blue,")
    good, bad = csv_dump(tmp_path / "d.csv", *lines, columns=("prompt=question",))
    assert (good.fact.prompt, good.fact.target) == ("a", "b")
    assert json.loads(bad.raw) == {"question": "c", "target": ""}
    # What is shown is read again with the same columns.
    again = written(tmp_path / "again.jsonl", bad.raw.replace('""', '"d"'))
    assert read(again, columns=("prompt=question",))[0].fact.target == "d"
    with pytest.raises(FactError, match=r"no column 'query' for 'prompt'; it has 'question', .*--columns prompt=query"):
        csv_dump(tmp_path / "d.csv", *lines, columns=("prompt=query",))


def test_a_dump_of_deletes_needs_no_texts(tmp_path):
    (row,) = csv_dump(tmp_path / "d.csv", "op,id", "delete,e1")
    assert (row.fact.op, row.fact.fact_id) == ("delete", "e1")
