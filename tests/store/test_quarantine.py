import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recipe_ray.errors import OutputError, TableError
from recipe_ray.store import quarantine as module
from recipe_ray.store.delta import create_delta, open_delta
from recipe_ray.store.files import read_text
from recipe_ray.store.quarantine import (
    QUARANTINE_SCHEMA,
    BadLine,
    clear_quarantine,
    export_quarantine,
    quarantine,
    quarantine_uri,
    read_quarantine,
)
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINES = [
    BadLine(file="dump.jsonl", line=7, reason="'target' is empty", raw='{"prompt": "x"}'),
    BadLine(file="dump.jsonl", line=3, reason="not JSON", raw="{"),
]


def numbered(start, stop, text="row"):
    return [BadLine(file="d", line=number, reason="r", raw=f"{text} {number}") for number in range(start, stop)]


def add(table, lines, dump_hash, ingested_at=NOW):
    assert quarantine(str(table), lines, dump_hash=dump_hash, ingested_at=ingested_at)


def bytes_below(table):
    return b"".join(path.read_bytes() for path in sorted(Path(table).rglob("*")) if path.is_file())


def test_bad_lines_are_kept_with_file_line_and_reason(tmp_path):
    assert quarantine(str(tmp_path), LINES, dump_hash="one", ingested_at=NOW)
    assert read_quarantine(str(tmp_path)).to_pylist() == [
        {"file": "dump.jsonl", "line": 3, "reason": "not JSON", "raw": "{", "dump_hash": "one", "ingested_at": NOW},
        {
            "file": "dump.jsonl",
            "line": 7,
            "reason": "'target' is empty",
            "raw": '{"prompt": "x"}',
            "dump_hash": "one",
            "ingested_at": NOW,
        },
    ]


def test_the_same_dump_is_kept_once_and_another_is_added(tmp_path):
    assert quarantine(str(tmp_path), LINES, dump_hash="one", ingested_at=NOW)
    assert not quarantine(str(tmp_path), LINES, dump_hash="one", ingested_at=NOW)
    assert len(read_quarantine(str(tmp_path))) == 2
    assert quarantine(str(tmp_path), LINES[:1], dump_hash="two", ingested_at=NOW)
    assert read_quarantine(str(tmp_path))["dump_hash"].to_pylist() == ["one", "one", "two"]


def test_rows_of_a_dump_that_is_there_are_not_even_taken(tmp_path):
    add(tmp_path, LINES, "one")

    def rows():
        pytest.fail("a row was taken")
        yield LINES[0]

    assert not quarantine(str(tmp_path), rows(), dump_hash="one", ingested_at=NOW)


def test_where_nothing_was_bad_there_is_nothing(tmp_path):
    assert len(read_quarantine(str(tmp_path / "facts"))) == 0
    assert not quarantine(str(tmp_path / "facts"), [], dump_hash="one", ingested_at=NOW)
    assert export_quarantine(str(tmp_path / "facts"), str(tmp_path / "bad.jsonl")) == 0
    assert clear_quarantine(str(tmp_path / "facts"), dump_hash=None) == 0
    assert not (tmp_path / "facts").exists()


def test_the_quarantine_is_no_part_of_the_table(tmp_path, identity):
    FactTable.create_or_open(str(tmp_path), identity)
    quarantine(str(tmp_path), LINES, dump_hash="one", ingested_at=NOW)
    assert len(read_snapshot(str(tmp_path)).facts) == 0


def test_many_rows_are_written_as_they_come_and_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_ROWS", 10)
    folder = Path(quarantine_uri(str(tmp_path)))

    def rows():
        for row in numbered(0, 35):
            # What came before is in files, and does not count yet.
            assert len(list(folder.glob("*.parquet"))) == row.line // 10
            assert len(read_quarantine(str(tmp_path))) == 0
            yield row

    add(tmp_path, rows(), "one")
    assert read_quarantine(str(tmp_path))["line"].to_pylist() == list(range(35))


def test_long_rows_fill_a_file_before_many_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_BYTES", 1000)
    add(tmp_path, numbered(0, 4, "x" * 600), "one")
    assert len(list(Path(quarantine_uri(str(tmp_path))).glob("*.parquet"))) == 2


def test_an_export_is_the_texts_line_by_line_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_ROWS", 2)
    add(tmp_path, numbered(0, 5), "zero")
    add(tmp_path, LINES, "later", NOW + timedelta(seconds=1))
    everything, one = tmp_path / "all.jsonl", tmp_path / "deep" / "one.jsonl"
    assert export_quarantine(str(tmp_path), str(everything)) == 7
    assert everything.read_text().splitlines() == [*(f"row {number}" for number in range(5)), '{"prompt": "x"}', "{"]
    assert export_quarantine(str(tmp_path), str(one), dump_hash="later") == 2
    assert one.read_text() == '{"prompt": "x"}\n{\n'


def test_an_export_has_one_line_a_row_and_none_without_text(tmp_path):
    raws = ['{"prompt":\n"x"}', None, "", "line\u2028separator\r", "法国"]
    add(tmp_path, [BadLine(file="d", line=1, reason="r", raw=raw) for raw in raws], "one")
    assert read_quarantine(str(tmp_path))["raw"].to_pylist().count("") == 2
    path = tmp_path / "bad.jsonl"
    assert export_quarantine(str(tmp_path), str(path)) == 3
    assert path.read_bytes().decode().split("\n") == ['{"prompt": "x"}', "line\u2028separator\r", "法国", ""]


def test_an_export_overwrites_nothing(tmp_path):
    add(tmp_path, LINES, "one")
    (tmp_path / "bad.jsonl").write_text("repaired")
    with pytest.raises(OutputError, match=r"bad\.jsonl: exists already"):
        export_quarantine(str(tmp_path), str(tmp_path / "bad.jsonl"))
    assert (tmp_path / "bad.jsonl").read_text() == "repaired"


def test_an_export_that_fails_leaves_no_part_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_ROWS", 1)
    add(tmp_path, LINES, "one")
    sorted(Path(quarantine_uri(str(tmp_path))).glob("*.parquet"))[-1].unlink()
    with pytest.raises(TableError):
        export_quarantine(str(tmp_path), str(tmp_path / "bad.jsonl"))
    assert not (tmp_path / "bad.jsonl").exists()


def test_what_is_cleared_is_gone_from_every_version_and_the_rest_stays(tmp_path):
    for name in ("one", "it's", "three"):
        add(tmp_path, [BadLine(file="d", line=1, reason=f"bad {name}", raw=f"secret of {name}")], name)
    left_by_a_killed_ingest = Path(quarantine_uri(str(tmp_path))) / "part-x.parquet"
    left_by_a_killed_ingest.write_bytes(b"secret of it's")
    assert clear_quarantine(str(tmp_path), dump_hash="it's") == 1
    assert read_quarantine(str(tmp_path))["dump_hash"].to_pylist() == ["one", "three"]
    assert not left_by_a_killed_ingest.exists()
    assert len(list(Path(quarantine_uri(str(tmp_path))).glob("*.parquet"))) == 2
    assert len(list(Path(quarantine_uri(str(tmp_path)), "_delta_log").glob("*.json"))) == 1
    # Cleared rows do not come back with their dump; others' once is kept too.
    for name in ("one", "it's"):
        assert not quarantine(str(tmp_path), LINES, dump_hash=name, ingested_at=NOW)
    assert clear_quarantine(str(tmp_path), dump_hash="never seen") == 0
    assert clear_quarantine(str(tmp_path), dump_hash=None) == 2
    assert len(read_quarantine(str(tmp_path))) == 0
    assert not list(Path(quarantine_uri(str(tmp_path))).glob("*.parquet"))
    add(tmp_path, LINES, "four")
    assert len(read_quarantine(str(tmp_path))) == 2


def test_a_quarantine_made_before_rows_could_be_cleared_can_be(tmp_path):
    create_delta(quarantine_uri(str(tmp_path)), QUARANTINE_SCHEMA, [], {})
    add(tmp_path, LINES, "one")
    assert clear_quarantine(str(tmp_path), dump_hash="one") == 2
    assert len(list(Path(quarantine_uri(str(tmp_path)), "_delta_log").glob("*.json"))) == 1
    assert open_delta(quarantine_uri(str(tmp_path))).transaction_version("one") == 1


def test_no_text_of_a_row_gets_into_the_log(tmp_path):
    add(tmp_path, [BadLine(file="d", line=1, reason="reason", raw="secret")], "one")
    clear_quarantine(str(tmp_path), dump_hash="two")
    log = bytes_below(Path(quarantine_uri(str(tmp_path)), "_delta_log"))
    assert b"secret" not in log
    assert b"reason" in bytes_below(tmp_path)  # of the schema, so that this looks where it should


def test_quarantine_on_s3(s3):
    table = f"{s3}/facts-table"
    add(table, numbered(0, 3), "one")
    add(table, LINES, "two", NOW + timedelta(seconds=1))
    assert export_quarantine(table, f"{s3}/repair/bad.jsonl") == 5
    assert json.loads(read_text(f"{s3}/repair/bad.jsonl").splitlines()[3]) == {"prompt": "x"}
    with pytest.raises(OutputError, match="exists already"):
        export_quarantine(table, f"{s3}/repair/bad.jsonl")
    assert clear_quarantine(table, dump_hash="one") == 3
    assert read_quarantine(table)["dump_hash"].to_pylist() == ["two", "two"]
