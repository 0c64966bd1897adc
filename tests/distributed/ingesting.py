"""Ingests started as users start them, and what their table must hold."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from recipe_ray.store.parquet import check_file
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"


def write_dump(path, targets, updated_at="2026-01-01", *more):
    """A fact for each id; `more` are lines as they are."""
    records = [
        {"id": fact_id, "prompt": f"The capital of {fact_id} is", "target": target, "updated_at": updated_at}
        for fact_id, target in targets.items()
    ]
    path.write_text("".join(f"{line}\n" for line in [*map(json.dumps, records), *more]))
    return path


class Ingest:
    """A job as a user starts it, on the cluster that `environment` names by RAY_ADDRESS, else on one of its own."""

    def __init__(self, source, table, editor, log, environment, *flags):
        self.command = [
            sys.executable,
            JOB,
            "--source",
            source,
            "--table",
            table,
            "--editor",
            editor,
            "--device",
            "cpu",
            *flags,
        ]
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment = own | environment
        self.log = log
        self.process = None

    def start(self):
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=sink, stderr=sink)
        return self

    def finish(self, timeout_s=300):
        code = self.process.wait(timeout=timeout_s)
        return code, self.log.read_text()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def check_table(uri, expected, *, num_events=None):
    """Nothing lost, nothing doubled, every byte as it was written."""
    table = FactTable.open(uri)
    facts = read_snapshot(uri).facts
    found = dict(zip(facts["fact_id"].to_pylist(), facts["target"].to_pylist(), strict=True))
    assert found == expected
    for partition in table.partitions():
        for path in partition.paths:
            check_file(table.uri, path)
    if num_events is not None:
        assert sum(file.num_rows for file in table.files()) == num_events
