"""The commands of facts.py, as a user meets them."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import facts
from jobs._cli import run
from recipe_ray.config import EditorIdentity
from recipe_ray.facts import fact_from_record
from recipe_ray.store.dumps.rows import DumpOptions, read_split, split_files
from recipe_ray.store.files import list_files, read_text
from recipe_ray.store.parquet import write_events
from recipe_ray.store.pointer import write_pointer
from recipe_ray.store.quarantine import BadLine, quarantine, read_quarantine
from recipe_ray.store.schema import EVENT_SCHEMA, shard_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

JOB = Path(__file__).parents[2] / "jobs" / "facts.py"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = EditorIdentity(
    fingerprint="f00d",
    encoder="an encoder",
    llm="an llm",
    llm_width=5,
    key_width=4,
    num_virtual_tokens=3,
    sentinel_K=np.zeros(4, np.float32),
)


def fill(uri, *records):
    table = FactTable.create_or_open(str(uri), IDENTITY)
    rows = []
    for record in records:
        fact = fact_from_record(record, place="test")
        vectors = {"key": np.ones(4, "<f2").tobytes(), "prompt_embeddings": np.ones(15, "<f2").tobytes()}
        rows.append(
            {name: getattr(fact, name, None) for name in EVENT_SCHEMA.names}
            | (vectors if fact.op == "upsert" else {})
            | {
                "shard": shard_of(fact.fact_id, table.num_shards),
                "updated_at": fact.updated_at or NOW,
                "ingested_at": NOW,
                "content_hash": fact.content_hash(),
                "statement_hash": fact.statement_hash(),
                "encoded": fact.op == "upsert",
            }
        )
    table.commit(write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA)), dump_hash="d1", counts={"new": 3})


@pytest.fixture
def job(monkeypatch, capsys):
    """Runs a command; gives exit status, standard output and standard error."""

    def start(*flags):
        monkeypatch.setattr(sys, "argv", ["facts.py", *map(str, flags)])
        with pytest.raises(SystemExit) as caught:
            run(facts.main, facts.command_type())
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return start


@pytest.fixture
def job_json(job):
    """Runs a command with --json; gives its rows and its summary."""

    def start(*flags):
        status, output, _ = job(*flags, "--json")
        assert status == 0, output
        *rows, last = [json.loads(line) for line in output.splitlines()]
        return rows, last["summary"]

    return start


@pytest.fixture
def table(tmp_path):
    uri = tmp_path / "table"
    fill(
        uri,
        {"id": "fr", "prompt": "The capital of France is", "target": "Lyon", "subject": "France", "source": "[b]news"},
        {"id": "fr2", "prompt": "The capital of france is", "target": "Nice"},
        {"id": "fr", "statement": "In another place", "namespace": "else"},
    )
    fill(uri, {"id": "fr2", "op": "delete", "updated_at": datetime(2026, 1, 2, tzinfo=UTC)})
    return uri


def test_list_shows_the_facts_and_their_number(job, job_json, table):
    status, output, complaint = job("list", "--table", table)
    assert (status, complaint) == (0, "")
    assert "The capital of France is Lyon" in output
    assert "[b]news" in output
    assert output.endswith(f"table {table} version 2: 2 facts\n")
    rows, summary = job_json("list", "--table", table, "--version", 1, "--namespace", "default", "--limit", 1)
    assert [row["fact_id"] for row in rows] == ["fr"]
    assert rows[0]["updated_at"] == "2026-01-01T00:00:00+00:00"
    assert summary == {"table": str(table), "version": 1, "facts": 2, "shown": 1}
    assert "the first 1 shown" in job("list", "--table", table, "--limit", 1)[1]
    assert job_json("list", "--table", table, "--prefix", "fr2")[0] == []


def test_show_tells_a_fact_or_why_there_is_none(job, table):
    def status_of(fact_id, *flags):
        status, output, _ = job("show", fact_id, "--table", table, "--json", *flags)
        assert status == 0
        return [(row["status"], row["fingerprint"]) for row in map(json.loads, output.splitlines())]

    assert status_of("fr") == [("live", "f00d"), ("live", "f00d")]
    assert status_of("fr", "--namespace", "else") == [("live", "f00d")]
    assert status_of("fr2") == [("deleted", "f00d")]
    assert status_of("fr2", "--version", 1) == [("live", "f00d")]
    assert status_of("nobody") == [("never there", "f00d")]
    _, output, _ = job("show", "fr", "--table", table, "--namespace", "default")
    told = dict(line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    assert told["statement"] == "The capital of France is Lyon"
    assert told["vectors"] == "in this file"
    assert (table / told["file"]).is_file()
    assert "nobody was never in table" in job("show", "nobody", "--table", table)[1]


def test_history_tells_what_brought_each_event(job, job_json, table):
    rows, summary = job_json("history", "fr2", "--table", table)
    assert [(row["op"], row["version"], row["operation"], row["dump_hash"], row["stands"]) for row in rows] == [
        ("upsert", 1, "ingest", "d1", False),
        ("delete", 2, "ingest", "d1", True),
    ]
    assert summary["events"] == 2
    assert "stands" in job("history", "fr2", "--table", table)[1]


def test_diff_counts_and_shows_changes(job, job_json, table):
    rows, summary = job_json("diff", 1, 2, "--table", table)
    assert [(row["change"], row["fact_id"], row["before"]["target"], row["after"]) for row in rows] == [
        ("deleted", "fr2", "Nice", None)
    ]
    assert (summary["deleted"], summary["new"]) == (1, 0)
    _, output, _ = job("diff", 0, 1, "--table", table, "--limit", 2)
    assert output.endswith("3 new, 0 changed, 0 deleted, 0 expired, 0 gone; the first 2 shown\n")


def test_diff_shows_which_field_changed_where_the_statement_did_not(job, table):
    later = datetime(2026, 1, 3, tzinfo=UTC)
    fill(
        table, {"id": "fr", "statement": "In another place", "namespace": "else", "source": "him", "updated_at": later}
    )
    assert "source him" in job("diff", 2, 3, "--table", table)[1]


def test_log_tells_versions(job, job_json, table):
    rows, summary = job_json("log", "--table", table)
    assert [(row["version"], row["operation"]) for row in rows] == [(0, "create"), (1, "ingest"), (2, "ingest")]
    assert rows[1]["counts"] == {"new": 3}
    assert summary["versions"] == 3
    assert [row["version"] for row in job_json("log", "--table", table, "--limit", 1)[0]] == [2]
    assert "the last 1 shown" in job("log", "--table", table, "--limit", 1)[1]


def test_delete_deletes_and_says_so(job, job_json, table):
    status, output, _ = job("delete", "fr", "--table", table, "--namespace", "else", "--dry-run")
    assert (status, FactTable.open(str(table)).version) == (0, 2)
    assert "1 facts would be deleted" in output
    rows, summary = job_json("delete", "fr", "nobody", "--table", table, "--namespace", "else", "--missing-ok")
    assert [row["statement"] for row in rows] == ["In another place"]
    assert (summary["version"], summary["deleted"], summary["missing"]) == (3, 1, ["nobody"])
    assert job_json("delete", "--where-namespace", "default", "--table", table)[1]["deleted"] == 1
    assert len(read_snapshot(str(table)).facts) == 0


def test_export_is_a_dump(job, table, tmp_path):
    status, output, _ = job("export", "--table", table, "--output", tmp_path / "out.csv", "--events")
    assert (status, output.split(" events")[0]) == (0, f"{tmp_path}/out.csv: 3")
    options = DumpOptions()
    (split,) = split_files(list_files(str(tmp_path / "out.csv")), options)
    facts_ = [row.fact for row in read_split(split, options, now=datetime.now(UTC))]
    assert sorted((fact.namespace, fact.fact_id, fact.op) for fact in facts_) == [
        ("default", "fr", "upsert"),
        ("default", "fr2", "delete"),
        ("else", "fr", "upsert"),
    ]


def test_conflicts_names_who_contradicts_whom(job, job_json, table):
    assert job_json("conflicts", "--table", table) == (
        [],
        {"table": str(table), "version": 2, "contradictions": 0},
    )
    rows, summary = job_json("conflicts", "--table", table, "--version", 1, "--near")
    assert [(row["number"], row["kind"], row["fact_id"]) for row in rows] == [
        (1, "says", "fr"),
        (1, "says", "fr2"),
        (2, "asked for", "fr"),
        (2, "may be got", "fr2"),
    ]
    assert rows[2]["score"] == rows[2]["own_score"] == 4
    assert (summary["contradictions"], summary["near"], summary["facts"]) == (1, 2, 3)
    assert "1 contradictions; of 3 facts, 2 whose" in job("conflicts", "--table", table, "--version", 1, "--near")[1]


def test_conflicts_ask_with_the_editor_of_the_table_and_no_other(job, table, editor_dir):
    status, _, complaint = job("conflicts", "--table", table, "--near", "--editor", editor_dir)
    assert status == 1
    assert "was encoded by the editor with fingerprint f00d" in complaint


def test_quarantine_is_listed_exported_and_cleared(job, job_json, table, tmp_path):
    for dump in ("one", "two"):
        line = BadLine(file="dump.jsonl", line=7, reason="bad", raw=f'{{"{dump}"')
        quarantine(str(table), [line], dump_hash=dump, ingested_at=NOW)
    rows, summary = job_json("quarantine", "--table", table, "--dump", "two")
    assert [(row["line"], row["raw"]) for row in rows] == [(7, '{"two"')]
    assert (summary["rows"], len(job_json("quarantine", "--table", table)[0])) == (1, 2)
    bad = tmp_path / "bad.jsonl"
    status, output, _ = job("quarantine", "--table", table, "--dump", "one", "--export", bad, "--clear")
    assert (status, output) == (0, f"1 rows exported, 1 rows cleared ({bad})\n")
    assert bad.read_text() == '{"one"\n'
    assert read_quarantine(str(table))["dump_hash"].to_pylist() == ["two"]


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["list", "--limit", "-1"], 1, "limit is -1"),
        (["show", "x", "--version", "9"], 1, "at version 9"),
        (["diff", "1", "1"], 1, "both versions are 1; give two"),
        (["delete", "nobody"], 1, "'nobody' (never there); correct the ids, or give --missing-ok"),
        (["delete"], 1, "no facts are named"),
        (["delete", "fr", "--updated-at", "yesterday"], 1, "updated_at is 'yesterday'; give ISO 8601"),
        (["export", "--output", "x.txt"], 1, "x.txt"),
        (["conflicts", "--near", "--share", "0"], 1, "share is 0.0"),
        (["conflicts", "--share", "0.5"], 1, "share is given without near"),
        (["conflicts", "--near", "--editor", "/nowhere"], 1, "/nowhere: no such directory"),
        (["list", "--no-such"], 64, "--no-such"),
        (["diff", "1"], 64, "AFTER"),
        (["frobnicate"], 64, "frobnicate"),
    ],
)
def test_a_fault_is_one_line(job, table, flags, status, said):
    found, output, complaint = job(*flags, "--table", table)
    assert (found, output) == (status, "")
    (line,) = complaint.splitlines()
    assert said.lower() in line.lower()


def test_every_command_has_help_that_explains_each_flag(job):
    for name in facts.COMMANDS:
        status, output, complaint = job(name, "--help")
        assert (status, complaint) == (0, "")
        assert "--table" in output
        assert "--no-json" not in output


def test_on_s3_as_a_process(s3):
    fill(f"{s3}/table", {"id": "a", "prompt": "The capital is", "target": "Zenda"})

    def start(*flags):
        command = [sys.executable, JOB, *flags, "--table", f"{s3}/table"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = start("export", "--output", f"{s3}/out.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(read_text(f"{s3}/out.jsonl"))["target"] == "Zenda"
    done = start("show", "b", "--version", "7")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: s3://facts/table: cannot be read at version 7")
    assert len(done.stderr.splitlines()) == 1


def test_the_quarantine_is_that_of_where_the_table_moved(job, job_json, table, tmp_path):
    new = tmp_path / "new"
    fill(new, {"id": "fr", "prompt": "The capital of France is", "target": "Paris"})
    line = BadLine(file="a.jsonl", line=1, reason="no", raw="{}")
    quarantine(str(new), [line], dump_hash="one", ingested_at=NOW)
    write_pointer(str(table), str(new), from_version=2)
    rows, summary = job_json("quarantine", "--table", table)
    assert (len(rows), summary["table"]) == (1, str(new))
    status, _, complaint = job("quarantine", "--table", tmp_path / "nowhere")
    assert (status, "neither a table nor a quarantine" in complaint) == (1, True)


@pytest.mark.parametrize(
    "flags",
    [
        ("list", "--version", "-1"),
        ("list", "--version", str(2**70)),
        ("verify", "--version", "-1"),
        ("diff", "--", "-1", "1"),
        ("rollback", "--to", "-1"),
        *[("vacuum", "--retention-hours", number) for number in ("inf", "nan", "1e8", "-1")],
        *[("compact", "--drop-tombstones-older-than", number) for number in ("inf", "nan", "1e8", "-1")],
        ("delete", "fr", "--updated-at", "9999-12-31T23:59:59-05:00"),
    ],
    ids=" ".join,
)
def test_a_number_or_time_that_cannot_be_is_said_in_a_line(job, table, flags):
    command, *rest = flags
    status, output, complaint = job(command, "--table", table, *rest)
    assert (status, output) == (1, "")
    assert complaint.splitlines()[-1].startswith("error: ")
    assert "; give " in complaint
