"""Parquet as a dump: row groups as splits, columns of any text type, damage."""

import json
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recipe_ray.datasets.reading import read_records
from recipe_ray.errors import FactError
from recipe_ray.store.dumps import parquet_rows
from recipe_ray.store.dumps.rows import BadRow, DumpOptions, GoodRow, read_split, split_files
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, Columns
from recipe_ray.store.files import list_files

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def written(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(path, split_bytes=64 * 2**20, **options):
    options = DumpOptions(**options)
    splits = split_files(list_files(str(path)), options, split_bytes=split_bytes)
    return [row for split in splits for row in read_split(split, options, now=NOW)]


def texts(*values, kind=None):
    return pa.array(values, kind or pa.string())


@pytest.mark.parametrize("split_bytes", [1, 300, 2**20])
def test_row_groups_are_divided_among_splits_and_none_is_lost(tmp_path, split_bytes):
    names = [f"statement {number}" for number in range(25)]
    path = written(tmp_path / "d.parquet", {"statement": names}, row_group_size=4, compression="none")
    splits = split_files(list_files(str(path)), DumpOptions(), split_bytes=split_bytes)
    assert [(split.start, split.end) for split in splits] == {
        1: [(group, group + 1) for group in range(7)],
        300: [(0, 2), (2, 4), (4, 6), (6, 7)],
        2**20: [(0, 7)],
    }[split_bytes]
    assert [split.part for split in splits] == list(range(len(splits)))
    assert [row.fact.statement for split in splits for row in read_split(split, DumpOptions(), now=NOW)] == names
    reading = read_split(splits[0], DumpOptions(), now=NOW)
    num_rows = sum(len(names[4 * group : 4 * group + 4]) for group in range(splits[0].end))
    assert [next(reading).line for _ in range(num_rows)] == list(range(1, num_rows + 1))
    with pytest.raises(StopIteration) as end:
        next(reading)
    assert end.value.value == num_rows


def test_a_table_without_rows_has_none(tmp_path):
    assert read(written(tmp_path / "d.parquet", {"statement": texts()})) == []
    assert read(written(tmp_path / "e.pq", {"statement": texts()}, row_group_size=1)) == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
        pa.string_view(),
    ],
    ids=str,
)
def test_columns_of_every_text_type_give_the_same(tmp_path, kind):
    columns = {
        "prompt": texts("a", "b", "c").cast(kind),
        "target": texts("x", None, "x").cast(kind),
        "subject": texts(None, None, "s").cast(kind),
    }
    one, bad, three = read(written(tmp_path / "d.parquet", columns))
    assert (one.fact.statement, one.fact.subject, three.fact.subject) == ("a x", "", "s")
    assert (bad.line, json.loads(bad.raw)) == (2, {"prompt": "b", "target": None, "subject": None})
    assert bad.reason.startswith("'target' is empty")


def test_ids_may_be_numbers_and_a_column_may_be_empty(tmp_path):
    columns = {"id": pa.array([7, None]), "statement": texts("a", "b"), "source": pa.nulls(2)}
    one, two = read(written(tmp_path / "d.parquet", columns))
    assert one.fact.fact_id == "7"
    assert len(two.fact.fact_id) == 32
    assert one.fact.source == ""


MOMENT = datetime(2025, 1, 31, 8, 0, 0, 123456)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([MOMENT], pa.timestamp("us")), MOMENT),
        (pa.array([MOMENT], pa.timestamp("us", tz="UTC")), MOMENT),
        (pa.array([MOMENT], pa.timestamp("us", tz="America/New_York")), MOMENT),  # Arrow keeps UTC under any zone
        (pa.array(np.array(["2025-01-31T08:00:00.123456789"], "M8[ns]")), MOMENT),
        (pa.array([1738310400123], pa.timestamp("ms")), MOMENT.replace(microsecond=123000)),
        (pa.array([date(2025, 1, 31)], pa.date32()), datetime(2025, 1, 31)),
        (pa.array([date(2025, 1, 31)], pa.date64()), datetime(2025, 1, 31)),
        (pa.array([MOMENT.replace(microsecond=0)], pa.timestamp("s", tz="Asia/Tokyo")), MOMENT.replace(microsecond=0)),
        (pa.array([MOMENT], pa.timestamp("us")).dictionary_encode(), MOMENT),
        (texts("2025-01-31T09:00:00.123456+01:00"), MOMENT),
        (pa.array([None], pa.timestamp("us")), None),
        (texts(""), None),
    ],
)
@pytest.mark.parametrize("name", ["updated_at", "expires_at"])
def test_times_are_timestamps_dates_or_text(tmp_path, name, column, expected):
    (row,) = read(written(tmp_path / "d.parquet", {"statement": texts("a"), name: column}))
    assert getattr(row.fact, name) == (expected and expected.replace(tzinfo=UTC))


def test_times_that_cannot_be_cost_their_row_alone(tmp_path):
    times = pa.array([10**17 * 4, 0, 1893456000000000], pa.timestamp("us"))
    far, good, future = read(written(tmp_path / "d.parquet", {"statement": texts("a", "b", "c"), "updated_at": times}))
    assert far.reason.startswith("'updated_at' is '400000000000000000 microseconds after 1970'; give ISO 8601")
    assert good.fact.updated_at == datetime(1970, 1, 1, tzinfo=UTC)
    assert future.reason.startswith("'updated_at' is 2030-01-01T00:00:00+00:00, more than 3600 s after the present")
    assert json.loads(future.raw) == {"statement": "c", "updated_at": "2030-01-01 00:00:00+00:00"}


MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
TIME_KINDS = [
    *(pa.timestamp(unit, tz) for unit in ("s", "ms", "us", "ns") for tz in (None, "UTC", "Asia/Tokyo")),
    pa.date32(),
    pa.date64(),
]


@given(st.lists(MOMENTS | st.none(), min_size=1, max_size=4), st.sampled_from(TIME_KINDS), st.booleans())
@example([datetime(9999, 12, 31), datetime(1, 1, 1), None], pa.timestamp("us"), True)
@example([datetime(9999, 12, 31, 23, 59, 59, 999999)], pa.timestamp("us", "Asia/Tokyo"), False)
def test_every_time_of_every_type_arrives_as_it_is_through_both_readers(tmp_path_factory, moments, kind, int96):
    unit = kind.unit if pa.types.is_timestamp(kind) else "day"
    if unit == "ns":
        moments = [moment and moment.replace(year=1700 + moment.year % 500) for moment in moments]
    cut = {"s": {"microsecond": 0}, "ms": None, "day": {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}}.get(
        unit, {}
    )
    moments = [
        moment and moment.replace(**({"microsecond": moment.microsecond // 1000 * 1000} if cut is None else cut))
        for moment in moments
    ]
    column = pa.array(moments, pa.timestamp("us", getattr(kind, "tz", None))).cast(kind)
    path = tmp_path_factory.mktemp("times") / "d.parquet"
    texts_ = [f"s{number}" for number in range(len(moments))]
    written(path, {"statement": texts_, "expires_at": column}, use_deprecated_int96_timestamps=int96)
    expected = [moment and moment.replace(tzinfo=UTC) for moment in moments]
    assert [row.fact.expires_at for row in read(path)] == expected
    assert [record["expires_at"] for _, record in read_records(str(path))] == expected


def test_times_of_96_bits_with_nanoseconds_and_beyond_all_calendars(tmp_path):
    """Arrow reads them as nanoseconds, in which 9999 is 1816, or as microseconds, which begin again too."""
    seconds = [253402214400, 253402300800, 10**13, 10**14, -62135596801, -62135596800]
    columns = {"statement": texts(*"abcdef"), "expires_at": pa.array(seconds, pa.timestamp("s"))}
    rows = read(written(tmp_path / "d.parquet", columns, use_deprecated_int96_timestamps=True))
    assert [isinstance(row, GoodRow) for row in rows] == [True, False, False, False, False, True]
    assert (rows[0].fact.expires_at.year, rows[5].fact.expires_at.year) == (9999, 1)
    assert rows[2].reason.startswith("'expires_at' is '10000000000000000 milliseconds after 1970'; give ISO 8601")
    nanoseconds = pa.array(np.array(["2025-01-31T08:00:00.123456789"], "M8[ns]"))
    path = written(
        tmp_path / "e.parquet",
        {"statement": texts("a"), "expires_at": nanoseconds},
        use_deprecated_int96_timestamps=True,
    )
    assert read(path)[0].fact.expires_at == MOMENT.replace(tzinfo=UTC)


def test_seconds_beyond_what_microseconds_reach_cost_their_row_alone(tmp_path):
    times = pa.array([2**62, 0], pa.timestamp("ms"))
    bad, good = read(written(tmp_path / "d.parquet", {"statement": texts("a", "b"), "updated_at": times}))
    assert bad.reason.startswith(f"'updated_at' is '{2**62} milliseconds after 1970'")
    assert good.fact.updated_at == datetime(1970, 1, 1, tzinfo=UTC)


@given(
    st.lists(st.text(max_size=5) | st.none(), min_size=1, max_size=5),
    st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())]),
)
def test_every_text_of_every_type_arrives_as_it_is_through_both_readers(tmp_path_factory, values, kind):
    path = written(tmp_path_factory.mktemp("texts") / "d.parquet", {"statement": pa.array(values).cast(kind)})
    found = []
    reading = parquet_rows.read_parquet(
        *(str(path), 0, None, Columns.parse(()), lambda line, record, _: found.append(record["statement"]))
    )
    assert list(reading) == [None] * len(values)
    assert found == values == [record["statement"] for _, record in read_records(str(path))]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (
            {"prompt": texts("a"), "answer": texts("b")},
            "no columns 'prompt' and 'target', .*'prompt', 'answer'; .*--columns",
        ),
        ({"statement": texts("a"), "colour": texts("b")}, "columns 'colour' are no fields .*--columns FIELD=COLUMN"),
        ({"statement": pa.array([1])}, "column 'statement' of 'statement' is of type int64; give text"),
        ({"statement": pa.array([["a"]])}, "column 'statement' of 'statement' is of type list<.*>; give text"),
        (
            {"statement": pa.array([b"a"])},
            "column 'statement' of 'statement' is of type binary; give text; bytes tell no encoding, write the column",
        ),
        (
            {"statement": texts("a"), "source": pa.array([1]).dictionary_encode()},
            "column 'source' of 'source' is of type int64; give text",
        ),
        (
            {"statement": texts("a"), "updated_at": pa.array([1767225600])},
            "column 'updated_at' of 'updated_at' is of type int64; give timestamps or ISO 8601 text; epoch numbers",
        ),
        ({"statement": texts("a"), "id": pa.array([1.5])}, "column 'id' of 'id' is of type double; give text"),
        ({"statement": texts("a"), "id": pa.array([True])}, "column 'id' of 'id' is of type bool; give text"),
    ],
)
def test_a_table_of_another_schema_is_refused_before_anything_is_read(tmp_path, columns, complaint):
    path = written(tmp_path / "d.parquet", columns)
    with pytest.raises(FactError, match=rf"d\.parquet: {complaint}"):
        split_files(list_files(str(path)), DumpOptions())


def test_named_columns_leave_others_out(tmp_path):
    columns = {"question": texts("a", "b"), "answer": texts("x", ""), "vector": pa.array([[1.0], [2.0]])}
    named = ("prompt=question", "target=answer")
    good, bad = read(written(tmp_path / "d.parquet", columns), columns=named)
    assert good.fact.statement == "a x"
    assert json.loads(bad.raw) == {"question": "b", "answer": ""}
    with pytest.raises(FactError, match="no column 'answers' for 'target'"):
        read(tmp_path / "d.parquet", columns=("prompt=question", "target=answers"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_a_cell_that_is_not_utf8_costs_its_row_alone(tmp_path, kind):
    width = pa.binary() if kind == pa.string() else pa.large_binary()
    cells = pa.array([b"a", b"caf\xe9", None, "é".encode()], width).view(kind)
    one, bad, empty, four = read(written(tmp_path / "d.parquet", {"statement": cells, "id": texts(*"1234")}))
    assert (one.fact.statement, four.fact.statement) == ("a", "é")
    assert (bad.line, bad.reason) == (2, "not UTF-8; write texts in UTF-8")
    assert bad.raw == '{"id": "2", "statement": "caf\\udce9"}'
    assert isinstance(empty, BadRow)


def test_long_cells_are_refused_a_batch_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "_BATCH_ROWS", 2)
    long = "x" * (MAX_ROW_BYTES + 1)
    one, two, three = read(
        written(tmp_path / "d.parquet", {"statement": texts("a", "b", "c"), "source": [long, "", "s"]})
    )
    assert one.reason == f"the row has over {MAX_ROW_BYTES} bytes; give one fact a row"
    assert (two.fact.statement, three.fact.source) == ("b", "s")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-20], lambda whole: b"no parquet", lambda whole: b""])
def test_a_file_that_is_no_parquet_is_named_before_anything_is_read(tmp_path, damage):
    path = written(tmp_path / "d.parquet", {"statement": texts("a")})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FactError, match=r"d\.parquet: cannot be read as Parquet \(.*\); check that the file is whole"):
        split_files(list_files(str(path)), DumpOptions())


def test_damaged_pages_give_the_rows_before_them_and_then_an_error(tmp_path):
    names = [f"statement {number}" for number in range(2048)]
    options = {"row_group_size": 1024, "compression": "none", "write_page_checksum": True, "use_dictionary": False}
    path = written(tmp_path / "d.parquet", {"statement": names}, **options)
    path.write_bytes(path.read_bytes().replace(b"statement 1500", b"statement 15OO"))
    (split,) = split_files(list_files(str(path)), DumpOptions())
    reading = read_split(split, DumpOptions(), now=NOW)
    for name in names[:1024]:
        row = next(reading)
        assert isinstance(row, GoodRow)
        assert row.fact.statement == name
    with pytest.raises(
        FactError, match=r"d\.parquet: cannot be read as Parquet after record 1024 of row group 0 on \("
    ):
        next(reading)


def test_parquet_on_s3(s3):
    from recipe_ray.store.files import filesystem

    filesystem_, path = filesystem(f"{s3}/dump/d.parquet")
    pq.write_table(pa.table({"statement": ["a", "b"]}), path, filesystem=filesystem_, row_group_size=1)
    assert [row.fact.statement for row in read(f"{s3}/dump", split_bytes=1)] == ["a", "b"]
