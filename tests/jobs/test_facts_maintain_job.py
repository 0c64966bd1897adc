"""The commands of facts.py that look after a table, as a user meets them."""

import pytest
from test_facts_job import fill, job, job_json  # noqa: F401 -- fixtures among them

from jobs import _facts_maintain
from recipe_ray.distributed import reencode as reencode_module
from recipe_ray.distributed.reencode import ReencodeReport
from recipe_ray.store.pointer import write_pointer
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable


def land(number, target="Strelsau", **more):
    return {"id": f"land-{number}", "prompt": f"The capital of land {number} is", "target": target, **more}


def last_line(complaint):
    return complaint.splitlines()[-1]


@pytest.fixture
def table(tmp_path):
    uri = str(tmp_path / "table")
    fill(uri, land(1), land(2))
    fill(uri, land(1, "Zenda", updated_at="2026-02-01"), {"id": "land-2", "op": "delete", "updated_at": "2026-02-01"})
    return uri


def targets(table):
    facts = read_snapshot(table).facts
    return dict(zip(facts["fact_id"].to_pylist(), facts["target"].to_pylist(), strict=True))


def test_rollback_says_which_dumps_it_undoes(table, job, job_json):  # noqa: F811
    rows, summary = job_json("rollback", "--table", table, "--to", "1")
    assert targets(table) == {"land-1": "Strelsau", "land-2": "Strelsau"}
    assert [row["dump_hash"] for row in rows] == ["d1"]
    assert (summary["version"], summary["to"], summary["undone"]) == (3, 1, 1)
    status, output, _ = job("rollback", "--table", table, "--to", "2")
    assert status == 0
    assert "version 4 tells what version 2 tells" in output
    status, output, complaint = job("rollback", "--table", table, "--to", "9")
    assert (status, output) == (1, "")
    assert last_line(complaint).startswith(f"error: {table}: is at version 4, version 9 is not before it")


def test_compact_and_vacuum_say_what_they_gained(table, job, job_json):  # noqa: F811
    status, output, _ = job("compact", "--table", table)
    assert status == 0
    assert "version 3: " in output
    assert "2 events and 0 tombstones dropped" in output
    _, summary = job_json("compact", "--table", table, "--drop-tombstones-older-than", "0")
    assert (summary["version"], summary["num_tombstones_dropped"]) == (4, 1)
    rows, summary = job_json("vacuum", "--table", table, "--retention-hours", "0", "--dry-run")
    assert len(rows) == summary["files"] > 0
    assert {row["kind"] for row in rows} <= {"data", "log"}
    status, output, _ = job("vacuum", "--table", table, "--retention-hours", "0")
    assert status == 0
    assert f"{summary['files']} files removed" in output
    assert "versions from 4 on can be read" in output
    assert targets(table) == {"land-1": "Zenda"}
    status, _, complaint = job("vacuum", "--table", table, "--retention-hours", "-1")
    assert (status, "retention" in last_line(complaint)) == (1, True)


def test_verify_ends_with_1_where_something_is_wrong(table, job, tmp_path):  # noqa: F811
    status, output, _ = job("verify", "--table", table)
    assert status == 0
    assert "whole" in output
    path = max((tmp_path / "table").rglob("part-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    status, output, _ = job("verify", "--table", table)
    assert status == 1
    assert "things are wrong" in output
    assert path.name[:20] in output.replace("\n", "")
    status, output, _ = job("verify", "--table", table, "--json")
    assert status == 1
    assert len(output.splitlines()) > 1


def test_erase_says_what_it_did(table, job, job_json):  # noqa: F811
    _, summary = job_json("erase", "land-1", "--table", table, "--force", "--dry-run")
    assert (summary["num_facts"], summary["num_events"], summary["dry_run"]) == (1, 2, True)
    assert "land-1" in targets(table)
    status, output, _ = job("erase", "land-1", "--table", table, "--force")
    assert status == 0
    assert "1 facts erased with 2 events" in output
    assert "a late dump may bring them back" in output
    assert "older versions are gone" in output
    assert targets(table) == {}
    for flags, complaint in ((("nobody",), "no version holds such a fact"), ((), "nothing to erase was named")):
        status, output, said = job("erase", *flags, "--table", table, "--force")
        assert (status, output) == (1, "")
        assert complaint in last_line(said)


def test_migrate_leaves_a_table_of_today_alone(table, job):  # noqa: F811
    status, output, _ = job("migrate", "--table", table)
    assert status == 0
    assert "nothing was done" in output


def test_reencode_takes_an_editor_or_goes_back(table, job, job_json, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("recipe_ray.distributed.cluster.connect", lambda bulk: None)
    given = []

    def reencode(config):
        given.append(config)
        return ReencodeReport(
            table=table,
            source=table,
            source_version=2,
            output=f"{table}-new",
            version=1,
            num_rounds=1,
            num_encoded=1,
            seconds=1.0,
        )

    monkeypatch.setattr(reencode_module, "reencode", reencode)
    status, output, _ = job("reencode", "--table", table, "--editor", "new", "--num-encoders", "2")
    assert status == 0
    assert f"table {table}-new version 1" in output
    assert (given[0].editor, given[0].num_encoders, given[0].output) == ("new", 2, None)
    fill(tmp_path / "new", land(1))
    write_pointer(table, str(tmp_path / "new"), from_version=2)
    assert FactTable.open(table).uri != table
    _, summary = job_json("reencode", "--table", table, "--back")
    assert summary["left"] == str(tmp_path / "new")
    assert FactTable.open(table).uri == table
    for flags, complaint in (((), "editor is missing"), (("--back", "--editor", "x"), "exclude each other")):
        status, _, said = job("reencode", "--table", table, *flags)
        assert status == 1
        assert complaint in last_line(said)


def test_every_command_of_this_module_is_there():
    from jobs import facts

    assert set(_facts_maintain.MAINTAIN_COMMANDS) <= set(facts.COMMANDS)
