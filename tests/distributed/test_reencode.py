"""A table encoded anew: the same facts, the new editor's vectors, and readers who notice when it is complete."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from test_ingest import land, targets, write_dump
from tiny_models import tiny_editor

from recipe_ray.distributed import reencode as reencode_module
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.reencode import ReencodeConfig, go_back, reencode
from recipe_ray.errors import ConfigError, TableError
from recipe_ray.model.editor import load_editor
from recipe_ray.store.files import list_below
from recipe_ray.store.pointer import read_pointer
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback, verify

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="session")
def new_editor(tmp_path_factory):
    path = tmp_path_factory.mktemp("new-editor")
    tiny_editor(seed=7).save(path)
    return str(path)


@pytest.fixture
def table(tmp_path):
    return str(tmp_path / "table")


@pytest.fixture
def take_in(tmp_path, table, editor_dir):
    """Ingest records into the old table."""

    def take_in(name, *records, again=False):
        dump = write_dump(tmp_path / name, *records)
        return ingest(IngestConfig(source=str(dump), table=table, editor=str(editor_dir), device="cpu", again=again))

    return take_in


@pytest.fixture
def renew(table, new_editor):
    def renew(**more):
        return reencode(ReencodeConfig(**{"table": table, "editor": new_editor, "device": "cpu", **more}))

    return renew


def texts(snapshot):
    return snapshot.facts.sort_by([("namespace", "ascending"), ("fact_id", "ascending")])


def test_the_facts_are_the_same_with_the_new_vectors(take_in, renew, table, new_editor):
    take_in("a.jsonl", *[land(number, updated_at="2026-01-01") for number in range(8)], land(0, namespace="news"))
    take_in("b.jsonl", land(1, "Zenda", updated_at="2026-02-01"), {"id": "land-2", "op": "delete"})
    take_in("c.jsonl", land(3, "Gone", updated_at="2026-02-01", expires_at="2026-02-02"))
    before, said_before = read_snapshot(table), targets(table)
    report = renew()
    after = read_snapshot(table)
    assert report.output == FactTable.open(table).uri != table
    assert report.num_rounds == 1
    assert texts(after).equals(texts(before))
    statements = after.facts["statement"].to_pylist()
    keys_FK, prompts_FPD = load_editor(new_editor, "cpu").encode_facts(statements)
    np.testing.assert_allclose(after.keys_FK, keys_FK, atol=2e-3)
    np.testing.assert_allclose(after.prompts_FPD, prompts_FPD, atol=2e-3)
    assert verify(table).problems == ()
    assert [name for name in list_below(report.output) if name.endswith("state.json")]
    assert not [name for name in list_below(f"{report.output}/_reencode") if name.endswith(".parquet")]
    # What was deleted or has expired does not come back with a late dump.
    late = IngestConfig(
        source=write_dump_of(table, land(2, "Late", updated_at="2025-12-01"), land(3, "Late", updated_at="2025-12-01")),
        table=table,
        editor=new_editor,
        device="cpu",
    )
    ingest(late)
    assert targets(table) == said_before


def write_dump_of(table, *records):
    from pathlib import Path

    return str(write_dump(Path(table).parent / "late.jsonl", *records))


def test_what_comes_meanwhile_goes_over_before_readers_do(take_in, renew, table, monkeypatch):
    take_in("a.jsonl", land(1, updated_at="2026-01-01"), land(2))
    write, seen = reencode_module.write_pointer, []

    def once_before(place, *args, **named):
        seen.append(targets(place))
        if len(seen) == 1:  # a writer that was faster than the pointer
            take_in("c.jsonl", land(3, "Late"))
        write(place, *args, **named)

    carry, rounds = reencode_module._carry_over, []

    def once_meanwhile(*args):
        if not rounds:
            take_in("b.jsonl", land(1, "Zenda", updated_at="2026-02-01"))
        rounds.append(args)
        return carry(*args)

    monkeypatch.setattr(reencode_module, "write_pointer", once_before)
    monkeypatch.setattr(reencode_module, "_carry_over", once_meanwhile)
    report = renew()
    assert report.num_rounds == 3
    assert targets(table) == {"land-1": "Zenda", "land-2": "Strelsau", "land-3": "Late"}
    assert report.num_encoded == 4
    assert renew().num_rounds == 0


@pytest.mark.parametrize("step", ["export_facts", "ingest", "remove_files", "write_pointer"])
@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
def test_broken_off_it_goes_on(take_in, renew, table, monkeypatch, step, after):
    take_in("a.jsonl", land(1), land(2))
    do = getattr(reencode_module, step)

    def fail(*args, **named):
        if after:
            do(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reencode_module, step, fail)
        with pytest.raises(KeyboardInterrupt):
            renew()
    moved = step == "write_pointer" and after
    assert (read_pointer(table) is not None) == moved
    if not moved:
        take_in("b.jsonl", land(3))
    renew()
    assert targets(table) == {f"land-{number}": "Strelsau" for number in ((1, 2) if moved else (1, 2, 3))}
    assert FactTable.open(table).uri != table


def test_one_may_go_back_and_once_more_forth(take_in, renew, table):
    take_in("a.jsonl", land(1))
    report = renew()
    assert go_back(table) == report.output
    assert FactTable.open(table).uri == table
    take_in("b.jsonl", land(2))
    again = renew()
    assert (again.num_rounds, again.num_encoded) == (1, 1)
    assert targets(table) == {"land-1": "Strelsau", "land-2": "Strelsau"}
    go_back(table)
    with pytest.raises(TableError, match="nothing to go back to"):
        go_back(table)


def test_a_second_re_encoding_moves_on_from_the_first(take_in, renew, table, tmp_path):
    take_in("a.jsonl", land(1))
    first = renew().output
    tiny_editor(seed=8).save(tmp_path / "newest")
    report = renew(editor=str(tmp_path / "newest"))
    assert (report.source, report.table) == (first, table)
    assert FactTable.open(table).uri == FactTable.open(first).uri == report.output
    go_back(table)
    assert FactTable.open(table).uri == FactTable.open(first).uri == first


def test_a_table_without_facts_is_re_encoded(renew, table, editor_dir):
    FactTable.create_or_open(table, load_editor(str(editor_dir), "cpu").identity(), num_shards=2, dtype="float32")
    renew()
    opened = FactTable.open(table)
    assert (opened.uri != table, opened.num_shards, opened.dtype.name) == (True, 2, "float32")


def test_deletes_that_a_compaction_dropped_meanwhile_are_said(take_in, renew, table, monkeypatch):
    take_in("a.jsonl", land(1, updated_at="2026-01-01"), land(2))
    ingest_, calls = reencode_module.ingest, []

    def meanwhile(config):
        if not calls:
            calls.append(config)
            take_in("b.jsonl", {"id": "land-1", "op": "delete"})
            compact(table, drop_tombstones_older_than=timedelta(0), now=datetime.now(UTC) + timedelta(hours=1))
        return ingest_(config)

    monkeypatch.setattr(reencode_module, "ingest", meanwhile)
    with pytest.raises(TableError, match=r"version 3 is the work of compact.*remove it"):
        renew()
    assert targets(table) == {"land-2": "Strelsau"}


def test_compaction_meanwhile_does_no_harm_and_a_rollback_is_said(take_in, renew, table, monkeypatch):
    take_in("a.jsonl", land(1, updated_at="2026-01-01"))
    take_in("b.jsonl", land(1, "Zenda", updated_at="2026-02-01"))
    ingest_, calls = reencode_module.ingest, []

    def meanwhile(config):
        if not calls:
            compact(table)
        elif len(calls) == 1:
            rollback(table, 1)
        calls.append(config)
        return ingest_(config)

    monkeypatch.setattr(reencode_module, "ingest", meanwhile)
    with pytest.raises(TableError, match=r"version 4 is the work of rollback.*remove it"):
        renew()
    assert FactTable.open(table).uri == table


def test_what_cannot_be_is_refused(take_in, renew, table, editor_dir, tmp_path):
    take_in("a.jsonl", land(1))
    with pytest.raises(TableError, match="was encoded by this editor"):
        renew(editor=str(editor_dir))
    with pytest.raises(ConfigError, match="the table itself"):
        renew(output=table)
    other = tmp_path / "other"
    FactTable.create_or_open(str(other), load_editor(str(editor_dir), "cpu").identity())
    with pytest.raises(TableError, match="is a table already"):
        renew(output=str(other))
    (tmp_path / "begun" / "_reencode").mkdir(parents=True)
    state = {"source": "/elsewhere", "fingerprint": "beef", "done": None, "under_way": None}
    (tmp_path / "begun" / "_reencode" / "state.json").write_text(json.dumps(state))
    with pytest.raises(TableError, match="is where /elsewhere is encoded by"):
        renew(output=str(tmp_path / "begun"))


def test_on_s3(s3, tmp_path, editor_dir, new_editor):
    uri = f"{s3}/knowledge/table"
    dump = write_dump(tmp_path / "a.jsonl", land(1), land(2), {"id": "land-3", "op": "delete"})
    ingest(IngestConfig(source=str(dump), table=uri, editor=str(editor_dir), device="cpu"))
    report = reencode(ReencodeConfig(table=uri, editor=new_editor, device="cpu"))
    assert report.output == f"{uri}-{load_editor(new_editor, 'cpu').identity().fingerprint[:8]}"
    assert FactTable.open(uri).uri == report.output
    assert targets(uri) == {"land-1": "Strelsau", "land-2": "Strelsau"}
    assert verify(uri).problems == ()
    go_back(uri)
    assert FactTable.open(uri).uri == uri
