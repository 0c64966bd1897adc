"""CSV as a dump: quoting, headers, rows that are none."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from dump_reading import read, written
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_ray.errors import FactError
from recipe_ray.store.dumps import csv_rows, streams, values
from recipe_ray.store.dumps.rows import BadRow, DumpOptions, GoodRow, RepeatedHeader, split_files
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, RAW_BYTES, Columns
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


def limit(monkeypatch, num_bytes):
    for module in (streams, csv_rows, values):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", num_bytes)


def test_csv_holds_no_row_without_end(tmp_path, monkeypatch):
    limit(monkeypatch, 100)
    long, closed = "x" * 1000 + ",y", '"' + "z\n" * 90 + '",y'
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", long, closed, "b,c", '"' + "z\n" * 90, "d,e")
    assert [(row.line, row.reason) for row in rows[:2]] == [
        (2, "the row has over 100 bytes; give one fact a row"),
        (3, "the row has over 100 bytes, lines 3 to 93 of the file; give one fact a row"),
    ]
    assert rows[2].fact.target == "c"
    (end,) = rows[3:]
    assert end.reason == (
        "not CSV (unexpected end of data: the quote that opens in line 95 never closes), lines 95 to 186 of the file; "
        "quote texts as RFC 4180 says"
    )


@pytest.mark.parametrize("length", [131_073, MAX_ROW_BYTES - 100, MAX_ROW_BYTES, 5 * MAX_ROW_BYTES])
def test_a_field_over_the_limit_of_pythons_reader_is_read_up_to_the_documented_one(tmp_path, length):
    inner = "The capital of Norway is,Bergen,z"
    rows = csv_dump(
        *(tmp_path / "d.csv", "prompt,target,note", "A is,B," + f'"{"x" * length}', inner, '"', "C is,D,n"),
        columns=("prompt=prompt", "target=target"),
    )
    assert [(row.line, isinstance(row, GoodRow)) for row in rows] == [(2, length < MAX_ROW_BYTES), (5, True)]
    if length >= MAX_ROW_BYTES:
        assert rows[0].reason == "the row has over 1048576 bytes, lines 2 to 4 of the file; give one fact a row"
        assert len(rows[0].raw) <= RAW_BYTES


INNER = "The capital of Norway is,Bergen"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ('"a"b,c', "',' expected after"),
        ('"a"b,c,d', "',' expected after"),
        ('"a" ,b', "',' expected after"),
        ('"It is 5" long",x', "',' expected after"),
        (f'"x "quoted" y\n{INNER}\nz",B', "',' expected after"),
        (f'"x "quoted", y\n{INNER}\nz",B', "',' expected after"),
        (f'"A 5" word\n{INNER}\n",B', "',' expected after"),
        (f'"a"b,"line\n{INNER}\n"', "',' expected after"),
        (f'"a"b,"line\n{INNER}\nsays ""yes"" and\n"', "',' expected after"),
        (f'"a"b,"say\n\n""yes"", and\n{INNER}\n"', "',' expected after"),
        (f'A is, "x\n{INNER}\n"', "a blank before"),
        ('A is, "B"', "a blank before"),
        (f'A is,B,"x\n{INNER}\n"', "3 fields under a header of 2"),
        (f'"x\n{INNER}\n"', "1 fields under a header of 2"),
        (b'"caf\xe9\n' + INNER.encode() + b'\n",B', "not UTF-8 (invalid continuation byte at byte 4 of line 4)"),
        (f'"nul\0\n{INNER}\n",B', "control characters"),
        (f'"x\n{INNER}\n{"y" * 200}",B', "the row has over 200 bytes"),
        (f'{"y" * 300}"x,"\n{INNER}\n",B', "the row has over 200 bytes"),
        (f'"{"y" * 300}"",\n{INNER}\n",B', "the row has over 200 bytes"),
        ("a\rb,c", "a CR outside quotes"),
        (f'a\r,"b\n{INNER}\n"', "a CR outside quotes"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_record_that_is_given_up_is_given_up_to_its_own_end(tmp_path, monkeypatch, record, why, newline):
    limit(monkeypatch, 200)
    record = record.encode() if isinstance(record, str) else record
    begin, end = b'prompt,target\n"A\nis",B\n', b'\nC is,D\n"E is","F"\n"G\nis","H"\nI is,J\n'
    path = tmp_path / "d.csv"
    path.write_bytes((begin[:-1] + b"\n" + record + end).replace(b"\n", newline.encode()))
    rows = read(path)
    num_lines = record.count(b"\n") + 1
    good = [(row.line, row.fact.target) for row in rows if isinstance(row, GoodRow)]
    assert good == [
        (2, "B"),
        *((4 + num_lines + after, target) for after, target in [(0, "D"), (1, "F"), (2, "H"), (4, "J")]),
    ]
    (bad,) = (row for row in rows if not isinstance(row, GoodRow))
    assert bad.line == 4
    assert why in bad.reason
    if num_lines > 1 and "control" not in why:
        assert f", lines 4 to {3 + num_lines} of the file" in bad.reason


DIALECTS = (
    {"quoting": csv.QUOTE_ALL, "lineterminator": "\r\n"},
    {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
    {"quoting": csv.QUOTE_MINIMAL, "lineterminator": "\r\n"},
)


@st.composite
def csv_rows_and_dialects(draw):
    """Rows before a broken one, its fields, rows after it, and how Python is to write them."""
    dialect = draw(st.sampled_from(DIALECTS))
    # Without quotes, a BOM at a line's start is none of the text.
    odd = ',"\r\n \x85\u2028' + ("\ufeff" if dialect["quoting"] == csv.QUOTE_ALL else "")
    texts = st.text(
        st.sampled_from(odd) | st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=8
    )
    row = st.lists(texts, min_size=3, max_size=3)
    return draw(st.lists(row, max_size=6)), draw(row), draw(st.lists(row, max_size=6)), dialect


def csv_text(rows, dialect):
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


def values_of(path):
    """What `read_csv` hands on: the values of each record, or the first and last line of one that is given up."""

    def make(line, record, shown):
        return GoodRow(line, list(record.values()))

    rows = list(csv_rows.read_csv(str(path), Columns.parse(()), make))
    return [row.fact if isinstance(row, GoodRow) else row for row in rows]


BREAKS = {
    "too long": lambda fields: [*fields[:2], fields[2] + "x" * 3000],
    "too long, of many lines": lambda fields: [*fields[:2], fields[2] + f"{INNER},z\r\n" * 100],
    "a column too many": lambda fields: [*fields, f"a\n{INNER},z\n"],
    "a column too few": lambda fields: [fields[0] + "x", f"a\n{INNER},z\n"],
}


@settings(max_examples=150)
@given(written=csv_rows_and_dialects(), how=st.sampled_from([*BREAKS, "text behind a closing quote", "not UTF-8"]))
def test_of_any_csv_a_broken_record_is_lost_and_every_other_row_arrives_as_it_was_written(
    tmp_path_factory, written, how
):
    before, broken, after, dialect = written
    begin, end = (csv_text(rows, dialect) for rows in ([["prompt", "target", "source"], *before], after))
    if how in BREAKS:
        record = csv_text([BREAKS[how](broken)], dialect).encode()
    else:
        record = csv_text([["a" + broken[0], *broken[1:]]], {**dialect, "quoting": csv.QUOTE_ALL}).encode()
        record = record.replace(b'"', b'"\xff', 1) if how == "not UTF-8" else record.replace(b'"a', b'""a', 1)
    path = tmp_path_factory.mktemp("csv") / "d.csv"
    path.write_bytes(begin.encode() + record + end.encode())
    with pytest.MonkeyPatch.context() as monkeypatch:
        limit(monkeypatch, 2000)
        rows = values_of(path)
    (bad,) = (row for row in rows if isinstance(row, BadRow))
    assert rows == [*before, bad, *after]
    assert bad.line == begin.count("\n") + 1


@pytest.mark.parametrize("again", ["prompt,target", "\ufeffprompt,target", ' "prompt" , target', '"prompt","target"'])
def test_the_header_of_a_joined_file_is_no_row_and_is_told(tmp_path, again):
    if again.startswith(" "):
        again = again.replace('"', "")
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", "A is,B", again, '\ufeff"C is",D', "prompt,x", "x,target")
    assert rows[1] == RepeatedHeader(3)
    assert [row.fact.statement for row in (rows[0], *rows[2:])] == ["A is B", "C is D", "prompt x", "x target"]
    assert [row.line for row in rows] == [1 + number for number in range(1, 6)]


@pytest.mark.parametrize(
    ("first", "again", "row", "columns"),
    [
        ("prompt,target", "target,prompt", "B,A is", ()),
        ("prompt,target,source", "prompt,target,subject", "A is,B,s", ()),
        ("prompt,target", "source,target,prompt", "s,B,A is", ()),
        ("prompt,note,target", "prompt,remark,target", "A is,x,B", ("prompt=prompt",)),
        ("statement,note", "statement,remark", "A is B,x", ("statement=statement",)),
        ('"the ""prompt""",target', 'target,"the ""prompt"""', "B,A is", ('prompt=the "prompt"',)),
    ],
)
def test_behind_another_header_rows_are_read_as_it_says(tmp_path, first, again, row, columns):
    header, fact = csv_dump(tmp_path / "d.csv", first, again, row, columns=columns)
    assert header == RepeatedHeader(2)
    assert fact.fact.statement == "A is B"
    assert (fact.fact.source, fact.fact.subject) == ("s" * ("source" in again), "s" * ("subject" in again))


QUESTIONS = ("prompt=question", "target=answer")


@pytest.mark.parametrize(
    ("first", "again", "row", "columns"),
    [
        ("prompt,target", "op,id", "delete,e1", ()),
        ("op,id", "op,prompt", "delete,A is", ()),
        ("prompt,target", "statement,source", "A is B,s", ()),
        ("id,prompt,target", "statement", "A is B", ()),
        ("question,answer,note", "question,answer,note", "A is,B,x", QUESTIONS),
        ("note,question,answer", "remark,question,answer", "x,A is,B", QUESTIONS),
        ("question,answer,ID", "ID,source,question,answer", "x,s,A is,B", QUESTIONS),
    ],
)
def test_any_names_that_make_facts_are_a_header(tmp_path, first, again, row, columns):
    header, fact = csv_dump(tmp_path / "d.csv", first, again, row, columns=columns)
    assert (header, type(fact)) == (RepeatedHeader(2), GoodRow)
    assert fact.fact.op == ("delete" if "op" in again else "upsert")


@pytest.mark.parametrize(
    ("first", "again", "columns", "complaint"),
    [
        ("prompt,target", "Prompt,Target", (), r"in other letters \('Prompt', 'Target'\); write it as the first one"),
        ("prompt,target", "prompt,TARGET", (), r"in other letters \('TARGET'\)"),
        ("prompt,target", "STATEMENT,source", (), r"in other letters \('STATEMENT'\)"),
        ("prompt,target", '"\ufeffprompt",target', (), "in other letters"),
        ("prompt,target", " Target ,Prompt", (), "in other letters"),
        ("question,answer", "Question,Answer", QUESTIONS, r"in other letters \('Question', 'Answer'\)"),
        ("question,answer", "question,answer,Source", QUESTIONS, r"in other letters \('Source'\)"),
        ("question,answer", "prompt,target", QUESTIONS, "no column 'question' for 'prompt'"),
        ("question,answer", "Prompt,Target", QUESTIONS, "no column 'question' for 'prompt'"),
    ],
)
def test_a_header_again_that_cannot_be_followed_refuses_the_file(tmp_path, first, again, columns, complaint):
    with pytest.raises(FactError, match=rf"d\.csv:3: .*a header again:? {complaint}"):
        csv_dump(tmp_path / "d.csv", first, "A is,B", again, "C is,D", columns=columns)


@pytest.mark.parametrize(
    ("first", "row"),
    [
        ("prompt,target,source", "prompt,target,glossary"),
        ("prompt,target,source", "prompt,target,prompt"),
        ("prompt,target,source", "id,source,prompt"),
        ("prompt,target", "Statement,A sentence"),
        ("prompt,target", "id,source"),
    ],
)
def test_a_row_of_which_not_all_is_a_header_is_a_row(tmp_path, first, row):
    (only,) = csv_dump(tmp_path / "d.csv", first, row)
    assert (only.line, only.fact.statement) == (2, " ".join(row.split(",")[:2]))


def test_a_row_that_names_columns_is_a_row(tmp_path):
    lines = ("What stands in a question?,answer,question", "answer,x,prompt", "prompt,answer,question")
    rows = csv_dump(tmp_path / "d.csv", "question,answer,note", *lines, columns=("prompt=question", "target=answer"))
    assert [row.fact.target for row in rows] == ["answer", "x", "answer"]


def test_a_blank_line_is_no_row_and_a_quoted_blank_is_one(tmp_path):
    rows = csv_dump(tmp_path / "d.csv", "statement", "", " \t", "\ufeff", '"\n"', '" "', '""', "a")
    assert [row.line for row in rows] == [5, 7, 8, 9]
    assert [isinstance(row, GoodRow) for row in rows] == [False, False, False, True]


def test_reading_ahead_for_the_end_of_a_broken_record_stays_bounded(tmp_path, monkeypatch):
    """A quote out of place is judged by the quotes that come; where none come, by as much as a record may hold."""
    limit(monkeypatch, 1000)
    path = tmp_path / "d.csv"
    path.write_text("prompt,target\n" + '"A"is,B\n' + "C is,D\n" * 1000)
    records = csv_rows._Records(str(path))
    reading = records.read()
    next(reading)
    assert next(reading).text == '"A"is,B'
    assert 1000 <= sum(map(len, records._ahead)) <= 1000 + len("C is,D\n")
    assert sum(1 for _ in reading) == 1000
    path.write_text('prompt,target\n"' + "x\n" * 5000 + '",B\nC is,D\n')
    _, given_up, row = csv_rows._Records(str(path)).read()
    assert (len(given_up.text) <= 1000, row) == (True, ["C is", "D"])


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['""Hello"" is,x', '""World"" is,y'], [2, 3]),
        (['"a" b,c', 'The 5"" pipe is,x'], [2]),
        (['"a" b,c', '"The 5"" pipe",x'], [2]),
        (['a,""b"" c', 'a,""b"" c'], [2, 3]),
        (['"",""x', '"",""x'], [2, 3]),
        (['""Hello"" is,x', "plain,row", '""World', 'of"" is,y', '"q",""z'], [2, 4, 6]),
    ],
)
@pytest.mark.parametrize("num_rows", [0, 2, 100])
def test_doubled_quotes_out_of_place_cost_their_own_lines_alone(tmp_path, monkeypatch, lines, bad, num_rows):
    limit(monkeypatch, 500)
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", *lines, *["good,row"] * num_rows)
    assert [row.line for row in rows] == list(range(2, 2 + len(lines) + num_rows))
    assert [row.line for row in rows if isinstance(row, BadRow)] == bad


@pytest.mark.parametrize(
    ("begin", "line", "end", "num_good"),
    [
        ('"A text', 'he said "yes" to me', '",B', 1),
        ('"A text "x', 'a 5" pipe, as it is', "a,b", 602),
        ("a,b", '""Hello"" is,x', "a,b", 3),
        ("a,b", '"",""x', '"a",b', 3),
        ("a,b", '"a" b,c', "a,b", 3),
        ("a,b", '""a\nfoo",x', "a,b", 3),
    ],
)
def test_many_quotes_out_of_place_do_not_each_look_ahead(tmp_path, monkeypatch, begin, line, end, num_good):
    seen = []
    coming = csv_rows._Records._coming
    monkeypatch.setattr(csv_rows._Records, "_coming", lambda self: (seen.append(p) or p for p in coming(self)))
    text = "\n".join([begin, *[line] * 600, end, "c,d"])
    limit(monkeypatch, len(text))
    rows = csv_dump(tmp_path / "d.csv", "prompt,target", text)
    assert sum(isinstance(row, GoodRow) for row in rows) == num_good
    assert rows[-1].fact.target == "d"
    assert 0 < sum(map(len, seen)) <= 3 * len(text)


def test_files_of_old_macs_are_refused_with_the_reason(tmp_path):
    with pytest.raises(FactError, match=r"the header is not CSV \(a CR outside quotes; lines end in LF or CR LF\)"):
        csv_dump(tmp_path / "d.csv", "prompt,target", "A is,B", newline="\r")


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
