r"""What an ingest costs beside the encoding that it cannot avoid, and what its memory does.

    python benchmarks/ingest.py --editor EDITOR                                  # 200,000 facts: the ratio
    python benchmarks/ingest.py --editor EDITOR --num-facts 100000 1000000 --again --delta 0.01 --folder FOLDER
    python benchmarks/ingest.py --random-encoder 6x384                           # the ratio with a larger encoder
    python benchmarks/ingest.py --staging-only [--dump FILE] [--against CHECKOUT]  # reading and staging a million facts

Facts are invented, written as JSON Lines, and ingested into a new table by `jobs/ingest.py` on a Ray cluster of its
own. Bare encoding is one process a core over batches of facts drawn from the same dump, tokenised already: encoder,
heads and prompt encoder alone, on all cores at once. How fast these cores are may change within minutes, where others
use the same machine; so bare encoding is timed before the ingest, behind it and `--probes` times in between, while all
processes of the ingest are stopped (SIGSTOP), and that time is taken out of the ingest's (an ingest of less than half a
minute is not stopped). The last line is one JSON object; `ratio` is the ingest's facts a second over the mean of the
bare ones, of the last size. Memory is the sum over all processes of the ingest (PSS: what processes share is counted
once), sampled once a minute, for looking takes time too.

`--random-encoder` stands for an editor that differs from the testbed's in its encoder alone, of so many layers and so
wide, with heads of 32 and random weights: 3x192 is the testbed's own size, 6x384 and 12x384 are those of MiniLM-L6-H384
and MiniLM-L12-H384. Weights make no difference to the time.

`--again` ingests the same dump once more; `--delta SHARE` one in which that share of the facts has another target, and
checks the table: counts, contents, and a random sample encoded again.

`--staging-only` times what an ingest does before it encodes, in one process without Ray: every row of a dump is read,
validated and staged in buckets. The dump is given, or made of so many facts in `--form`. `seconds` are the wall's and
`cpu_s` this process's own, which others on the machine disturb less. `--against CHECKOUT` times the code of another
checkout (its root, with or without an environment) in turns with this one's, `--pairs` times each, and prints the
median of the pairs' ratios: above 1 this code is slower.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import ray
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import recipe_ray
from recipe_ray.config import TESTBED
from recipe_ray.datasets.dump import read_any
from recipe_ray.model.editor import TEXTS_PER_CHUNK, Editor, load_editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import llm_width
from recipe_ray.presets import testbed
from recipe_ray.store.dumps.rows import DumpOptions, split_files
from recipe_ray.store.files import list_files
from recipe_ray.store.snapshot import read_partition
from recipe_ray.store.staging import Buckets, Staging
from recipe_ray.store.table import DEFAULT_NUM_SHARDS, FactTable
from recipe_ray.testbed.million import generate_facts

CODE = Path(recipe_ray.__file__).parent.parent
THIS = Path(__file__).resolve()
ENCODE = Path(__file__).with_name("encode.py")
JOB = Path(__file__).parent.parent / "jobs" / "ingest.py"
SAMPLE = 500
SAMPLE_S = 60.0
BEGUN_S = 30.0
FORMS = ("jsonl", "csv", "parquet")


class BareEncoding:
    """Processes, one a core, that encode the same facts when they are asked to and sleep otherwise."""

    def __init__(self, editor: str, facts: Path, num_facts: int) -> None:
        command = [sys.executable, str(ENCODE), "--editor", editor, "--facts", str(facts), "--device", "cpu"]
        command += ["--num-facts", str(num_facts), "--on-request"]
        self._processes = [
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(os.cpu_count() or 1)
        ]

    def __enter__(self) -> "BareEncoding":
        try:
            self._replies()  # ready, each of them
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate()

    def facts_per_s(self) -> float:
        """Of all processes together, working at once."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return sum(map(float, self._replies()))

    def _replies(self) -> list[str]:
        replies = []
        for process in self._processes:
            assert process.stdout is not None
            replies.append(process.stdout.readline())
            if not replies[-1]:
                raise RuntimeError(f"{' '.join(map(str, process.args))} has ended")
        return replies


class Watch:
    """Samples the memory of a process and all its descendants; stops and continues them all."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self.stopped_s = 0.0
        self._root = psutil.Process(pid)
        self._sampled = 0.0

    def sample(self) -> None:
        """Look at the memory, unless the last look was just now."""
        if time.monotonic() - self._sampled < SAMPLE_S:
            return
        self._sampled, total = time.monotonic(), 0
        for process in self._all():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                total += process.memory_full_info().pss
        self.peak_bytes = max(self.peak_bytes, total)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """All of them stand still."""
        stopped: list[psutil.Process] = []
        begun = time.monotonic()
        try:
            while new := [process for process in self._all() if process not in stopped]:  # some begin while others stop
                stopped += new
                for process in new:
                    with contextlib.suppress(psutil.Error):
                        process.suspend()
            yield
        finally:
            for process in reversed(stopped):
                with contextlib.suppress(psutil.Error):
                    process.resume()
            self.stopped_s += time.monotonic() - begun

    def _all(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


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


def run_ingest(
    flags: Sequence[str], report: Path, bare: BareEncoding | None = None, probes: Sequence[float] = ()
) -> dict[str, Any]:
    """One ingest by the job: its report, its peak memory, and the rates of bare encoding after so many seconds each."""
    report.unlink(missing_ok=True)
    command = [sys.executable, str(JOB), *flags, "--report", str(report)]
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent)}
    rates: list[float] = []
    left = list(probes)
    with subprocess.Popen(command, env=environment) as process:
        watch, begun = Watch(process.pid), time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.5)
                watch.sample()
                if bare is not None and left and time.monotonic() - begun - watch.stopped_s >= left[0]:
                    left.pop(0)
                    with watch.stopped():
                        rates.append(bare.facts_per_s())
        except BaseException:
            process.terminate()
            raise
    if process.returncode or left:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}, {len(left)} probes before its end")
    return {
        **json.loads(report.read_text()),
        "peak_memory_bytes": watch.peak_bytes,
        "stopped_s": watch.stopped_s,
        "bare_facts_per_s": rates,
    }


def write_table(path: Path, num_facts: int) -> None:
    """The facts of `write_dump` as CSV or Parquet, by the path's suffix."""
    rows = pa.Table.from_pylist([{**fact, "updated_at": "2026-01-01"} for fact in generate_facts(num_facts, seed=0)])
    if path.suffix == ".csv":
        pa.csv.write_csv(rows, path)
    else:
        pa.parquet.write_table(rows, path)


def stage(source: str, folder: Path) -> dict[str, Any]:
    """Read, validate and stage a dump in this process, beside a table that is never made: counts, and what it took."""
    files, options, now = list_files(source), DumpOptions(), datetime.now(UTC)
    buckets = Buckets.for_dump(files, num_shards=DEFAULT_NUM_SHARDS)
    staging = Staging.begin(str(folder / "table"), "benchmark", buckets, dump_time=now, now=now)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    splits = [
        staging.stage(split, read_any(split, options, now=now)) for split in split_files(files, options)
    ]  # one after the other: how they share a machine is Ray's
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    staging.remove()
    num_rows = sum(split.num_rows for split in splits)
    return {
        "code": str(CODE),
        "rows": num_rows,
        "bad_rows": sum(split.num_bad for split in splits),
        "size_bytes": sum(file.size_bytes for file in files),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "rows_per_s": num_rows / seconds,
    }


def stage_in_turns(source: str, checkouts: Sequence[Path], pairs: int) -> dict[str, Any]:
    """Time the staging of a dump by the code of two checkouts in turns, each time in a process of its own."""
    for checkout in checkouts:
        if not (checkout / "recipe_ray").is_dir():
            raise RuntimeError(f"{checkout}: holds no package recipe_ray; give the root of a checkout")
    runs: list[list[dict[str, Any]]] = []
    for pair in range(pairs):
        runs.append([{}, {}])
        for which in (0, 1) if pair % 2 == 0 else (1, 0):  # neither is always the first
            command = [sys.executable, str(THIS), "--staging-only", "--dump", source]
            environment = {**os.environ, "PYTHONPATH": str(checkouts[which])}
            output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[-1][which] = json.loads(output.splitlines()[-1])
            assert runs[-1][which]["code"] == str(checkouts[which]), command
            print(json.dumps(runs[-1][which]), flush=True)
    return {
        "ratio": statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in runs),
        "ratio_cpu": statistics.median(ours["cpu_s"] / theirs["cpu_s"] for ours, theirs in runs),
        "pairs": runs,
    }


def measure_staging(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `--staging-only` measures, of the dump that is given or of one made here."""
    source = args.dump
    if source is None:
        path = folder / f"{args.num_facts[-1]}.{args.form}"
        if args.form == "jsonl":
            write_dump(path, args.num_facts[-1])
        else:
            write_table(path, args.num_facts[-1])
        source = str(path)
    if args.against is None:
        return stage(source, folder)
    return stage_in_turns(source, [CODE, args.against.resolve()], args.pairs)


def measure_ingest(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Whole ingests against bare encoding, of each size."""
    if args.random_encoder:
        args.editor = str(folder / "editor")
        save_random_editor(args.random_encoder, Path(args.editor))
    sizes: dict[str, Any] = {}
    for num_facts in args.num_facts:
        dump, table, report = (folder / f"{num_facts}{end}" for end in (".jsonl", "-table", "-report.json"))
        shutil.rmtree(table, ignore_errors=True)
        write_dump(dump, num_facts)
        flags = ["--source", str(dump), "--table", str(table), "--editor", args.editor]
        with BareEncoding(args.editor, dump, args.bare_facts) as bare:
            rates = [bare.facts_per_s()]
            # By then it has begun for certain, and cannot have ended: none is faster than bare encoding.
            first, last = BEGUN_S, 0.9 * num_facts / rates[0]
            places = np.linspace(first, last, args.probes).tolist() if last > first else []
            result: dict[str, Any] = {"ingest": run_ingest(flags, report, bare, places)}
            rates += [*result["ingest"]["bare_facts_per_s"], bare.facts_per_s()]
        seconds = result["ingest"]["seconds"] - result["ingest"]["stopped_s"]
        result |= {"seconds": seconds, "facts_per_s": num_facts / seconds, "bare_facts_per_s": rates}
        result["ratio"] = result["facts_per_s"] / statistics.mean(rates)
        if args.again:
            result["again"] = run_ingest(flags, report)
        expected = {fact["id"]: fact["target"] for fact in generate_facts(num_facts, seed=0)}
        if args.delta:
            delta = folder / f"{num_facts}-delta.jsonl"
            result["delta_facts"] = write_dump(delta, num_facts, changed=args.delta)
            with delta.open() as lines:
                expected |= {fact["id"]: fact["target"] for fact in map(json.loads, lines)}
            flags[1] = str(delta)
            result["delta"] = run_ingest(flags, report)
        result["check"] = check_table(str(table), args.editor, expected)
        sizes[str(num_facts)] = result
        print(json.dumps({str(num_facts): result}), flush=True)
    return {
        "ratio": sizes[str(args.num_facts[-1])]["ratio"],
        "encoder": args.random_encoder or args.editor,
        "sizes": sizes,
    }


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--editor", help="directory of a trained editor")
    which.add_argument("--random-encoder", metavar="LAYERSxWIDTH", help="instead of a trained editor")
    which.add_argument("--staging-only", action="store_true", help="no encoding: read, validate and stage a dump")
    parser.add_argument("--num-facts", type=int, nargs="+", help="200,000; with --staging-only a million")
    parser.add_argument("--dump", help="to be staged, instead of one that is made")
    parser.add_argument("--form", choices=FORMS, default="jsonl", help="of the dump that is made to be staged")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="whose staging is timed in turns with this")
    parser.add_argument("--pairs", type=int, default=5, help="times that each of the two is timed")
    parser.add_argument(
        "--bare-facts",
        type=int,
        default=TEXTS_PER_CHUNK,  # what an ingest sorts by length together: fewer have more padding
        help="that each process encodes at a time",
    )
    parser.add_argument("--probes", type=int, default=8, help="times that bare encoding is timed during an ingest")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--delta", type=float)
    parser.add_argument("--folder", type=Path, help="keep dumps and tables here")
    args = parser.parse_args()
    if not args.staging_only and (args.dump or args.against):
        parser.error("--dump and --against go with --staging-only")
    args.num_facts = args.num_facts or [1_000_000 if args.staging_only else 200_000]
    return args


def main() -> None:
    """Measure, and print."""
    args = parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="ingest-"))
    folder.mkdir(parents=True, exist_ok=True)
    result = measure_staging(args, folder) if args.staging_only else measure_ingest(args, folder)
    if args.folder is None:
        shutil.rmtree(folder)
    versions = {"python": platform.python_version(), "ray": ray.__version__, "pyarrow": pa.__version__}
    print(
        json.dumps({**result, "cores": os.cpu_count(), "device": f"CPU ({platform.machine()})", "versions": versions})
    )


if __name__ == "__main__":
    main()
