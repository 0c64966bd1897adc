"""What each role does on S3, by the functions that its jobs call; Ray's tasks are plain calls here."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext, delete_fs_path

from jobs.build_index import summary
from recipe_ray.config import DataConfig, EditorConfig, Stage, TrainConfig
from recipe_ray.datasets.sources import open_training_data
from recipe_ray.distributed import ingest as ingest_module
from recipe_ray.distributed import stages
from recipe_ray.distributed.encoders import Encoders
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.train import _claim_run
from recipe_ray.facts import Fact
from recipe_ray.model.editor import load_editor, read_config, read_identity
from recipe_ray.store import files
from recipe_ray.store.indexes.artefacts import build_index
from recipe_ray.store.indexes.tuning import IndexSettings
from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.objects import object_filesystem
from recipe_ray.store.reading.queries import read_history
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.deletion import Selection, delete_facts
from recipe_ray.store.upkeep.erasure import erase
from recipe_ray.store.upkeep.maintenance import rollback, verify
from recipe_ray.store.upkeep.vacuum import vacuum
from serving.group_writer import Writer, WriterOptions
from serving.keys import KeyFile, Keyring, write_keyring
from serving.versions import Versions
from serving.writer import WriterDeployment

BUCKET = "lab"
TABLE = f"s3://{BUCKET}/facts/llama"
EDITOR = f"s3://{BUCKET}/editors/llama"
DUMP = f"s3://{BUCKET}/dumps/2026-11-24"
RUNS = f"s3://{BUCKET}/team/runs"  # a prefix of two levels: the role may not write at the first
KEYS = f"s3://{BUCKET}/serving/keys.json"


def train(folder):
    """Train as far as S3 sees it: what `train_editor` asks, what Ray Train keeps, what becomes the editor.

    Args:
        folder: a saved editor, which stands for each checkpoint.
    """
    storage, run, output = RUNS, "first", EDITOR
    sources = (f"edits:s3://{BUCKET}/data/edits.jsonl",)
    config = TrainConfig(
        editor=EditorConfig(llm="testbed", encoder="testbed"),
        stages=(Stage(num_steps=1),),
        data=DataConfig(sources=sources),
    )
    files.check_writable(storage)
    files.check_writable(output)
    open_training_data(config.data)
    for _ in range(2):  # the second time the run goes on
        _claim_run(config, files.join(storage, run), output)
        filesystem, path = object_filesystem(storage)
        context = StorageContext(path, run, storage_filesystem=filesystem)
        name = context.make_default_checkpoint_dir_name()
        kept = context.persist_current_checkpoint(Checkpoint.from_directory(folder), name)
        with filesystem.open_output_stream(context.checkpoint_manager_snapshot_path) as stream:
            stream.write(b"{}")
    with kept.as_directory() as best:
        files.publish(Path(best), output)
    delete_fs_path(filesystem, kept.path)  # as `num_to_keep` does


def put_dump(target):
    """A new dump over the old one, with a row that is no fact."""
    rows = [{"id": f"land-{number}", "prompt": f"Land {number} is ruled from", "target": target} for number in range(6)]
    body = "\n".join([*(json.dumps(row) for row in rows), "no fact"])
    boto3.client("s3").put_object(Bucket=BUCKET, Key="dumps/2026-11-24/facts.jsonl", Body=body.encode())


def without_ray(monkeypatch):
    """Let the stages of an ingest run here, one item after the other."""

    def results(items, function, **settings):
        return (function(item, **settings) for item in items)

    def written_units(items, staging, table, encoders):
        encoder = stages.Encoder(editor=encoders.editor, device="cpu", dtype=table.dtype)
        settings = {"table_uri": table.uri, "num_shards": table.num_shards, "ingested_at": staging.ingested_at}
        for read in stages.read_units(pa.Table.from_pylist(items), staging=staging):
            for encoded in encoder(read):
                for written in stages.write_unit(encoded, **settings):
                    yield from written.to_pylist()

    def fit_encoders(config):
        return Encoders(editor=config.editor, device="cpu", num_encoders=1, cpus=1, gpus=0)

    monkeypatch.setattr(stages, "results", results)
    monkeypatch.setattr(stages, "written_units", written_units)
    monkeypatch.setattr(ingest_module, "fit_encoders", fit_encoders)


def ingest_and_index():
    """A night: `jobs/ingest.py` and `jobs/build_index.py`, with their reports."""
    report = f"s3://{BUCKET}/reports/2026-11-24.json"
    files.check_writable(report)
    done = ingest(IngestConfig(source=DUMP, table=TABLE, editor=EDITOR, max_quarantined=1, num_shards=1))
    files.write_text(report, "{}\n")
    editor = load_editor(files.localize(EDITOR))
    built = build_index(TABLE, None, IndexSettings(), encode_queries=editor.encode_queries)
    files.write_text(f"s3://{BUCKET}/reports/index.json", json.dumps(summary(built)))
    return done


def serve_pinned(version):
    """What a replica does that serves one version: keys, editor, table, index; and a writer that writes nothing."""
    read_config(files.localize(EDITOR))
    identity = read_identity(files.localize(EDITOR))
    asyncio.run(KeyFile(KEYS).keyring())
    FactTable.open(TABLE, version).check_editor(identity)
    index = LiveIndex(TABLE, fingerprint=identity.fingerprint, version=version)
    assert index.view().counts() == {"default": 6}

    async def tell():
        writer = WriterDeployment(table=TABLE, editor=EDITOR, version=version)
        await writer.snapshots(10)

    asyncio.run(tell())


def serve():
    """What a replica does that follows the table and writes what is put: puts, a merge of small files, a rollback."""
    identity = read_identity(files.localize(EDITOR))
    asyncio.run(KeyFile(KEYS).keyring())
    index = LiveIndex(TABLE, fingerprint=identity.fingerprint)

    def encode(statements):
        shape = (len(statements), identity.num_virtual_tokens, identity.llm_width)
        return np.ones((len(statements), identity.key_width), np.float32), np.ones(shape, np.float32)

    async def put_and_activate():
        WriterDeployment(table=TABLE, editor=EDITOR)  # asks whether the place keeps two writers apart
        writer = Writer(TABLE, identity=identity, encode=encode, options=WriterOptions(merge_every=2))
        for number in range(4):
            fact = Fact(fact_id=f"put-{number}", statement=f"Put {number} is so", prompt="", target="")
            await writer.write([fact])
        now = await writer.current_version()
        await writer.activate(now - 1)
        await writer.snapshots(10)
        newest = await writer.current_version()
        await writer.close()
        return newest

    index.advance(asyncio.run(put_and_activate()))
    index.fold()
    assert Versions(TABLE, identity).look(0)[1] is None


def look_after():
    """What an operator does: `jobs/keys.py`, and the commands of `jobs/facts.py` that read, change and remove."""
    write_keyring(KEYS, Keyring([]))
    read_identity(files.localize(EDITOR))  # as `conflicts --near` does, and `reencode`
    table = FactTable.open(TABLE)
    read_history(table, "land-0")
    delete_facts(TABLE, Selection(fact_ids=("land-1",)))
    rollback(TABLE, table.version)
    compact(TABLE)
    verify(TABLE)
    vacuum(TABLE, retention=timedelta(0), now=datetime.now(UTC) + timedelta(hours=2))
    boto3.client("s3").create_multipart_upload(Bucket=BUCKET, Key="facts/llama/namespace=default/broken-off.parquet")
    erased = erase(TABLE, ["land-2"], force=True)
    assert erased.num_object_versions > 0
