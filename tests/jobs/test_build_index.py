"""The command line that indexes a table, as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recipe_ray.facts import fact_from_record
from recipe_ray.model.editor import load_editor
from recipe_ray.store.indexes.artefacts import latest_index, open_index
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, shard_of
from recipe_ray.store.table import FactTable
from recipe_ray.testbed.million import generate_facts

JOB = Path(__file__).parents[2] / "jobs" / "build_index.py"
NUM_FACTS = 60


def run(*flags):
    return subprocess.run([sys.executable, JOB, *flags], capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory, editor_dir):
    editor = load_editor(editor_dir, "cpu")
    table = FactTable.create_or_open(str(tmp_path_factory.mktemp("facts") / "table"), editor.identity())
    facts = [fact_from_record(record, place="here") for record in generate_facts(NUM_FACTS, 0)]
    keys_FK, prompts_FPD = editor.encode_facts([fact.statement for fact in facts])
    rows = [
        {
            **{field.name: getattr(fact, field.name, None) for field in EVENT_SCHEMA},
            "shard": shard_of(fact.fact_id, table.num_shards),
            "updated_at": 0,
            "ingested_at": 0,
            "content_hash": fact.content_hash(),
            "statement_hash": fact.statement_hash(),
            "encoded": True,
            "key": key_K.astype(np.float16).tobytes(),
            "prompt_embeddings": prompt_PD.astype(np.float16).tobytes(),
        }
        for fact, key_K, prompt_PD in zip(facts, keys_FK, prompts_FPD, strict=True)
    ]
    table.commit(write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA)), dump_hash="a dump", counts={})
    return table.uri


def test_it_builds_says_what_and_does_nothing_the_second_time(table, editor_dir, tmp_path):
    flags = ["--table", table, "--editor", editor_dir, "--kind", "hnsw", "--json", tmp_path / "summary.json"]
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    where, counts, size = done.stdout.splitlines()
    assert where == f"index {latest_index(table)}"
    assert counts.startswith(f"version 1: {NUM_FACTS} facts in 4 shards (hnsw in 4), recall 1.0000")
    assert counts.endswith("measured on prompts)")
    assert "bytes a fact" in size
    told = json.loads((tmp_path / "summary.json").read_text())
    assert (told["num_facts"], told["kinds"], told["repeated"]) == (NUM_FACTS, {"hnsw": 4}, False)
    assert told["bytes_per_fact"] * NUM_FACTS == told["size_bytes"] > 0
    assert "hnsw as asked" in done.stderr
    index = open_index(told["index"], fingerprint=load_editor(editor_dir, "cpu").fingerprint(), verify=True)
    assert {index.fact(row)["fact_id"] for row in range(NUM_FACTS)} == {f"invented-{n}" for n in range(NUM_FACTS)}

    again = run(*flags)
    assert again.returncode == 0, again.stderr
    assert "nothing was done" in again.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["repeated"]


def test_without_an_editor_it_loads_neither_torch_nor_ray(table):
    code = (
        f"import runpy, sys; sys.argv = ['build_index.py', '--table', {table!r}]\n"
        f"try:\n    runpy.run_path({str(JOB)!r}, run_name='__main__')\n"
        "except SystemExit as exit_:\n    assert exit_.code == 0\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "(exact in 4), recall 1.0000" in done.stdout
    assert "measured on keys" in done.stdout


def test_faults_are_one_line(tmp_path, table):
    failed = run("--table", tmp_path / "nothing")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/nothing: there is no table")
    failed = run("--table", table, "--kind", "exact", "--num-probes", "3")
    assert failed.returncode != 0
    assert "exact has no probes" in failed.stderr
    assert "Traceback" not in failed.stderr
