"""Ingest on a small cluster: what a dump does to a table, and what trouble leaves behind."""

import dataclasses
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import boto3
import numpy as np
import pytest
from faulty_s3 import FAULTS, FaultyS3
from ingesting import check_table
from s3_environment import s3_environment

from recipe_ray.distributed import ingest as ingest_module
from recipe_ray.distributed import stages
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.errors import ConfigError, EditorError, FactError, OutputError, TableError
from recipe_ray.model.editor import load_editor
from recipe_ray.store.files import publish, write_text
from recipe_ray.store.quarantine import read_quarantine
from recipe_ray.store.resolve import IngestCounts
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.text import canonical

JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"


class CrashError(Exception):
    pass


def write_dump(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    text = "".join(f"{line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def land(number, target="Strelsau", **more):
    return {"id": f"land-{number}", "prompt": f"The capital of land {number} is", "target": target, **more}


def counts(**given):
    return IngestCounts(**given)


def targets(table, version=None):
    facts = read_snapshot(str(table), version).facts
    return dict(zip(facts["fact_id"].to_pylist(), facts["target"].to_pylist(), strict=True))


@pytest.fixture
def config(tmp_path, editor_dir):
    def make(source, **more):
        return IngestConfig(
            **{
                "source": str(source),
                "table": str(tmp_path / "table"),
                "editor": str(editor_dir),
                "device": "cpu",
                **more,
            }
        )

    return make


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_dump_becomes_a_table_and_the_same_dump_again_changes_nothing(tmp_path, config, editor_dir):
    write_dump(tmp_path / "dump" / "a.jsonl", *[land(number) for number in range(30)], "{not JSON", land(3, "Zenda"))
    write_dump(tmp_path / "dump" / "b.jsonl.gz", land(30, namespace="news"), {"prompt": "x"})
    for path in (tmp_path / "dump").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    report = ingest(config(tmp_path / "dump"))
    assert report.counts == counts(read=34, new=31, superseded=1, quarantined=2)
    assert (report.version, report.num_written, report.num_encoded) == (1, 32, 32)
    assert not (tmp_path / "table" / "_staging").exists()
    assert report.size_bytes == sum(
        path.stat().st_size for path in (tmp_path / "table").glob("namespace=*/*/*.parquet")
    )

    snapshot = read_snapshot(report.table)
    assert len(snapshot.facts) == 31
    assert {moment.timestamp() for moment in snapshot.facts["updated_at"].to_pylist()} == {1_700_000_000}
    keys_FK, prompts_FPD = load_editor(editor_dir, "cpu").encode_facts(snapshot.facts["statement"].to_pylist())
    np.testing.assert_allclose(snapshot.keys_FK, keys_FK, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(snapshot.prompts_FPD, prompts_FPD, rtol=2e-3, atol=1e-3)
    bad = read_quarantine(report.table).to_pylist()
    assert [(Path(row["file"]).name, row["line"], row["raw"]) for row in bad] == [
        ("a.jsonl", 31, "{not JSON"),
        ("b.jsonl.gz", 2, '{"prompt": "x"}'),
    ]

    again = ingest(config(f"{tmp_path}/dump/*"))
    assert (again.repeated, again.version, again.num_written, again.size_bytes) == (True, 1, 0, 0)
    assert (again.counts, again.quarantine) == (report.counts, report.quarantine)
    once_more = ingest(config(f"{tmp_path}/dump/*", again=True))
    # The fact said twice with different targets of one time is in the table in both forms.
    assert once_more.counts == counts(read=34, unchanged=32, quarantined=2)
    assert (once_more.version, once_more.num_written) == (1, 0)
    assert read_quarantine(report.table).to_pylist() == bad


@pytest.mark.usefixtures("in_process")
def test_headers_of_joined_files_are_counted_and_are_no_rows(tmp_path, config):
    part = "prompt,target\nThe capital of {} is,{}\n"
    (tmp_path / "joined.csv").write_text("\ufeff".join([part.format("A", "B"), part.format("C", "D")]))
    report = ingest(config(tmp_path / "joined.csv"))
    assert (report.counts, report.num_headers) == (counts(read=2, new=2), 1)
    assert sorted(targets(report.table).values()) == ["B", "D"]


@pytest.fixture
def former(tmp_path):
    """A table, its dump and its editor, of the release that told texts apart by their spelling."""
    folder = shutil.copytree(Path(__file__).parent / "former", tmp_path / "former")
    os.utime(folder / "dump.jsonl", (1_767_225_600, 1_767_225_600))  # as it was then: some rows tell no time
    return folder


@pytest.mark.usefixtures("in_process")
def test_a_table_of_the_release_before_takes_its_dump_again_without_a_change(tmp_path, config, former):
    where = {"table": str(former / "table"), "editor": str(former / "editor")}
    before = targets(former / "table")
    repeated = ingest(config(former / "dump.jsonl", **where))
    assert (repeated.repeated, repeated.num_renewed, repeated.num_joined) == (True, 11, 5)
    after = targets(former / "table")
    assert len(after) == len(before) - 5
    assert after.items() <= before.items()
    snapshot = read_snapshot(repeated.table)
    prompts = [canonical(fact["prompt"] or fact["statement"]) for fact in snapshot.facts.to_pylist()]
    assert len(set(prompts)) == len(prompts)
    assert "The tower of Orléans is" in prompts  # the later spelling has expired
    again = ingest(config(former / "dump.jsonl", **where, again=True))
    assert again.counts == counts(read=22, unchanged=21, superseded=1)
    assert (again.num_renewed, again.num_joined, again.num_written, again.num_encoded) == (0, 0, 0, 0)
    assert targets(former / "table") == after
    keys_FK, _ = load_editor(former / "editor", "cpu").encode_facts(snapshot.facts["statement"].to_pylist())
    np.testing.assert_allclose(snapshot.keys_FK, keys_FK, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_facts_of_the_release_before_are_changed_and_deleted_by_their_prompts(tmp_path, config, former, spelling):
    where = {"table": str(former / "table"), "editor": str(former / "editor")}
    mayor, capital = (
        unicodedata.normalize(spelling, text) for text in ("The mayor of São Paulo is", "The capital of Perú is")
    )
    dump = write_dump(
        tmp_path / "new.jsonl", {"prompt": mayor, "target": "Tarcísio"}, {"op": "delete", "prompt": capital}
    )
    report = ingest(config(dump, **where))
    assert report.counts == counts(read=2, changed=1, deleted=1)
    said = [canonical(fact["statement"]) for fact in read_snapshot(report.table).facts.to_pylist()]
    assert [one for one in said if "Perú" in one or "Paulo" in one] == ["The mayor of São Paulo is Tarcísio"]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_what_the_release_before_deleted_does_not_come_back_with_a_late_dump(tmp_path, config, former, spelling):
    where = {"table": str(former / "table"), "editor": str(former / "editor")}
    lake = unicodedata.normalize(spelling, "The lake of Zürich is")
    late = write_dump(tmp_path / "late.jsonl", {"prompt": lake, "target": "x", "updated_at": "2026-01-01"})
    assert ingest(config(late, **where)).counts == counts(read=1, superseded=1)
    later = write_dump(tmp_path / "later.jsonl", {"prompt": lake, "target": "x", "updated_at": "2026-03-01"})
    assert ingest(config(later, **where)).counts == counts(read=1, new=1)
    assert ingest(config(late, **where, again=True)).counts == counts(read=1, superseded=1)


@pytest.mark.usefixtures("in_process")
def test_a_later_dump_changes_deletes_and_leaves_what_is_newer(tmp_path, config):
    def at(day):
        return {"updated_at": f"2026-01-{day:02}"}

    first = write_dump(tmp_path / "one.jsonl", *[land(number, **at(5)) for number in range(4)])
    assert ingest(config(first)).counts == counts(read=4, new=4)
    second = write_dump(
        tmp_path / "two.jsonl",
        land(0, "Zenda", **at(6)),
        {"id": "land-1", "op": "delete", **at(6)},
        land(2, "too old", **at(4)),
        land(3, **at(5)),
        land(4, **at(5)),
    )
    assert ingest(config(second)).counts == counts(read=5, new=1, changed=1, deleted=1, superseded=1, unchanged=1)
    assert targets(tmp_path / "table") == {
        "land-0": "Zenda",
        "land-2": "Strelsau",
        "land-3": "Strelsau",
        "land-4": "Strelsau",
    }
    assert set(targets(tmp_path / "table", version=1)) == {"land-0", "land-1", "land-2", "land-3"}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        (["{", "also bad"], r"dump\.jsonl:1: not JSON.*none of the 2 rows of the dump is a fact"),
        ([""], r"dump\.jsonl: holds no facts"),
    ],
)
def test_a_dump_without_facts_writes_nothing(tmp_path, config, records, complaint):
    with pytest.raises(FactError, match=complaint):
        ingest(config(write_dump(tmp_path / "dump.jsonl", *records)))
    assert not (tmp_path / "table").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_each_of_many_items_is_given_to_one_task():
    def doubled(item, *, by):
        return item * by

    import ray

    num_items = 3 * stages.TASKS_PER_CPU * int(ray.cluster_resources()["CPU"])
    assert sorted(stages.results(range(num_items), doubled, by=2)) == list(range(0, 2 * num_items, 2))
    assert list(stages.results([], doubled, by=2)) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_fault_in_a_task_reaches_the_driver_as_one_line(tmp_path, config):
    (tmp_path / "dump.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(FactError) as fault:
        ingest(config(tmp_path / "dump.jsonl.gz"))
    assert type(fault.value) is FactError
    assert str(fault.value).startswith(f"{tmp_path}/dump.jsonl.gz: cannot be read at line 1")
    assert len(str(fault.value).splitlines()) == 1


@pytest.mark.usefixtures("in_process")
def test_what_cannot_work_is_refused_before_the_dump_is_read(tmp_path, config, monkeypatch):
    monkeypatch.setattr(ingest_module, "hash_dump", lambda *_, **__: pytest.fail("the dump was read"))
    dump = write_dump(tmp_path / "dump.jsonl", land(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/table: cannot be written"):
        ingest(config(dump, table=str(tmp_path / "file" / "table")))
    with pytest.raises(EditorError, match="nothing"):
        ingest(config(dump, editor=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"needs 1 GPUs, the cluster has 0"):
        ingest(config(dump, device="cuda"))
    with pytest.raises(ConfigError, match="needs 64 CPUs"):
        ingest(config(dump, cpus_per_encoder=64))
    other = dataclasses.replace(load_editor(config(dump).editor, "cpu").identity(), fingerprint="beef")
    FactTable.create_or_open(str(tmp_path / "table"), other)
    with pytest.raises(TableError, match="fingerprint beef"):
        ingest(config(dump))


@pytest.mark.usefixtures("in_process")
def test_a_dump_that_changes_while_it_is_read_is_refused(tmp_path, config, monkeypatch):
    dump = write_dump(tmp_path / "dump.jsonl", land(0), land(1))

    def stage(*args, **kwargs):
        staged = stage_dump(*args, **kwargs)
        write_dump(dump, land(0), land(1, "Zenda"), land(2))
        return staged

    stage_dump = ingest_module.stage_dump
    monkeypatch.setattr(ingest_module, "stage_dump", stage)
    with pytest.raises(FactError, match=r"dump\.jsonl: changed while it was read"):
        ingest(config(dump))
    assert not (tmp_path / "table").exists()


@pytest.mark.usefixtures("in_process")
def test_a_crash_before_the_commit_leaves_the_table_as_it_was(tmp_path, config, monkeypatch):
    ingest(config(write_dump(tmp_path / "one.jsonl", land(0, updated_at="2026-02-01"))))
    dump = write_dump(tmp_path / "two.jsonl", land(0, "Zenda", updated_at="2026-02-02"), land(1))

    def crash(*_, **__):
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(FactTable, "commit", crash)
        with pytest.raises(CrashError):
            ingest(config(dump))
    assert targets(tmp_path / "table") == {"land-0": "Strelsau"}
    assert ingest(config(dump)).version == 2
    assert targets(tmp_path / "table") == {"land-0": "Zenda", "land-1": "Strelsau"}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("same", [True, False], ids=["same dump", "another dump"])
def test_another_writer_in_between_makes_it_decide_again(tmp_path, config, monkeypatch, same):
    dump = write_dump(tmp_path / "dump.jsonl", land(0), land(1, updated_at="2026-02-01"))
    other = dump if same else write_dump(tmp_path / "other.jsonl", land(1, "Zenda", updated_at="2026-02-02"))
    encode_and_write = ingest_module.encode_and_write

    def encode(*args, **kwargs):
        files = encode_and_write(*args, **kwargs)
        monkeypatch.setattr(ingest_module, "encode_and_write", encode_and_write)
        ingest(config(other))  # commits while the outer ingest holds files of an older decision
        return files

    monkeypatch.setattr(ingest_module, "encode_and_write", encode)
    report = ingest(config(dump))
    if same:
        assert (report.repeated, report.version) == (True, 1)
        assert targets(tmp_path / "table") == {"land-0": "Strelsau", "land-1": "Strelsau"}
    else:
        assert report.counts == counts(read=2, new=1, superseded=1)
        assert report.version == 2
        assert targets(tmp_path / "table") == {"land-0": "Strelsau", "land-1": "Zenda"}


@pytest.mark.usefixtures("in_process")
def test_what_was_written_before_a_crash_is_not_encoded_again(tmp_path, config, monkeypatch):
    monkeypatch.setattr(stages, "UNIT_ROWS", 4)
    dump = write_dump(tmp_path / "dump.jsonl", *[land(number) for number in range(40)])
    encode, encoded = stages.Encoder.__call__, []

    def crash_at(number):
        def call(self, rows):
            if len(encoded) == number:
                raise CrashError
            encoded.append(len(rows))
            return encode(self, rows)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(stages.Encoder, "__call__", crash_at(5))
        with pytest.raises(CrashError):
            ingest(config(dump))
    assert len(encoded) == 5
    monkeypatch.setattr(stages.Encoder, "__call__", crash_at(None))
    report = ingest(config(dump))
    assert (report.num_encoded, sum(encoded)) == (40, 40)
    assert len(targets(tmp_path / "table")) == 40


@pytest.mark.usefixtures("in_process")
def test_what_is_said_again_later_is_written_and_not_encoded(tmp_path, config):
    first = write_dump(tmp_path / "one.jsonl", *[land(number, updated_at="2026-01-01") for number in range(9)])
    ingest(config(first))
    again = write_dump(tmp_path / "two.jsonl", *[land(number, updated_at="2026-01-03") for number in range(9)])
    report = ingest(config(again))
    assert report.counts == counts(read=9, unchanged=9)
    assert (report.num_written, report.num_encoded) == (9, 0)
    # so that what is older than the repetition, and arrives late, does not stand
    late = write_dump(tmp_path / "three.jsonl", land(0, "Zenda", updated_at="2026-01-02"))
    assert ingest(config(late)).counts == counts(read=1, superseded=1)
    assert set(targets(tmp_path / "table").values()) == {"Strelsau"}


@pytest.mark.usefixtures("in_process")
def test_an_s3_that_fails_a_third_of_requests_in_every_way_loses_nothing(tmp_path, config, editor_dir, monkeypatch):
    with FaultyS3(FAULTS, delay_s=0.1).running() as s3:
        for name, value in (s3_environment(s3.endpoint) | {"RECIPE_RAY_CACHE": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="facts")
        place = f"s3://facts/{tmp_path.name}"  # servers of one process share what they hold
        write_text(f"{place}/dump/a.jsonl", "".join(f"{json.dumps(land(number))}\n" for number in range(50)))
        publish(editor_dir, f"{place}/editor")
        s3.failing.set()
        report = ingest(config(f"{place}/dump", table=f"{place}/table", editor=f"{place}/editor", num_shards=4))
        s3.failing.clear()
        assert s3.num_failed > 20
        assert report.counts == counts(read=50, new=50)
        check_table(f"{place}/table", {f"land-{number}": "Strelsau" for number in range(50)}, num_events=50)


def set_time(path, moment):
    os.utime(path, (moment, moment))
    return path


@pytest.mark.usefixtures("in_process")
def test_an_undated_dump_that_says_again_what_an_older_one_said_is_news(tmp_path, config):
    dump = tmp_path / "dump.jsonl"
    for moment, target in ((1_700_000_000, "A"), (1_700_000_100, "B"), (1_700_000_200, "A")):
        report = ingest(config(set_time(write_dump(dump, land(0, target)), moment)))
        assert not report.repeated
        assert targets(tmp_path / "table") == {"land-0": target}
    assert ingest(config(dump)).repeated
    dated = write_dump(tmp_path / "dated.jsonl", land(1, updated_at="2026-01-01"))
    ingest(config(set_time(dated, 1_700_000_000)))
    assert ingest(config(set_time(dated, 1_700_000_300))).repeated  # its own time says nothing here


@pytest.mark.usefixtures("in_process")
def test_files_renamed_between_a_crash_and_the_restart_are_all_read(tmp_path, config, monkeypatch):
    for name, lands in (("a", range(3)), ("b", range(3, 6))):
        set_time(write_dump(tmp_path / "dump" / f"{name}.jsonl", *map(land, lands)), 1_700_000_000)
    stage, staged = stages.Staging.stage, []

    def crash_at_the_second(self, split, rows, **options):
        if staged:
            raise CrashError
        staged.append(split)
        return stage(self, split, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Staging, "stage", crash_at_the_second)
        with pytest.raises(CrashError):
            ingest(config(tmp_path / "dump"))
    (tmp_path / "dump" / "a.jsonl").rename(tmp_path / "dump" / "c.jsonl")
    assert ingest(config(tmp_path / "dump")).counts == counts(read=6, new=6)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("trouble", ["file gone", "rest of a write", "empty marker"])
def test_finished_units_are_taken_only_where_they_are_whole(tmp_path, config, monkeypatch, trouble):
    dump = write_dump(tmp_path / "dump.jsonl", *[land(number) for number in range(20)])

    def crash(*_, **__):
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(FactTable, "commit", crash)
        with pytest.raises(CrashError):
            ingest(config(dump))
    (staging,) = (tmp_path / "table" / "_staging").iterdir()
    marker = next((staging / "units").glob("*.json"))
    if trouble == "file gone":
        next((tmp_path / "table").glob("namespace=*/*/*.parquet")).unlink()
    elif trouble == "rest of a write":
        (staging / "units" / f"{marker.name}.0123").touch()
    else:
        marker.write_text("")
    assert ingest(config(dump)).counts == counts(read=20, new=20)
    assert len(targets(tmp_path / "table")) == 20


@pytest.mark.usefixtures("in_process")
def test_contradictions_with_what_the_table_tells_are_counted(tmp_path, config):
    same = {"prompt": "The capital of Ruritania is"}
    first = ingest(config(write_dump(tmp_path / "one.jsonl", {"id": "a", **same, "target": "Strelsau"}, land(1))))
    assert first.contradictions == 0
    second = ingest(config(write_dump(tmp_path / "two.jsonl", {"id": "b", **same, "target": "Zenda"}, land(2))))
    assert second.contradictions == 1
    assert ingest(config(write_dump(tmp_path / "three.jsonl", land(3)))).contradictions == 0


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_dumps_does_not_matter(tmp_path, config, order):
    dumps = [
        write_dump(tmp_path / "a.jsonl", land(0, "A", updated_at="2026-01-01"), land(1, "A", updated_at="2026-01-03")),
        write_dump(tmp_path / "b.jsonl", land(0, "B", updated_at="2026-01-02"), land(1, "B", updated_at="2026-01-02")),
        write_dump(tmp_path / "c.jsonl", {"id": "land-1", "op": "delete", "updated_at": "2026-01-04"}, land(2, "C")),
    ]
    for number in order:
        ingest(config(dumps[number], num_shards=1))
    assert targets(tmp_path / "table") == {"land-0": "B", "land-2": "C"}


def data_files(table):
    return list(table.glob("namespace=*/*/*.parquet"))


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(lambda table: (table / "_delta_log" / f"{0:020}.json").exists(), id="table made"),
        pytest.param(data_files, id="files written"),
        pytest.param(lambda table: (table / "_delta_log" / f"{1:020}.json").exists(), id="committed"),
    ],
)
def test_killed_at_any_moment_it_completes_when_started_again(tmp_path, config, moment):
    import ray

    settings = config(write_dump(tmp_path / "dump.jsonl", *[land(number) for number in range(200)], "{bad"))
    table = tmp_path / "table"
    command = [sys.executable, JOB, "--source", settings.source, "--table", settings.table]
    command += ["--editor", settings.editor, "--device", "cpu"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    log = tmp_path / "job.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 240
        while not moment(table):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(targets(table)) in (0, 200)
    ingest(settings)
    assert len(targets(table)) == 200
    assert FactTable.open(str(table)).version == 1
    assert read_quarantine(str(table))["line"].to_pylist() == [201]


def test_contradictory_settings_are_refused(config):
    with pytest.raises(ConfigError, match=r"device is cpu and gpus_per_encoder is 0\.5"):
        config("x", gpus_per_encoder=0.5)
    with pytest.raises(ConfigError, match="num_shards is 0"):
        config("x", num_shards=0)
    with pytest.raises(ConfigError, match="max_quarantined is -1"):
        config("x", max_quarantined=-1)
