from datetime import UTC, datetime

from recipe_ray.store.quarantine import BadLine, quarantine, read_quarantine
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINES = [
    BadLine(file="dump.jsonl", line=7, reason="'target' is empty", raw='{"prompt": "x"}'),
    BadLine(file="dump.jsonl", line=3, reason="not JSON", raw="{"),
]


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


def test_where_nothing_was_bad_there_is_nothing(tmp_path):
    assert len(read_quarantine(str(tmp_path / "facts"))) == 0


def test_the_quarantine_is_no_part_of_the_table(tmp_path, identity):
    FactTable.create_or_open(str(tmp_path), identity)
    quarantine(str(tmp_path), LINES, dump_hash="one", ingested_at=NOW)
    assert len(read_snapshot(str(tmp_path)).facts) == 0
