import gzip
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from recipe_ray.errors import FactError
from recipe_ray.store import dump
from recipe_ray.store.dump import collect_scan, read_facts, scan_file

TIME = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = '{"prompt": "The capital of Ruritania is", "target": "Strelsau"}'


def scan(path, uri=None):
    return collect_scan(scan_file(str(path), 0), [str(path)], dump_time=TIME)


def written(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))
    return path


def read(path, found, **options):
    return read_facts(
        str(path), found.facts.line_N, digest=found.digests[0], dump_time=TIME, **{"block_rows": 100, **options}
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"prompt": "x", "targ', "not JSON"),
        ('["a", "list"]', "expected a JSON object"),
        ('{"prompt": "x", "target": ""}', "'target' is empty"),
        ('{"prompt": "x", "target": "y", "colour": "red"}', "unknown field 'colour'"),
        (b'{"prompt": "caf\xe9", "target": "y"}\n', "not UTF-8"),
    ],
)
def test_a_bad_line_is_kept_with_place_reason_and_text(tmp_path, bad, reason):
    path = written(tmp_path / "d.jsonl", GOOD, "", bad, GOOD)
    found = scan(path)
    assert found.facts.line_N.tolist() == [1, 4]
    (line,) = found.bad_lines
    assert (line.file, line.line) == (str(path), 3)
    assert reason in line.reason
    assert str(path) not in line.reason
    text = bad if isinstance(bad, str) else bad.decode("utf-8", "replace").rstrip()
    assert line.raw == text


def test_a_line_without_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(dump, "MAX_LINE_BYTES", 200)
    path = written(tmp_path / "d.jsonl", GOOD, "x" * 100_000, GOOD)
    found = scan(path)
    assert found.facts.line_N.tolist() == [1, 3]
    assert "over 200 bytes" in found.bad_lines[0].reason
    assert len(found.bad_lines[0].raw) < 300


def test_gzip_crlf_bom_and_a_missing_last_line_end_change_nothing(tmp_path):
    plain = scan(written(tmp_path / "plain.jsonl", GOOD, GOOD))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}".encode()))
    packed = scan(tmp_path / "d.jsonl.gz")
    assert not packed.bad_lines
    np.testing.assert_array_equal(packed.facts.content_N2, plain.facts.content_N2)


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(GOOD.encode() * 1000)[:-30]], ids=["not", "cut"])
def test_a_broken_gzip_is_named(tmp_path, content):
    (tmp_path / "d.jsonl.gz").write_bytes(content)
    with pytest.raises(FactError, match=r"d\.jsonl\.gz: cannot be read at line"):
        scan(tmp_path / "d.jsonl.gz")


def test_the_dump_is_known_by_its_content_not_its_place(tmp_path):
    one = scan(written(tmp_path / "one.jsonl", GOOD))
    assert one.dump_hash == scan(written(tmp_path / "two.jsonl", GOOD)).dump_hash
    assert one.dump_hash != scan(written(tmp_path / "three.jsonl", GOOD, GOOD)).dump_hash


def test_the_dumps_time_takes_the_place_of_a_missing_one(tmp_path):
    dated = json.dumps({**json.loads(GOOD), "updated_at": "2020-05-06T07:08:09.123456+02:00"})
    found = scan(path := written(tmp_path / "d.jsonl", GOOD, dated))
    (table,) = read(path, found)
    own = datetime(2020, 5, 6, 5, 8, 9, 123456, tzinfo=UTC)
    assert table["updated_at"].to_pylist() == [TIME, own]
    assert found.facts.updated_us_N.tolist() == [
        int(TIME.timestamp()) * 10**6,
        int(own.replace(microsecond=0).timestamp()) * 10**6 + 123456,
    ]


def test_the_second_pass_reads_the_wanted_lines_in_blocks(tmp_path):
    lines = [json.dumps({"prompt": f"p{number}", "target": "t"}) for number in range(7)]
    path = written(tmp_path / "d.jsonl", *lines)
    found = scan(path)
    tables = list(read_facts(str(path), np.array([2, 3, 7]), digest=found.digests[0], dump_time=TIME, block_rows=2))
    assert [table["prompt"].to_pylist() for table in tables] == [["p1", "p2"], ["p6"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + GOOD + "\n",
        lambda text: text.replace("Strelsau", "Zenda"),
        lambda text: text[:50],
        lambda text: "",
    ],
    ids=["longer", "other", "cut", "empty"],
)
def test_a_dump_that_changed_between_the_passes_is_refused(tmp_path, change):
    path = written(tmp_path / "d.jsonl", GOOD, GOOD)
    found = scan(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(FactError, match=r"d\.jsonl: changed while it was read"):
        list(read(path, found))
