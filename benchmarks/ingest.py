r"""What an ingest costs beside the encoding that it cannot avoid, and what its memory does.

    python benchmarks/ingest.py --editor EDITOR                                  # 200,000 facts: the ratio
    python benchmarks/ingest.py --editor EDITOR --num-facts 100000 1000000 --again --delta 0.01 --folder FOLDER
    python benchmarks/ingest.py --random-encoder 6x384                           # the ratio with a larger encoder

Facts are invented, written as JSON Lines, and ingested into a new table on a Ray cluster of this machine, as
`jobs/ingest.py` does it. Bare encoding is one process a core over batches of the same facts, tokenised already, before
and behind each ingest (of `--bare-facts` each): encoder, heads and prompt encoder alone. The last line is one JSON
object; `ratio` is the ingest's facts a second over the bare ones', of the last size. Memory is the sum over this
process and all of Ray's (PSS: what processes share is counted once), sampled every thirty seconds, for looking takes
time too.

`--random-encoder` stands for an editor that differs from the testbed's in its encoder alone, of so many layers and so
wide, with heads of 32 and random weights: 3x192 is the testbed's own size, 6x384 that of MiniLM-L6-H384. Weights make
no difference to the time.

`--again` ingests the same dump once more; `--delta SHARE` one in which that share of the facts has another target, and
checks the table: counts, contents, and a random sample encoded again.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from recipe_ray.config import TESTBED
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import IngestReport, ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import llm_width
from recipe_ray.presets import testbed
from recipe_ray.store.snapshot import read_partition
from recipe_ray.store.table import FactTable
from recipe_ray.testbed.million import generate_facts

ENCODE = Path(__file__).with_name("encode.py")
SAMPLE = 500
SAMPLE_S = 30.0


class Memory:
    """The largest memory of this process and all its descendants, in bytes, sampled in the background."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, memory_bytes())


def memory_bytes() -> int:
    """Proportional set size of this process and all its descendants."""
    me, total = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


def save_random_editor(shape: str, folder: Path) -> None:
    """Write an editor of the testbed's shape but for its encoder, LAYERSxWIDTH, of random weights."""
    num_layers, width = map(int, shape.split("x"))
    config, source = testbed().editor, model_source(TESTBED, "encoder")
    encoder_config = AutoConfig.from_pretrained(
        source,
        num_hidden_layers=num_layers,
        hidden_size=width,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    model = AutoModel.from_config(encoder_config, dtype=torch.float32, add_pooling_layer=False)
    encoder = TextEncoder(model, AutoTokenizer.from_pretrained(source), config.pooling)
    Editor(config, encoder, llm_width=llm_width(TESTBED)).save(folder)


def bare_facts_per_s(editor: str, facts: Path, num_facts: int) -> float:
    """Facts a second of bare encoding by one process a core, together."""
    cores = os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ENCODE), "--editor", editor, "--facts", str(facts), "--device", "cpu"]
    command += ["--num-facts", str(num_facts), "--rounds", "1", "--only-bare"]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(cores)
    ]
    total = 0.0
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
        total += json.loads(output.splitlines()[-1])["bare_facts_per_s"]
    return total


def write_dump(path: Path, num_facts: int, *, changed: float | None = None) -> int:
    """Invented facts as JSON Lines, dated; or the given share of them with another target and a later date."""
    rng = random.Random(0)
    written = 0
    with path.open("w") as lines:
        for fact in generate_facts(num_facts, seed=0):
            if changed is None:
                record = {**fact, "updated_at": "2026-01-01"}
            elif rng.random() < changed:
                record = {**fact, "target": f"not {fact['target']}", "updated_at": "2026-01-02"}
            else:
                continue
            lines.write(json.dumps(record) + "\n")
            written += 1
    return written


def check_table(uri: str, editor: str, expected: dict[str, str]) -> dict[str, Any]:
    """Count the live facts, compare every target, and encode a random sample again."""
    table = FactTable.open(uri)
    loaded = load_editor(editor, "cpu")
    rng = np.random.default_rng(0)
    num_facts, worst = 0, 0.0
    for partition in table.partitions():
        part = read_partition(table, partition)
        num_facts += len(part.facts)
        ids, targets = part.facts["fact_id"].to_pylist(), part.facts["target"].to_pylist()
        wrong = [fact_id for fact_id, target in zip(ids, targets, strict=True) if expected[str(fact_id)] != target]
        if wrong:
            raise RuntimeError(f"{uri}: {len(wrong)} facts have another target, {wrong[0]} the first")
        rows = rng.choice(len(part.facts), min(SAMPLE, len(part.facts)), replace=False)
        statements = [str(text) for text in part.facts["statement"].take(rows).to_pylist()]
        keys_FK, prompts_FPD = loaded.encode_facts(statements)
        for again, stored in ((keys_FK, part.keys_FK[rows]), (prompts_FPD, part.prompts_FPD[rows])):
            worst = max(worst, float(np.abs(again - stored).max() / np.abs(again).max()))
    if num_facts != len(expected):
        raise RuntimeError(f"{uri}: holds {num_facts} facts, {len(expected)} were ingested")
    return {"facts": num_facts, "sample": SAMPLE * len(table.partitions()), "largest_relative_difference": worst}


def measured(config: IngestConfig) -> dict[str, Any]:
    """One ingest: its report and its peak memory."""
    with Memory() as memory:
        report: IngestReport = ingest(config)
    return {**asdict(report), "peak_memory_bytes": memory.peak_bytes}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--editor", help="directory of a trained editor")
    which.add_argument("--random-encoder", metavar="LAYERSxWIDTH", help="instead of a trained editor")
    parser.add_argument("--num-facts", type=int, nargs="+", default=[200_000])
    parser.add_argument("--bare-facts", type=int, default=8192)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--delta", type=float)
    parser.add_argument("--folder", type=Path, help="keep dumps and tables here")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="ingest-"))
    folder.mkdir(parents=True, exist_ok=True)
    if args.random_encoder:
        args.editor = str(folder / "editor")
        save_random_editor(args.random_encoder, Path(args.editor))
    sizes: dict[str, Any] = {}
    for num_facts in args.num_facts:
        dump, table = folder / f"{num_facts}.jsonl", folder / f"table-{num_facts}"
        shutil.rmtree(table, ignore_errors=True)
        write_dump(dump, num_facts)
        bare = [bare_facts_per_s(args.editor, dump, args.bare_facts)]
        connect()
        try:
            config = IngestConfig(source=str(dump), table=str(table), editor=args.editor)
            result: dict[str, Any] = {"ingest": measured(config)}
            if args.again:
                result["again"] = measured(config)
            expected = {fact["id"]: fact["target"] for fact in generate_facts(num_facts, seed=0)}
            if args.delta:
                delta = folder / f"{num_facts}-delta.jsonl"
                result["delta_facts"] = write_dump(delta, num_facts, changed=args.delta)
                with delta.open() as lines:
                    expected |= {fact["id"]: fact["target"] for fact in map(json.loads, lines)}
                result["delta"] = measured(IngestConfig(source=str(delta), table=str(table), editor=args.editor))
        finally:
            ray.shutdown()
        bare.append(bare_facts_per_s(args.editor, dump, args.bare_facts))
        result["bare_facts_per_s"] = bare
        result["ratio"] = result["ingest"]["facts_per_s"] / statistics.mean(bare)
        result["check"] = check_table(str(table), args.editor, expected)
        sizes[str(num_facts)] = result
        print(json.dumps({str(num_facts): result}), flush=True)
    if args.folder is None:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "ratio": sizes[str(args.num_facts[-1])]["ratio"],
                "encoder": args.random_encoder or args.editor,
                "sizes": sizes,
                "cores": os.cpu_count(),
                "device": f"CPU ({platform.machine()})",
                "versions": {"python": platform.python_version(), "ray": ray.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
