"""A data set split by subject: nothing twice, nothing of subjects held elsewhere, alike in every run."""

import json

import pytest

from recipe_ray.datasets.sources import read_source
from recipe_ray.datasets.split import main, split
from recipe_ray.errors import ConfigError

RECORDS = [
    {
        "prompt": f"{row % 400} in words {row}",
        "target_new": "t",
        "ground_truth": "g",
        "subject": str(row % 400),
        "rephrase_prompt": f"in other words {row}",
        "locality_prompt": f"free {row}",
        "locality_ground_truth": "f",
    }
    for row in range(600)
]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    return f"counterfact:{tmp_path / 'a.json'}"


def test_parts_share_no_subject_and_hold_everything_that_is_left(source, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{**RECORDS[0], "subject": "7"}]))
    parts, num_held, cleaned = split(
        source, without=[f"counterfact:{tmp_path / 'b.json'}"], shares={"a": 0.25, "b": 0.75}
    )
    subjects = {name: {record.subject for record in records} for name, records in parts.items()}
    assert not subjects["a"] & subjects["b"]
    assert subjects["a"] | subjects["b"] == {str(row) for row in range(400)} - {"7"}
    assert num_held == 2
    assert cleaned.num_read == 600
    assert len(parts["a"]) / 600 == pytest.approx(0.25, abs=0.06)


def test_the_command_writes_what_reads_back_the_same(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["split", "--data", source, "--shares", "a=0.5", "b=0.5", "--output", str(tmp_path)]
    )
    main()
    parts, _, _ = split(source, without=[], shares={"a": 0.5, "b": 0.5})
    for name, records in parts.items():
        path = tmp_path / f"{name}.jsonl"
        read = read_source(f"edits:{path}").records
        assert [dataclass_without_name(one) for one in read] == [dataclass_without_name(one) for one in records]
        assert f"{path}: {len(records)} edits" in capsys.readouterr().out or name == "b"


def dataclass_without_name(record):
    import dataclasses

    return dataclasses.replace(record, name="")


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_do_not_add_up_are_refused(source, shares):
    with pytest.raises(ConfigError, match="give positive ones that add up to 1"):
        split(source, without=[], shares=shares)
